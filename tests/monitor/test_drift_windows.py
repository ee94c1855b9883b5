"""Windows of rows, judged and restored, with a real reference and its calibration."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sidecar.monitor.drift_windows import DriftWindows
from validators.drift.calibrate import calibrate
from validators.drift.columns import Column, ColumnType
from validators.drift.reference import Reference
from validators.drift.state import State

COLUMNS = tuple(Column(name, ColumnType.NUMERIC) for name in ("x.mean", "x.std"))


def rows_of(rng: np.random.Generator, size: int, shift: float = 0.0):
    return {column.name: rng.normal(shift, 1.0, size) for column in COLUMNS}


def watched(seed: int = 0, **options) -> DriftWindows:
    rows = rows_of(np.random.default_rng(seed), 2000)
    reference = Reference.of(rows, COLUMNS)
    calibration = calibrate(
        reference, reference.codes(rows), window_rows=200, min_rows=100, block_rows=1
    )
    return DriftWindows(reference, calibration, **({"window_max_s": 60.0, "now_s": 0.0} | options))


def test_a_batch_is_split_at_the_ends_of_windows():
    windows = watched()
    closed = windows.add(rows_of(np.random.default_rng(1), 530), 1.0)
    assert [one.rows for one in closed] == [200, 200]
    assert (windows.window.rows, windows.state.windows) == (130, 2)


def test_shifted_rows_alarm_after_two_windows_and_the_others_never():
    windows, rng = watched(), np.random.default_rng(1)
    for _ in range(10):
        windows.add(rows_of(rng, 200), 1.0)
        assert windows.state.state is not State.ALARM
    windows.add(rows_of(rng, 400, shift=2.0), 1.0)
    assert windows.state.state is State.ALARM
    assert "x.mean" in windows.state.alarms


def test_an_old_window_closes_and_one_with_few_rows_says_that_nothing_is_known():
    windows, rng = watched(), np.random.default_rng(1)
    windows.add(rows_of(rng, 200), 0.0)
    windows.add(rows_of(rng, 99), 1.0)
    assert windows.tick(59.0) is None
    judged = windows.tick(60.0)
    assert judged is not None
    assert (judged.rows, judged.scores, windows.window.rows) == (99, None, 0)
    assert windows.state.state is State.INSUFFICIENT_DATA


def test_a_restart_in_the_middle_changes_nothing():
    whole, before, rng = watched(), watched(), np.random.default_rng(1)
    batches = [rows_of(rng, 70, shift=0.1 * at) for at in range(20)]
    for batch in batches:
        whole.add(batch, 5.0)
    for batch in batches[:9]:
        before.add(batch, 5.0)
    after = watched(now_s=1000.0)  # another process: its monotonic clock began elsewhere
    after.restore(json.loads(json.dumps(before.to_plain(9.0))), 1000.0)
    for batch in batches[9:]:
        after.add(batch, 1001.0)
    assert after.state == whole.state
    assert (after.window.counts == whole.window.counts).all()


def test_the_age_of_a_window_goes_on_after_a_restart():
    before, after = watched(), watched(now_s=1000.0)
    after.restore(before.to_plain(59.0), 1000.0)
    assert after.tick(1000.5) is None
    assert after.tick(1001.0) is not None


@pytest.mark.parametrize("broken", [{"age_s": None}, {"state": {}}, {"window": {}}])
def test_what_cannot_be_restored_changes_nothing(broken):
    windows = watched()
    windows.add(rows_of(np.random.default_rng(1), 250), 1.0)
    before = windows.to_plain(1.0)
    with pytest.raises(ValueError, match="not a stored"):
        windows.restore(before | broken, 2.0)
    assert windows.to_plain(1.0) == before


def test_the_state_of_another_reference_is_refused():
    windows = watched()
    with pytest.raises(ValueError, match="another reference"):
        windows.restore(watched(seed=7).to_plain(0.0), 2.0)
    with pytest.raises(ValueError, match="not a stored state"):
        windows.restore({}, 2.0)
