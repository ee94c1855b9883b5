"""Exported programs (``torch.export``) and AOTInductor packages."""

from __future__ import annotations

import os
import re
import threading
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from sidecar.errors import ArtifactError
from sidecar.runtimes.base import TensorSpec
from sidecar.runtimes.failures import client_text
from sidecar.runtimes.signature import declared, fits, reconcile, yaml_for
from sidecar.runtimes.torch_program import Program, datatype_of, output_names

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.config_runtime import PyTorchConfig

# --- exported programs ----------------------------------------------------------------------------


def load_exported(variant: VariantConfig, config: PyTorchConfig, device: Any) -> Program:
    """Load a ``.pt2`` that ``torch.export.save`` wrote; its signature is in it."""
    name = config.path.name
    try:
        exported = torch.export.load(str(config.path))
    except Exception as error:  # noqa: BLE001 - torch raises whatever its reader meets
        message = f"torch cannot load the exported program {name}: {client_text(str(error))} "
        message += f"(this is torch {torch.__version__}; a newer one may have written it)"
        raise ArtifactError(message) from None
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        exported = move_to_device_pass(exported, str(device))
    found, constants, symbols = _exported_inputs(name, exported)
    given, positions, out_symbols = _exported_outputs(name, exported)
    inputs = reconcile(name, "inputs", found, variant.inputs)
    outputs = reconcile(name, "outputs", given, variant.outputs, by_position=True)
    module = exported.module()
    # Calling the module costs 58 µs on a 32→64→10 MLP, of which 34 are pytrees and hooks; with
    # flat code generation its forward takes the tensors and gives a tuple, for 24.
    module.graph.set_codegen(torch.fx.graph.CodeGen())
    module.recompile()
    state = _state_tensors(module)
    return Program(
        run=_flat_runner(module, constants, positions),
        inputs=inputs,
        outputs=outputs,
        memory_bytes=sum(tensor.nbytes for tensor in state),
        memory_meaning="weights and buffers",
        reads_only=not _writes(module),
        state=frozenset(tensor.untyped_storage().data_ptr() for tensor in state),
        batch_symbols=(*symbols, *out_symbols),
        batch_limit=_upper_bound(exported, symbols),
    )


def _flat_runner(
    module: Any, constants: dict[int, Any], positions: list[int]
) -> Callable[[list[Any]], Sequence[Any]]:
    forward = module.forward
    if not constants and positions == list(range(len(module.graph.output_node().args[0]))):
        return lambda tensors: forward(*tensors)

    def run(tensors: list[Any]) -> Sequence[Any]:
        arguments = list(tensors)
        for position, value in sorted(constants.items()):
            arguments.insert(position, value)
        results = forward(*arguments)
        return [results[position] for position in positions]

    return run


def _exported_inputs(
    name: str, exported: Any
) -> tuple[list[TensorSpec], dict[int, Any], list[str | None]]:
    """Return the tensor inputs, the values of those baked in as constants, and batch symbols."""
    values = {
        node.name: node.meta.get("val") for node in exported.graph.find_nodes(op="placeholder")
    }
    specs: list[TensorSpec] = []
    constants: dict[int, Any] = {}
    symbols: list[str | None] = []
    for position, item in enumerate(exported.graph_signature.user_inputs):
        value = values.get(item) if isinstance(item, str) else None
        if isinstance(value, torch.Tensor):
            datatype = datatype_of(name, f"input {item!r}", value.dtype)
            specs.append(TensorSpec(item, datatype, _shape(value)))
            symbols.append(_symbol(value))
        elif isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            message = f"{name}: input {item!r} is a number of any value, not a tensor; the "
            message += "protocol carries tensors: export the model with a tensor in its place"
            raise ArtifactError(message)
        else:
            constants[position] = item
    return specs, constants, symbols


def _exported_outputs(
    name: str, exported: Any
) -> tuple[list[TensorSpec], list[int], list[str | None]]:
    """Return the tensor outputs, their positions (``None`` and constants are left out), symbols."""
    leaves = exported.graph_signature.user_outputs
    names = output_names(exported.call_spec.out_spec)
    nodes = {node.name: node for node in exported.graph.nodes}
    specs: list[TensorSpec] = []
    positions: list[int] = []
    symbols: list[str | None] = []
    for position, (leaf, label) in enumerate(zip(leaves, names, strict=True)):
        value = nodes[leaf].meta.get("val") if isinstance(leaf, str) and leaf in nodes else None
        if isinstance(value, torch.Tensor):
            datatype = datatype_of(name, f"output {label!r}", value.dtype)
            specs.append(TensorSpec(label, datatype, _shape(value)))
            positions.append(position)
            symbols.append(_symbol(value))
    if not specs:
        message = f"{name} returns no tensor"
        raise ArtifactError(message)
    return specs, positions, symbols


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else -1 for size in tensor.shape)


def _symbol(tensor: Any) -> str | None:
    return str(tensor.shape[0]) if tensor.ndim and not isinstance(tensor.shape[0], int) else None


