"""Modules that do not carry their signature: TorchScript, and a state_dict with its factory."""

from __future__ import annotations

import inspect
import pickle
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from sidecar.errors import ArtifactError, ExecutionError
from sidecar.runtimes.base import TensorSpec
from sidecar.runtimes.failures import client_text
from sidecar.runtimes.signature import declared, yaml_for
from sidecar.runtimes.torch_program import DTYPES, Program

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.config_runtime import PyTorchConfig

_PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_torchscript(variant: VariantConfig, config: PyTorchConfig, device: Any) -> Program:
    """Load a TorchScript archive; the config declares its inputs and outputs."""
    name = config.path.name
    inputs, outputs = _declared(variant, name, "a TorchScript archive")
    try:
        # Only while loading: catch_warnings is global, and two loads at one time may show or hide
        # each other's warnings. Never on the request's path.
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=r"`torch\.jit\.load` is", category=DeprecationWarning
            )
            module = torch.jit.load(str(config.path), map_location=device)
    except Exception as error:  # noqa: BLE001 - torch raises whatever its reader meets
        message = f"torch cannot load the TorchScript archive {name}: {client_text(str(error))}"
        raise ArtifactError(message) from None
    module.eval()
    arguments = [argument.name for argument in module.forward.schema.arguments[1:]]
    optional = {a.name for a in module.forward.schema.arguments[1:] if a.has_default_value()}
    return _program(config, module, inputs, outputs, arguments, optional)


def load_state_dict(variant: VariantConfig, config: PyTorchConfig, device: Any) -> Program:
    """Load weights into the module that the configured factory makes."""
    name = config.path.name
    if config.factory is None:
        message = f"{name} holds weights without a model; add to the variant's runtime: "
        message += "`factory: package.module:function`, which returns the nn.Module they belong to "
        message += "(and `factory_path:`, the folder to import it from)"
        raise ArtifactError(message)
    inputs, outputs = _declared(variant, name, "a state_dict")
    weights = _weights(config)
    module = _make_module(config)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        what = " ".join(str(error).split())
        message = f"{name} does not fit the module that {config.factory} makes: {what}"
        raise ArtifactError(message) from None
    module.to(device).eval().requires_grad_(requires_grad=False)
    arguments, optional = _forward_arguments(module)
    return _program(config, module, inputs, outputs, arguments, optional)


