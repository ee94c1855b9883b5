"""PyTorch, in process: exported programs, AOTInductor packages, TorchScript, state_dict.

``torch_exported.py`` and ``torch_modules.py`` make a ``Program`` out of each kind of artifact; this
file executes one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from typing_extensions import override

from sidecar.errors import (
    ArtifactError,
    ExecutionError,
    InvalidRequestError,
    MissingExtraError,
    SidecarError,
)
from sidecar.protocol.datatypes import BY_NAME
from sidecar.runtimes import artifacts
from sidecar.runtimes.base import Array, Placement, Runtime, Signature
from sidecar.runtimes.failures import execution_error
from sidecar.runtimes.signature import batch_limit, fits

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.config_runtime import PyTorchConfig
    from sidecar.runtimes.torch_program import Program

_log = logging.getLogger(__name__)

_FORMATS = {
    "torch_exported": "exported",
    "torch_aoti": "aoti",
    "torch_torchscript": "torchscript",
    "torch_pickle": "state_dict",
    "torch_pickle_legacy": "state_dict",
}


class PyTorchRuntime(Runtime):
    """One program. Numpy arrays in and out; tensors only in between."""

    def __init__(
        self, program: Program, signature: Signature, placement: Placement, device: Any
    ) -> None:
        import torch

        from sidecar.runtimes.torch_program import DTYPES

        super().__init__(signature, placement)
        self._program: Program | None = program
        self._device = device
        self._on_cpu = device.type == "cpu"
        self._torch = torch
        self._bf16 = BY_NAME["BF16"].numpy
        self._dtypes = [DTYPES[spec.datatype] for spec in signature.outputs]
        self._positions = {spec.name: i for i, spec in enumerate(signature.outputs)}

    @override
    def infer_impl(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Execute; see ``Runtime.infer``."""
        program = self._program
        assert program is not None, "infer after close"
        if program.check_inputs:
            self._check_inputs(inputs)
        try:
            with self._torch.inference_mode():
                tensors = [self._to_tensor(inputs[s.name], program) for s in self.signature.inputs]
                results = program.run(tensors)
                return self._to_arrays(program, tensors, results, outputs)
        except ExecutionError:
            raise
        except Exception as error:  # noqa: BLE001 - a model is code: it may raise anything
            raise _failure(error) from None

    @override
    def close(self) -> None:
        """Drop the program; its memory goes when the last execution has ended."""
        self._program = None

    def _check_inputs(self, inputs: Mapping[str, Array]) -> None:
        for spec in self.signature.inputs:
            array = inputs[spec.name]
            if not fits(array.shape, spec.shape) or array.dtype != BY_NAME[spec.datatype].numpy:
                message = f"input {spec.name!r} must be {spec.datatype} of shape "
                message += f"{list(spec.shape)}, not {array.dtype} of shape {list(array.shape)}"
                raise InvalidRequestError(message)

    def _to_tensor(self, array: Array, program: Program) -> Any:
        brain = array.dtype == self._bf16
        if brain:
            array = array.view("<i2")
        # A request's buffer is not ours to write, nor is it always aligned (binary HTTP bodies), so
        # it is lent only to programs that are known to read, and copied for the others. DLPack
        # lends read-only arrays; from_numpy warns about them, once per process and through global
        # filters, which threads cannot change safely.
        lend = program.reads_only or not self._on_cpu
        if lend and array.flags.aligned:
            tensor = self._torch.from_dlpack(array)
        else:
            tensor = self._torch.from_numpy(array.copy())
        if brain:
            tensor = tensor.view(self._torch.bfloat16)
        return tensor if self._on_cpu else tensor.to(self._device)

    def _to_arrays(
        self, program: Program, tensors: list[Any], results: Sequence[Any], outputs: Sequence[str]
    ) -> list[Array]:
        # Storages an output must not share: the model's state and inputs, and other outputs.
        taken = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        arrays: list[Array] = []
        for name in outputs:
            position = self._positions[name]
            tensor = results[position]
            if tensor.requires_grad:  # a weight given back as it is
                tensor = tensor.detach()
            spec = self.signature.outputs[position]
            if tensor.dtype != self._dtypes[position]:
                message = f"output {name!r} is {tensor.dtype}, but the model's signature says "
                message += spec.datatype
                raise ExecutionError(message)
            if program.check_outputs and not fits(tensor.shape, spec.shape):
                message = f"output {name!r} has shape {list(tensor.shape)}, but the model's "
                message += f"signature says {list(spec.shape)}"
                raise ExecutionError(message)
            brain = tensor.dtype == self._torch.bfloat16
            if brain:
                tensor = tensor.contiguous().view(self._torch.int16)
            array: Array = tensor.cpu().contiguous().numpy()
            if self._on_cpu:
                address = tensor.untyped_storage().data_ptr()
                if program.state is None or address in program.state or address in taken:
                    array = array.copy()
                taken.add(address)
            arrays.append(array.view(self._bf16) if brain else array)
        return arrays


