"""Every intermediate value of an exported PyTorch program, in one run of it.

The exporter does not convert the program as it was saved: it first decomposes operators that ONNX
has no counterpart for, and that renames values. So there are two forms of a program here, as saved
and as the exporter sees it, and localization takes the one that more values of the ONNX graph can
be found in.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.errors import ArtifactError, MissingExtraError
from sidecar.runtimes import artifacts
from sidecar.validation.align import FxValue, parse_text, source_of
from sidecar.validation.divergence import LocalizeError, too_large

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array

_log = logging.getLogger(__name__)


class FxProgram:
    """An exported program that can be run with its values looked at.

    Attributes:
        name: the file's.
        values: its nodes by name, in order (see ``FxValue``).
        outputs: names of the nodes that are its tensor outputs, in order.
        inputs: names of its tensor inputs, in order.
    """

    def __init__(self, name: str, exported: Any) -> None:
        self.name = name
        self._exported = exported
        self.values = dict(_values(exported))
        nodes = {node.name: node for node in exported.graph.nodes}
        self.outputs = [
            leaf
            for leaf in exported.graph_signature.user_outputs
            if isinstance(leaf, str) and _is_tensor(nodes[leaf].meta.get("val"))
        ]
        self.inputs = [
            leaf
            for leaf in exported.graph_signature.user_inputs
            if isinstance(leaf, str) and _is_tensor(nodes[leaf].meta.get("val"))
        ]

    def decomposed(self) -> FxProgram | None:
        """The program as torch's ONNX exporter sees it; ``None`` where this torch cannot say.

        The decompositions are those of ``torch.onnx.export(dynamo=True)``, from the functions it
        uses itself: its public interface gives them only with a whole conversion.
        """
        try:
            with _quiet():
                from torch.onnx._internal.exporter import _core, _registration

                registry = _registration.ONNXRegistry.from_torchlib()
                prepared = _core._prepare_exported_program_for_export(
                    self._exported, registry=registry
                )
            return FxProgram(self.name, prepared)
        except Exception as error:  # noqa: BLE001 - private functions of another package
            _log.info("%s: torch's exporter passes cannot be run: %s", self.name, error)
            return None

    def state(self) -> dict[str, Array]:
        """Weights, buffers and constants by their names in the module."""
        tensors = {**self._exported.state_dict, **self._exported.constants}
        return {name: to_array(value) for name, value in tensors.items() if _is_tensor(value)}

    def run(
        self,
        inputs: Mapping[str, Array],
        wanted: Collection[str],
        *,
        bytes_max: int,
        on_value: Callable[[], None] = lambda: None,
    ) -> dict[str, Array]:
        """Run once on the CPU; the interpreter frees what is neither wanted nor needed any more.

        Args:
            inputs: arrays by the program's input names.
            wanted: names of values to keep.
            bytes_max: bound on what is kept.
            on_value: called as each wanted value is computed.

        Returns:
            The wanted values, copied.

        Raises:
            LocalizeError: an input is missing, the program fails on it, or the bound is reached.
        """
        import torch

        kept: dict[str, Array] = {}
        room = bytes_max

        class Capture(torch.fx.Interpreter):  # type: ignore[misc]  # torch is untyped here
            def run_node(self, n: Any) -> Any:
                nonlocal room
                result = super().run_node(n)
                if n.name in wanted and _is_tensor(result):
                    room -= result.nbytes
                    if room < 0:
                        raise too_large(bytes_max)
                    kept[n.name] = to_array(result)
                    on_value()
                return result

        arguments = self._arguments(inputs)
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                runner = Capture(self._exported.graph_module, garbage_collect_values=True)
                runner.extra_traceback = False
                runner.run(*arguments, enable_io_processing=False)
        except LocalizeError:
            raise
        except Exception as error:
            message = f"{self.name} cannot be run on this input: {error}"
            raise LocalizeError(message) from error
        return kept

    def _arguments(self, inputs: Mapping[str, Array]) -> list[Any]:
        from torch.export.graph_signature import ConstantArgument, InputKind

        state = {**self._exported.state_dict, **self._exported.constants}
        arguments: list[Any] = []
        for spec in self._exported.graph_signature.input_specs:
            if spec.kind != InputKind.USER_INPUT:
                # A program that writes into its buffers shall not change the next run's.
                value = state.get(spec.target)
                if spec.kind == InputKind.BUFFER and value is not None:
                    value = value.clone()
                arguments.append(value)
            elif isinstance(spec.arg, ConstantArgument):
                arguments.append(spec.arg.value)
            elif spec.arg.name in inputs:
                arguments.append(_to_tensor(inputs[spec.arg.name]))
            else:
                message = f"{self.name} takes an input {spec.arg.name!r}, which is not among "
                message += f"those given ({', '.join(sorted(inputs)) or 'none'})"
                raise LocalizeError(message)
        return arguments


def load_program(path: Path) -> FxProgram:
    """Read a ``.pt2``, onto the CPU.

    Raises:
        LocalizeError: it is another kind of PyTorch artifact, whose values cannot be seen.
        ArtifactError: it is missing or damaged.
        MissingExtraError: torch is not installed.
    """
    kind = artifacts.sniff(path)
    if kind != "torch_exported":
        message = f"{path.name} is {artifacts.DESCRIPTIONS[kind][0]}, whose values cannot be seen "
        message += "one by one; localization needs an exported program: "
        message += "torch.export.save(torch.export.export(module, args), 'model.pt2')"
        raise LocalizeError(message)
    try:
        import torch
    except ModuleNotFoundError:
        message = "localization in a PyTorch program needs torch: install model-sidecar[pytorch]"
        raise MissingExtraError(message) from None
    artifacts.check_zip_checksums(path)
    try:
        with _quiet():
            exported = torch.export.load(str(path))
            devices = {tensor.device.type for tensor in exported.state_dict.values()}
            if devices - {"cpu"}:
                from torch.export.passes import move_to_device_pass

                exported = move_to_device_pass(exported, "cpu")
    except Exception as error:  # noqa: BLE001 - torch raises whatever its reader meets
        message = f"torch {torch.__version__} cannot load {path.name}: {error}"
        raise ArtifactError(message) from None
    return FxProgram(path.name, exported)


def to_array(tensor: Any) -> Array:
    """A copy of a tensor as an array (bfloat16 as ml_dtypes' bfloat16)."""
    import torch

    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.bfloat16:
        import ml_dtypes

        bits: Array = tensor.contiguous().view(torch.int16).numpy()
        return np.array(bits.view(ml_dtypes.bfloat16))
    array: Array = tensor.resolve_conj().resolve_neg().numpy()
    return np.array(array, order="C")


def _to_tensor(array: Array) -> Any:
    import torch

    array = np.array(array, order="C")  # ours to write, aligned, contiguous
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _values(exported: Any) -> Iterator[tuple[str, FxValue]]:
    for node in exported.graph.nodes:
        if node.op not in {"call_function", "call_method", "call_module"}:
            continue
        value = node.meta.get("val")
        shape: tuple[int, ...] | None = None
        if _is_tensor(value):
            shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        stack = node.meta.get("nn_module_stack") or {}
        module = str(next(reversed(stack.values()))[0]) if stack else ""
        yield (
            node.name,
            FxValue(
                name=node.name,
                body=parse_text(node.format_node() or "")[1],
                module=module,
                source=source_of(node.meta.get("stack_trace") or ""),
                shape=shape,
            ),
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Torch's exporter logs and warns about packages and its own internals; nobody asked here."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
