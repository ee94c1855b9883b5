"""ONNX Runtime: what it reads from a model, its settings, and its messages."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from sidecar.errors import ArtifactError, ExecutionError, InvalidRequestError, MissingExtraError
from sidecar.runtimes import onnxrt
from sidecar.runtimes.base import Runtime, TensorSpec
from tests.support import models
from tests.support.models import variant


def build(path: Path, **settings: Any) -> Runtime:
    return onnxrt.build(variant("onnxruntime", path, **settings))


def identity(
    folder: Path, shape: Any, *, output_shape: Any = "same", datatype: str = "FP32"
) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    out = shape if output_shape == "same" else output_shape
    model = models.onnx_model([node], [("x", datatype, shape)], [("y", datatype, out)])
    return models.save(folder, "identity.onnx", model)


# --- the signature --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((), ()),
        ((3,), (3,)),
        (("n", 3), (-1, 3)),
        ((None, 0, "w"), (-1, 0, -1)),
    ],
)
def test_shapes_are_the_models(tmp_path: Path, shape: tuple, expected: tuple):
    signature = build(identity(tmp_path, shape)).signature
    assert signature.inputs == (TensorSpec("x", "FP32", expected),)
    assert signature.outputs == (TensorSpec("y", "FP32", expected),)
    assert (signature.platform, signature.backend) == ("onnxruntime_onnx", "onnxruntime")


def test_a_scalar_is_not_an_unknown_rank(tmp_path: Path):
    """ONNX Runtime answers [] for both."""
    path = identity(tmp_path, None)
    with pytest.raises(ArtifactError) as caught:
        build(path)
    assert "does not say the shape of input 'x'" in str(caught.value)
    assert "- {name: x, datatype: FP32, shape: [-1, -1]}" in str(caught.value)

    declared = [models.tensor("x", "FP32", [-1, 2])]
    with pytest.raises(ArtifactError, match="does not say the shape of output 'y'"):
        build(path, inputs=declared)
    runtime = build(path, inputs=declared, outputs=[models.tensor("y", "FP32", [-1, 2])])
    assert runtime.signature.inputs[0].shape == (-1, 2)
    x = np.ones((3, 2), np.float32)
    models.assert_same(runtime.infer({"x": x})[0], x)


def test_an_inferred_output_shape_needs_no_config(tmp_path: Path):
    runtime = build(identity(tmp_path, ("n", 3), output_shape=None))
    assert runtime.signature.outputs[0].shape == (-1, 3)


def test_the_config_may_narrow_but_not_contradict(tmp_path: Path):
    path = identity(tmp_path, ("n", 3))
    narrowed = build(path, inputs=[models.tensor("x", "FP32", [4, 3])])
    assert narrowed.signature.inputs[0].shape == (4, 3)
    for wrong, message in [
        (models.tensor("x", "FP64", [-1, 3]), "'x' is FP32 in the artifact, FP64 in the config"),
        (models.tensor("x", "FP32", [-1, 4]), r"shape \[-1, 3\] in the artifact, \[-1, 4\]"),
        (models.tensor("x", "FP32", [-1, -1]), "narrow only dimensions of -1"),
        (models.tensor("x", "FP32", [-1]), r"shape \[-1, 3\] in the artifact, \[-1\]"),
        (models.tensor("z", "FP32", [-1, 3]), "has no input 'z', .* it has: x"),
    ]:
        with pytest.raises(ArtifactError, match=message):
            build(path, inputs=[wrong])


@pytest.mark.parametrize(
    ("first", "second", "setting", "expected"),
    [
        ("batch", "batch", None, 1024),
        ("batch", "batch", 16, 16),
        ("batch", "batch", 0, 0),
        ("batch", "detections", None, 0),
        ("batch", "detections", 8, 8),
        (None, None, None, 1024),
        ("unk__7", "unk__8", None, 1024),
        ("batch", 1, None, 0),
        (1, 1, None, 0),
    ],
)
def test_requests_are_joined_only_along_one_and_the_same_dimension(
    tmp_path: Path, first, second, setting, expected
):
    path = identity(tmp_path, (first, 3), output_shape=(second, 3))
    settings = {} if setting is None else {"max_batch_size": setting}
    assert build(path, **settings).signature.max_batch_size == expected


def test_a_batch_size_for_a_fixed_model_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"max_batch_size is 8, but .* 'x' is fixed"):
        build(identity(tmp_path, (1, 3)), max_batch_size=8)


def test_sequences_and_maps_are_refused_by_name(tmp_path: Path):
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(ArtifactError, match=r"output 'y' is seq\(tensor\(float\)\)"):
        build(models.save(tmp_path, "sequence.onnx", model))


def test_a_classifiers_zipmap_is_explained(tmp_path: Path):
    nodes = [
        helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    ]
    key_value = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    output = helper.make_value_info("y", helper.make_sequence_type_proto(key_value))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])], [output]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    with pytest.raises(ArtifactError, match="'zipmap': False"):
        build(models.save(tmp_path, "zipmap.onnx", model))


# --- execution ------------------------------------------------------------------------------------


def test_text_that_is_not_utf8_names_the_input(tmp_path: Path):
    runtime = build(models.onnx_identity(tmp_path, "BYTES"))
    text = np.array([[b"fine", b"\xff\xfe", b""]], dtype=object)
    with pytest.raises(InvalidRequestError, match=r"input 'x': element 1 is not valid UTF-8"):
        runtime.infer({"x": text})


def test_text_given_next_to_bfloat16(tmp_path: Path):
    """The two conversions together: outputs as OrtValues hold strings as well."""
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Identity", ["labels"], ["names"]),
    ]
    io = [("x", "BF16", ["n"])], [("names", "BYTES", [2]), ("y", "BF16", ["n"])]
    labels = np.array(["Grüße", "b"], dtype=object)
    model = models.onnx_model(nodes, *io, [("labels", labels)])
    runtime = build(models.save(tmp_path, "both.onnx", model))
    x = models.example("BF16", (4,))
    expected = {"y": x, "names": np.array(["Grüße".encode(), b"b"], dtype=object)}
    for wanted in (["names", "y"], ["y"], ["y", "names"]):
        for array, name in zip(runtime.infer({"x": x}, wanted), wanted, strict=True):
            models.assert_same(array, expected[name])


def test_text_taken_next_to_bfloat16_is_refused(tmp_path: Path):
    nodes = [helper.make_node("Identity", [a], [b]) for a, b in (("t", "u"), ("x", "y"))]
    model = models.onnx_model(
        nodes,
        [("t", "BYTES", ["n"]), ("x", "BF16", ["n"])],
        [("u", "BYTES", ["n"]), ("y", "BF16", ["n"])],
    )
    with pytest.raises(ArtifactError, match="string inputs and bfloat16 tensors"):
        build(models.save(tmp_path, "both.onnx", model))


@pytest.mark.parametrize("datatype", ["BF16", "BYTES", "FP32", "BOOL"])
def test_no_elements_and_no_dimensions(tmp_path: Path, datatype: str):
    empty = models.example(datatype, (0, 3))
    models.assert_same(
        build(models.onnx_identity(tmp_path, datatype)).infer({"x": empty})[0], empty
    )
    scalar = models.example(datatype, ())
    path = identity(tmp_path, (), datatype=datatype)
    models.assert_same(build(path).infer({"x": scalar})[0], scalar)


def test_a_failure_names_the_node_and_no_source_file(tmp_path: Path):
    shape = np.array([2, 2], np.int64)
    node = helper.make_node("Reshape", ["x", "shape"], ["y"], name="/head/Reshape")
    io = [("x", "FP32", ["n"])], [("y", "FP32", [2, 2])]
    path = models.save(tmp_path, "r.onnx", models.onnx_model([node], *io, [("shape", shape)]))
    with pytest.raises(ExecutionError) as caught:
        build(path).infer({"x": np.ones(3, np.float32)})
    text = str(caught.value)
    assert "Reshape node '/head/Reshape': " in text
    assert "cannot be reshaped to the requested shape. Input shape:{3}" in text
    assert "onnxruntime" not in text.lower()


def test_failures_are_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    runtime = build(models.onnx_lookup(tmp_path))
    with pytest.raises(ExecutionError):
        runtime.infer({"i": np.array([99])})
    assert capfd.readouterr() == ("", "")


def test_the_runtime_adds_little_to_the_session(tmp_path: Path):
    """On the smallest of models; the bound is loose because the machine is shared."""
    path = models.onnx_mlp(tmp_path)
    runtime = build(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {"x": np.ones((1, 32), np.float32)}

    def seconds(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        for _ in range(100):
            call()
        return time.perf_counter() - start

    # Short rounds in turn, and the best of many: what else runs here slows some of each.
    ours, bare = [], []
    for _ in range(150):
        ours.append(seconds(lambda: runtime.infer(inputs)))
        bare.append(seconds(lambda: session.run(["y"], inputs)))
    ratio = min(ours) / min(bare)
    assert ratio < 1.5


# --- settings -------------------------------------------------------------------------------------


def test_settings_reach_the_session(tmp_path: Path):
    runtime = build(
        models.onnx_mlp(tmp_path),
        intra_op_threads=2, inter_op_threads=2, graph_optimization="basic", memory_arena=False,
        session_options={"session.intra_op.allow_spinning": "0"},
    )  # fmt: skip
    options = runtime._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert options.enable_cpu_mem_arena is False
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert runtime.placement.details["threads"] == "2"
    assert runtime.placement.details["provider"] == "CPUExecutionProvider"
    assert runtime.waits is False


def test_an_unknown_provider_option_is_a_start_up_error(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"cannot load mlp\.onnx"):
        build(models.onnx_mlp(tmp_path), session_options={"x" * 2000: "1"})


def test_memory_is_the_weights_with_those_beside_the_model(tmp_path: Path):
    path = models.onnx_mlp(tmp_path, external=True)
    weights = sum(array.nbytes for array in models.mlp_weights().values())
    assert weights <= build(path).placement.memory_bytes <= weights + 4096


@pytest.mark.skipif(
    "CUDAExecutionProvider" in ort.get_available_providers(), reason="this build has CUDA"
)
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_without_its_provider_says_what_brings_it(tmp_path: Path, device: str):
    with pytest.raises(MissingExtraError) as caught:
        build(models.onnx_mlp(tmp_path), device=device)
    assert "model-sidecar[onnxruntime-gpu]" in str(caught.value)
    assert device in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="onnxruntime is installed without CUDA",
)
def test_cuda_gives_the_same(tmp_path: Path):
    runtime = build(models.onnx_mlp(tmp_path), device="cuda:0")
    x = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    np.testing.assert_allclose(runtime.infer({"x": x})[0], models.mlp_expected(x), atol=1e-4)
    assert runtime.placement.device == "cuda:0"
    assert runtime.waits is True


# --- artifacts ------------------------------------------------------------------------------------


def test_weights_missing_beside_the_model_are_named(tmp_path: Path):
    path = models.onnx_mlp(tmp_path, external=True)
    (tmp_path / "mlp.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"keeps weights in mlp\.onnx\.data"):
        build(path)


def test_truncated_weights_beside_the_model_are_an_error(tmp_path: Path):
    path = models.onnx_mlp(tmp_path, external=True)
    data = tmp_path / "mlp.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"cannot load mlp\.onnx"):
        build(path)


def test_an_unknown_operator_is_named(tmp_path: Path):
    node = helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")
    model = models.onnx_model([node], [("x", "FP32", ["n"])], [("y", "FP32", ["n"])])
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(ArtifactError, match="Frobnicate"):
        build(models.save(tmp_path, "custom.onnx", model))


def test_an_ort_format_file_loads(tmp_path: Path):
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "mlp.ort")
    ort.InferenceSession(
        str(models.onnx_mlp(tmp_path)), options, providers=["CPUExecutionProvider"]
    )
    x = np.ones((2, 32), np.float32)
    y = build(tmp_path / "mlp.ort").infer({"x": x})[0]
    np.testing.assert_allclose(y, models.mlp_expected(x), atol=1e-5)


def test_torch_is_not_imported(tmp_path: Path):
    """The base install serves ONNX without torch or onnx."""
    import subprocess

    path = models.onnx_mlp(tmp_path)
    code = """
import sys
from sidecar.config import VariantConfig
from sidecar.runtimes import build
tree = {"name": "v", "version": "1", "roles": ["serving"],
        "runtime": {"kind": "onnxruntime", "path": sys.argv[1]}}
build(VariantConfig.model_validate(tree))
heavy = {"torch", "onnx", "tensorrt_rtx", "grpc"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=60)


def test_the_onnx_package_agrees_on_what_the_walker_reads(tmp_path: Path):
    """``onnx_facts`` walks the protobuf by field number: hold it against the real parser."""
    from sidecar.runtimes.artifacts import onnx_facts

    path = models.onnx_mlp(tmp_path, external=True)
    parsed = onnx.load(str(path), load_external_data=False)
    locations = {
        entry.value
        for weight in parsed.graph.initializer
        for entry in weight.external_data
        if entry.key == "location"
    }
    facts = onnx_facts(path)
    assert set(facts.external) == locations == {"mlp.onnx.data"}
    assert facts.unranked == frozenset()
    assert onnx_facts(identity(tmp_path, None)).unranked == {"x", "y"}
    assert onnx_facts(identity(tmp_path, ())).unranked == frozenset()
