"""Two in a row, hysteresis, and windows that say nothing."""

from __future__ import annotations

import json

import pytest

from validators.drift.calibrate import UnitScore
from validators.drift.state import DriftState, State

OK, SUSPECT, ALARM, SILENT = State.OK, State.SUSPECT, State.ALARM, State.INSUFFICIENT_DATA
#: Threshold 1, clearing level 0.7.
START = DriftState.start(["a", "b"], 1.0, 0.7)


def scores(a: float, b: float = 0.0) -> list[UnitScore]:
    return [UnitScore(name, "ks", 0.1, 0.2, score, "") for name, score in (("a", a), ("b", b))]


def walk(values: list[float | None]) -> list[State]:
    state, found = START, []
    for value in values:
        state, _ = state.next(None if value is None else scores(value))
        found.append(state.units["a"].state)
    return found


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0], [OK, OK]),
        ([2, 0, 2, 0], [SUSPECT, OK, SUSPECT, OK]),
        ([2, 2], [SUSPECT, ALARM]),
        ([2, 2, 0, 0], [SUSPECT, ALARM, ALARM, OK]),
        ([2, 2, 0.9, 0.9, 0.9], [SUSPECT, ALARM, ALARM, ALARM, ALARM]),
        ([2, 2, 0, 0.9, 0, 0], [SUSPECT, ALARM, ALARM, ALARM, ALARM, OK]),
        ([2, 2, 0, 2, 0, 0], [SUSPECT, ALARM, ALARM, ALARM, ALARM, OK]),
        ([1, 1], [OK, OK]),  # at the threshold is not over it
        ([None, None], [SILENT, SILENT]),
        ([None, 0, None], [SILENT, OK, SILENT]),
        ([2, None, 2], [SUSPECT, SILENT, ALARM]),
        ([2, 2, None, None, 0, None, 0], [SUSPECT, ALARM, ALARM, ALARM, ALARM, ALARM, OK]),
    ],
)
def test_states_follow_the_scores(values, expected):
    assert walk(values) == expected


def test_two_units_in_turn_are_not_two_in_a_row():
    state = START
    for pair in ((2, 0), (0, 2), (2, 0)):
        state, _ = state.next(scores(*pair))
    assert state.state is SUSPECT
    assert state.alarms == ()


def test_the_worst_unit_speaks_for_all_and_changes_are_told():
    assert START.state is SILENT
    state, changed = START.next(scores(2, 3))
    assert {(item.unit, item.after) for item in changed} == {("a", SUSPECT), ("b", SUSPECT)}
    state, changed = state.next(scores(2, 3))
    assert state.state is ALARM
    assert state.alarms == ("b", "a")
    state, changed = state.next(scores(2, 0))
    assert changed == ()
    state, changed = state.next(scores(2, 0))
    assert [(item.unit, item.before, item.after) for item in changed] == [("b", ALARM, OK)]
    assert state.windows == 4


def test_a_restart_in_the_middle_of_a_run_changes_nothing():
    first, _ = START.next(scores(2))
    restored = DriftState.from_plain(json.loads(json.dumps(first.to_plain())))
    assert restored == first
    assert restored.next(scores(2))[0].alarms == ("a",)


def test_scores_of_other_units_are_refused():
    with pytest.raises(ValueError, match="states of"):
        START.next(scores(1)[:1])
    with pytest.raises(ValueError, match="cannot clear at 2"):
        DriftState.start(["a"], 1.0, 2.0)
    with pytest.raises(ValueError, match="not a stored state of drift"):
        DriftState.from_plain({"units": {"a": {"state": "odd"}}})
