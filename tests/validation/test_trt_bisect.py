"""Which nodes must stay in fp32: the search, the rewritten graphs, and engines built of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from sidecar.config_runtime import TensorRTRTXConfig
from sidecar.errors import ArtifactError
from sidecar.runtimes import build as build_runtime
from sidecar.validation.divergence import LocalizeError
from sidecar.validation.mixed_precision import convertible, prepared, write_mixed
from sidecar.validation.trt_bisect import MixedModel, OutputCheck, bisect, find_fp32_nodes, suspects
from tests.support.models import onnx_model, save, variant

# --- the search -----------------------------------------------------------------------------------

NODES = [f"n{index}" for index in range(200)]


@pytest.mark.parametrize("needed", [{"n0"}, {"n137"}, {"n57", "n58"}, {"n3", "n101", "n199"}])
def test_the_nodes_that_are_needed_are_found(needed):
    found = bisect(NODES, lambda kept: needed <= kept, 200)
    assert found.kept == [name for name in NODES if name in needed]
    assert (found.of, found.exhausted) == (200, False)
    assert found.checks < 150
    assert found.steps[-1] == f"{len(needed)} of 200 nodes must stay in fp32"


def test_no_set_is_asked_for_twice():
    asked = []

    def check(kept):
        asked.append(kept)
        return {"n20", "n150"} <= kept

    found = bisect(NODES, check, 200)
    assert len(asked) == len(set(asked)) == found.checks


def test_suspects_are_tried_first():
    needed = {"n41", "n160"}
    plain = bisect(NODES, lambda kept: needed <= kept, 200)
    told = bisect(NODES, lambda kept: needed <= kept, 200, suspects=["n160", "n7", "n41", "n8"])
    assert told.kept == plain.kept == ["n41", "n160"]
    assert told.checks < plain.checks
    assert told.steps[0] == "the first 4 of 4 suspects are enough"


def test_wrong_suspects_do_no_harm():
    found = bisect(NODES, lambda kept: "n9" in kept, 200, suspects=["n1", "absent", "n2"])
    assert found.kept == ["n9"]


def test_nothing_is_kept_where_fp16_is_right():
    found = bisect(NODES, lambda _: True, 10)
    assert (found.kept, found.checks, found.steps) == ([], 1, ["everything may be fp16"])


def test_a_model_that_is_wrong_in_fp32_is_said_to_be():
    with pytest.raises(LocalizeError, match="the precision is not the cause"):
        bisect(NODES, lambda _: False, 10)


@pytest.mark.parametrize("budget", [2, 5, 9])
def test_a_spent_budget_leaves_a_set_that_is_enough(budget):
    needed = {"n20", "n150"}
    found = bisect(NODES, lambda kept: needed <= kept, budget)
    assert needed <= set(found.kept)
    assert found.exhausted
    assert found.checks == budget


def test_a_budget_that_cannot_begin_is_refused():
    with pytest.raises(ValueError, match="it takes two to begin"):
        bisect(NODES, lambda _: True, 1)


# --- the graphs -----------------------------------------------------------------------------------


def overflowing(folder, blocks=6, bad=3):
    """Linear layers of width 8; block ``bad`` goes through values beyond fp16 and comes back."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], [], "x"
    for block in range(blocks):
        scale = 1e6 if block == bad else 1.0
        weight = rng.normal(size=(8, 8)).astype(np.float32) / np.float32(3)
        weights += [(f"w{block}", weight), (f"s{block}", np.float32([scale]))]
        weights += [(f"t{block}", np.float32([1 / scale]))]
        nodes += [
            helper.make_node("MatMul", [last, f"w{block}"], [f"m{block}"], f"matmul{block}"),
            helper.make_node("Mul", [f"m{block}", f"s{block}"], [f"u{block}"], f"up{block}"),
            helper.make_node("Mul", [f"u{block}", f"t{block}"], [f"d{block}"], f"down{block}"),
            helper.make_node("Tanh", [f"d{block}"], [f"a{block}"], f"tanh{block}"),
        ]
        last = f"a{block}"
    nodes.append(helper.make_node("Identity", [last], ["y"], "out"))
    model = onnx_model(nodes, [("x", "FP32", ["n", 8])], [("y", "FP32", ["n", 8])], weights)
    return save(folder, "m.onnx", model)


def given(rows=4):
    return {"x": np.random.default_rng(1).normal(size=(rows, 8)).astype(np.float32)}


def types_of(model):
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    return {
        item.name: item.type.tensor_type.elem_type
        for item in (*inferred.graph.value_info, *inferred.graph.output)
    }


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, inputs)