def _declared(
    variant: VariantConfig, name: str, what: str
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    inputs, outputs = declared(variant.inputs), declared(variant.outputs)
    if inputs is None or outputs is None:
        missing = [
            *([] if inputs else [yaml_for("inputs", [TensorSpec("x", "FP32", (-1, 3, 224, 224))])]),
            *([] if outputs else [yaml_for("outputs", [TensorSpec("y", "FP32", (-1, 1000))])]),
        ]
        message = f"{name} is {what}, which does not carry its inputs and outputs; add to the "
        message += "variant, with the model's own names and sizes (-1: any size):\n"
        raise ArtifactError(message + "\n".join(missing))
    for spec in (*inputs, *outputs):
        if spec.datatype not in DTYPES:
            message = f"{name}: {spec.name!r} is declared as {spec.datatype}, which torch tensors "
            message += "cannot hold"
            raise ArtifactError(message)
    return inputs, outputs


def _weights(config: PyTorchConfig) -> Mapping[str, Any]:
    name = config.path.name
    try:
        weights = torch.load(str(config.path), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # The message of torch explains how to run the code in the file: not repeated.
        message = f"{name} contains pickled code (a whole module, or classes of its own), which "
        message += "is refused because loading it would execute it; save "
        message += "`torch.save(model.state_dict(), path)` instead"
        raise ArtifactError(message) from None
    except Exception as error:  # noqa: BLE001 - torch raises whatever its reader meets
        message = f"torch cannot load {name}: {client_text(str(error))}"
        raise ArtifactError(message) from None
    if not isinstance(weights, Mapping):
        message = f"{name} holds a {type(weights).__name__}, not a state_dict"
        raise ArtifactError(message)
    others = [str(key) for key, value in weights.items() if not isinstance(value, torch.Tensor)]
    if others:
        message = f"{name} is not a state_dict: {', '.join(others[:5])} in it are no tensors; save "
        message += "the state_dict alone, without what the training kept beside it"
        raise ArtifactError(message)
    return weights


def _make_module(config: PyTorchConfig) -> Any:
    assert config.factory is not None
    if config.factory_path is not None and str(config.factory_path) not in sys.path:
        # It stays there: the factory may import more when it is called.
        sys.path.insert(0, str(config.factory_path))
    package, _, attribute = config.factory.partition(":")
    try:
        factory = getattr(import_module(package), attribute)
    except ModuleNotFoundError as error:
        message = f"factory {config.factory}: there is no module {error.name!r}; install it, or "
        message += "name its folder as `factory_path`"
        raise ArtifactError(message) from None
    except AttributeError:
        message = f"factory {config.factory}: the module has no {attribute!r}"
        raise ArtifactError(message) from None
    try:
        module = factory(**config.factory_args)
    except Exception as error:
        message = f"factory {config.factory} failed: {type(error).__name__}: {error}"
        raise ArtifactError(message) from error
    if not isinstance(module, torch.nn.Module):
        message = f"factory {config.factory} returned a {type(module).__name__}, not an nn.Module"
        raise ArtifactError(message)
    return module


def _forward_arguments(module: Any) -> tuple[list[str] | None, set[str]]:
    parameters = inspect.signature(module.forward).parameters.values()
    if any(p.kind in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in parameters):
        return None, set()
    optional = {p.name for p in parameters if p.default is not p.empty}
    return [p.name for p in parameters], optional


def _program(
    config: PyTorchConfig,
    module: Any,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    arguments: list[str] | None,
    optional: set[str],
) -> Program:
    keywords = _bind(config.path.name, inputs, arguments, optional)
    cast = _PRECISIONS.get(config.precision)
    if cast is not None:
        module.to(cast)
    names = [spec.name for spec in outputs]
    results_as = [DTYPES[spec.datatype] for spec in outputs]

    def run(tensors: list[Any]) -> Sequence[Any]:
        if cast is not None:
            tensors = [t.to(cast) if t.is_floating_point() else t for t in tensors]
        result = (
            module(**dict(zip(keywords, tensors, strict=True))) if keywords else module(*tensors)
        )
        results = _flatten(result, names)
        if cast is None:
            return results
        # A cast module gives its own precision; clients go on seeing the declared one.
        return [
            r.to(dtype) if r.is_floating_point() and dtype.is_floating_point else r
            for r, dtype in zip(results, results_as, strict=True)
        ]

    state = {id(t): t for t in (*module.parameters(), *module.buffers())}
    # Neither what it writes to nor what else it keeps can be known (in-place operators, tensors
    # in attributes): inputs and outputs are copied.
    return Program(
        run=run,
        inputs=inputs,
        outputs=outputs,
        memory_bytes=sum(tensor.nbytes for tensor in state.values()),
        memory_meaning="weights and buffers",
        check_outputs=True,
    )


def _bind(
    name: str,
    inputs: Sequence[TensorSpec],
    arguments: list[str] | None,
    optional: set[str],
) -> list[str] | None:
    """Return the keywords to call ``forward`` with, or ``None`` to call it by position."""
    if arguments is None:
        return None
    given = [spec.name for spec in inputs]
    known = [label for label in given if label in arguments]
    if not known:
        required = sum(label not in optional for label in arguments)
        if not required <= len(given) <= len(arguments):
            message = f"{name}: forward takes ({', '.join(arguments)}), the config declares "
            message += f"{len(given)} inputs ({', '.join(given)})"
            raise ArtifactError(message)
        return None
    strange = [label for label in given if label not in arguments]
    missing = [label for label in arguments if label not in given and label not in optional]
    if strange or missing:
        message = f"{name}: forward takes ({', '.join(arguments)}), the config declares the inputs "
        message += f"({', '.join(given)}); use its names, or other names for all, in its order"
        raise ArtifactError(message)
    return given


def _flatten(result: Any, names: Sequence[str]) -> list[Any]:
    """Bring what ``forward`` returned into the declared outputs' order: by key, or by position."""
    if isinstance(result, torch.Tensor):
        values: list[Any] = [result]
    elif isinstance(result, Mapping):
        missing = [name for name in names if name not in result]
        if missing:
            have = ", ".join(map(str, result))
            message = f"the model gives no output {missing[0]!r}; it gives: {have}"
            raise ExecutionError(message)
        values = [result[name] for name in names]
    elif isinstance(result, Sequence):
        values = list(result)
    else:
        values = []
    if len(values) != len(names) or not all(isinstance(v, torch.Tensor) for v in values):
        kinds = ", ".join(type(value).__name__ for value in values) or type(result).__name__
        message = f"the model's signature declares {len(names)} outputs, but it gave: {kinds}"
        raise ExecutionError(message)
    return values