class CudaPyTorchRuntime(PyTorchRuntime):
    """The same on a CUDA device, where ``infer`` mostly waits."""

    waits: ClassVar[bool] = True


def _failure(error: Exception) -> ExecutionError:
    text = str(error).strip()
    if "TorchScript interpreter" in text:
        # A traceback of the model's source, then "RuntimeError: what it was".
        text = text.rpartition("\n")[2].partition(": ")[2]
    # The first line says what; the rest are C++ frames, hints about environment variables, code.
    first = text.partition("\n")[0]
    kind = type(error).__name__
    return execution_error(first if isinstance(error, RuntimeError) else f"{kind}: {first}")


# --- loading --------------------------------------------------------------------------------------


def build(variant: VariantConfig) -> Runtime:
    """Load one copy of a PyTorch artifact.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind; or nothing says its inputs
            and outputs; or the config contradicts it.
        SidecarError: torch is not installed, or this build or machine has no such device.
    """
    config = cast("PyTorchConfig", variant.runtime)
    kind = artifacts.require(config.path, _FORMATS, "pytorch")
    found = _FORMATS[kind]
    if config.format not in {"auto", found}:
        message = f"{config.path.name}: the config says format: {config.format}, but it is "
        message += f"{artifacts.DESCRIPTIONS[kind][0]} (format: {found})"
        raise ArtifactError(message)
    if config.precision != "as_exported" and found in {"exported", "aoti"}:
        message = f"{config.path.name}: precision: {config.precision} casts TorchScript and "
        message += "state_dict modules only; cast the module before exporting it"
        raise ArtifactError(message)
    try:
        load = _loader(found)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        message = "kind: pytorch needs torch: install model-sidecar[pytorch]"
        raise MissingExtraError(message) from None
    device = _device(config.device)
    _apply_process_settings(config)
    if kind == "torch_pickle_legacy" or not artifacts.check_zip_checksums(config.path):
        _log.warning("%s carries no checksums: damage cannot be seen", config.path.name)
    program = load(variant, config, device)
    limit = batch_limit(
        config.path.name,
        program.inputs,
        program.outputs,
        config.max_batch_size,
        symbols=program.batch_symbols,
        limit=program.batch_limit,
    )
    signature = Signature(program.inputs, program.outputs, limit, f"pytorch_{found}", "pytorch")
    placement = Placement(
        device="cpu" if device.type == "cpu" else f"cuda:{device.index}",
        memory_bytes=program.memory_bytes,
        details={
            "format": found,
            "threads": str(_threads()),
            "memory": program.memory_meaning,
        },
    )
    runtime = PyTorchRuntime if device.type == "cpu" else CudaPyTorchRuntime
    return runtime(program, signature, placement, device)


def _loader(found: str) -> Callable[[VariantConfig, PyTorchConfig, Any], Program]:
    from sidecar.runtimes import torch_exported, torch_modules

    return {
        "exported": torch_exported.load_exported,
        "aoti": torch_exported.load_aoti,
        "torchscript": torch_modules.load_torchscript,
        "state_dict": torch_modules.load_state_dict,
    }[found]


def _device(name: str) -> Any:
    import torch

    if name == "cpu":
        return torch.device("cpu")
    if not torch.backends.cuda.is_built():
        message = f"device {name}: the installed torch {torch.__version__} is built without CUDA; "
        message += "install a CUDA build of torch (or set device: cpu)"
        raise SidecarError(message)
    count = torch.cuda.device_count()
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        message = f"device {name}: torch finds {count} CUDA devices here (or set device: cpu)"
        raise SidecarError(message)
    return torch.device("cuda", index)


_applied: dict[str, object] = {}


def _apply_process_settings(config: PyTorchConfig) -> None:
    """Set what torch keeps per process; two variants that disagree get a line in the log."""
    import torch

    wanted: dict[str, object] = {"deterministic": config.deterministic}
    if config.intra_op_threads:
        wanted["intra_op_threads"] = config.intra_op_threads
    if config.device != "cpu":
        wanted["tf32"] = config.tf32
    for name, value in wanted.items():
        if _applied.get(name, value) != value:
            _log.warning(
                "torch keeps %s per process: %s replaces %s, for every variant",
                name, value, _applied[name],
            )  # fmt: skip
        _applied[name] = value
    if config.intra_op_threads:
        torch.set_num_threads(config.intra_op_threads)
    torch.use_deterministic_algorithms(config.deterministic)
    if config.device != "cpu":
        torch.backends.cuda.matmul.allow_tf32 = config.tf32
        torch.backends.cudnn.allow_tf32 = config.tf32


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
