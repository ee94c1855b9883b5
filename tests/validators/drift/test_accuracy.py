"""Accuracy beside the reference's: what is known counts, and a verdict is rarely wrong."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta

from validators.drift.accuracy import compare_accuracy


def rights(right: int, wrong: int) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * wrong)


def test_a_fall_is_told_with_exact_bounds():
    change = compare_accuracy(rights(950, 50), rights(400, 100), 0.04)
    assert (change.reference.rate, change.current.rate) == (0.95, 0.8)
    assert (change.current.right, change.current.rows) == (400, 500)
    assert change.current.lower == pytest.approx(beta.ppf(0.01, 400, 101))
    assert change.current.upper == pytest.approx(beta.ppf(0.99, 401, 100))
    assert change.verdict == "lower"
    assert compare_accuracy(rights(400, 100), rights(950, 50), 0.04).verdict == "higher"


def test_few_labels_show_no_change():
    change = compare_accuracy(rights(95, 5), rights(8, 2), 0.05)
    assert change.verdict == "alike"


def test_only_known_labels_count():
    mixed = np.concatenate([rights(9, 1), np.full(50, np.nan), np.full(5, -1.0)])
    change = compare_accuracy(mixed, np.array([True, False, True]), 0.05)
    assert (change.reference.right, change.reference.rows) == (9, 10)
    assert (change.current.right, change.current.rows) == (2, 3)
    assert compare_accuracy(np.full(5, np.nan), rights(9, 1), 0.05) is None
    assert compare_accuracy(rights(9, 1), np.array([]), 0.05) is None


def test_without_a_change_a_verdict_is_rarer_than_asked_for():
    rng = np.random.default_rng(2)
    wrong = sum(
        compare_accuracy(rng.random(300) < 0.9, rng.random(200) < 0.9, 0.1).verdict != "alike"
        for _ in range(300)
    )
    assert wrong <= 30
