"""A case's file: every datatype comes back as it was, and nothing in a file is believed."""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors import safe_open
from safetensors.numpy import save

from sidecar.cases import Case, CaseError, hash_array
from sidecar.cases.shards import array_bytes, encode, plain_array, read_case, read_entry, shard_path
from sidecar.protocol.datatypes import BY_NAME

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
NUMERIC = [datatype.numpy for datatype in BY_NAME.values() if datatype.item_bytes]


@st.composite
def any_array(draw):
    """Any bit pattern of any datatype; BYTES with anything in it."""
    shape = draw(SHAPES)
    size = int(np.prod(shape))
    dtype = draw(st.sampled_from([*NUMERIC, np.dtype(object)]))
    if dtype.kind == "O":
        flat = np.empty(size, object)
        flat[:] = draw(st.lists(st.binary(max_size=5), min_size=size, max_size=size))
        return flat.reshape(shape)
    data = draw(st.binary(min_size=size * dtype.itemsize, max_size=size * dtype.itemsize))
    if dtype.kind == "b":
        data = bytes(byte & 1 for byte in data)
    return np.frombuffer(data, dtype).reshape(shape)


names = st.text(max_size=6)
tensors = st.dictionaries(names, any_array(), max_size=3)


def bits(array):
    if array.dtype == object:
        return array.shape, "BYTES", array.ravel().tolist()
    return array.shape, array.dtype.name, array.tobytes()


def same(one, other):
    return {name: bits(a) for name, a in one.items()} == {
        name: bits(a) for name, a in other.items()
    }


def case(inputs=None, outputs=None, **changes):
    return Case(
        **{
            "id": "a-1", "model": "m", "candidate": "m:2/b", "baseline": "m:1/a",
            "reasons": ("reservoir",), "inputs": inputs, "outputs": outputs or {}, **changes,
        }
    )  # fmt: skip


def write(folder, one):
    path = shard_path(Path(folder), one.id)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(encode(one))
    return path


@given(tensors, st.dictionaries(names, tensors, max_size=2), names, names)
@example({"x": np.zeros((2, 0), ml_dtypes.bfloat16)}, {}, "", "")
@example(
    {"a.offsets": np.zeros(2, np.uint8), "a": np.array([b"\0", b""], object)},
    {"v": {"w/x": np.zeros(1)}, "v/w": {"x": np.ones(1)}},  # both are outputs/v/w/x
    "/..", "\0",
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_a_case_comes_back_as_it_was(inputs, outputs, model, request_id):
    outputs = {variant: arrays for variant, arrays in outputs.items() if arrays}
    one = case(
        inputs or None, outputs, model=model, request_id=request_id, time_ns=2**60 + 1,
        metrics={"a": 1.5, "b": float("inf"), "c": float("-inf"), "d": 0.1},
        limited={"a": "higher"}, info={"rows": [1, None, "é"]},
        field_uses={"input:x": "keep"}, input_hashes={"z": "sha256:00"},
        output_hashes={"m:1/a": {"y": "sha256:11"}},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, one)
        found, entry = read_case(path), read_entry(path)
        with safe_open(path, "np") as file:  # plain safetensors, for any other tool
            keys = set(file.keys())
    assert same(found.inputs or {}, inputs)
    assert found.outputs.keys() == outputs.keys()
    assert all(same(found.outputs[variant], outputs[variant]) for variant in outputs)
    for name in (
        "id", "model", "request_id", "time_ns", "reasons", "metrics", "limited", "info",
        "field_uses", "input_hashes", "output_hashes", "candidate", "baseline",
    ):  # fmt: skip
        assert getattr(found, name) == getattr(entry, name) == getattr(one, name), name
    assert set(entry.keys) == set(one.keys) == keys
    assert entry.nbytes > 0


@given(any_array())
@settings(max_examples=100, deadline=None)
def test_the_size_of_an_array_is_what_its_file_takes(array):
    small = len(encode(case({"x": array[:0] if array.ndim else array})))
    full = len(encode(case({"x": array})))
    grown = array_bytes(array) - array_bytes(array[:0] if array.ndim else array)
    assert abs(full - small - grown) < 200, "beyond the header's own lines"


@pytest.mark.parametrize(
    ("given_array", "expected"),
    [
        (np.array(["é", ""]), [b"\xc3\xa9", b""]),
        (np.array([b"ab", b"c"]), [b"ab", b"c"]),
        (np.array(["a", b"b", bytearray(b"c")], object), [b"a", b"b", b"c"]),
        (np.arange(3, dtype=">i4"), [0, 1, 2]),
        (np.arange(6).reshape(2, 3).T[1], [1, 4]),
    ],
)
def test_what_is_not_in_the_protocols_form_is_brought_into_it(given_array, expected):
    plain = plain_array("x", given_array)
    assert plain.tolist() == expected
    assert plain.flags.c_contiguous
    assert plain.dtype.isnative
    assert not np.shares_memory(plain, given_array)


@pytest.mark.parametrize(
    "array", [np.zeros(1, complex), np.array([None], object), np.array([{}], object),
              np.zeros(1, "M8[s]"), np.zeros(1, [("a", "f4")]), np.zeros(1, np.longdouble)]
)  # fmt: skip
def test_what_no_case_can_hold_is_refused_by_name(array):
    with pytest.raises(CaseError, match="'pixels'"):
        plain_array("pixels", array)


HOSTILE_IDS = [
    "", ".", "..", "../x", "a/b", "a\\b", "a\0", "-x", ".x", "a" * 101, "C:x", "a.safetensors", "é",
]  # fmt: skip


@pytest.mark.parametrize("case_id", HOSTILE_IDS)
def test_an_id_cannot_lead_out_of_the_folder(tmp_path, case_id):
    with pytest.raises(CaseError, match="not the id"):
        shard_path(tmp_path, case_id)
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(encode(case(id=case_id)))
    with pytest.raises(CaseError, match="cannot be read"):
        read_entry(path)


def damaged():
    data = encode(case({"x": np.arange(8.0), "s": np.array([b"ab", b"c"], object)}))
    size = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8 : 8 + size])
    document = json.loads(head["__metadata__"]["sidecar_case"])

    def changed(**changes):
        text = json.dumps({**document, **changes})
        arrays = {
            "inputs/x": np.arange(8.0), "inputs/s": np.frombuffer(b"abc", np.uint8),
            "inputs/s.offsets": np.array([0, 2, 3]),
        }  # fmt: skip
        return save(arrays, {"sidecar_case": text})

    x, s = document["tensors"]
    return {
        "empty": b"",
        "a stub": data[:7],
        "header cut off": data[:40],
        "data cut off": data[:-1],
        "data too long": data + b"\0",
        "noise": bytes(range(256)) * 4,
        "a huge header": struct.pack("<Q", 2**63) + data[8:],
        "a foreign file": save({"x": np.zeros(3)}),
        "another layout": changed(layout=99),
        "no id": changed(id=""),
        "no reason": changed(reasons=[]),
        "a key that is missing": changed(tensors=[{**x, "key": "inputs/nothing"}]),
        "a wrong shape": changed(tensors=[{**x, "shape": [3, 3]}]),
        "a wrong datatype": changed(tensors=[{**x, "datatype": "FP128"}]),
        "numbers as text": changed(tensors=[{**x, "datatype": "BYTES"}]),
        "text with a wrong shape": changed(tensors=[{**s, "shape": [5]}]),
        "tensors of another kind": changed(tensors=3),
        "metrics of another kind": changed(metrics=[1]),
    }


