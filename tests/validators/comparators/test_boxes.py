"""Boxes: matched by class and overlap, whatever their order, layout and number."""

from __future__ import annotations

import math

import numpy as np
import pytest

from validators.comparators import build, make_policy
from validators.compare import compare_outputs

A = [10, 10, 30, 30, 0.9, 1]
B = [50, 50, 80, 90, 0.8, 2]
C = [10, 60, 40, 80, 0.7, 1]


def compare(reference, candidate, **options):
    sides = (np.array(side, np.float32)[None] for side in (reference, candidate))
    found = build("boxes", options).compare(*sides)
    return {name: float(values[0]) for name, values in found.metrics.items()}


def moved(box, **changes):
    names = ("x1", "y1", "x2", "y2", "score", "class")
    return [changes.get(name, value) for name, value in zip(names, box, strict=True)]


def test_the_same_boxes_in_another_order_are_the_same():
    found = compare([A, B, C], [C, A, B])
    same = {"f1": 1, "mean_iou": 1, "delta_score": 0, "missed": 0, "extra": 0, "boxes": 3}
    assert found == same


def test_what_is_missing_and_what_is_too_much():
    found = compare([A, B, C], [A, moved(B, **{"class": 1})])
    assert (found["missed"], found["extra"]) == (2, 1)
    assert found["f1"] == pytest.approx(2 / 5)
    assert compare([A], np.zeros((0, 6)))["f1"] == 0


def test_overlap_and_scores_are_those_of_the_matched():
    found = compare([A, B], [moved(A, x2=28, score=0.85), B])
    assert found["mean_iou"] == pytest.approx((0.9 + 1) / 2)
    assert found["delta_score"] == pytest.approx(0.05)
    assert compare([A], [moved(A, x2=18)])["f1"] == 0  # overlaps by 0.4
    assert compare([A], [moved(A, x2=18)], iou=0.4)["f1"] == 1


def test_each_box_is_matched_once_the_closest_first():
    near, nearer = moved(A, x2=27), moved(A, x2=29)
    found = compare([A], [near, nearer])
    assert (found["missed"], found["extra"]) == (0, 1)
    assert found["mean_iou"] == pytest.approx(0.95)


def test_scores_near_the_threshold_are_left_out():
    shy, gone = moved(C, score=0.26), moved(C, score=0.24)
    assert compare([A, shy], [A])["f1"] == 1
    assert compare([A, shy], [A, gone])["f1"] == 1
    assert compare([A, shy], [A], threshold_margin=0)["f1"] == pytest.approx(2 / 3)
    assert compare([A, moved(C, score=0.3)], [A])["missed"] == 1
    # One is sure and the other just under the threshold: that is a match.
    assert compare([A, moved(C, score=0.28)], [A, gone])["missed"] == 0


def test_padding_is_no_box():
    padding = [[0, 0, 0, 0, 0, 0], [5, 5, 5, 9, 0.9, 0], [1, 1, 9, 9, 0.9, -1], [math.nan] * 6]
    assert compare([A, B], [A, B, *padding])["f1"] == 1
    found = compare(padding, padding)
    assert (found["f1"], found["missed"]) == (1, 0)  # both see nothing
    assert math.isnan(found["mean_iou"])
    assert math.isnan(found["delta_score"])


def test_rows_are_judged_one_by_one():
    reference = np.array([[A, B], [A, C]], np.float32)
    candidate = np.array([[B, A], [A, A]], np.float32)
    found = build("boxes").compare(reference, candidate)
    assert found.metrics["f1"].tolist() == [1, 0.5]
    assert found.sketches["iou_distance"].count == 3


@pytest.mark.parametrize(
    ("columns", "written"),
    [
        ("x1 y1 x2 y2 score class", lambda a, b, c, d, s, k: [a, b, c, d, s, k]),
        ("class, score, x1, y1, x2, y2", lambda a, b, c, d, s, k: [k, s, a, b, c, d]),
        (
            ["x", "y", "w", "h", "score", "class"],
            lambda a, b, c, d, s, k: [a, b, c - a, d - b, s, k],
        ),
        (
            "_ cx cy w h score class",
            lambda a, b, c, d, s, k: [7 * a, (a + c) / 2, (b + d) / 2, c - a, d - b, s, k],
        ),
        ("y1 x1 y2 x2 class score", lambda a, b, c, d, s, k: [b, a, d, c, k, s]),
    ],
)
def test_layouts_mean_the_same(columns, written):
    other = moved(B, x2=77, score=0.6)  # 9/10 as wide
    found = compare([written(*B)], [written(*other)], columns=columns)
    assert found["mean_iou"] == pytest.approx(0.9)
    assert found["delta_score"] == pytest.approx(0.2)
    assert compare([written(*B)], [written(*moved(B, **{"class": 3}))], columns=columns)["f1"] == 0


