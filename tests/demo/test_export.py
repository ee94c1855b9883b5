"""Every artifact answers as the network it was made from, and is found again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from sidecar.demo import export
from sidecar.demo.train import RECIPES, build_network, load_digits, train, weights_hash
from sidecar.errors import MissingExtraError
from tests.demo.conftest import Trained

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def networks():
    training, _ = load_digits()
    return {recipe.version: train(recipe, training) for recipe in RECIPES}


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([export.OUTPUT], {export.INPUT: images})[0]


def scores(folder: Path, version: str, form: str, images: np.ndarray) -> np.ndarray:
    path = folder / export.file_name(version, form)
    if form != "pt2":
        return run_onnx(path, images)
    with torch.inference_mode():
        return torch.export.load(path).module()(torch.from_numpy(images)).numpy()


def accuracy(answers: np.ndarray, labels: np.ndarray) -> float:
    return float((answers.argmax(axis=1) == labels).mean())


@pytest.mark.parametrize("version", export.VERSIONS)
def test_exports_agree_with_the_network_on_every_held_out_digit(
    trained: Trained, networks: dict[str, Any], version: str
):
    network, hold_out = networks[version], trained.prepared.hold_out
    record = json.loads((trained.folder / export.RECORD_FILE).read_text())
    assert record["weights_sha256"][version] == weights_hash(network)
    with torch.inference_mode():
        truth = network(torch.from_numpy(hold_out.images)).numpy()
    assert truth.shape == (len(hold_out.labels), 10)
    for form in ("onnx", "pt2"):
        found = scores(trained.folder, version, form, hold_out.images)
        np.testing.assert_allclose(found, truth, atol=1e-4, rtol=1e-4)
    quantized = scores(trained.folder, version, "int8", hold_out.images)
    assert (quantized.argmax(axis=1) == truth.argmax(axis=1)).mean() >= 0.99
    apart = np.abs(quantized - truth)
    assert apart.mean() < 0.01 * np.ptp(truth)
    assert apart.max() < 0.1 * np.ptp(truth)
    assert apart.max() > 1e-3  # int8 is not fp32 under another name


def test_accuracy_is_within_bounds(trained: Trained):
    hold_out = trained.prepared.hold_out
    found = {
        (version, form): accuracy(
            scores(trained.folder, version, form, hold_out.images), hold_out.labels
        )
        for version in export.VERSIONS
        for form in export.FORMATS
    }
    assert found["2", "onnx"] >= 0.97
    assert 0.75 <= found["1", "onnx"] <= found["2", "onnx"] - 0.03
    for version in export.VERSIONS:
        assert abs(found[version, "int8"] - found[version, "onnx"]) <= 0.01
        assert found[version, "pt2"] == found[version, "onnx"]


def test_the_broken_conversion_looks_fine_and_is_not(trained: Trained):
    hold_out = trained.prepared.hold_out
    good = scores(trained.folder, "2", "onnx", hold_out.images)
    broken = run_onnx(trained.folder / export.BROKEN_FILE, hold_out.images)
    assert accuracy(broken, hold_out.labels) >= 0.9
    flips = (good.argmax(axis=1) != broken.argmax(axis=1)).mean()
    assert flips >= 0.015  # more than a production model may lose, by enough to be found soon


def test_only_what_begins_with_its_division_can_be_broken_so(trained: Trained, tmp_path: Path):
    other = onnx.load(trained.folder / "digits-2.onnx")
    other.graph.node[0].op_type = "Mul"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other\.onnx does not begin by dividing by 16"):
        export.break_conversion(tmp_path / "other.onnx", tmp_path / "broken.onnx")
    assert not (tmp_path / "broken.onnx").exists()


@pytest.mark.parametrize("form", export.FORMATS)
def test_any_batch_size_runs(trained: Trained, form: str):
    images = trained.prepared.hold_out.images
    whole = scores(trained.folder, "2", form, images[:65])
    for size in (1, 2, 65):
        found = scores(trained.folder, "2", form, images[:size])
        np.testing.assert_allclose(found, whole[:size], atol=1e-4)


def test_onnx_is_one_valid_file_and_int8_really_is(trained: Trained):
    names = {path.name for path in trained.folder.iterdir()}
    expected = {export.file_name(v, f) for v in export.VERSIONS for f in export.FORMATS}
    others = {
        export.BROKEN_FILE,
        export.WORSE_FILE,
        export.HOLD_OUT_FILE,
        export.LABELLED_FILE,
        export.RECORD_FILE,
    }
    assert names == expected | others
    exact = onnx.load(trained.folder / "digits-2.onnx", load_external_data=False)
    quantized = onnx.load(trained.folder / "digits-2.int8.onnx", load_external_data=False)
    for model in (exact, quantized):
        onnx.checker.check_model(model, full_check=True)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        assert not [t for t in model.graph.initializer if onnx.external_data_helper.uses_external_data(t)]  # fmt: skip  # noqa: E501
    weights = [t for t in quantized.graph.initializer if len(t.dims) >= 2]
    assert weights
    assert {t.data_type for t in weights} == {onnx.TensorProto.INT8}


@pytest.mark.parametrize("version", export.VERSIONS)
def test_int8_answers_alike_on_every_processor(trained: Trained, version: str):
    """Sums of int8 products overflow where there is no VNNI, unless weights leave a bit unused."""
    path = trained.folder / export.file_name(version, "int8")
    initializers = onnx.load(path).graph.initializer
    weights = [onnx.numpy_helper.to_array(t) for t in initializers if len(t.dims) >= 2]
    assert max(np.abs(array.astype(np.int16)).max() for array in weights) <= 64
    exact = onnxruntime.SessionOptions()
    exact.add_session_config_entry("session.x64quantprecision", "1")  # slower, never overflows
    images = trained.prepared.hold_out.images
    session = onnxruntime.InferenceSession(path, exact, providers=["CPUExecutionProvider"])
    expected = session.run([export.OUTPUT], {export.INPUT: images})[0]
    np.testing.assert_allclose(run_onnx(path, images), expected, atol=0.05)


def test_a_second_run_trains_nothing(trained: Trained):
    said: list[str] = []
    again = export.prepare(trained.folder, said.append)
    assert not trained.prepared.cached
    assert again.cached
    assert again.seconds < 1 < trained.prepared.seconds
    assert len(said) == 1
    assert "kept from an earlier run" in said[0]
    np.testing.assert_array_equal(again.hold_out.images, load_digits()[1].images)


def spoil_artifact(folder: Path) -> None:
    path = folder / "digits-1.pt2"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def spoil_key(folder: Path) -> None:
    path = folder / export.RECORD_FILE
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"key": "another"}))


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_artifact,
        spoil_key,
        lambda folder: (folder / "digits-2.onnx").unlink(),
        lambda folder: (folder / export.RECORD_FILE).unlink(),
        lambda folder: (folder / export.RECORD_FILE).write_text("{"),
        lambda folder: (folder / export.RECORD_FILE).write_text("[]"),
        lambda folder: (folder / export.RECORD_FILE).write_text('{"key": 3}'),
    ],
)
def test_what_is_not_as_it_was_is_made_again(
    trained: Trained, tmp_path: Path, spoil: Callable[[Path], object]
):
    folder = tmp_path / "copy"
    shutil.copytree(trained.folder, folder)
    key = export.cache_key()
    assert export._is_kept(folder, key)
    spoil(folder)
    assert not export._is_kept(folder, key)


def test_a_missing_package_is_one_clear_line():
    with pytest.raises(MissingExtraError) as caught:
        export.check_installed({"json": "json", "no_such_module_here": "no-such-package"})
    assert str(caught.value) == (
        "the demo trains its models and needs no-such-package: pip install 'model-sidecar[demo]'"
    )
    export.check_installed()


def test_exporters_say_nothing_on_the_way(
    trained: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    export.export_all(build_network().eval(), "9", trained.prepared.hold_out.images[:65], tmp_path)
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {
        export.file_name("9", form) for form in export.FORMATS
    }