@pytest.mark.parametrize("what", damaged())
def test_a_damaged_file_is_told_from_a_case(tmp_path, what):
    path = tmp_path / "a-1.safetensors"
    path.write_bytes(damaged()[what])
    with pytest.raises(CaseError, match=r"a-1\.safetensors cannot be read as a case: ."):
        read_case(path)


@pytest.mark.parametrize("ends", [[0, 5, 3], [1, 2, 3], [0, 2, 4], [0, 4, 3], [-1, 2, 3]])
def test_offsets_that_do_not_fit_are_refused(tmp_path, ends):
    data = encode(case({"s": np.array([b"ab", b"c"], object)}))
    good = np.array([0, 2, 3], "<i8").tobytes()
    assert data.count(good) == 1
    path = tmp_path / "a-1.safetensors"
    path.write_bytes(data.replace(good, np.array(ends, "<i8").tobytes()))
    with pytest.raises(CaseError, match="offsets"):
        read_case(path)


# --- hashes ---------------------------------------------------------------------------------------

DIFFERENT = [
    np.zeros(3, np.float32), np.zeros((3, 1), np.float32), np.zeros((1, 3), np.float32),
    np.zeros(3, np.int32), np.zeros(4, np.float32), np.array([0, 0, -0.0], np.float32),
    np.zeros(6, np.float16), np.zeros(6, ml_dtypes.bfloat16), np.zeros(6, np.uint16),
    np.zeros((), np.float32), np.zeros((0, 3)), np.zeros((3, 0)),
    np.array([b"a", b"bc"], object), np.array([b"ab", b"c"], object), np.array([b"abc"], object),
    np.array([b"abc", b""], object), np.array([[b"a", b"bc"]], object),
]  # fmt: skip


def test_tensors_that_differ_in_anything_have_different_hashes():
    assert len({hash_array(array) for array in DIFFERENT}) == len(DIFFERENT)


def test_equal_tensors_have_equal_hashes_however_they_lie_in_memory():
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    readonly = array.copy()
    readonly.flags.writeable = False
    for other in (readonly, np.asfortranarray(array), array.astype(">i4"),
                  np.repeat(array, 2, axis=1)[:, ::2]):  # fmt: skip
        assert hash_array(other) == hash_array(array)
    text = b"int32 [2, 3]\n" + np.arange(6, dtype="<i4").tobytes()
    assert hash_array(array) == f"sha256:{hashlib.sha256(text).hexdigest()}", "as documented"