def _upper_bound(exported: Any, symbols: Sequence[str | None]) -> int | None:
    bounds = []
    for symbol, interval in exported.range_constraints.items():
        if str(symbol) in symbols and interval.upper.is_Integer:
            # not is_finite: torch's own infinity (no upper bound) says it is finite
            bounds.append(int(interval.upper))
    return min(bounds, default=None)


def _state_tensors(module: Any) -> list[Any]:
    """Return every tensor the program holds: weights, buffers, and constants beside them."""
    found = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for node in module.graph.find_nodes(op="get_attr"):
        value = module
        for part in node.target.split("."):
            value = getattr(value, part)
        if isinstance(value, torch.Tensor):
            found[id(value)] = value
    return list(found.values())


def _writes(module: Any) -> bool:
    """Whether some operator writes into an argument: perhaps an input, or a view of one."""
    return any(
        node.op == "call_function"
        and (not hasattr(node.target, "_schema") or node.target._schema.is_mutable)
        for node in module.graph.nodes
    )


# --- AOTInductor ----------------------------------------------------------------------------------

#: The metadata key under which a package may carry its own signature, as JSON:
#: ``{"inputs": [{"name": …, "datatype": …, "shape": […]}, …], "outputs": […]}``. Given to
#: ``aoti_compile_and_package(inductor_configs={"aot_inductor.metadata": {KEY: text}})``.
SIGNATURE_KEY = "sidecar.signature"

_AT_DTYPES = {
    "Bool": "BOOL", "Byte": "UINT8", "UInt16": "UINT16", "UInt32": "UINT32", "UInt64": "UINT64",
    "Char": "INT8", "Short": "INT16", "Int": "INT32", "Long": "INT64", "Half": "FP16",
    "Float": "FP32", "Double": "FP64", "BFloat16": "BF16",
}  # fmt: skip
_CHECK = re.compile(
    r'"input_handles\[(\d+)\]: (unmatched dtype|unmatched dim value at|unmatched stride value at'
    r'|dim value is too \w+ at)(?: (\d+))?, "\s*'
    r'<< "expected(?:: (?:" << \w+ << "\(at::k(\w+)\)|(\d+)))?'
)


def load_aoti(variant: VariantConfig, config: PyTorchConfig, device: Any) -> Program:
    """Load a package that ``aoti_compile_and_package`` wrote.

    It carries how many inputs and outputs there are, and in its source the inputs' dtypes, ranks
    and fixed sizes, but no names: the config (or the package's own metadata) declares them, and is
    held to the rest, because compiled code reads beyond the end of an input of another shape.
    """
    from torch._inductor.package import load_package

    name = config.path.name
    built_for, facts = _package_facts(config.path)
    if built_for and built_for != device.type:
        message = f"{name} was compiled for {built_for}, the config says device: {config.device}"
        raise ArtifactError(message)
    # One runner executes one request at a time; runners share the weights.
    runners = min(os.cpu_count() or 1, 8) if device.type == "cpu" else 2
    try:
        model = load_package(
            str(config.path),
            num_runners=runners,
            device_index=-1 if device.type == "cpu" else device.index,
        )
        metadata = model.get_metadata()
        specs = [pytree.treespec_loads(text) for text in model.loader.get_call_spec()]
    except Exception as error:  # noqa: BLE001 - torch raises whatever its reader meets
        message = f"torch cannot load the AOTInductor package {name}: {client_text(str(error))} "
        message += f"(this is torch {torch.__version__} on this machine's CPU; packages fit the "
        message += "torch, platform and instruction set that they were compiled with)"
        raise ArtifactError(message) from None
    carried = _carried_signature(name, metadata)
    labels = output_names(specs[1])
    inputs = _declared_inputs(variant, name, carried[0], facts)
    outputs = _declared_outputs(variant, name, carried[1], labels)
    boxed_run = model.loader.boxed_run
    # A thread that finds no free runner waits inside torch while it holds Python's lock, which the
    # running ones need to finish: all stop for ever (torch 2.13). So nobody waits in there.
    free = threading.BoundedSemaphore(runners)

    def run(tensors: list[Any]) -> Sequence[Any]:
        with free:
            results: Sequence[Any] = boxed_run(tensors)
        return results

    return Program(
        run=run,
        inputs=inputs,
        outputs=outputs,
        memory_bytes=config.path.stat().st_size,
        memory_meaning="size of the package",
        check_inputs=True,
        check_outputs=True,
    )


