"""Columns together: sums against numpy, and changes that no column shows alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.validators.drift.simulate import Watch, delay
from validators.drift.calibrate import CORRELATION, KERNEL
from validators.drift.columns import Column, ColumnType, Rows
from validators.drift.multivariate import (
    FEATURES,
    FeatureMap,
    JointSums,
    correlation_change,
    kernel_distance,
)


def sums(scores: np.ndarray, seed: int = 1) -> JointSums:
    found = JointSums.empty(scores.shape[1])
    found.add(scores.astype(np.float32), FeatureMap(scores.shape[1], seed))
    return found


def test_correlations_are_those_of_numpy():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(9000, 4)) @ rng.normal(size=(4, 4))
    scores[:, 3] = 0.5  # a constant column is correlated with nothing
    found = sums(scores).correlations()
    expected = np.arctanh(np.corrcoef(scores[:, :3].T) - np.eye(3))
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-4)
    assert not found[3].any()


def test_the_kernel_distance_is_that_of_the_kernel():
    # One column: the features of a pair take it alone, with a kernel of width 1, as do the others.
    rng = np.random.default_rng(1)
    left, right = rng.normal(size=(400, 1)), rng.normal(1, 1, size=(600, 1))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-np.square(a - b.T) / 2).mean())

    exact = kernel(left, left) + kernel(right, right) - 2 * kernel(left, right)
    found = [float(kernel_distance(sums(left, seed), sums(right, seed))) for seed in range(20)]
    assert np.mean(found) == pytest.approx(exact * 400 * 600 / 1000, rel=0.1)


def test_sums_merge_and_survive_json():
    scores = np.random.default_rng(2).normal(size=(5000, 3))
    merged = JointSums.empty(3)
    for part in np.array_split(scores, 3):
        merged.merge(JointSums.from_plain(json.loads(json.dumps(sums(part).to_plain()))))
    whole = sums(scores)
    assert merged.rows == whole.rows == 5000
    np.testing.assert_allclose(merged.correlations(), whole.correlations(), atol=1e-4)
    assert float(kernel_distance(merged, whole)) == pytest.approx(0, abs=1e-4)
    with pytest.raises(ValueError, match="2 columns do not add to 3"):
        merged.merge(JointSums.empty(2))


@pytest.mark.parametrize("broken", [{}, {"rows": -1}, {"features": [0.0]}, {"products": [1.0] * 9}])
def test_what_are_not_stored_sums_is_refused(broken):
    plain = {**sums(np.zeros((2, 3))).to_plain(), **broken} if broken else {}
    with pytest.raises(ValueError, match="not stored sums"):
        JointSums.from_plain(plain)
    assert len(sums(np.zeros((2, 3))).features) == FEATURES


def test_the_pair_that_changed_is_named():
    rng = np.random.default_rng(3)
    before, after = rng.normal(size=(2, 4000, 5))
    before[:, 4] += before[:, 1]
    change, at = correlation_change(sums(after), sums(before))
    assert sorted(divmod(int(at), 5)) == [1, 4]
    assert change > 10


COLUMNS = tuple(Column(name, ColumnType.NUMERIC) for name in "abcd")


def traffic(rng: np.random.Generator, tie: str) -> Rows:
    """Four columns; of the last, the size follows that of the third, or does not."""
    scores = rng.normal(size=(500, 4))
    if tie == "size":
        scores[:, 3] = np.sign(scores[:, 3]) * np.abs(scores[:, 2])
    return {column.name: scores[:, at] for at, column in enumerate(COLUMNS)}


def test_a_bond_that_no_correlation_shows_is_missed_by_it_and_seen_by_the_kernel():
    rng = np.random.default_rng(4)
    parts = [traffic(rng, "size") for _ in range(10)]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    watch = Watch.over(rows, COLUMNS, window_rows=500, block_rows=1)
    drifted = [traffic(rng, "none") for _ in range(3)]
    assert delay(watch, drifted, KERNEL) == 2
    others = [*(column.name for column in COLUMNS), CORRELATION]
    assert [delay(watch, drifted, unit) for unit in others] == [float("inf")] * 5
