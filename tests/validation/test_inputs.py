"""Rows in files: every kind that is read, and what is said of those that do not fit."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count
from pathlib import Path

import ml_dtypes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from sidecar.runtimes.base import TensorSpec
from sidecar.validation.files import ValidationInputError, read
from sidecar.validation.inputs import check_labels, load
from sidecar.validation.layout import Layout

X = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
IDS = np.array([[1], [2], [3], [4]], np.int64)
TEXT = [b"a", "ü".encode(), b"", b"long" * 100]


def layout(*specs: tuple[str, str, tuple[int, ...]], batched: bool = True) -> Layout:
    return Layout(tuple(TensorSpec(*spec) for spec in specs), batched, 64)


TWO = layout(("x", "FP32", (-1, 2, 3)), ("ids", "INT64", (-1, 1)))


def only(paths, wanted=TWO, **options):
    """The blocks of the only set."""
    found = load(paths, wanted, **options)
    assert len(found) == 1
    return found[0]


def write_npz(folder: Path, name: str = "rows.npz", **arrays) -> Path:
    path = folder / name
    np.savez(path, **arrays)
    return path


def write_all(folder: Path) -> dict[str, Path]:
    """The same two inputs in every kind of file."""
    write_npz(folder, x=X, ids=IDS)
    save_file({"x": X, "ids": IDS}, folder / "rows.safetensors")
    table = pa.table({"x": [row.tolist() for row in X], "ids": IDS[:, 0]})
    pq.write_table(table, folder / "rows.parquet", row_group_size=3)
    flat = pa.FixedSizeListArray.from_arrays(pa.array(X.ravel()), 6)
    pq.write_table(pa.table({"x": flat, "ids": IDS[:, 0]}), folder / "flat.parquet")
    arrays = folder / "arrays"
    arrays.mkdir()
    np.save(arrays / "x.npy", X)
    np.save(arrays / "ids.npy", IDS)
    parts = folder / "parts"
    parts.mkdir()
    write_npz(parts, "1.npz", x=X[:3], ids=IDS[:3])
    write_npz(parts, "2.npz", x=X[3:], ids=IDS[3:])
    return {path.name: path for path in folder.iterdir()}


def test_every_kind_of_file_gives_the_same_rows(tmp_path):
    written = write_all(tmp_path)
    assert len(written) == 6
    for name, path in written.items():
        found = only([path])
        assert (found.name, found.kind, found.rows) == (name, "data", 4)
        assert len(found.blocks) == 1, "rows of equal shape are one block"
        assert np.array_equal(found.blocks[0]["x"], X), name
        assert found.blocks[0]["x"].dtype == np.float32
        assert np.array_equal(found.blocks[0]["ids"], IDS), name


def test_enough_rows_are_enough(tmp_path):
    for name, path in write_all(tmp_path).items():
        found = only([path], rows=2)
        assert found.rows == 2, name
        assert np.array_equal(found.blocks[0]["x"], X[:2])


def test_rows_of_other_lengths_are_blocks_of_their_own(tmp_path):
    wanted = layout(("x", "FP32", (-1, -1)))
    for name, length in (("1.npz", 3), ("2.npz", 3), ("3.npz", 5)):
        write_npz(tmp_path, name, x=np.zeros((2, length), np.float32))
    found = only([tmp_path], wanted)
    assert [block["x"].shape for block in found.blocks] == [(4, 3), (2, 5)]


def test_a_single_array_is_the_only_input(tmp_path):
    np.save(tmp_path / "rows.npy", X)
    found = only([tmp_path / "rows.npy"], layout(("x", "FP32", (-1, 2, 3))))
    assert found.rows == 4
    with pytest.raises(ValidationInputError, match="one array without a name, but the model takes"):
        only([tmp_path / "rows.npy"])


def test_texts_become_bytes(tmp_path):
    wanted = layout(("t", "BYTES", (-1, 1)))
    write_npz(tmp_path, "bytes.npz", t=np.array(TEXT)[:, None])
    write_npz(tmp_path, "text.npz", t=np.array([t.decode() for t in TEXT])[:, None])
    pq.write_table(pa.table({"t": [t.decode() for t in TEXT]}), tmp_path / "text.parquet")
    pq.write_table(pa.table({"t": pa.array(TEXT, pa.binary())}), tmp_path / "binary.parquet")
    for path in tmp_path.iterdir():
        found = only([path], wanted).blocks[0]["t"]
        assert found.dtype == object
        assert found[:, 0].tolist() == TEXT, path.name


def test_bfloat16_is_read(tmp_path):
    wanted = layout(("x", "BF16", (-1, 3)))
    values = np.array([[1.5, -2, 3]], ml_dtypes.bfloat16)
    write_npz(tmp_path, "rows.npz", x=values)  # numpy writes raw bytes of an unknown type
    header = b'{"x":{"dtype":"BF16","shape":[1,3],"data_offsets":[0,6]}}'
    data = len(header).to_bytes(8, "little") + header + values.tobytes()
    (tmp_path / "rows.safetensors").write_bytes(data)
    for path in tmp_path.iterdir():
        found = only([path], wanted).blocks[0]["x"]
        assert found.dtype == ml_dtypes.bfloat16
        assert np.array_equal(found, values)


def test_values_are_cast_within_their_class_only(tmp_path):
    wanted = layout(("x", "FP32", (-1,)), ("i", "INT8", (-1,)))
    path = write_npz(tmp_path, x=np.array([0.5]), i=np.array([-128]))
    block = only([path], wanted).blocks[0]
    assert (block["x"].dtype, block["i"].dtype) == (np.float32, np.int8)
    path = write_npz(tmp_path, x=np.array([0.5]), i=np.array([128]))
    with pytest.raises(ValidationInputError, match="holds 128 to 128, which INT8 cannot"):
        only([path], wanted)
    path = write_npz(tmp_path, x=np.array([1]), i=np.array([1]))
    with pytest.raises(ValidationInputError, match=r"input 'x' holds int64; the model takes FP32"):
        only([path], wanted)


def test_tensors_of_a_model_without_batch(tmp_path):
    wanted = layout(("x", "FP32", (2, 3)), batched=False)
    whole = write_npz(tmp_path, "whole.npz", x=X[0])
    rows = write_npz(tmp_path, "rows.npz", x=X)
    assert only([whole], wanted).blocks[0]["x"].shape == (1, 2, 3)
    assert only([rows], wanted).rows == 4


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": X}, "rows.npz: input 'ids' is missing. The file has: x; the model takes: x, ids"),
        ({"x": X, "id": IDS}, "input 'ids' is missing (is it what the file calls 'id'?)"),
        ({"x": X, "tokens": IDS}, "input 'ids' is missing (is it what the file calls 'tokens'?)"),
        ({"x": X, "ids": IDS, "y": IDS}, "'y' is no input of the model (if these are the labels"),
        ({"x": X, "ids": IDS[:3]}, "the inputs differ in their number of rows: x 4, ids 3"),
        ({"x": X[0], "ids": IDS}, "has shape [2, 3]; the model takes [rows, 2, 3] (one sample?"),
        ({"x": X.reshape(4, 3, 2), "ids": IDS}, "has shape [4, 3, 2]; the model takes [rows, 2, 3"),
        ({"x": X[:0], "ids": IDS[:0]}, "has no rows"),
        ({"x": X.astype("c8"), "ids": IDS}, "input 'x' holds complex64"),
        ({"x": X.astype("M8[s]"), "ids": IDS}, "cannot be compared"),
        ({"x": np.float32(1), "ids": IDS}, "has shape []; the model takes [rows, 2, 3]"),
    ],
)
def test_what_does_not_fit_is_told_with_the_file(tmp_path, arrays, said):
    path = write_npz(tmp_path, **arrays)
    with pytest.raises(ValidationInputError, match=re.escape(said)) as raised:
        only([path])
    assert "rows.npz" in str(raised.value)


def test_an_optional_input_may_be_missing(tmp_path):
    x, ids = TWO.specs
    wanted = Layout((x, replace(ids, optional=True)), batched=True, largest=8)
    path = write_npz(tmp_path, x=X)
    assert only([path], wanted).blocks[0].keys() == {"x"}


GARBAGE = {
    "empty": (b"", "is empty"),
    "text": (b"x,y\n1,2\n", "is none of npz, npy, safetensors, Parquet"),
    "short": (b"ab", "is none of"),
    "cut.npz": (b"PK\x03\x04garbage", "cannot be read as npz or npy"),
    "cut.npy": (b"\x93NUMPY\x01\x00", "cannot be read as npz or npy"),
    "cut.parquet": (b"PAR1garbagegarbage", "cannot be read as Parquet"),
    "cut.safetensors": ((50).to_bytes(8, "little") + b"{", "cannot be read as safetensors"),
    "no.safetensors": ((2).to_bytes(8, "little") + b"{}", "holds no arrays"),
    "list.safetensors": ((2).to_bytes(8, "little") + b"[]", "cannot be read as safetensors"),
    "far.safetensors": (
        (60).to_bytes(8, "little")
        + b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'.ljust(60),
        "'x' lies beyond the end of the file",
    ),
    "type.safetensors": (
        (60).to_bytes(8, "little")
        + b'{"x":{"dtype":"F4","shape":[0],"data_offsets":[0,0]}}'.ljust(60),
        "no dtype 'F4'",
    ),
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_refused_with_its_name(tmp_path, name):
    data, said = GARBAGE[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValidationInputError, match=re.escape(said)) as raised:
        read(path)
    assert name in str(raised.value)


def test_pickles_are_never_read(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValidationInputError, match="an array of Python objects"):
        read(tmp_path / "rows.npz")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1.0, None]), "column 'x' has missing values"),
        (pa.array([[1.0], None]), "column 'x' has missing values"),
        (pa.array([[1.0], [1.0, 2.0]]), "the lists in column 'x' have different lengths"),
        (pa.array([{"a": 1}, {"a": 2}]), "column 'x' holds struct"),
    ],
)
def test_columns_that_are_no_tensors(tmp_path, column, said):
    pq.write_table(pa.table({"x": column}), tmp_path / "rows.parquet")
    with pytest.raises(ValidationInputError, match=said):
        read(tmp_path / "rows.parquet")


def test_folders_that_hold_nothing_usable(tmp_path):
    with pytest.raises(ValidationInputError, match="cannot be read: No such file"):
        read(tmp_path / "none.npz")
    with pytest.raises(ValidationInputError, match=r"holds neither .npy, .npz"):
        read(tmp_path)
    np.save(tmp_path / "x.npy", X)
    write_npz(tmp_path, x=X)
    with pytest.raises(ValidationInputError, match=r"holds .npy and .npz files; one kind"):
        read(tmp_path)


# --- labels ---------------------------------------------------------------------------------------


def test_labels_by_key_and_by_file(tmp_path):
    labels = np.array([3, 1, 2, 0])
    path = write_npz(tmp_path, x=X, ids=IDS, label=labels)
    by_key = only([path], labels="label", rows=3)
    assert by_key.labels is not None
    assert by_key.labels.tolist() == [3, 1, 2]
    np.save(tmp_path / "labels.npy", labels[:, None])
    bare = write_npz(tmp_path, "bare.npz", x=X, ids=IDS)
    by_file = only([bare], labels=str(tmp_path / "labels.npy"), rows=3)
    assert by_file.labels is not None
    assert by_file.labels.tolist() == [3, 1, 2]
    with pytest.raises(ValidationInputError, match="has no labels 'target'; it has: x, ids"):
        only([bare], labels="target")
    with pytest.raises(ValidationInputError, match="belongs to one set of rows, but 2 are given"):
        load([path, bare], TWO, labels=str(tmp_path / "labels.npy"))


def test_labels_of_parts_stay_with_their_rows(tmp_path):
    for at in range(2):
        rows = slice(2 * at, 2 * at + 2)
        write_npz(tmp_path, f"{at}.npz", x=X[rows], ids=IDS[rows], label=IDS[rows])
    found = only([tmp_path], labels="label")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 2, 3, 4]
    assert found.rows == 4


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.zeros(3), "has shape [3] for 4 rows"),
        (np.eye(4), "one-hot? use array.argmax(axis=1)"),
        (np.array([0.5, 1, 2, 3]), "no class index"),
        (np.array([np.nan, 1, 2, 3]), "no class index"),
        (np.array([np.inf, 1, 2, 3]), "no class index"),
        (np.zeros(4, "c8"), "class indices or texts are needed"),
        (np.float64(1), "has shape [] for 4 rows"),
    ],
)
def test_labels_that_are_none(labels, said):
    with pytest.raises(ValidationInputError, match=re.escape(said)):
        check_labels(np.asarray(labels), 4, "file: labels")


def test_sets_of_equal_names_are_told_apart(tmp_path):
    numbers = count()
    paths = []
    for _ in range(2):
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        paths.append(write_npz(folder, x=X, ids=IDS))
    assert [found.name for found in load(paths, TWO)] == ["rows.npz", "rows.npz-2"]
