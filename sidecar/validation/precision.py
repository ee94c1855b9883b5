"""What a variant computes in: which row of the default limits its answers are held to.

The artifact is asked, not the library: an ONNX file is walked as in ``runtimes/artifacts.py`` (the
base install has no ``onnx``), a PyTorch archive is read as the zip file it is. What cannot be told
is taken as fp32, the strictest that is usual, and the sentence says that it was not told: a coarser
guess would let a broken variant pass.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.errors import ArtifactError
from sidecar.runtimes import artifacts

if TYPE_CHECKING:
    from sidecar.config import VariantConfig

#: Finest first. A comparison of two variants is held to the coarser of both.
PRECISIONS: tuple[str, ...] = ("fp64", "fp32", "tf32", "fp16", "bf16", "int8")

# onnx.TensorProto.DataType
_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16
_FLOAT8 = frozenset({17, 18, 19, 20})
_QUANTIZING = re.compile(
    r"^(QuantizeLinear|DequantizeLinear|DynamicQuantizeLinear|MatMulInteger|MatMulIntegerToFloat"
    r"|ConvInteger|MatMulNBits|QLinear\w+|QGemm|QAttention|DynamicQuantizeMatMul"
    r"|DynamicQuantizeLSTM)$"
)
# torch's own numbering in exported programs (torch._export.serde.schema.ScalarType).
_EXPORTED = {6: "fp16", 7: "fp32", 8: "fp64", 13: "bf16"}
_PICKLED = {b"HalfStorage": "fp16", b"BFloat16Storage": "bf16", b"QInt8Storage": "int8"}
_JSON_BYTES_MAX = 64 * 2**20


def coarser(one: str, other: str) -> str:
    """The coarser of two precisions: what their difference is held to."""
    return max(one, other, key=PRECISIONS.index)


def infer_precision(variant: VariantConfig) -> tuple[str, str]:
    """What a variant computes in, and a sentence that says how that is known.

    Returns:
        A name of ``PRECISIONS``, and e.g. ``"int8: model.onnx has 4 DequantizeLinear nodes"``.

    Raises:
        ArtifactError: the artifact is missing, truncated or damaged.
    """
    if variant.precision is not None:
        return variant.precision, f"{variant.precision}: declared in the configuration"
    runtime = variant.runtime
    if runtime.kind == "remote":
        return "fp32", "fp32: another server does not say; declare `precision` if it is coarser"
    kind = artifacts.sniff(runtime.path)
    if kind == "onnx":
        found, why = _of_onnx(runtime.path)
    elif runtime.kind == "pytorch":
        found, why = _of_pytorch(runtime, kind)
    else:
        what = artifacts.DESCRIPTIONS[kind][0]
        found, why = "fp32", f"{what} does not say; declare `precision` if it is coarser"
    if found == "fp32" and runtime.device != "cpu" and runtime.tf32:
        found, why = "tf32", "the setting tf32 is on"
    return found, f"{found}: {why}"


def _of_onnx(path: Path) -> tuple[str, str]:
    try:
        operators, types = _onnx_contents(path)
    except (ValueError, IndexError):
        message = f"{path.name} is a damaged ONNX model (its protobuf does not parse); copy or "
        message += "export it again"
        raise ArtifactError(message) from None
    quantizing = {name: count for name, count in operators.items() if _QUANTIZING.match(name)}
    if quantizing:
        name, count = max(quantizing.items(), key=lambda item: item[1])
        return "int8", f"{path.name} has {count} {name} node{'s' if count > 1 else ''}"
    if types.keys() & _FLOAT8:
        return "int8", f"{path.name} has float8 weights, which are held to the limits of int8"
    if _BFLOAT16 in types:
        return "bf16", f"{path.name} has {types[_BFLOAT16]} bfloat16 tensors"
    if _FLOAT16 in types:
        return "fp16", f"{path.name} has {types[_FLOAT16]} float16 tensors"
    if _DOUBLE in types and _FLOAT not in types:
        return "fp64", f"{path.name} has float64 weights only"
    return "fp32", f"{path.name} has no coarser weights and no quantizing node"


def _onnx_contents(path: Path) -> tuple[dict[str, int], dict[int, int]]:
    """Operators by name and tensors by element type, subgraphs and functions included."""
    operators: dict[str, int] = {}
    types: dict[int, int] = {}
    with artifacts._mapped(path) as data:
        pending: list[tuple[str, int, int]] = [("model", 0, len(data))]
        while pending:
            what, start, end = pending.pop()
            for field, low, high in artifacts._fields(data, start, end):
                inner = _ONNX_PARTS.get((what, field))
                if inner == "operator":
                    name = data[low:high].decode("utf-8", "replace")
                    operators[name] = operators.get(name, 0) + 1
                elif inner == "type":
                    number, _ = artifacts._varint(data, low, high)
                    types[number] = types.get(number, 0) + 1
                elif inner is not None:
                    pending.append((inner, low, high))
    return operators, types


#: (message, field number) → what it holds, for the parts of onnx.proto that matter here.
_ONNX_PARTS: dict[tuple[str, int], str] = {
    ("model", 7): "graph", ("model", 25): "function", ("graph", 1): "node",
    ("graph", 5): "tensor", ("function", 7): "node", ("node", 4): "operator",
    ("node", 5): "attribute", ("attribute", 5): "tensor", ("attribute", 6): "graph",
    ("attribute", 10): "tensor", ("attribute", 11): "graph", ("tensor", 2): "type",
}  # fmt: skip


def _of_pytorch(runtime: Any, kind: str) -> tuple[str, str]:
    if runtime.precision != "as_exported":
        return runtime.precision, f"the runtime's setting precision is {runtime.precision}"
    name = runtime.path.name
    found: set[str] = set()
    if kind == "torch_exported":
        found = _of_exported(runtime.path)
    elif kind in {"torch_pickle", "torch_torchscript"}:
        found = _of_pickles(runtime.path)
    elif kind == "torch_pickle_legacy":
        head = runtime.path.read_bytes()[:_JSON_BYTES_MAX]
        found = {value for key, value in _PICKLED.items() if key in head}
    coarsest = max(found, key=PRECISIONS.index, default="fp32")
    if coarsest in {"fp16", "bf16", "int8", "fp64"}:
        return coarsest, f"{name} holds {coarsest} tensors"
    if kind in {"torch_aoti", "torch_exported"} and not found:
        return "fp32", f"{name} does not say; declare `precision` if it is coarser"
    return "fp32", f"{name} holds no coarser tensors"


def _of_exported(path: Path) -> set[str]:
    """The element types an exported program's graph names; int8 where it quantizes."""
    found: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            graph = info.filename.endswith(".json") and (
                "models/" in info.filename or "serialized_exported_program" in info.filename
            )
            if not graph or info.file_size > _JSON_BYTES_MAX:
                continue
            text = archive.read(info)
            if b"quantized_decomposed" in text or b"ops.quantized." in text:
                found.add("int8")
            numbers = {int(number) for number in re.findall(rb'"dtype": ?(\d+)', text)}
            found |= {_EXPORTED[number] for number in numbers if number in _EXPORTED}
    # One float64 constant in an fp32 program does not make it fp64.
    return found - {"fp64"} if len(found) > 1 else found


def _of_pickles(path: Path) -> set[str]:
    found: set[str] = set()
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.endswith(".pkl") and info.file_size <= _JSON_BYTES_MAX:
                text = archive.read(info)
                found |= {value for key, value in _PICKLED.items() if key in text}
    return found