def test_fewer_columns_have_fewer_meanings():
    assert compare([A[:4]], [A[:4]])["f1"] == 1
    unscored = compare([A[:4], B[:4]], [A[:4]], threshold=5)  # there is nothing to be over it
    assert (unscored["f1"], unscored["boxes"]) == (pytest.approx(2 / 3), 2)
    assert compare([A[:5]], [moved(A, score=0.6)[:5]])["delta_score"] == pytest.approx(0.3)


def outputs(boxes, scores, kinds, count=None):
    found = {
        "boxes": np.array([boxes], np.float32).reshape(1, -1, 4),
        "scores": np.array([scores], np.float32),
        "labels": np.array([kinds]),
    }
    return found if count is None else {**found, "num": np.array([[count]], np.int32)}


def test_scores_classes_and_counts_may_be_outputs_of_their_own():
    options = {"scores": "scores", "classes": "labels"}
    policies = {"boxes": make_policy("boxes", "fp32", None, options)}
    reference = outputs([A[:4], B[:4]], [0.9, 0.8], [1, 2])
    same = outputs([B[:4], A[:4], C[:4]], [0.8, 0.9, 0.1], [2, 1, 1])
    other = outputs([A[:4], B[:4]], [0.9, 0.8], [1, 1])
    found = compare_outputs(reference, same, policies)
    assert list(found) == ["boxes"]
    assert found["boxes"].problems == ()
    assert found["boxes"].metrics["f1"].tolist() == [1]
    assert compare_outputs(reference, other, policies)["boxes"].metrics["f1"].tolist() == [0.5]
    counted = {"boxes": make_policy("boxes", "fp32", None, {**options, "count": "num"})}
    junk = outputs([A[:4], B[:4], C[:4]], [0.9, 0.8, 0.9], [1, 2, 1], count=2)
    two = {**reference, "num": np.array([[2]], np.int32)}
    assert compare_outputs(two, junk, counted)["boxes"].metrics["f1"].tolist() == [1]


def test_outputs_that_do_not_fit_the_boxes_are_problems():
    options = {"scores": "scores"}
    policies = {"boxes": make_policy("boxes", "fp32", None, options)}
    side = {"boxes": np.zeros((1, 2, 4), np.float32), "scores": np.zeros((1, 3), np.float32)}
    found = compare_outputs(side, side, policies)["boxes"]
    assert "not one value for each of 1 × 2 boxes" in found.problems[0]
    counted = {"boxes": make_policy("boxes", "fp32", None, {"count": "num"})}
    side = {"boxes": np.zeros((1, 2, 4), np.float32), "num": np.zeros((1, 3), np.int32)}
    assert "3 counts for 1 rows" in compare_outputs(side, side, counted)["boxes"].problems[0]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"iou": 0}, "`iou` is over 0"),
        ({"iou": 1.5}, "`iou` is over 0"),
        ({"threshold": "low"}, "`threshold` is a number"),
        ({"threshold_margin": -1}, "`threshold_margin` is a number"),
        ({"scores": 5}, "`scores` is the name of an output"),
        ({"columns": 6}, "`columns` are names like"),
        ({"columns": "x1 y1 x2 y3"}, "no column 'y3'"),
        ({"columns": "x1 y1 w h"}, "must hold one of"),
        ({"columns": "x1 y1 x2 y2 score score"}, "each once"),
        ({"columns": "score class"}, "must hold one of"),
    ],
)
def test_bad_options_are_named(options, says):
    with pytest.raises(ValueError, match=says):
        build("boxes", options)


@pytest.mark.parametrize(
    ("shape", "says"),
    [((1, 3), "needs .rows, boxes, columns."), ((1, 3, 7), "7 columns, not 4, 5 or 6")],
)
def test_what_holds_no_boxes_is_refused(shape, says):
    with pytest.raises(ValueError, match=says):
        build("boxes").compare(np.ones(shape), np.ones(shape))
    with pytest.raises(ValueError, match="columns, not 5"):
        build("boxes", {"columns": "x y w h score"}).compare(np.ones((1, 1, 4)), np.ones((1, 1, 4)))


def test_what_no_suppression_has_seen_is_refused():
    flood = np.tile(np.array(A, np.float32), (1, 5000, 1))
    with pytest.raises(ValueError, match="5000 in one row"):
        build("boxes").compare(flood, flood)


def test_coordinates_of_any_size_do_not_overflow():
    huge = [-1e300, -1e300, 1e300, 1e300, 0.9, 1]
    side = np.array([[huge, A]])
    found = build("boxes").compare(side, side)
    assert found.metrics["missed"].tolist() == [1]  # an area beyond float64 overlaps in nothing
