"""Tiny ONNX models that the client tests serve; what they answer can be computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ELEMENT_TYPES = {
    "BOOL": TensorProto.BOOL, "UINT8": TensorProto.UINT8, "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32, "UINT64": TensorProto.UINT64, "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16, "INT32": TensorProto.INT32, "INT64": TensorProto.INT64,
    "FP16": TensorProto.FLOAT16, "FP32": TensorProto.FLOAT, "FP64": TensorProto.DOUBLE,
    "BF16": TensorProto.BFLOAT16, "BYTES": TensorProto.STRING,
}  # fmt: skip

Dims = list[int | str]


def _value(name: str, datatype: str, dims: Dims) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, ELEMENT_TYPES[datatype], dims)


def _save(
    path: Path,
    nodes: list[Any],
    inputs: list[Any],
    outputs: list[Any],
    weights: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    stored = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, path.stem, inputs, outputs, stored)
    # The oldest versions with what is used: any ONNX Runtime that we support must load them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def identity(path: Path, datatype: str, dims: Dims) -> None:
    """OUTPUT is INPUT."""
    _save(
        path,
        [helper.make_node("Identity", ["INPUT"], ["OUTPUT"])],
        [_value("INPUT", datatype, dims)],
        [_value("OUTPUT", datatype, dims)],
    )


def add_sub(path: Path) -> None:
    """OUTPUT0 = INPUT0 + INPUT1, OUTPUT1 = INPUT0 - INPUT1; INT32, 16 a row."""
    dims: Dims = ["batch", 16]
    nodes = [
        helper.make_node("Add", ["INPUT0", "INPUT1"], ["OUTPUT0"]),
        helper.make_node("Sub", ["INPUT0", "INPUT1"], ["OUTPUT1"]),
    ]
    inputs = [_value(name, "INT32", dims) for name in ("INPUT0", "INPUT1")]
    _save(path, nodes, inputs, [_value(name, "INT32", dims) for name in ("OUTPUT0", "OUTPUT1")])


def scaled(path: Path, factor: float) -> None:
    """OUTPUT = INPUT × factor: two versions of one model that can be told apart."""
    _save(
        path,
        [helper.make_node("Mul", ["INPUT", "factor"], ["OUTPUT"])],
        [_value("INPUT", "FP32", ["batch", "n"])],
        [_value("OUTPUT", "FP32", ["batch", "n"])],
        {"factor": np.array(factor, np.float32)},
    )


def mlp(path: Path) -> None:
    """32 → 64 → 10; ``scripts/harness.py`` computes the same."""
    first = np.sin(np.arange(32 * 64, dtype=np.float64)).reshape(32, 64).astype(np.float32)
    second = np.cos(np.arange(64 * 10, dtype=np.float64)).reshape(64, 10).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["INPUT", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["OUTPUT"]),
    ]
    _save(
        path,
        nodes,
        [_value("INPUT", "FP32", ["batch", 32])],
        [_value("OUTPUT", "FP32", ["batch", 10])],
        {"first": first, "second": second},
    )


def slow(path: Path) -> None:
    """STEPS matrix products in a loop, about a millisecond each: something to cancel."""
    size = 256
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("MatMul", ["state_in", "weights"], ["state_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            _value("state_in", "FP32", [size, size]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            _value("state_out", "FP32", [size, size]),
        ],
    )
    nodes = [
        helper.make_node("Squeeze", ["STEPS", "axis"], ["count"]),
        helper.make_node("Loop", ["count", "go", "weights"], ["state"], body=body),
        helper.make_node("ReduceMax", ["state"], ["OUTPUT"], axes=[0, 1], keepdims=0),
    ]
    weights = {
        "axis": np.array([0], np.int64),
        "go": np.array(1, np.bool_),
        "weights": np.eye(size, dtype=np.float32),
    }
    _save(path, nodes, [_value("STEPS", "INT64", [1])], [_value("OUTPUT", "FP32", [])], weights)


def build_all(folder: Path) -> list[dict[str, Any]]:
    """Write all models; return the ``models`` of a configuration that serves them."""
    made: list[dict[str, Any]] = []

    def add(name: str, *files: str, **settings: Any) -> None:
        variants = [
            {"name": "onnx", "version": str(number), "roles": ["serving"],
             "runtime": {"kind": "onnxruntime", "path": file}}
            for number, file in enumerate(files, start=1)
        ]  # fmt: skip
        made.append({"name": name, "variants": variants, **settings})

    for datatype in ELEMENT_TYPES:
        file = f"identity_{datatype.lower()}.onnx"
        identity(folder / file, datatype, ["batch", "n"])
        add(file.removesuffix(".onnx"), file)
    identity(folder / "four.onnx", "FP32", ["batch", 4])
    add("loadable", "four.onnx")
    add("counted", "four.onnx")
    add_sub(folder / "add_sub.onnx")
    add("add_sub", "add_sub.onnx")
    scaled(folder / "once.onnx", 1)
    scaled(folder / "twice.onnx", 2)
    add("versions", "once.onnx", "twice.onnx")
    mlp(folder / "mlp.onnx")
    add("mlp", "mlp.onnx", batching={"max_size": 16, "max_delay_ms": 0.5})
    slow(folder / "slow.onnx")
    add("slow", "slow.onnx")
    return made
