"""Accuracy kept, with labels."""

from __future__ import annotations

import math

import numpy as np
import pytest

from validators.retention import classes, judge_retention
from validators.statistics import clopper_pearson
from validators.verdict import Verdict

ALPHA = 0.05


def answers(rows, *, wrong=(), rng_seed=0):
    """Scores of three classes whose top is the label, but for the rows in ``wrong``."""
    labels = np.random.default_rng(rng_seed).integers(0, 3, rows)
    picked = labels.copy()
    picked[list(wrong)] = (picked[list(wrong)] + 1) % 3
    return labels, np.eye(3, dtype=np.float32)[picked]


def test_flips_and_accuracies_are_counted():
    labels, reference = answers(1000, wrong=range(50))
    _, candidate = answers(1000, wrong=range(45, 60))
    found = judge_retention(labels, reference, candidate, 0.05, ALPHA)
    assert (found.negative_flips, found.positive_flips) == (10, 45)
    assert (found.reference_accuracy, found.candidate_accuracy) == (0.95, 0.985)
    assert found.retention == pytest.approx(0.985 / 0.95)
    assert found.lost == pytest.approx(-0.035)
    assert found.lost_upper == clopper_pearson(10, 1000, ALPHA)[1]
    assert found.lost_lower == pytest.approx(
        clopper_pearson(10, 1000, ALPHA / 2)[0] - clopper_pearson(45, 1000, ALPHA / 2)[1]
    )
    assert found.verdict is Verdict.PASS
    assert "10 negative flips, 45 positive, of 1000" in found.sentence


@pytest.mark.parametrize(
    ("rows", "wrong", "verdict"),
    [
        (299, 0, Verdict.PASS),
        (298, 0, Verdict.INCONCLUSIVE),
        (1000, 8, Verdict.INCONCLUSIVE),
        (1000, 40, Verdict.FAIL),
    ],
)
def test_the_verdict_is_certified(rows, wrong, verdict):
    labels, reference = answers(rows)
    _, candidate = answers(rows, wrong=range(wrong))
    assert judge_retention(labels, reference, candidate, 0.01, ALPHA).verdict is verdict


def test_flips_both_ways_do_not_fail_what_lost_nothing():
    """Accuracy is kept although 10 % flip each way; it is not certified either."""
    labels, reference = answers(2000, wrong=range(200))
    _, candidate = answers(2000, wrong=range(200, 400))
    found = judge_retention(labels, reference, candidate, 0.01, ALPHA)
    assert found.lost == 0
    assert found.verdict is Verdict.INCONCLUSIVE


def test_nothing_to_lose_is_invalid():
    labels, reference = answers(500, wrong=range(500))
    found = judge_retention(labels, reference, reference, 0.01, ALPHA)
    assert found.verdict is Verdict.INVALID
    assert "are these their labels?" in found.sentence
    assert math.isnan(found.retention)
    empty = judge_retention(labels[:0], reference[:0], reference[:0], 0.01, ALPHA)
    assert (empty.verdict, empty.sentence) == (Verdict.INVALID, "no row has a label")
    assert math.isnan(empty.lost)


def test_classes_are_taken_as_they_come():
    assert classes(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist() == [1, 0]
    assert classes(np.array([[3], [4]])).tolist() == [3, 4]
    assert classes(np.array([1.0, 2.0])).tolist() == [1, 2]
    texts = np.array(["cat", "dog"])
    assert classes(texts).tolist() == [b"cat", b"dog"]
    found = judge_retention(texts, np.array([b"cat", b"dog"], object), texts, 0.5, ALPHA)
    assert (found.reference_right, found.candidate_right) == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((np.zeros(3), np.zeros(3), np.zeros(2), 0.01, ALPHA), "3 labels for 3 and 2 answers"),
        ((np.array(["a"]), np.zeros(1), np.zeros(1), 0.01, ALPHA), "labels are texts"),
        ((np.zeros(1), np.full(1, 0.5), np.zeros(1), 0.01, ALPHA), "one fraction a row"),
        (
            (np.zeros(1), np.zeros((1, 2, 2)), np.zeros(1), 0.01, ALPHA),
            "scores .rows, classes.",
        ),
        ((np.zeros(1), np.zeros(1), np.zeros(1), 0.0, ALPHA), "a limit is a share"),
        ((np.zeros(1), np.zeros(1), np.zeros(1), 0.1, 2), "alpha is a risk"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, says):
    with pytest.raises(ValueError, match=says):
        judge_retention(*arguments)
