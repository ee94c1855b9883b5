"""Thresholds by drawing from the reference, in the process of the test: Evidently itself."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from sidecar.monitor.deep.job import Job, Options, Plan, Side
from validators.drift.columns import ColumnType

pytestmark = pytest.mark.filterwarnings("ignore")  # Evidently's imports warn about what they use


@pytest.fixture(scope="module")
def stattests():
    from sidecar.monitor.deep import stattests

    return stattests


def job(before: np.ndarray, now: np.ndarray, method: str = "wasserstein", **options) -> Job:
    """Of numeric columns: rows [rows, columns] on either side."""
    plans = [Plan(f"c{at}", ColumnType.NUMERIC, method) for at in range(before.shape[1])]
    sides = [
        Side(np.ascontiguousarray(rows.T), np.empty((0, len(rows)), dtype=np.int32))
        for rows in (before, now)
    ]
    known = {"expected": 20, "calibrate_s": 1e9, **options}
    return Job(tuple(plans), *sides, options=Options("m", **known))


def blocks(rng, rows: int, block: int) -> np.ndarray:
    """Three columns; rows of a block share half of their variance."""
    common = rng.normal(size=(rows // block, 3)).repeat(block, axis=0)
    return np.sqrt(0.5) * (rng.normal(size=(rows, 3)) + common)


@pytest.mark.parametrize(("block", "declared"), [(1, 1), (10, 10)])
def test_runs_without_drift_rarely_alarm(stattests, block, declared):
    # Thresholds are as good as the reference that they are drawn from: over many references.
    false, runs = 0, 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        before = blocks(rng, 2000, block)
        made = job(before, blocks(rng, 500, block), block_rows=declared, aligned=declared > 1)
        thresholds = stattests.calibrate(made, lambda: 0.0).thresholds
        for _ in range(25):
            made = job(before, blocks(rng, 500, block))
            false += any(one.drifted for one in stattests.judge(made, thresholds))
            runs += 1
    assert false <= 2 * runs / 20, f"{false} of {runs}, asked for one in 20"


def test_evidentlys_own_threshold_would_have_alarmed_all_the_time(stattests):
    rng = np.random.default_rng(1)
    before = rng.normal(size=(2000, 3))
    told = [
        any(one.drifted for one in stattests.judge(job(before, rng.normal(size=(100, 3)))))
        for _ in range(40)
    ]
    assert sum(told) > 30


def test_drawing_stops_when_its_time_is_over(stattests):
    rng = np.random.default_rng(2)
    made = job(rng.normal(size=(300, 3)), rng.normal(size=(200, 3)), calibrate_s=50.0)

    def ticking(step: float):
        ticks = itertools.count()
        return lambda: step * next(ticks)

    found = stattests.calibrate(made, ticking(0.5))
    # Four looks at the clock a draw of three columns: a hundred looks are 25 draws at most.
    assert 20 <= found.draws <= 25
    assert set(found.thresholds) == {"c0", "c1", "c2"}
    few = stattests.calibrate(made, ticking(1.0))
    assert few.thresholds == {}
    assert few.draws < 20
    assert few.note.endswith("raise drift.deep.timeout_s")
    assert (
        stattests.calibrate(job(*[np.ones((200, 1))] * 2, calibrate_s=0.0), ticking(1)).draws == 0
    )


def test_known_thresholds_are_not_looked_for_again(stattests):
    rng = np.random.default_rng(3)
    made = job(rng.normal(size=(300, 2)), rng.normal(size=(200, 2)))
    plans = (replace(made.plans[0], threshold=0.125), made.plans[1])
    made = replace(made, plans=plans)
    found = stattests.calibrate(made, lambda: 0.0)
    assert set(found.thresholds) == {"c1"}
    first, second = stattests.judge(made, found.thresholds)
    assert (first.threshold, second.threshold) == (0.125, found.thresholds["c1"])


def test_constant_columns_drift_only_when_they_change(stattests):
    before = np.zeros((500, 2))
    now = np.zeros((500, 2))
    now[:, 1] = 1.0
    made = job(before, now)
    still, changed = stattests.judge(made, stattests.calibrate(made, lambda: 0.0).thresholds)
    assert (still.drifted, changed.drifted) == (False, True)


def test_a_reference_smaller_than_a_block_is_one_block(stattests):
    rng = np.random.default_rng(4)
    made = job(rng.normal(size=(150, 1)), rng.normal(size=(900, 1)), block_rows=400, aligned=True)
    assert set(stattests.calibrate(made, lambda: 0.0).thresholds) == {"c0"}
