"""Building engines with the real TensorRT for RTX, which needs no GPU."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper

from sidecar.errors import ArtifactError, SidecarError
from sidecar.runtimes.base import TensorSpec
from sidecar.runtimes.trt import check_engine_file
from sidecar.runtimes.trt_build import BuildProgress, build_engine
from tests.runtimes.trt_models import linear, pooled, save, settings

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")


# --- building ------------------------------------------------------------------------------------


def test_static_shapes_build_without_a_profile(tmp_path: Path):
    engine = build_engine(linear(tmp_path / "m.onnx", batch=2), settings(tmp_path))

    assert engine.built
    assert engine.path.read_bytes()[:4] == b"vtrt"
    assert engine.inputs == (TensorSpec("x", "FP32", (2, 4)),)
    assert engine.outputs == (TensorSpec("y", "FP32", (2, 3)),)
    assert engine.profiles == ()
    check_engine_file(engine.path, "tensorrt_rtx")


def test_max_batch_size_makes_the_default_profile(tmp_path: Path):
    engine = build_engine(linear(tmp_path / "m.onnx"), settings(tmp_path, max_batch_size=8))

    assert engine.inputs == (TensorSpec("x", "FP32", (-1, 4)),)
    assert engine.profiles == ({"x": [[1, 4], [4, 4], [8, 4]]},)


def test_several_configured_profiles_are_all_built(tmp_path: Path):
    small = {"x": {"min": [1, 2, 4, 4], "opt": [1, 2, 8, 8], "max": [2, 2, 8, 8]}}
    large = {"x": {"min": [1, 2, 8, 8], "opt": [4, 2, 16, 16], "max": [8, 2, 32, 32]}}
    wanted = settings(tmp_path, profiles=[small, large])

    engine = build_engine(pooled(tmp_path / "m.onnx"), wanted)

    assert [profile["x"][2] for profile in engine.profiles] == [[2, 2, 8, 8], [8, 2, 32, 32]]


@pytest.mark.parametrize("name", ["FLOAT16", "BFLOAT16", "INT64", "INT32", "INT8", "UINT8", "BOOL"])
def test_dtypes_come_from_the_network(tmp_path: Path, name: str):
    kind = getattr(TensorProto, name)
    node = helper.make_node("Identity", ["x"], ["y"], name="same")
    model = save(tmp_path / "m.onnx", [node], {"x": (kind, [2])}, {"y": (kind, [2])})

    engine = build_engine(model, settings(tmp_path))

    expected = {"FLOAT16": "FP16", "BFLOAT16": "BF16"}.get(name, name)
    assert [spec.datatype for spec in (*engine.inputs, *engine.outputs)] == [expected, expected]


@pytest.mark.parametrize("name", ["FLOAT8E4M3FN", "INT4"])
def test_a_dtype_the_protocol_lacks_is_refused(tmp_path: Path, name: str):
    kind = getattr(TensorProto, name)
    node = helper.make_node("Identity", ["x"], ["y"], name="same")
    model = save(tmp_path / "m.onnx", [node], {"x": (kind, [2])}, {"y": (kind, [2])})

    with pytest.raises(ArtifactError, match=r"the input 'x' is (FP8|INT4), which the inference"):
        build_engine(model, settings(tmp_path))


def test_a_shape_input_is_refused(tmp_path: Path):
    node = helper.make_node("Reshape", ["x", "s"], ["y"], name="reshape")
    inputs = {"x": (TensorProto.FLOAT, [4]), "s": (TensorProto.INT64, [2])}
    model = save(tmp_path / "m.onnx", [node], inputs, {"y": (TensorProto.FLOAT, ["a", "b"])})

    with pytest.raises(ArtifactError, match="the input 's' decide shapes"):
        build_engine(model, settings(tmp_path))


def test_progress_is_told_and_can_cancel(tmp_path: Path):
    model = linear(tmp_path / "m.onnx", batch=2)
    steps = []
    build_engine(model, settings(tmp_path), steps.append)
    outermost = [step for step in steps if not step.parent]
    assert {step.phase for step in outermost} == {"Building engine"}
    assert max(step.step for step in outermost) >= 1

    def stop(_: BuildProgress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(model, settings(tmp_path / "other"), stop)
    assert not list((tmp_path / "other").glob("*.engine"))


def test_the_librarys_reason_is_in_the_error(tmp_path: Path):
    model = linear(tmp_path / "m.onnx", batch=2)
    with pytest.raises(SidecarError, match="workspace"):
        build_engine(model, settings(tmp_path, workspace_bytes=1000))


# --- models that cannot be built -----------------------------------------------------------------


def test_every_unsupported_operator_is_named(tmp_path: Path):
    nodes = [
        # NonZero fails when imported, where the parser stops; the others fail its first look.
        helper.make_node("NonZero", ["x"], ["a"], name="where"),
        helper.make_node("Det", ["x"], ["b"], name="determinant"),
        helper.make_node("Relu", ["x"], ["c"], name="fine"),
        helper.make_node("Unique", ["x"], ["d"], name="distinct"),
    ]
    outputs = {
        "a": (TensorProto.INT64, [2, "n"]),
        "b": (TensorProto.FLOAT, []),
        "c": (TensorProto.FLOAT, [2, 2]),
        "d": (TensorProto.FLOAT, ["k"]),
    }
    model = save(tmp_path / "m.onnx", nodes, {"x": (TensorProto.FLOAT, [2, 2])}, outputs)

    with pytest.raises(ArtifactError) as caught:
        build_engine(model, settings(tmp_path))

    text = str(caught.value)
    assert "operator NonZero (node 'where')" in text
    assert "operator Det (node 'determinant')" in text
    assert "operator Unique (node 'distinct')" in text
    assert "Relu" not in text


def test_an_unknown_domain_and_a_string_input_are_named(tmp_path: Path):
    nodes = [
        helper.make_node("Mystery", ["x"], ["y"], name="puzzle", domain="own"),
        helper.make_node("StringNormalizer", ["t"], ["u"], name="lower"),
    ]
    inputs = {"x": (TensorProto.FLOAT, [2]), "t": (TensorProto.STRING, [2])}
    outputs = {"y": (TensorProto.FLOAT, [2]), "u": (TensorProto.STRING, [2])}
    with pytest.raises(ArtifactError) as caught:
        build_engine(save(tmp_path / "m.onnx", nodes, inputs, outputs), settings(tmp_path))

    text = str(caught.value)
    assert "operator Mystery (node 'puzzle'): Plugin not found" in text
    assert "operator StringNormalizer (node 'lower'): not supported" in text
    assert "input 't':" in text


def test_damaged_onnx_files_are_refused(tmp_path: Path):
    whole = linear(tmp_path / "whole.onnx").read_bytes()
    damaged = {
        "empty.onnx": (b"", "is empty"),
        "text.onnx": (b"this is no model" * 20, "is of no kind known here"),
        "cut.onnx": (whole[:-20], "truncated|cut off"),
        "zeros.onnx": (bytes(100), "is of no kind known here"),
        "nographs.onnx": (b"\x08\x0a", "is of no kind known here"),
        "checkpoint.onnx": (b"\x80\x02}q", "is a PyTorch checkpoint"),
        "nooutputs.onnx": (b"\x08\x0a\x3a\x00", "no outputs|cannot use"),
    }
    for name, (content, message) in damaged.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ArtifactError, match=message):
            build_engine(path, settings(tmp_path))
    with pytest.raises(ArtifactError, match="does not exist"):
        build_engine(tmp_path / "absent.onnx", settings(tmp_path))


def test_any_damaged_byte_gives_an_engine_or_a_clear_error(tmp_path: Path):
    whole = linear(tmp_path / "whole.onnx", batch=2).read_bytes()
    path = tmp_path / "m.onnx"
    generator = np.random.default_rng(3)
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[generator.integers(len(damaged))] ^= 1 << int(generator.integers(8))
        path.write_bytes(damaged)
        try:
            build_engine(path, settings(tmp_path / "cache"))
        except SidecarError as error:
            text = str(error)
        else:
            continue
        assert path.name in text


# --- profiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [linear, pooled])
def test_a_missing_profile_error_holds_yaml_that_works(
    tmp_path: Path, make: Callable[[Path], Path]
):
    model = make(tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="'x' ") as caught:
        build_engine(model, settings(tmp_path))

    advice = str(caught.value).partition(":\n")[2]
    addition = yaml.safe_load(textwrap.dedent(advice))
    assert build_engine(model, settings(tmp_path, **addition)).profiles


def test_max_batch_size_is_not_enough_for_other_dynamic_dimensions(tmp_path: Path):
    with pytest.raises(ArtifactError, match="profiles:"):
        build_engine(pooled(tmp_path / "m.onnx"), settings(tmp_path, max_batch_size=8))


def test_a_batch_size_the_model_cannot_take_is_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match="first dimension of 'x' is fixed"):
        build_engine(linear(tmp_path / "fixed.onnx", batch=2), settings(tmp_path, max_batch_size=8))

    profile = {"x": {"min": [1, 4], "opt": [2, 4], "max": [4, 4]}}
    wanted = settings(tmp_path, max_batch_size=8, profiles=[profile])
    with pytest.raises(ArtifactError, match="max_batch_size is 8, but"):
        build_engine(linear(tmp_path / "m.onnx"), wanted)


def test_all_mistakes_of_profiles_are_reported(tmp_path: Path):
    def same(*shape: int):
        return {"min": list(shape), "opt": list(shape), "max": list(shape)}

    profiles = [{"x": same(1, 2, 8), "nobody": same(1)}, {"x": same(1, 3, 8, 8)}, {}]
    with pytest.raises(ArtifactError) as caught:
        build_engine(pooled(tmp_path / "m.onnx"), settings(tmp_path, profiles=profiles))

    text = str(caught.value)
    assert "profiles[0].x: has 3 dimensions, the input has 4" in text
    assert "profiles[0].nobody: no such input; there is: x, b" in text
    assert "profiles[1].x: dimension 1 is fixed to 2" in text
    assert "profiles[2]: says nothing of the input 'x'" in text
