"""What a file is, and its fingerprint."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import ArtifactError
from sidecar.runtimes import artifacts
from tests.support import models


@pytest.fixture(scope="module")
def onnx_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.onnx_mlp(tmp_path_factory.mktemp("onnx"))


def test_the_message_names_what_it_is_and_what_serves_it(tmp_path: Path):
    path = models.torch_state_dict(tmp_path).rename(tmp_path / "digits.onnx")
    with pytest.raises(ArtifactError) as caught:
        artifacts.require(path, {"onnx", "ort"}, "onnxruntime")
    text = str(caught.value)
    assert text.startswith("digits.onnx is a PyTorch checkpoint (a pickle in a zip); ")
    assert "kind: onnxruntime needs an ONNX model or an ORT-format model" in text
    assert "Use kind: pytorch with a factory" in text


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "lfs_pointer"),
        (b"\n <HTML><body>", "html"),
        (b"ftrt\x00\x00\x00\x01", "tensorrt_engine"),
        (b"\x20\x00\x00\x00ORTM", "ort"),
        (b"\x1c\x00\x00\x00TFL3", "tflite"),
        (b"\x89HDF\r\n\x1a\n", "hdf5"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\x80\x02\x8a\nl\xfc", "torch_pickle_legacy"),
        (b'\x40\x00\x00\x00\x00\x00\x00\x00{"a":', "safetensors"),
        (b"\x80", "unknown"),
        (b"just text", "unknown"),
    ],
)  # fmt: skip
def test_kinds_by_their_first_bytes(tmp_path: Path, head: bytes, kind: str):
    path = tmp_path / "file"
    path.write_bytes(head)
    assert artifacts.sniff(path) == kind


def test_a_plain_zip_is_not_torch(tmp_path: Path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert artifacts.sniff(path) == "zip"


def test_a_truncated_onnx_says_how_much_is_there(onnx_path: Path, tmp_path: Path):
    whole = onnx_path.read_bytes()
    path = tmp_path / "cut.onnx"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ArtifactError, match=f"truncated ONNX model: .* the file at {len(whole) // 2};"
    ):
        artifacts.sniff(path)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=400))
def test_any_bytes_have_a_kind_or_an_error(tmp_path_factory: pytest.TempPathFactory, data: bytes):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(data)
    try:
        kind = artifacts.sniff(path)
    except ArtifactError:
        return
    assert kind in artifacts.DESCRIPTIONS


@settings(max_examples=200, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_damaged_onnx_never_breaks_the_walker(
    onnx_path: Path, tmp_path_factory: pytest.TempPathFactory, place: float, flip: int
):
    data = bytearray(onnx_path.read_bytes()[:600])
    data[int(place * len(data))] ^= flip
    path = tmp_path_factory.mktemp("any") / "file.onnx"
    path.write_bytes(data)
    try:
        facts = artifacts.onnx_facts(path)
    except ArtifactError:
        return
    assert isinstance(facts.external, tuple)


def test_an_archive_without_checksums_is_told_apart_from_a_damaged_one(tmp_path: Path):
    path = models.torch_state_dict(tmp_path)
    assert artifacts.check_zip_checksums(path) is True
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if entry.file_size]
    data = bytearray(path.read_bytes())
    largest = max(entries, key=lambda entry: entry.file_size)
    data[largest.header_offset + 200] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=f"damaged: the checksum of {largest.filename} "):
        artifacts.check_zip_checksums(path)


def test_torchs_archives_without_checksums_load(tmp_path: Path):
    import torch

    path = tmp_path / "plain.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(compute_crc32=False)
    try:
        torch.save(models.torch_mlp().state_dict(), path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert artifacts.check_zip_checksums(path) is False


def test_the_fingerprint_covers_weights_beside_the_model(tmp_path: Path):
    path = models.onnx_mlp(tmp_path, external=True)
    first = artifacts.fingerprint(path)
    assert first == artifacts.fingerprint(path)
    assert len(first) == 64
    data = tmp_path / "mlp.onnx.data"
    weights = bytearray(data.read_bytes())
    weights[5] ^= 1
    data.write_bytes(weights)
    assert artifacts.fingerprint(path) != first
    assert artifacts.size_bytes(path) == path.stat().st_size + data.stat().st_size


def test_the_fingerprint_is_the_contents_not_the_name(tmp_path: Path):
    path = models.onnx_mlp(tmp_path)
    first = artifacts.fingerprint(path)
    assert artifacts.fingerprint(path.rename(tmp_path / "other.onnx")) == first