def _package_facts(path: Path) -> tuple[str, dict[int, _InputFacts]]:
    """Return the device a package was compiled for, and what its source says of the inputs."""
    built_for = ""
    facts: dict[int, _InputFacts] = {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.namelist():
            if entry.endswith("wrapper_metadata.json"):
                # Not as JSON: the entry's checksum is checked, what an exporter wrote is not ours.
                found = re.search(rb'"AOTI_DEVICE_KEY":\s*"(\w+)"', archive.read(entry))
                built_for = found[1].decode() if found else ""
            elif entry.endswith("wrapper.cpp"):
                source = archive.read(entry).decode("utf-8", "replace")
                for index, what, axis, dtype, value in _CHECK.findall(source):
                    fact = facts.setdefault(int(index), _InputFacts())
                    fact.note(what, axis, dtype, value)
    return built_for, facts


class _InputFacts:
    """What compiled code assumes about one input."""

    def __init__(self) -> None:
        self.datatype: str | None = None
        self.sizes: dict[int, int] = {}
        self.strides: dict[int, int] = {}
        self.rank = 0

    def note(self, what: str, axis: str, dtype: str, value: str) -> None:
        """Take in one of the source's checks."""
        if dtype:
            self.datatype = _AT_DTYPES.get(dtype, dtype)
            return
        if not axis:
            return
        self.rank = max(self.rank, int(axis) + 1)
        if what.startswith("unmatched dim"):
            self.sizes[int(axis)] = int(value)
        elif what.startswith("unmatched stride"):
            self.strides[int(axis)] = int(value)

    def spec(self, name: str) -> TensorSpec:
        """Return what is known as a spec."""
        shape = tuple(self.sizes.get(axis, -1) for axis in range(self.rank))
        return TensorSpec(name, self.datatype or "FP32", shape)

    def contiguous(self) -> bool:
        """Whether the strides it was compiled for are those of a C-contiguous array."""
        step: int | None = 1
        for axis in reversed(range(self.rank)):
            stride = self.strides.get(axis)
            # The stride of a dimension of size 1 is never used.
            if step is not None and stride not in {None, step} and self.sizes.get(axis) != 1:
                return False
            size = self.sizes.get(axis)
            step = None if step is None or size is None else step * size
        return True


def _carried_signature(
    name: str, metadata: dict[str, str]
) -> tuple[tuple[TensorSpec, ...] | None, tuple[TensorSpec, ...] | None]:
    if SIGNATURE_KEY not in metadata:
        return None, None
    from pydantic import TypeAdapter, ValidationError

    from sidecar.config_runtime import TensorConfig

    adapter = TypeAdapter(dict[str, tuple[TensorConfig, ...]])
    try:
        carried = adapter.validate_json(metadata[SIGNATURE_KEY])
        return declared(carried["inputs"]), declared(carried["outputs"])
    except (ValidationError, KeyError):
        message = f"{name}: its metadata entry {SIGNATURE_KEY} is not a signature "
        message += '({"inputs": [{"name", "datatype", "shape"}, …], "outputs": […]})'
        raise ArtifactError(message) from None


def _declared_inputs(
    variant: VariantConfig,
    name: str,
    carried: tuple[TensorSpec, ...] | None,
    facts: dict[int, _InputFacts],
) -> tuple[TensorSpec, ...]:
    if carried is not None:
        inputs = reconcile(name, "inputs", carried, variant.inputs)
    else:
        wanted = declared(variant.inputs)
        if wanted is None:
            known = [facts[index].spec(f"input_{index}") for index in sorted(facts)]
            raise _undeclared(name, "inputs", known or [TensorSpec("input_0", "FP32", (-1, 3))])
        inputs = wanted
    for index, fact in sorted(facts.items()):
        if index >= len(inputs):
            message = f"{name} takes {max(facts) + 1} inputs, {len(inputs)} are declared"
            raise ArtifactError(message)
        spec, known_spec = inputs[index], fact.spec(inputs[index].name)
        if spec.datatype != known_spec.datatype or not fits(spec.shape, known_spec.shape):
            message = f"{name}: input {index} ({spec.name!r}) was compiled as {fact.datatype} of "
            message += f"shape {list(known_spec.shape)}, but is declared as {spec.datatype} of "
            message += f"shape {list(spec.shape)}"
            raise ArtifactError(message)
        if not fact.contiguous():
            message = f"{name}: input {index} ({spec.name!r}) was compiled for another memory "
            message += "layout (channels_last?); the protocol's tensors are C-contiguous: compile "
            message += "it with contiguous sample inputs"
            raise ArtifactError(message)
    if facts and len(inputs) != len(facts):
        message = f"{name} takes {len(facts)} inputs, {len(inputs)} are declared"
        raise ArtifactError(message)
    return inputs


def _declared_outputs(
    variant: VariantConfig,
    name: str,
    carried: tuple[TensorSpec, ...] | None,
    labels: list[str],
) -> tuple[TensorSpec, ...]:
    if carried is not None:
        outputs = reconcile(name, "outputs", carried, variant.outputs, by_position=True)
    else:
        wanted = declared(variant.outputs)
        if wanted is None:
            raise _undeclared(name, "outputs", [TensorSpec(n, "FP32", (-1, 10)) for n in labels])
        outputs = wanted
    if len(outputs) != len(labels):
        message = f"{name} gives {len(labels)} outputs ({', '.join(labels)}), {len(outputs)} are "
        message += "declared"
        raise ArtifactError(message)
    return outputs


def _undeclared(name: str, field: str, example: Sequence[TensorSpec]) -> ArtifactError:
    message = f"{name} is an AOTInductor package, which does not carry its {field}; add them to "
    message += "the variant, in order, with names, datatypes and shapes like these (-1: any size):"
    return ArtifactError(f"{message}\n{yaml_for(field, example)}")
