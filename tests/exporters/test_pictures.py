"""Tensors shown: what looks like an image is a picture, and every value keeps its meaning."""

from __future__ import annotations

import base64
import io

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from exporters.reports.pictures import as_image, outputs_of, picture, show_input, show_output

START = "data:image/png;base64,"


def pixels(uri):
    assert uri.startswith(START)
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(START)))) as image:
        image.load()
        return np.asarray(image)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 1, 8, 8), (8, 8)),
        ((8, 8), (8, 8)),
        ((1, 3, 32, 48), (32, 48, 3)),
        ((3, 32, 48), (32, 48, 3)),
        ((1, 32, 48, 3), (32, 48, 3)),
        ((32, 48, 4), (32, 48, 3)),
        ((32, 48, 1), (32, 48)),
        ((1, 1000, 600), (200, 120)),
        ((2, 1, 8, 8), None),
        ((1, 10), None),
        ((4, 8, 8), None),
        ((8, 1000), None),
        ((3, 3), None),
        ((64,), None),
        ((), None),
        ((1, 0, 8), None),
    ],
)
def test_what_looks_like_an_image(shape, expected):
    found = as_image(np.zeros(shape, np.float32))
    assert (None if found is None else found.shape) == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, bool, np.float16, ml_dtypes.bfloat16])
def test_every_type_of_number_may_be_an_image(dtype):
    image = as_image(np.eye(8).astype(dtype))
    np.testing.assert_array_equal(image, np.eye(8))


def test_channels_first_are_colours():
    image = np.zeros((3, 8, 8), np.float32)
    image[2] = 1
    assert (pixels(picture(as_image(image))) == (0, 0, 255)).all()


def test_black_is_the_least_white_the_largest_and_magenta_is_not_finite():
    image = np.full((8, 8), 5.0)
    image[0, :3] = (-10, 20, np.nan)
    found = pixels(picture(image))
    assert [tuple(map(int, found[0, at])) for at in range(4)] == [
        (0, 0, 0), (255, 255, 255), (255, 0, 255), (128, 128, 128),
    ]  # fmt: skip


@given(hnp.arrays(np.float64, (6, 7)))
@settings(max_examples=40, deadline=None)
def test_any_values_make_a_picture(image):
    assert pixels(picture(image)).shape == (6, 7, 3)


any_tensor = st.one_of(
    hnp.arrays(
        st.sampled_from([np.float32, np.float16, np.int8, np.uint64, np.bool_, np.complex64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=9),
    ),
    st.lists(st.binary(max_size=9), max_size=4).map(lambda items: np.array(items, object)),
)


@given(any_tensor, any_tensor)
@settings(max_examples=150, deadline=None)
def test_any_two_tensors_are_shown_somehow(one, other):
    for shown in (show_input("x", one), show_output("y", one, other, "class_scores"),
                  show_output("y", one, one.copy()), show_output("y", None, other)):  # fmt: skip
        assert shown.uri or shown.pictures or shown.text or shown.rows or not one.size
        assert all(0 <= length <= 100 for pair in shown.bars for length in pair)
        assert len(shown.rows) <= 20


def test_scores_tell_who_says_what():
    reference = np.array([[0.1, 0.7, 0.2]], np.float32)
    candidate = np.array([[0.1, 0.2, 0.7]], np.float32)
    shown = show_output("probs", reference, candidate, "class_scores")
    assert shown.caption == "reference says 1, candidate says 2"
    assert shown.marks == ["", "reference", "candidate"]
    assert [row[0] for row in shown.rows] == ["0", "1", "2"]
    assert shown.rows[2] == ("2", "0.2", "0.7", "0.5")
    assert show_output("probs", reference, reference, "class_scores").caption == "both say 1"
    assert show_output("probs", reference, candidate, "tensor").marks == []


def test_of_many_values_the_largest_differences_are_shown():
    reference = np.zeros((1, 1000), np.float32)
    candidate = reference.copy()
    candidate[0, [5, 700, 30]] = (1, -3, np.nan)
    shown = show_output("y", reference, candidate)
    assert [row[0] for row in shown.rows[:3]] == ["30", "700", "5"]
    assert shown.rows[0][2] == "NaN"
    assert shown.caption == "the 8 largest differences of 1,000 values"


def test_masks_are_shown_beside_each_other_with_their_difference():
    reference = np.zeros((1, 16, 16), np.float32)
    candidate = reference.copy()
    candidate[0, 3, 4] = 2
    shown = show_output("mask", reference, candidate)
    assert [caption for caption, _ in shown.pictures] == [
        "reference", "candidate", "difference, largest 2",
    ]  # fmt: skip
    difference = pixels(shown.pictures[2][1])
    assert tuple(map(int, difference[3, 4])) == (178, 24, 43)
    assert tuple(map(int, difference[0, 0])) == (235, 235, 235)


def test_texts_and_other_shapes_are_shown_apart():
    shown = show_output("t", np.array([b"a\xff"], object), np.array([b"b", b"c"], object))
    assert shown.rows == [("reference", r"'a\\xff'"), ("candidate", "'b', 'c'")]
    assert "reference text [1], candidate text [2]" in shown.what


def test_outputs_are_found_by_either_name():
    given_outputs = {"m:1/a": {"y": np.zeros(1)}, "1/b": {"z": np.zeros(1)}}
    assert "y" in outputs_of(given_outputs, "1/a")
    assert "z" in outputs_of(given_outputs, "1/b")
    assert outputs_of(given_outputs, "/a") is None
    assert outputs_of(given_outputs, "1/c") is None
