"""Variants of the 32→64→10 network, right or broken in one way each, and configurations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from onnx import TensorProto, helper

from sidecar.config import SidecarConfig, parse
from sidecar.validation.options import Options, Outcome
from sidecar.validation.plan import plans
from sidecar.validation.run import validate
from tests.support import models


def network(
    folder: Path,
    name: str,
    *,
    outputs: dict[str, str] | None = None,
    scale: float = 1.0,
    half: bool = False,
    nan_over: float | None = None,
    inf_over: float | None = None,
    baked_batch: int | None = None,
    input_name: str = "x",
    noise: float = 0.0,
    beside: float = 0.0,
) -> str:
    """Write an ONNX model; returns the file's name.

    outputs: graph value ("y": scores, "p": probabilities, "flat": y as [rows, 5, 2], "whole": y
    as integers, "top": the class) → the name it is given.
    scale: of y. half: it computes in float16. nan_over: y is NaN in rows whose first input is
    over this; inf_over likewise. baked_batch: it fails in another batch size. noise: added to the
    weights, relative. beside: y grows by so much, relative, for each row in the batch.
    """
    outputs = outputs or {"y": "y", "p": "p"}
    rng = np.random.default_rng(3)
    dtype = np.float16 if half else np.float32
    weights = {
        n: (v * (1 + noise * rng.normal(size=v.shape))).astype(dtype)
        for n, v in models.mlp_weights().items()
    }
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    node = helper.make_node
    nodes = [
        node("Cast", [input_name], ["in"], to=element),
        node("Gemm", ["in", "a.weight", "a.bias"], ["h"], transB=1),
        node("Relu", ["h"], ["r"]),
        node("Reshape", ["r", "hidden"], ["k"]),
        node("Gemm", ["k", "b.weight", "b.bias"], ["l"], transB=1),
        node("Cast", ["l"], ["wide"], to=TensorProto.FLOAT),
        node("Shape", [input_name], ["count"], start=0, end=1),
        node("Cast", ["count"], ["rows"], to=TensorProto.FLOAT),
        node("Mul", ["rows", "beside"], ["growth"]),
        node("Add", ["growth", "scale"], ["factor"]),
        node("Mul", ["wide", "factor"], ["scaled"]),
        node("Slice", [input_name, "starts", "ends"], ["first"]),
        node("Greater", ["first", "nan_over"], ["is_nan"]),
        node("Where", ["is_nan", "nan", "scaled"], ["some"]),
        node("Greater", ["first", "inf_over"], ["is_inf"]),
        node("Where", ["is_inf", "inf", "some"], ["value_y"]),
        node("Softmax", ["value_y"], ["value_p"], axis=-1),
        node("Reshape", ["value_y", "pairs"], ["value_flat"]),
        node("Cast", ["scaled"], ["value_whole"], to=TensorProto.INT64),
        node("ArgMax", ["scaled"], ["value_top"], axis=1, keepdims=0),
    ]
    rows = ["batch", 10]
    shapes = {"y": ("FP32", rows), "p": ("FP32", rows), "flat": ("FP32", ["batch", 5, 2]),
              "whole": ("INT64", rows), "top": ("INT64", ["batch"])}  # fmt: skip
    given = [(outputs[value], *shapes[value]) for value in outputs]
    nodes += [node("Identity", [f"value_{v}"], [called]) for v, called in outputs.items()]
    constants = [
        *weights.items(),
        ("hidden", np.array([baked_batch or -1, 64], np.int64)),
        ("pairs", np.array([-1, 5, 2], np.int64)),
        ("scale", np.float32(scale)),
        ("beside", np.float32(beside / 32)),
        ("starts", np.array([0, 0], np.int64)),
        ("ends", np.array([2**31, 1], np.int64)),
        ("nan", np.float32(np.nan)),
        ("inf", np.float32(np.inf)),
        ("nan_over", np.float32(np.inf if nan_over is None else nan_over)),
        ("inf_over", np.float32(np.inf if inf_over is None else inf_over)),
    ]
    graph = models.onnx_model(nodes, [(input_name, "FP32", ["batch", 32])], given, constants)
    return models.save(folder, name, graph).name


def tree(variants: dict[str, Any], *, model: str = "net", **validation: Any) -> dict[str, Any]:
    """A configuration: name → path of an ONNX file, or a whole variant; the first is the truth."""
    listed = []
    for number, (name, given) in enumerate(variants.items()):
        roles = ["serving", "reference"] if number == 0 else ["mirror"]
        variant = {"name": name, "version": "1", "roles": roles}
        if isinstance(given, str):
            variant["runtime"] = {"kind": "onnxruntime", "path": given}
        else:
            variant |= given
        listed.append(variant)
    outputs = {"y": {"kind": "class_scores"}, "p": {"kind": "tensor"}}
    settings = {"outputs": outputs, **validation}
    return {"models": [{"name": model, "variants": listed, "validation": settings}]}


def write(folder: Path, document: dict[str, Any]) -> Path:
    """Write a configuration beside its models."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def config(folder: Path, document: dict[str, Any]) -> SidecarConfig:
    return parse(document, base_dir=folder, check_files=True)


def run(folder: Path, document: dict[str, Any], **options: Any) -> Outcome:
    """Run the only plan of a configuration."""
    found, _ = plans(config(folder, document))
    return validate(found[0], Options(**options))


def rows(count: int, seed: int = 0) -> np.ndarray:
    """Inputs of the network, float32 [count, 32]; the first value of each is under 4."""
    x = np.random.default_rng(seed).normal(size=(count, 32)).astype(np.float32)
    x[:, 0] = np.clip(x[:, 0], -3, 3)
    return x


def data(folder: Path, count: int = 400, name: str = "rows.npz", **more: Any) -> Path:
    """Write inputs, and what else is given, as npz."""
    path = folder / name
    np.savez(path, x=rows(count), **more)
    return path
