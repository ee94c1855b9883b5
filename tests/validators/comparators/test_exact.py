"""Equal or not: integers, booleans, texts and bytes, floats where they are declared so."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from validators.comparators import build, make_policy
from validators.compare import compare_outputs


def metrics(reference, candidate):
    found = build("exact").compare(np.asarray(reference), np.asarray(candidate)).metrics
    return {name: values.tolist() for name, values in found.items()}


def texts(*rows):
    return np.array([list(row) for row in rows], dtype=object)


def test_integers():
    found = metrics([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 2, 3, 4], [5, 9, 7, 1]])
    assert found["not_equal"] == [0, 2]
    assert found["share_not_equal"] == [0, 0.5]
    assert found["index_distance"] == [0, 7]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, ml_dtypes.int4])
def test_integers_of_every_width(dtype):
    found = metrics(np.array([[1], [2]], dtype), np.array([[1], [5]], dtype))
    assert found["not_equal"] == [0, 1]
    assert found["index_distance"] == [0, 3]


def test_neighbours_that_float64_cannot_tell_apart():
    found = metrics(np.array([[2**53]]), np.array([[2**53 + 1]]))
    assert found["not_equal"] == [1]
    assert found["index_distance"] == [1]


def test_a_distance_beyond_the_type_does_not_wrap():
    ends = np.array([[-(2**31)]], np.int32), np.array([[2**31 - 1]], np.int32)
    assert metrics(*ends)["index_distance"] == [2**32 - 1]


def test_integers_of_two_widths_are_compared_by_value():
    small, large = np.array([[-1]], np.int8), np.array([[2**64 - 1]], np.uint64)
    assert metrics(small, large)["not_equal"] == [1]
    assert metrics(small, small.astype(np.int64))["not_equal"] == [0]


def test_booleans_have_no_distance():
    found = metrics([[True, False]], [[True, True]])
    assert found["not_equal"] == [1]
    assert np.isnan(found["index_distance"]).all()


def test_texts_equal_their_utf_8_bytes():
    found = metrics(texts(["a", "ß"], [b"x", ""]), texts([b"a", "ß".encode()], [b"y", b""]))
    assert found["not_equal"] == [0, 1]
    assert found["share_not_equal"] == [0, 0.5]
    assert np.isnan(found["index_distance"]).all()


def test_numpys_own_texts_and_bytes_are_taken_too():
    for left in (np.array([["a", "b"]]), np.array([[b"a", b"b"]]), texts(["a", b"b"])):
        for right in (np.array([["a", "c"]]), np.array([[b"a", b"c"]]), texts([b"a", "c"])):
            assert metrics(left, right)["not_equal"] == [1]
            assert metrics(left, left)["not_equal"] == [0]


def test_bytes_that_are_no_text():
    assert metrics(texts([b"\xff\x00"]), texts([b"\xff\x00"]))["not_equal"] == [0]
    assert metrics(texts([b"\xff\x00"]), texts([b"\xff"]))["not_equal"] == [1]


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_floats_where_they_are_declared_so(dtype):
    left = np.array([[1, np.nan], [2, 0], [np.nan, 1]], dtype)
    right = np.array([[1, np.nan], [2, -0.0], [np.nan, 3]], dtype)
    found = metrics(left, right)
    assert found["not_equal"] == [0, 0, 1]
    assert found["index_distance"] == [0, 0, 2]


def test_any_difference_disagrees():
    policy = make_policy("exact", "int8")
    labels = np.array([[1], [2], [3]])
    found = compare_outputs(
        {"y": labels}, {"y": labels + np.array([[0], [1], [0]])}, {"y": policy}
    )["y"]
    assert found.disagrees(policy.limits).tolist() == [False, True, False]
