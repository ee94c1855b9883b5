"""Why an engine differs: asked of its ONNX file, and of engines with some nodes in fp32."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from sidecar.clock import SystemClock
from sidecar.runtimes import onnxrt
from sidecar.runtimes.base import Runtime
from sidecar.validation.divergence import LocalizeError
from sidecar.validation.plan import Plan
from sidecar.validation.trt_bisect import MixedModel
from sidecar.validation.trt_cause import explain_engine, fp32_graph
from tests.support.models import onnx_model, save
from tests.validation.variants import config, network, rows, tree

CLOCK = SystemClock()
IO = [("x", "FP32", ["batch", 4])], [("y", "FP32", ["batch", 4])]


class _Software(Runtime):
    """An "engine" that rounds to fp16 where the graph says so, as ONNX Runtime's does not."""

    def __init__(self, variant):
        onnx_variant = variant.model_copy(update={"runtime": _onnx_settings(variant)})
        plain = onnxrt.build(onnx_variant)
        super().__init__(plain.signature, plain.placement)
        self._graph = ReferenceEvaluator(onnx.load(variant.runtime.path))

    def infer_impl(self, inputs, outputs):
        with np.errstate(all="ignore"):
            return self._graph.run(list(outputs), dict(inputs))


def _onnx_settings(variant):
    from sidecar.config_runtime import OnnxRuntimeConfig

    return OnnxRuntimeConfig(kind="onnxruntime", path=variant.runtime.path)


def overflowing(folder):
    """((x + 0.5) · 60,000 · 4 ÷ 240,000) − 0.5: the products in the middle need fp32."""
    node = onnx.helper.make_node
    nodes = [
        node("Add", ["x", "half"], ["a"], name="before"),
        node("Mul", ["a", "large"], ["b"], name="up"),
        node("Mul", ["b", "four"], ["c"], name="further"),
        node("Div", ["c", "larger"], ["d"], name="down"),
        node("Sub", ["d", "half"], ["y"], name="after"),
    ]
    constants = [
        (name, np.array(value, np.float32))
        for name, value in {"half": 0.5, "large": 6e4, "four": 4, "larger": 2.4e5}.items()
    ]
    return save(folder, "full.onnx", onnx_model(nodes, *IO, constants)).name


def plan_of(folder, members):
    model = config(folder, tree(members, outputs={})).models[0]
    by_name = {variant.name: variant for variant in model.variants}
    return Plan(model, by_name["truth"], (by_name["engine"],)), by_name["engine"]


def engine(path, **more):
    return {"runtime": {"kind": "tensorrt_rtx", "path": path}, **more}


def explain(plan, candidate, x, y, load=_Software):
    return explain_engine(plan, candidate, {"x": x}, {"y": y}, load=load, clock=CLOCK)


def test_the_nodes_that_must_stay_in_fp32_are_named(tmp_path):
    full = overflowing(tmp_path)
    (tmp_path / "half.onnx").write_bytes(MixedModel(tmp_path / full).write(frozenset()))
    plan, candidate = plan_of(tmp_path, {"truth": full, "engine": engine("half.onnx")})
    x = np.linspace(-0.4, 2, 4, dtype=np.float32)[None]
    found = explain(plan, candidate, x, x)
    assert found.cause == "precision"
    assert "with 3 of 5 in fp32 TensorRT is right: up, further, down" in found.text
    assert [note for note in found.notes if note.startswith("fp32: ")] == [
        "fp32: up", "fp32: further", "fp32: down",
    ]  # fmt: skip
    assert found.total == 5
    json.dumps(found.to_plain(), allow_nan=False)


def test_without_an_fp32_graph_the_file_itself_is_localized(tmp_path):
    full = overflowing(tmp_path)
    (tmp_path / "half.onnx").write_bytes(MixedModel(tmp_path / full).write(frozenset()))
    members = {"truth": "half.onnx", "engine": engine("half.onnx")}
    plan, candidate = plan_of(tmp_path, members)
    with pytest.raises(LocalizeError, match="no variant of version 1 has its ONNX file in fp32"):
        fp32_graph(plan, candidate)
    x = np.full((1, 4), 0.1, np.float32)
    found = explain(plan, candidate, x, x)
    assert any("half.onnx was localized" in note for note in found.notes)
    assert any("no variant of version 1 has its ONNX file in fp32" in note for note in found.notes)


def test_an_engine_of_a_wrong_graph_is_localized_to_its_node(tmp_path):
    network(tmp_path, "right.onnx", outputs={"y": "y"})
    network(tmp_path, "tenfold.onnx", outputs={"y": "y"}, scale=10)
    plan, candidate = plan_of(tmp_path, {"truth": "right.onnx", "engine": engine("tenfold.onnx")})
    found = explain(plan, candidate, rows(1), rows(1))
    assert found.cause == "local"
    assert found.first.op_type == "Add"  # where the scale comes in
    assert any("tenfold.onnx was localized" in note for note in found.notes)


def test_an_engine_of_a_right_graph_is_told_from_its_graph(tmp_path):
    network(tmp_path, "right.onnx", outputs={"y": "y"})
    plan, candidate = plan_of(tmp_path, {"truth": "right.onnx", "engine": engine("right.onnx")})
    found = explain(plan, candidate, rows(1), rows(1))
    assert found.cause == "none"
    assert "right.onnx is right on ONNX Runtime: what differs is made by TensorRT" in found.text


def test_an_engine_file_says_what_it_takes(tmp_path):
    network(tmp_path, "right.onnx", outputs={"y": "y"})
    (tmp_path / "model.engine").write_bytes(b"ptrt" + bytes(64))
    plan, candidate = plan_of(tmp_path, {"truth": "right.onnx", "engine": engine("model.engine")})
    with pytest.raises(LocalizeError, match=r"give the variant the \.onnx file"):
        explain(plan, candidate, rows(1), rows(1))
