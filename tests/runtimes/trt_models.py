"""Tiny ONNX models for the TensorRT tests, and settings to build them with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from sidecar.config_runtime import TensorRTRTXConfig
from sidecar.runtimes.trt_library import load_library
from sidecar.runtimes.trt_probe import probe

WEIGHTS = np.random.default_rng(7).standard_normal((4, 3)).astype(np.float32)


def save(
    path: Path, nodes: list, inputs: dict, outputs: dict, weights: Sequence = (), **options: Any
) -> Path:
    """Write a model; ``inputs`` and ``outputs`` are name → (ONNX type, shape)."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, kind, shape) for n, (kind, shape) in outputs.items()],
        list(weights),
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.save(model, str(path), **options)
    return path


def linear(
    path: Path, batch: int | str = "N", weights: np.ndarray = WEIGHTS, **options: Any
) -> Path:
    """``y = relu(x @ weights)``, x FP32 [batch, 4] → y FP32 [batch, 3]."""
    kernel = helper.make_tensor("w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True)
    return save(
        path,
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="matmul"),
            helper.make_node("Relu", ["h"], ["y"], name="relu"),
        ],
        {"x": (TensorProto.FLOAT, [batch, 4])},
        {"y": (TensorProto.FLOAT, [batch, 3])},
        [kernel],
        **options,
    )


def pooled(path: Path) -> Path:
    """Mean over an image: x FP32 [N, 2, H, W] and a bias [2] → y FP32 [N, 2, 1, 1]."""
    return save(
        path,
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"], name="pool"),
            helper.make_node("Add", ["p", "b"], ["y"], name="add"),
        ],
        {"x": (TensorProto.FLOAT, ["N", 2, "H", "W"]), "b": (TensorProto.FLOAT, [1, 2, 1, 1])},
        {"y": (TensorProto.FLOAT, ["N", 2, 1, 1])},
    )


def why_not_executable() -> str:
    """Why this machine cannot execute TensorRT for RTX engines; empty if it can."""
    found = probe()
    if not found.devices:
        return found.reason
    major, minor = found.devices[0].capability
    known = load_library("tensorrt_rtx").module.ComputeCapability.__members__
    if major >= 12 or f"SM{major}{minor}" in known:
        return ""
    return f"{found.devices[0]} is no GPU of TensorRT for RTX"


def settings(cache: Path, path: Path | None = None, **values: Any) -> TensorRTRTXConfig:
    """Settings of TensorRT for RTX that cache in ``cache``."""
    tree = {"kind": "tensorrt_rtx", "path": path or cache, "cache_dir": cache, **values}
    return TensorRTRTXConfig.model_validate(tree)
