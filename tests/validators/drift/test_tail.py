"""Thresholds of few draws: as rare as was asked for, and never far from it."""

from __future__ import annotations

import numpy as np
import pytest

from validators.drift.tail import thresholds

COLUMNS = 20


def normal(rng, draws):
    """|N(0, 1)|, as distances fall off."""
    return np.abs(rng.normal(size=(draws, COLUMNS)))


def exponential(rng, draws):
    """As −log₁₀ of a p-value does."""
    return rng.exponential(size=(draws, COLUMNS)) / np.log(10)


@pytest.mark.parametrize("shape", [normal, exponential])
@pytest.mark.parametrize("expected", [20, 200])
def test_alarms_are_as_rare_as_was_asked_for(shape, expected):
    rng = np.random.default_rng(4)
    least = np.full(COLUMNS, 0.01)
    rates = []
    for _ in range(60):
        levels = thresholds(shape(rng, 100), expected, least)
        rates.append((shape(rng, 20_000) > levels).any(axis=1).mean())
    # Errs towards fewer where the tail falls off faster than an exponential.
    assert 0.05 < np.mean(rates) * expected < 2


def test_columns_in_different_units_are_held_alike():
    rng = np.random.default_rng(5)
    units = np.geomspace(1e-3, 1e3, COLUMNS)
    levels = thresholds(normal(rng, 100) * units, 200, 1e-6 * units) / units
    assert levels.max() < 2 * levels.min()


def test_a_column_that_never_varies_has_a_threshold_that_any_real_change_exceeds():
    draws = np.column_stack([np.zeros(50), np.random.default_rng(6).exponential(size=50)])
    levels = thresholds(draws, 2000, np.array([0.01, 0.01]))
    assert 0 < levels[0] < 0.5


def test_a_column_without_numbers_gets_none_and_leaves_the_others_alone():
    rng = np.random.default_rng(7)
    draws = normal(rng, 50)
    draws[3, 2] = np.nan
    levels = thresholds(draws, 200, np.full(COLUMNS, 0.01))
    assert np.isnan(levels).nonzero()[0].tolist() == [2]
    rest = np.delete(draws, 2, axis=1)
    assert np.delete(levels, 2).tolist() == thresholds(rest, 200, np.full(19, 0.01)).tolist()
    assert np.isnan(thresholds(np.full((30, 2), np.nan), 200, np.ones(2))).all()


@pytest.mark.parametrize(
    ("draws", "expected"), [(np.ones((19, 2)), 100), (np.ones((30, 0)), 100), (np.ones((30, 2)), 4)]
)
def test_what_cannot_be_calibrated_is_refused(draws, expected):
    with pytest.raises(ValueError, match="draws"):
        thresholds(draws, expected, np.ones(draws.shape[1]))
