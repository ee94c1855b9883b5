"""ONNX Runtime, in process, on the CPU or on a CUDA device."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np
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
from sidecar.runtimes.base import Array, Placement, Runtime, Signature, TensorSpec
from sidecar.runtimes.failures import execution_error
from sidecar.runtimes.signature import batch_limit, reconcile, yaml_for

# Its wheels report use over the network, on by default, from a thread and with a file in the home
# folder. A model's pod talks to nobody it was not told to; it is off before the library is loaded,
# unless somebody turned it on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort  # after the line above, on purpose

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.config import VariantConfig
    from sidecar.config_runtime import OnnxRuntimeConfig

_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(bfloat16)": "BF16",
    "tensor(string)": "BYTES",
}
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; the base install has no `onnx`
_OPTIMIZATION = {
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class OnnxRuntime(Runtime):
    """One session. Numeric tensors go to ``session.run`` as they are.

    ``InferenceSession.run`` costs 1.2 µs more than the private ``_sess.run`` below it (6.0 against
    4.8 on a 32→64→10 MLP): under 1 % of a request, so the public call is used.
    """

    def __init__(self, session: Any, signature: Signature, placement: Placement) -> None:
        super().__init__(signature, placement)
        self._session = session
        self._strings = {s.name for s in signature.inputs if s.datatype == "BYTES"}
        self._output_types = {spec.name: spec.datatype for spec in signature.outputs}
        # ORT's Python binding has no bfloat16 arrays; such models take the way through OrtValues
        # (41 µs instead of 6 on the MLP), all others never look at it.
        tensors = (*signature.inputs, *signature.outputs)
        self._by_value = any(spec.datatype == "BF16" for spec in tensors)
        self._text_outputs = "BYTES" in self._output_types.values()

    @override
    def infer_impl(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Execute; see ``Runtime.infer``."""
        feed = self._decoded(inputs) if self._strings else inputs
        try:
            if self._by_value:
                return self._run_by_value(feed, outputs)
            results: list[Array] = self._session.run(outputs, feed)
        except Exception as error:  # noqa: BLE001 - ORT raises a dozen types with no common base
            raise _failure(error) from None
        # The arrays own their memory: ORT hands its buffer over, and copies where an output is an
        # input or an initializer.
        return self._encoded(results, outputs) if self._text_outputs else results

    @override
    def close(self) -> None:
        """Free the session."""
        self._session = None

    def _decoded(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Give ORT ``str``: it would take ``bytes`` too, as their repr (``"b'abc'"``)."""
        feed = dict(inputs)
        for name in self._strings & feed.keys():
            array = feed[name]
            texts = np.empty(array.size, dtype=object)
            for index, element in enumerate(array.ravel()):
                try:
                    texts[index] = element.decode("utf-8")
                except UnicodeDecodeError as error:
                    message = f"input {name!r}: element {index} is not valid UTF-8 (byte "
                    message += f"{error.start}), which this model's strings must be"
                    raise InvalidRequestError(message) from None
            feed[name] = texts.reshape(array.shape)
        return feed

    def _encoded(self, results: list[Array], outputs: Sequence[str]) -> list[Array]:
        for index, name in enumerate(outputs):
            if self._output_types[name] == "BYTES":
                texts = results[index]
                encoded = np.empty(texts.size, dtype=object)
                encoded[:] = [text.encode("utf-8") for text in texts.ravel()]
                results[index] = encoded.reshape(texts.shape)
        return results

    def _run_by_value(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        feed = {name: _to_value(array) for name, array in inputs.items()}
        values = self._session.run_with_ort_values(outputs, feed)
        results = [_from_value(value) for value in values]
        return self._encoded(results, outputs) if self._text_outputs else results


class CudaOnnxRuntime(OnnxRuntime):
    """The same on a CUDA device, where ``infer`` mostly waits."""

    waits: ClassVar[bool] = True


def _to_value(array: Array) -> Any:
    if array.dtype == BY_NAME["BF16"].numpy:
        bits = array.view(np.uint16)
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(array)


def _from_value(value: Any) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    # A bfloat16 value cannot become a numpy array, and DLPack to numpy refuses the type too; its
    # address is that of host memory, because no output is bound to a device.
    result = np.empty(value.shape(), np.uint16)
    ctypes.memmove(result.ctypes.data, value.data_ptr(), result.nbytes)
    return result.view(BY_NAME["BF16"].numpy)


def _failure(error: Exception) -> ExecutionError:
    text = str(error)
    # "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status code returned while running
    # Gather node. Name:'/lookup/Gather' Status Message: indices element out of data bounds, …"
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ", "", text)
    node = re.search(
        r"while running (\w+) node\. Name:'([^']*)' Status Message: (.*)", text, re.DOTALL
    )
    if node:
        called = f" {node[2]!r}" if node[2] else ""
        text = f"{node[1]} node{called}: {node[3]}"
    return execution_error(text)


# --- loading --------------------------------------------------------------------------------------


def build(variant: VariantConfig) -> Runtime:
    """Load one copy of an ONNX model.

    Raises:
        ArtifactError: the file is missing, damaged or of another kind; or it takes or gives what
            the protocol cannot carry; or the config contradicts it.
        SidecarError: the CUDA provider is not installed, or cannot start.
    """
    config = cast("OnnxRuntimeConfig", variant.runtime)
    kind = artifacts.require(config.path, {"onnx", "ort"}, "onnxruntime")
    files = artifacts.files_of(config.path)
    providers = _providers(config)
    session = _session(config, providers)
    signature = _signature(variant, config, session, kind)
    device = config.device
    if device != "cpu":
        if "CUDAExecutionProvider" not in session.get_providers():
            message = f"ONNX Runtime's CUDA provider could not start on {device}: no usable CUDA "
            message += "device, driver or library (run with log level verbose for its reason)"
            raise SidecarError(message)
        device = device if ":" in device else f"{device}:0"
    placement = Placement(
        device=device,
        # The weights' files: exact, and known before the first request. The growth of the process
        # would count the library and whatever else loads at the same time.
        memory_bytes=sum(file.stat().st_size for file in files),
        details={
            "provider": providers[0][0],
            "threads": str(config.intra_op_threads or "all cores"),
            "memory": "size of the model's files",
        },
    )
    runtime = OnnxRuntime if config.device == "cpu" else CudaOnnxRuntime
    return runtime(session, signature, placement)


def _providers(config: OnnxRuntimeConfig) -> list[tuple[str, dict[str, str]]]:
    cpu = "CPUExecutionProvider"
    if config.device == "cpu":
        return [(cpu, dict(config.provider_options))]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        message = f"device {config.device} needs ONNX Runtime's CUDA provider, which the installed "
        message += "build lacks: uninstall onnxruntime, then install "
        message += "model-sidecar[onnxruntime-gpu] (or set device: cpu)"
        raise MissingExtraError(message)
    options = {
        "device_id": config.device.partition(":")[2] or "0",
        "use_tf32": "1" if config.tf32 else "0",
        **config.provider_options,
    }
    # The CPU stays behind it, for operators that CUDA lacks; not as a fallback for a failed start.
    return [("CUDAExecutionProvider", options), (cpu, {})]


def _session(config: OnnxRuntimeConfig, providers: list[tuple[str, dict[str, str]]]) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = config.intra_op_threads
    options.inter_op_num_threads = config.inter_op_threads
    if config.inter_op_threads != 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    options.graph_optimization_level = _OPTIMIZATION[config.graph_optimization]
    options.enable_cpu_mem_arena = config.memory_arena
    # Every failed request would be printed to stderr, besides being raised: fatal only.
    options.log_severity_level = 4
    try:
        for key, value in config.session_options.items():
            options.add_session_config_entry(key, value)
        # Without enable_fallback=0 a provider that fails is replaced by the CPU, with a print().
        return ort.InferenceSession(
            str(config.path), options, providers=providers, enable_fallback=0
        )
    except Exception as error:  # noqa: BLE001 - ORT raises a dozen types with no common base
        what = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", str(error))
        what = what.replace(str(config.path), config.path.name)
        message = f"ONNX Runtime cannot load {config.path.name}: {what}"
        raise ArtifactError(message) from None


def _signature(
    variant: VariantConfig, config: OnnxRuntimeConfig, session: Any, kind: str
) -> Signature:
    name = config.path.name
    unranked = artifacts.onnx_facts(config.path).unranked if kind == "onnx" else frozenset()
    declared = {
        "inputs": {tensor.name: tensor for tensor in variant.inputs or ()},
        "outputs": {tensor.name: tensor for tensor in variant.outputs or ()},
    }
    found: dict[str, list[TensorSpec]] = {}
    symbols: list[str | None] = []
    for field, nodes in (("inputs", session.get_inputs()), ("outputs", session.get_outputs())):
        found[field] = []
        for node in nodes:
            datatype = _datatype(config.path, field, node)
            shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
            # ORT says [] for "no shape known" as well; for outputs it may have inferred one.
            if not node.shape and node.name in unranked:
                given = declared[field].get(node.name)
                if given is None:
                    message = f"{name} does not say the shape of {field[:-1]} {node.name!r}; add "
                    message += "it to the variant, with the right rank:\n"
                    message += yaml_for(field, [TensorSpec(node.name, datatype, (-1, -1))])
                    raise ArtifactError(message)
                shape = given.shape
            found[field].append(TensorSpec(node.name, datatype, shape))
            first = node.shape[0] if node.shape else None
            # tf2onnx gives every unknown dimension a name of its own ("unk__616"): no name at all.
            symbols.append(None if str(first).startswith("unk__") else first)
    inputs = reconcile(name, "inputs", found["inputs"], variant.inputs)
    outputs = reconcile(name, "outputs", found["outputs"], variant.outputs)
    if {"BYTES", "BF16"} <= {s.datatype for s in (*inputs, *outputs)} and any(
        spec.datatype == "BYTES" for spec in inputs
    ):
        # run() has no bfloat16, and OrtValues cannot be made from strings.
        message = f"{name} has string inputs and bfloat16 tensors, which ONNX Runtime's Python API "
        message += "cannot run together; export its inputs and outputs as float16 or float"
        raise ArtifactError(message)
    limit = batch_limit(name, inputs, outputs, config.max_batch_size, symbols=symbols)
    return Signature(inputs, outputs, limit, "onnxruntime_onnx", "onnxruntime")


def _datatype(path: Path, field: str, node: Any) -> str:
    datatype = _DATATYPES.get(node.type)
    if datatype is None:
        message = f"{path.name}: {field[:-1]} {node.name!r} is {node.type}, which the protocol "
        message += "cannot carry; it must be a tensor"
        if node.type.startswith("seq(map("):
            message += " (a classifier exported by skl2onnx: convert it with "
            message += "options={'zipmap': False})"
        raise ArtifactError(message)
    return datatype
