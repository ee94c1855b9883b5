"""The first diverging value is found, and named, in every pair of forms that can be compared."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from sidecar.clock import SystemClock
from sidecar.errors import ArtifactError
from sidecar.validation.align import (
    FX_TEXT,
    SCOPES,
    FxValue,
    OnnxNode,
    align_program,
    parse_text,
    source_of,
)
from sidecar.validation.divergence import LocalizeError
from sidecar.validation.fx_capture import load_program
from sidecar.validation.localize import localize
from sidecar.validation.mixed_precision import convertible, prepared, write_mixed
from tests.support.models import onnx_model, save, variant
from validators.limits import Limit


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.GELU()

    def forward(self, x):
        return self.act(self.norm(self.conv(x))) + x


class Network(nn.Module):
    """Normalization, convolutions with batch norms (which the exporter folds), a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.blocks = nn.ModuleList([Block(8), Block(8)])
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = (image - 0.5) / 0.25
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x.flatten(2).mean(2))
        loud = self.up(x) * 3e5
        return {"scores": self.head(torch.tanh(loud / 3e5)), "best": x.argmax(1)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The same network as a program and as the graph exported from it."""
    folder = tmp_path_factory.mktemp("exported")
    torch.manual_seed(0)
    image = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(
            Network().eval(), (image,), dynamic_shapes={"image": {0: torch.export.Dim("n")}}
        )
        torch.export.save(program, folder / "m.pt2")
        torch.onnx.export(program, dynamo=True, verbose=False).save(folder / "m.onnx")
    return SimpleNamespace(
        folder=folder,
        pt2=variant("pytorch", folder / "m.pt2"),
        onnx=variant("onnxruntime", folder / "m.onnx"),
        inputs={"image": np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)},
    )


def changed(exported, folder, name, change):
    """A copy of the graph in which one weight is another."""
    model = onnx.load(exported.folder / "m.onnx")
    tensor = next(item for item in model.graph.initializer if item.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), name))
    return variant("onnxruntime", save(folder, "changed.onnx", model))


# --- a program and its graph ----------------------------------------------------------------------


def test_equal_models_do_not_diverge(exported):
    steps = []
    found = localize(
        exported.pt2, exported.onnx, exported.inputs, on_progress=lambda *step: steps.append(step)
    )
    assert (found.cause, found.first, found.outputs_differ) == ("none", None, False)
    assert found.text.startswith("no value of the graph is out of limits on this input")
    assert "(sqnr_db >= 100, " in found.text
    # The exporter adds a value or two of its own (between the nodes of one operator).
    assert found.total - 2 <= found.aligned == len(found.layers) > 15
    assert not any(row.local_out or row.total_out or row.problem for row in found.layers)
    assert found.limits[0] == "sqnr_db >= 100"
    assert [step[1] for step in steps] == sorted(step[1] for step in steps)
    assert steps[-1][1] == steps[-1][2]


@pytest.mark.parametrize(
    ("weight", "module", "operator"),
    [
        ("stem.weight", "stem", "Conv"),
        ("blocks.1.conv.weight", "blocks.1.conv", "Conv"),
        ("norm.bias", "norm", "LayerNormalization"),
        ("up.bias", "up", "Gemm"),
    ],
)
def test_a_changed_weight_is_found_by_node_and_module(exported, tmp_path, weight, module, operator):
    candidate = changed(exported, tmp_path, weight, lambda values: values + np.float32(0.01))
    found = localize(exported.pt2, candidate, exported.inputs)
    assert found.cause == "local"
    first = found.first
    assert first.op_type == operator
    assert module in first.module.split(" + ")
    assert first.source.startswith("test_localize.py:")
    assert first.local_out
    assert first.local_error < 100
    assert repr(first.onnx_node) in found.text
    assert any(repr(weight) in note for note in found.notes)
    # What comes after inherits the error and adds none.
    after = found.layers[found.layers.index(first) + 1 :]
    assert not any(row.local_out for row in after)
    assert any(row.total_out and row.inherited_error < 100 for row in after)
    assert first.inherited_error > 100


def test_a_wrong_normalization_constant_is_found(exported, tmp_path):
    model = onnx.load(exported.folder / "m.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Div")
    candidate = changed(exported, tmp_path, node.input[1], lambda values: values * np.float32(1.04))
    found = localize(exported.pt2, candidate, exported.inputs)
    assert (found.first.onnx_node, found.first.op_type) == (node.name, "Div")
    assert found.first.source.endswith("x = (image - 0.5) / 0.25")
    assert found.layers.index(found.first) == 1
    assert found.outputs_differ


def test_a_layer_that_overflows_in_fp16_is_found(exported, tmp_path):
    model = prepared(onnx.load(exported.folder / "m.onnx"))
    loud = next(node.name for node in model.graph.node if node.op_type == "Mul")
    mixed = write_mixed(model, set(convertible(model)) - {loud})
    candidate = variant("onnxruntime", save(tmp_path, "mixed.onnx", mixed))
    found = localize(exported.pt2, candidate, exported.inputs)
    assert (found.cause, found.first.onnx_node) == ("local", loud)
    assert found.first.metric == "non_finite"
    assert found.first.local_error > 0
    assert found.first.dtype == "float16"
    assert "finite on the other side only" in found.text
    assert json.loads(json.dumps(found.to_plain()))["first"]["onnx_node"] == loud


def test_the_graph_may_be_the_reference(exported, tmp_path):
    broken = changed(exported, tmp_path, "up.bias", lambda values: values * 2)
    found = localize(broken, exported.pt2, exported.inputs)
    assert found.first.module == "up"
    assert (found.reference, found.candidate) == (broken.key, exported.pt2.key)


def test_one_row_and_another_batch_size(exported):
    inputs = {"image": exported.inputs["image"][:1]}
    assert localize(exported.pt2, exported.onnx, inputs).cause == "none"


def test_weights_in_a_file_of_their_own(exported, tmp_path):
    model = onnx.load(exported.folder / "m.onnx")
    onnx.save(
        model, tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0
    )
    found = localize(exported.pt2, variant("onnxruntime", tmp_path / "m.onnx"), exported.inputs)
    assert found.cause == "none"
    assert found.aligned > 15


def test_renamed_values_are_found_by_what_computes_them(exported, tmp_path):
    model = onnx.load(exported.folder / "m.onnx")
    names = {node.output[0]: f"renamed_{i}" for i, node in enumerate(model.graph.node)}
    for node in model.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    for item in model.graph.output:
        item.name = names[item.name]
    del model.graph.value_info[:]
    candidate = variant("onnxruntime", save(tmp_path, "renamed.onnx", model))
    found = localize(exported.pt2, candidate, exported.inputs)
    assert found.cause == "none"
    assert found.aligned >= found.total - 4  # folded batch norms have lost their only name


def test_a_graph_without_metadata_is_aligned_by_its_names(exported, tmp_path):
    model = onnx.load(exported.folder / "m.onnx")
    for node in model.graph.node:
        del node.metadata_props[:]
    candidate = variant("onnxruntime", save(tmp_path, "bare.onnx", model))
    found = localize(exported.pt2, candidate, exported.inputs)
    assert found.cause == "none"
    assert found.aligned > 10
    assert found.layers[0].source.startswith("test_localize.py:")


def test_the_program_as_the_exporter_sees_it_has_the_graphs_names(exported):
    program = load_program(exported.folder / "m.pt2").decomposed()
    nodes = onnx.load(exported.folder / "m.onnx").graph.node
    named = [node.output[0] for node in nodes if not node.output[0].startswith("val_")]
    assert set(named) <= program.values.keys()


def test_inputs_may_have_other_names_in_the_graph(exported, tmp_path):
    model = onnx.load(exported.folder / "m.onnx")
    model.graph.input[0].name = "pixels"
    for node in model.graph.node:
        node.input[:] = ["pixels" if name == "image" else name for name in node.input]
    candidate = variant("onnxruntime", save(tmp_path, "pixels.onnx", model))
    found = localize(exported.pt2, candidate, exported.inputs)
    assert found.cause == "none"
    assert "inputs of pixels.onnx were taken by position: pixels" in found.notes


def test_the_clock_is_injected(exported):
    class Clock(SystemClock):
        ticks = iter([1_000_000_000, 3_500_000_000])

        def monotonic_ns(self):
            return next(self.ticks)

    assert localize(exported.pt2, exported.onnx, exported.inputs, clock=Clock()).seconds == 2.5


# --- two graphs -----------------------------------------------------------------------------------


def chain(folder, name, weights, operator="Tanh", domain=""):
    nodes, last = [], "x"
    for index in range(len(weights)):
        nodes += [
            helper.make_node("MatMul", [last, f"w{index}"], [f"h{index}"], f"matmul{index}"),
            helper.make_node(operator, [f"h{index}"], [f"a{index}"], f"act{index}", domain=domain),
        ]
        last = f"a{index}"
    inits = [(f"w{index}", weight) for index, weight in enumerate(weights)]
    shape = ["n", 16]
    model = onnx_model(nodes, [("x", "FP32", shape)], [(last, "FP32", shape)], inits, opset=20)
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return variant("onnxruntime", save(folder, name, model))


def weights(count=8, noise=0.0):
    rng, other = np.random.default_rng(0), np.random.default_rng(1)
    made = [rng.normal(size=(16, 16)).astype(np.float32) / np.float32(4) for _ in range(count)]
    return [(w * (1 + noise * other.normal(size=w.shape))).astype(np.float32) for w in made]


X = {"x": np.random.default_rng(2).normal(size=(4, 16)).astype(np.float32)}


def test_two_graphs_are_aligned_by_name(tmp_path):
    right, wrong = weights(), weights()
    wrong[5] = wrong[5] * np.float32(1.01)
    found = localize(chain(tmp_path, "a.onnx", right), chain(tmp_path, "b.onnx", wrong), X)
    assert (found.aligned, found.total) == (16, 16)
    assert found.first.onnx_node == "matmul5"
    assert found.first.value == found.first.reference == "h5"
    assert any("weight 'w5' differs" in note for note in found.notes)


def test_errors_that_only_add_up_are_not_blamed_on_a_node(tmp_path):
    limits = [Limit("sqnr_db", ">=", 76.0)]
    pair = chain(tmp_path, "a.onnx", weights()), chain(tmp_path, "b.onnx", weights(noise=1e-4))
    found = localize(*pair, X, limits=limits)
    assert (found.cause, found.first) == ("accumulated", None)
    assert found.outputs_differ
    assert "no node is out of limits by itself" in found.text
    assert found.limits == ["sqnr_db >= 76"]


def test_what_graph_optimizations_change_is_told_from_what_nodes_do(tmp_path):
    # An optimization that ONNX Runtime offers: tanh's approximation in place of erf's Gelu.
    plain = chain(tmp_path, "a.onnx", weights(), "Gelu", "com.microsoft")
    tree = plain.model_dump()
    tree["name"] = "approximated"
    tree["runtime"]["session_options"] = {"optimization.enable_gelu_approximation": "1"}
    found = localize(plain, type(plain).model_validate(tree), X)
    assert (found.cause, found.outputs_differ, found.first) == ("optimization", True, None)
    assert "graph optimizations change it" in found.text


def test_an_int8_graph_is_held_to_its_own_limits_and_a_wrong_scale_is_found(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        rows = iter([X])

        def get_next(self):
            return next(self.rows, None)

    plain = chain(tmp_path, "a.onnx", weights(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(tmp_path / "a.onnx", tmp_path / "q.onnx", Reader())
    int8 = variant("onnxruntime", tmp_path / "q.onnx")
    found = localize(plain, int8, X)
    assert (found.cause, found.aligned) == ("none", 8)
    assert found.total > 20  # the quantizer's own nodes have no counterpart
    assert found.limits[0] == "sqnr_db >= 20"
    assert max(row.local_error for row in found.layers) < 60

    model = onnx.load(tmp_path / "q.onnx")
    scale = next(item for item in model.graph.initializer if item.name == "a1_scale")
    scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) / 4, scale.name))
    broken = variant("onnxruntime", save(tmp_path, "broken.onnx", model))
    first = localize(plain, broken, X).first
    assert first.onnx_node.startswith("matmul2")  # the first that reads what a1 was rounded to
    assert any("QuantizeLinear" in name for name in first.nodes)


def test_integers_must_be_equal(tmp_path):
    def model(name, offset):
        nodes = [
            helper.make_node("Add", ["x", "c"], ["sum"], "add"),
            helper.make_node("Abs", ["sum"], ["y"], "abs"),
        ]
        io = [("x", "INT64", [3])], [("y", "INT64", [3])]
        made = onnx_model(nodes, *io, [("c", np.int64([0, offset, 0]))])
        return variant("onnxruntime", save(tmp_path, name, made))

    found = localize(model("a.onnx", 1), model("b.onnx", 2), {"x": np.int64([1, 2, 3])})
    assert (found.first.onnx_node, found.first.metric) == ("add", "not_equal")
    assert found.first.local_error == 1


def test_values_of_another_shape_are_reported_and_not_judged(tmp_path):
    def model(name, axis):
        nodes = [
            helper.make_node("Softmax", ["x"], ["p"], "softmax"),
            helper.make_node("ReduceMax", ["p", "axis"], ["y"], "max"),
        ]
        io = [("x", "FP32", [2, 3])], [("y", "FP32", None)]
        made = onnx_model(nodes, *io, [("axis", np.int64([axis]))], opset=20)
        return variant("onnxruntime", save(tmp_path, name, made))

    found = localize(model("a.onnx", 0), model("b.onnx", 1), {"x": np.eye(2, 3, dtype=np.float32)})
    assert found.aligned == 1
    assert found.layers[1].problem == "shape [1, 3] in the reference, [2, 1] here"
    assert any("1 were not judged ('y': shape" in note for note in found.notes)


def test_what_a_subgraph_reads_is_forced_too(tmp_path):
    def model(name, factor):
        body = helper.make_graph(
            [helper.make_node("Neg", ["h"], ["inner"])],
            "body", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )  # fmt: skip
        nodes = [
            helper.make_node("Mul", ["x", "k"], ["h"], "scale"),
            helper.make_node("If", ["yes"], ["y"], "choose", then_branch=body, else_branch=body),
        ]
        inits = [("k", np.float32([factor])), ("yes", np.array(True))]
        made = onnx_model(nodes, [("x", "FP32", [2])], [("y", "FP32", [2])], inits)
        return variant("onnxruntime", save(tmp_path, name, made))

    found = localize(model("a.onnx", 2), model("b.onnx", 3), {"x": np.float32([1, 2])})
    assert found.first.onnx_node == "scale"
    choose = found.layers[1]
    assert (choose.onnx_node, choose.local_out, choose.total_out) == ("choose", False, True)
    assert choose.nodes == ["choose"]


# --- what cannot be done --------------------------------------------------------------------------


def test_what_has_no_values_to_see_is_refused(exported, tmp_path):
    remote = {"kind": "remote", "address": "127.0.0.1:1", "model_name": "m"}
    tree = {**exported.onnx.model_dump(), "runtime": remote}
    with pytest.raises(LocalizeError, match="of kind remote, whose values cannot be seen"):
        localize(exported.pt2, type(exported.onnx).model_validate(tree), exported.inputs)
    engine = variant("tensorrt_rtx", exported.folder / "m.onnx")
    with pytest.raises(LocalizeError, match=r"With --localize its \.onnx file"):
        localize(exported.pt2, engine, exported.inputs)
    with pytest.raises(LocalizeError, match="both PyTorch programs"):
        localize(exported.pt2, exported.pt2, exported.inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "m.pt")
    with pytest.raises(LocalizeError, match=r"TorchScript.*torch\.export\.save"):
        localize(variant("pytorch", tmp_path / "m.pt"), exported.onnx, exported.inputs)


def test_graphs_without_a_common_name_are_refused(tmp_path, exported):
    node = helper.make_node("Relu", ["x"], ["elsewhere"])
    io = [("x", "FP32", ["n", 16])], [("elsewhere", "FP32", ["n", 16])]
    other = variant("onnxruntime", save(tmp_path, "other.onnx", onnx_model([node], *io)))
    with pytest.raises(LocalizeError, match="share no name of a value"):
        localize(chain(tmp_path, "a.onnx", weights(1)), other, X)
    with pytest.raises(LocalizeError, match=r"no value of other\.onnx can be found in m\.pt2"):
        localize(exported.pt2, other, exported.inputs)


def test_the_bound_on_captured_values(exported, tmp_path):
    with pytest.raises(LocalizeError, match=r"more than 0.00954 MiB .*give fewer rows"):
        localize(exported.pt2, exported.onnx, exported.inputs, bytes_max=10_000)
    one = chain(tmp_path, "a.onnx", weights())
    bytes_taken = 16 * 4 * 16 * 4  # values, rows, width, bytes of a float
    with pytest.raises(LocalizeError, match="give fewer rows"):
        localize(one, one, X, bytes_max=bytes_taken - 64 * 4 - 1)
    assert localize(one, one, X, bytes_max=bytes_taken).cause == "none"
    program = load_program(exported.folder / "m.pt2")
    with pytest.raises(LocalizeError, match="give fewer rows"):
        program.run(exported.inputs, program.values.keys(), bytes_max=10_000)


def test_bad_inputs_limits_and_files(exported, tmp_path):
    with pytest.raises(LocalizeError, match=r"m\.onnx takes an input 'image', which is not among"):
        localize(exported.onnx, exported.onnx, {"a": X["x"], "b": X["x"]})
    with pytest.raises(LocalizeError, match=r"m\.pt2 cannot be run on this input"):
        localize(exported.pt2, exported.onnx, {"image": np.zeros((1, 7), np.float32)})
    with pytest.raises(LocalizeError, match="no 'iou'; known: sqnr_db"):
        localize(exported.pt2, exported.onnx, exported.inputs, limits=[Limit("iou", ">=", 0.5)])
    with pytest.raises(LocalizeError, match="no limits"):
        localize(exported.pt2, exported.onnx, exported.inputs, limits=[])
    (tmp_path / "m.onnx").write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match=r"m\.onnx"):
        localize(exported.pt2, variant("onnxruntime", tmp_path / "m.onnx"), exported.inputs)


# --- alignment alone ------------------------------------------------------------------------------


def fx(name, body, module="", shape=(1,)):
    return FxValue(name, f"call_function[target={body}]", module, "", shape)


def test_the_same_name_of_another_computation_is_not_aligned():
    # view_1 was made of select in the program as saved, and of linear in the exporter's.
    values = {
        "linear": fx("linear", "aten.linear](args = (%x,)"),
        "view_1": fx("view_1", "aten.view](args = (%select, 3)", "attn"),
    }
    text = "%view_1 : [num_users=1] = call_function[target=aten.view](args = (%linear, 4)]"
    node = OnnxNode(0, "n", "Reshape", ("linear",), ("view_1",), {FX_TEXT: text, SCOPES: "['']"})
    assert align_program([node], [], values, []) == []


def test_graphs_of_the_older_exporter_are_aligned_by_module():
    values = {
        "conv2d": fx("conv2d", "conv2d](args = (%x,)", "features.0"),
        "relu": fx("relu", "relu](args = (%conv2d,)", "features.1"),
        "linear": fx("linear", "linear](args = (%relu,)", "head"),
        "again": fx("again", "linear](args = (%linear,)", "features.1"),
    }
    nodes = [
        OnnxNode(0, "/features/features.0/Conv", "Conv", ("x",), ("/features/0/Conv_output_0",)),
        OnnxNode(1, "/features/features.1/Relu", "Relu", ("c",), ("/features/1/Relu_output_0",)),
        OnnxNode(2, "/head/Gemm", "Gemm", ("r",), ("out",)),
    ]
    pairs = align_program(nodes, ["out"], values, ["linear"])
    # features.1 is entered twice: which of its calls a node belongs to cannot be told.
    assert [(pair.reference, pair.how) for pair in pairs] == [
        ("conv2d", "module"), ("linear", "output"),
    ]  # fmt: skip


def test_texts_and_sources_are_read():
    text = (
        "%add_3 : [num_users=2] = call_function[target=torch.ops.aten.add.Tensor](args = (%a, 1))"
    )
    assert parse_text(text) == (
        "add_3",
        "call_function[target=torch.ops.aten.add.Tensor](args = (%a, 1))",
    )
    assert parse_text("not an fx text") == ("", "")
    stack = (
        'File "/home/me/model.py", line 14, in forward\n    x = self.stem(x)\n'
        '  File "/env/site-packages/torch/nn/modules/conv.py", line 565, in forward\n    return y'
    )
    assert source_of(stack) == "model.py:14: x = self.stem(x)"
    assert source_of("") == ""