def test_the_layer_that_overflows_is_what_must_stay(tmp_path):
    model = MixedModel(overflowing(tmp_path))
    check = OutputCheck(model, given())
    assert len(model.nodes) == 25

    found = bisect(model.nodes, check, 100)
    # Scaled up it is infinite in fp16, and what scales it down must not read it as fp16.
    assert found.kept == ["up3", "down3"]
    assert check(frozenset(found.kept))
    assert not check(frozenset(["up3"]))


def test_suspects_are_the_nodes_that_fp16_breaks_and_few_graphs_are_built(tmp_path):
    path = overflowing(tmp_path, blocks=12, bad=7)
    model = MixedModel(path)
    assert suspects(model, given())[:2] == ["up7", "down7"]
    found = find_fp32_nodes(path, given())
    assert found.kept == ["up7", "down7"]
    assert found.checks < bisect(model.nodes, OutputCheck(model, given()), 100).checks


def test_kept_nodes_compute_in_fp32_and_the_others_in_fp16(tmp_path):
    model = prepared(onnx.load(overflowing(tmp_path)))
    mixed = write_mixed(model, {"up3", "down3"})
    onnx.checker.check_model(mixed, full_check=True)
    types = types_of(mixed)
    assert types["u3"] == types["d3"] == TensorProto.FLOAT
    others = [types[f"{kind}{block}"] for block in range(6) for kind in "muda" if block != 3]
    assert set(others) == {TensorProto.FLOAT16}
    assert types["y"] == TensorProto.FLOAT
    assert [item.name for item in mixed.graph.input] == ["x"]
    casts = [node.output[0] for node in mixed.graph.node if node.op_type == "Cast"]
    # The input, into the kept nodes and out of them, the output: none anywhere else.
    assert casts == ["x.fp16", "m3.fp32", "d3.fp16", "y"]


def test_all_kept_is_the_model_itself_and_none_kept_differs(tmp_path):
    model = prepared(onnx.load(overflowing(tmp_path, bad=-1)))
    exact = run(model, given())[0]
    assert np.array_equal(run(write_mixed(model, convertible(model)), given())[0], exact)
    half = run(write_mixed(model, ()), given())[0]
    assert half.dtype == np.float32
    assert 1e-5 < np.abs(half - exact).max() < 1e-2


def test_the_emulated_graph_rounds_where_the_mixed_one_computes_in_fp16(tmp_path):
    x = np.float32([[60000, 1]])
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["b"], "up"),
        helper.make_node("Div", ["b", "two"], ["y"], "down"),
    ]
    floats = [("x", "FP32", [1, 2])], [("y", "FP32", [1, 2])]
    model = prepared(onnx_model(nodes, *floats, [("two", np.float32(2))]))
    emulated = write_mixed(model, (), emulate=True)
    assert run(emulated, {"x": x})[0].tolist() == [[np.inf, 1]]
    assert run(write_mixed(model, ("up", "down"), emulate=True), {"x": x})[0].tolist() == [
        [60000, 1]
    ]
    # The reason for emulating: ONNX Runtime's CPU keeps fp32 between these two fp16 nodes.
    assert run(write_mixed(model, ()), {"x": x})[0].tolist() == [[60000, 1]]


def test_rounding_agrees_with_numpy(tmp_path):
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(2, 16)).astype(np.float32), rng.normal(size=16).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["p"], "mul"),
        helper.make_node("Add", ["p", "w"], ["y"], "add"),
    ]
    floats = [("x", "FP32", [2, 16])], [("y", "FP32", [2, 16])]
    model = prepared(onnx_model(nodes, *floats, [("w", w)]))
    halves = x.astype(np.float16), w.astype(np.float16)
    expected = (halves[0] * halves[1] + halves[1]).astype(np.float32)
    assert np.array_equal(run(write_mixed(model, (), emulate=True), {"x": x})[0], expected)
    assert run(write_mixed(model, {"add"}, emulate=True), {"x": x})[0] == pytest.approx(
        (halves[0] * halves[1]).astype(np.float32) + w, abs=0
    )


