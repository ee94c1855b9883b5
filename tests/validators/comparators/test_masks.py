"""Masks: overlap at a threshold, and of class indices."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from validators.comparators import build


def compare(reference, candidate, **options):
    return build("masks", options).compare(reference, candidate)


def test_overlap_is_counted_per_row():
    reference = np.zeros((3, 10, 10), np.float32)
    candidate = reference.copy()
    reference[0, :5], candidate[0, :4] = 0.9, 0.8  # 40 of 50
    reference[1, 0], candidate[1, 9] = 0.9, 0.9  # nothing in common
    found = compare(reference, candidate)
    assert found.metrics["iou"].tolist() == [0.8, 0, 1]  # two empty masks agree
    assert found.metrics["pixel_flips"].tolist() == [0.1, 0.2, 0]


def test_the_threshold_is_an_option_and_flips_tell_how_close_they_were():
    reference = np.array([[-1.0, 0.5, 2.0, -0.25]], np.float32)
    candidate = np.array([[-1.0, 0.5, 2.0, 0.25]], np.float32)
    found = compare(reference, candidate, threshold=0)
    assert found.metrics["iou"] == pytest.approx([2 / 3])
    assert found.sketches["flip_margin"].largest == 0.25
    assert compare(reference, candidate).metrics["iou"].tolist() == [1]


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int64, np.float16, ml_dtypes.bfloat16])
def test_any_type_that_can_be_a_mask(dtype):
    reference = np.array([[1, 1, 0, 0], [1, 0, 0, 0]]).astype(dtype)
    candidate = np.array([[1, 0, 0, 0], [1, 0, 0, 0]]).astype(dtype)
    assert compare(reference, candidate).metrics["iou"].tolist() == [0.5, 1]


def test_class_indices_are_judged_by_the_worst_class():
    reference = np.array([[0, 0, 0, 0, 7, 7, 3, 3], [1] * 8])
    candidate = np.array([[0, 0, 0, 0, 7, 3, 3, 3], [1] * 8])
    found = compare(reference, candidate, labels=True)
    assert found.metrics["iou"].tolist() == [0.5, 1]
    assert found.metrics["pixel_flips"].tolist() == [0.125, 0]
    lost = compare(np.array([[5, 0, 0]]), np.array([[0, 0, 0]]), labels=True)
    assert lost.metrics["iou"].tolist() == [0]  # a class that is gone


def test_not_a_number_is_in_no_mask():
    reference = np.array([[np.nan, 1.0]], np.float32)
    assert compare(reference, reference).metrics["iou"].tolist() == [1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"threshold": "half"}, "`threshold` is a number"),
        ({"threshold": float("nan")}, "`threshold` is a number"),
        ({"threshold": True}, "`threshold` is a number"),
        ({"labels": 1}, "`labels` is true or false"),
        ({"iou": 0.5}, "no option 'iou'; known: threshold, labels"),
    ],
)
def test_bad_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        build("masks", options)


def test_class_indices_are_no_floats():
    with pytest.raises(ValueError, match="class indices, and no floats"):
        compare(np.ones((1, 4)), np.ones((1, 4)), labels=True)