def test_integers_constants_and_shapes_stay_as_they_are():
    limit = numpy_helper.from_array(np.float32(2.5))
    nodes = [
        helper.make_node("Constant", [], ["limit"], value=limit),
        helper.make_node("Min", ["x", "limit"], ["low"]),
        helper.make_node("Shape", ["low"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"],
                         value=numpy_helper.from_array(np.float32([0]))),
        helper.make_node("Cast", ["indices"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Gather", ["low", "indices"], ["picked"], axis=1),
        helper.make_node("Mul", ["picked", "floats"], ["product"]),
        helper.make_node("Concat", ["product", "zeros"], ["y"], axis=1),
        helper.make_node("ArgMax", ["y"], ["best"], axis=1),
    ]  # fmt: skip
    model = prepared(
        onnx_model(
            nodes,
            [("x", "FP32", ["n", 4]), ("indices", "INT64", [2])],
            [("y", "FP32", ["n", 6]), ("best", "INT64", ["n", 1])],
        )
    )
    assert [name.split("_")[0] for name in convertible(model)] == ["Min", "Gather", "Mul", "Concat"]
    inputs = {"x": np.float32([[1, 2, 3, 4]]), "indices": np.int64([3, 1])}
    expected = run(model, inputs)
    for emulate in (False, True):
        mixed = write_mixed(model, (), emulate=emulate)
        onnx.checker.check_model(mixed, full_check=True)
        for one, other in zip(run(mixed, inputs), expected, strict=True):
            assert np.array_equal(one, other)
            assert one.dtype == other.dtype


def test_what_a_subgraph_reads_is_there_in_fp32():
    def branch(name, operator):
        node = helper.make_node(operator, ["h"], [f"{name}_out"])
        out = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)
        return helper.make_graph([node], name, [], [out])

    nodes = [
        helper.make_node("Mul", ["x", "x"], ["h"], "square"),
        helper.make_node("If", ["flag"], ["c"], "choose",
                         then_branch=branch("then", "Neg"), else_branch=branch("else", "Abs")),
        helper.make_node("Add", ["c", "h"], ["y"], "sum"),
    ]  # fmt: skip
    model = prepared(
        onnx_model(nodes, [("x", "FP32", [2]), ("flag", "BOOL", [])], [("y", "FP32", [2])])
    )
    assert "square" in convertible(model)
    inputs = {"x": np.float32([3, -2]), "flag": np.array(False)}
    for emulate in (False, True):
        assert run(write_mixed(model, (), emulate=emulate), inputs)[0].tolist() == [18, 8]


def test_nodes_without_or_with_the_same_name_get_names():
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"], "same"),
        helper.make_node("Relu", ["b"], ["y"], "same"),
    ]
    model = prepared(onnx_model(nodes, [("x", "FP32", [1])], [("y", "FP32", [1])]))
    names = convertible(model)
    assert len(set(names)) == 3
    with pytest.raises(ValueError, match="no node 'absent'"):
        write_mixed(model, {"absent"})


# --- files and engines ----------------------------------------------------------------------------


def test_modules_come_from_the_exporters_metadata(tmp_path):
    path = overflowing(tmp_path)
    model = onnx.load(path)
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", "['', 'blocks.0', 'matmul']"
    onnx.save(model, path)
    assert MixedModel(path).modules()["matmul0"] == "blocks.0"


def test_files_that_cannot_be_rewritten_are_refused(tmp_path):
    nodes = [helper.make_node("Not", ["x"], ["y"])]
    path = save(tmp_path, "m.onnx", onnx_model(nodes, [("x", "BOOL", [1])], [("y", "BOOL", [1])]))
    with pytest.raises(LocalizeError, match=r"m\.onnx has no node that computes in fp32"):
        MixedModel(path)
    (tmp_path / "broken.onnx").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"broken\.onnx"):
        MixedModel(tmp_path / "broken.onnx")


def test_the_check_runs_any_runtime_on_the_real_mixed_graph(tmp_path):
    seen = []

    def build(path):
        types = {node.op_type for node in onnx.load(path).graph.node}
        seen.append("Cast" in types)
        return build_runtime(variant("onnxruntime", path))

    model = MixedModel(overflowing(tmp_path, bad=-1))
    check = OutputCheck(model, given(), build)
    assert check(frozenset(model.nodes))
    assert check(frozenset())
    assert seen == [False, True]


def test_outputs_that_are_missing_or_reshaped_are_wrong(tmp_path):
    model = MixedModel(overflowing(tmp_path, bad=-1))
    right = OutputCheck(model, given()).expected
    everything = frozenset(model.nodes)
    assert not OutputCheck(model, given(), expected={"z": right["y"]})(everything)
    assert not OutputCheck(model, given(), expected={"y": right["y"][:1]})(everything)
    assert OutputCheck(model, given(), expected=right)(everything)


def test_the_mixed_graph_builds_with_tensorrt_for_rtx(tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    from sidecar.runtimes.trt_build import build_engine

    model = MixedModel(overflowing(tmp_path, blocks=2, bad=1))
    path = tmp_path / "mixed.onnx"
    path.write_bytes(model.write(frozenset(["up1", "down1"])))
    settings = TensorRTRTXConfig.model_validate(
        {"kind": "tensorrt_rtx", "path": str(path), "cache_dir": str(tmp_path), "max_batch_size": 4}
    )
    engine = build_engine(path, settings)
    assert engine.built
    assert [spec.datatype for spec in (*engine.inputs, *engine.outputs)] == ["FP32", "FP32"]
