"""Simulated traffic: false alarms as rare as asked for, drift seen in time. Seeds are fixed."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

from tests.validators.drift.simulate import COLUMNS, Traffic, Watch, alarms, delay
from validators.drift.calibrate import CORRELATION, Calibration, calibrate
from validators.drift.columns import Column, ColumnType
from validators.drift.distances import BUILTIN
from validators.drift.reference import Reference
from validators.drift.resample import block_length, draw_blocks
from validators.drift.state import State

ROWS = 500
WINDOWS = 400


@cache
def watch(block: int, expected: float = 50, block_rows: int | None = 0) -> Watch:
    """``block_rows`` 0: those of the traffic."""
    rows = Traffic(np.random.default_rng(11), block).rows(12 * ROWS)
    return Watch.over(
        rows,
        window_rows=ROWS,
        expected_windows=expected,
        block_rows=block if block_rows == 0 else block_rows,
    )


@pytest.mark.parametrize(("block", "block_rows"), [(1, 1), (10, 10), (10, None)])
def test_false_alarms_come_as_often_as_was_asked_for(block, block_rows):
    made = watch(block, block_rows=block_rows)
    traffic = Traffic(np.random.default_rng(12), block)
    found = alarms(made, (traffic.rows(ROWS) for _ in range(WINDOWS)))
    # 8 are expected; within a factor of two, and what chance adds to so few.
    assert 2 <= found <= 21


def test_correlated_rows_taken_for_independent_alarm_all_the_time():
    traffic = Traffic(np.random.default_rng(12), 10)
    made = watch(10, block_rows=1)
    states = [state.state for state in made.states(traffic.rows(ROWS) for _ in range(40))]
    assert states.count(State.ALARM) > 20


def test_a_shift_in_one_of_twenty_columns_is_seen_in_two_windows():
    made = watch(1)
    drifted = [Traffic(np.random.default_rng(seed), shift=0.25) for seed in range(10)]
    delays = [delay(made, (t.rows(ROWS) for _ in range(3)), "c7") for t in drifted]
    assert np.median(delays) == 2
    assert np.mean(np.array(delays) <= 2) >= 0.8


def test_a_correlation_that_flips_is_seen_and_named_with_its_columns():
    made = watch(1, expected=2000)
    traffic = Traffic(np.random.default_rng(13), correlation=-0.8)
    windows = [traffic.rows(ROWS) for _ in range(3)]
    assert delay(made, windows, CORRELATION) <= 3
    assert all(delay(made, windows, column.name) > 3 for column in COLUMNS)
    window = made.reference.window()
    made.reference.add(window, windows[0])
    scores = {item.unit: item for item in made.calibration.judge(made.reference, window)}
    assert sorted(scores[CORRELATION].detail.split(" and ")) == ["c0", "c1"]
    assert scores[CORRELATION].value > scores[CORRELATION].threshold


def test_rarer_alarms_take_higher_thresholds():
    made = [watch(1, expected).calibration for expected in (50, 2000, 1e5)]
    thresholds = [item.threshold for item in made]
    assert thresholds == sorted(thresholds)
    assert len(set(thresholds)) == 3
    assert [item.extrapolated for item in made] == [False, False, True]
    assert all(item.clear < item.threshold for item in made)


def test_too_few_rows_get_no_verdict():
    made = watch(1)
    traffic = Traffic(np.random.default_rng(14), shift=9)
    (state,) = made.states([traffic.rows(ROWS - 1)])
    assert state.state is State.INSUFFICIENT_DATA
    assert state.windows == 0


def test_missing_values_and_new_categories_alarm_though_the_reference_had_none():
    rng = np.random.default_rng(15)
    columns = (
        Column("x", ColumnType.NUMERIC),
        Column("flat", ColumnType.NUMERIC),
        Column("kind", ColumnType.CATEGORICAL),
    )

    def rows(count):
        kinds = rng.integers(0, 5, count)
        return {"x": rng.normal(size=count), "flat": np.ones(count), "kind": kinds}

    made = Watch.over(rows(5000), columns, window_rows=500, block_rows=1)
    calm = list(made.states(rows(500) for _ in range(20)))
    assert {state.state for state in calm} <= {State.OK, State.SUSPECT}
    broken = [rows(500) for _ in range(2)]
    for window in broken:
        window["x"][:25] = np.nan
        window["flat"][:25] = 1.001
        window["kind"][:25] = 17
    assert set(list(made.states(broken))[-1].alarms) >= {"x", "flat", "kind"}
    window = made.reference.window()
    made.reference.add(window, broken[0])
    scores = {item.unit: item for item in made.calibration.judge(made.reference, window)}
    assert scores["x"].method == "missing"
    assert scores["x"].detail == "NaN and infinite: 0.0% → 5.0%"
    assert scores["kind"].detail == "(never seen before): 0.0% → 5.0%"


@pytest.mark.parametrize("method", ["ks", "psi", "jensen_shannon", "wasserstein", "chi_square"])
def test_any_method_is_calibrated_alike(method):
    columns = COLUMNS[:8]
    traffic = Traffic(np.random.default_rng(16))
    rows = traffic.rows(6 * ROWS)
    methods = {column.name: method for column in columns}
    made = Watch.over(
        rows, columns, window_rows=ROWS, expected_windows=20, block_rows=1, methods=methods
    )
    found = alarms(made, (traffic.rows(ROWS) for _ in range(150)))
    assert 2 <= found <= 20
    drifted = Traffic(np.random.default_rng(17), shift=0.6)
    assert delay(made, [drifted.rows(ROWS) for _ in range(3)], "c7") == 2


def test_a_calibration_survives_json_and_judges_alike():
    made = watch(1)
    plain = json.loads(json.dumps(made.calibration.to_plain(), allow_nan=False))
    restored = Calibration.from_plain(plain)
    window = made.reference.window()
    made.reference.add(window, Traffic(np.random.default_rng(18)).rows(ROWS))
    ours, theirs = (side.judge(made.reference, window) for side in (made.calibration, restored))
    assert ours == theirs
    assert tuple(item.unit for item in ours) == made.calibration.units(made.reference)
    for broken in ({}, {**plain, "middle": [0.0]}, {**plain, "scale": [0.0] * 42}):
        with pytest.raises(ValueError, match="not a stored calibration"):
            Calibration.from_plain(broken)


@pytest.mark.parametrize("method", [made.name for made in BUILTIN.values()])
def test_a_constant_that_changes_is_seen_by_every_method(method):
    def rows(value: float) -> dict[str, np.ndarray]:
        return {"c0": np.full(1000, value)}

    made = Watch.over(rows(1.0), COLUMNS[:1], window_rows=500, block_rows=1, methods={"c0": method})
    assert delay(made, [rows(1.0), rows(1.001), rows(0.5)], "c0") == 3
    assert delay(made, [rows(1.0)] * 9, "c0") == float("inf")


def test_one_column_alone_has_nothing_to_be_joint_with():
    rows = Traffic(np.random.default_rng(19), shift=0).rows(3000)
    made = Watch.over(rows, COLUMNS[7:8], window_rows=500, block_rows=1)
    assert made.calibration.units(made.reference) == ("c7",)
    drifted = Traffic(np.random.default_rng(20), shift=1)
    assert delay(made, [drifted.rows(500) for _ in range(2)], "c7") == 2
    assert (
        made.calibration.to_plain()
        == Calibration.from_plain(made.calibration.to_plain()).to_plain()
    )


def test_the_same_seed_gives_the_same_thresholds():
    rows = Traffic(np.random.default_rng(19)).rows(1500)
    made = [
        Watch.over(rows, COLUMNS[:3], window_rows=500, block_rows=1).calibration.to_plain()
        for _ in range(2)
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"window_rows": 499}, "windows of 499 rows would never be judged: 500 are needed"),
        ({"window_rows": 1001}, "a reference of 2000 rows is too small for windows of 1001"),
        ({"window_rows": 500, "expected_windows": 1}, "once in 5 to 1,000,000 windows, not 1"),
        ({"window_rows": 500, "methods": {"z": "ks"}}, "no column 'z' to have a method"),
        ({"window_rows": 500, "methods": {"c0": "kl"}}, "no distance 'kl' of numeric columns"),
        ({"window_rows": 500, "block_rows": 501}, "blocks of 501 rows do not fit"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    rows = Traffic(np.random.default_rng(20)).rows(2000)
    with pytest.raises(ValueError, match=says):
        Watch.over(rows, COLUMNS[:2], **settings)


def test_codes_of_other_rows_are_refused():
    rows = Traffic(np.random.default_rng(20)).rows(2000)
    reference = Reference.of(rows, COLUMNS)
    with pytest.raises(ValueError, match="not those of the reference's rows"):
        calibrate(reference, reference.codes(rows)[:1500], window_rows=500)


def test_blocks_are_found_where_there_are_some():
    def found(block: int) -> int:
        rows = Traffic(np.random.default_rng(21), block).rows(8000)
        return block_length(Reference.of(rows, COLUMNS).codes(rows), ROWS)

    assert found(1) == 1
    assert 40 <= found(8) <= ROWS // 5
    assert found(200) == ROWS // 5
    constant = np.zeros((2000, 2), dtype=np.uint8)
    assert block_length(constant, ROWS) == 1


@pytest.mark.parametrize("aligned", [True, False])
def test_blocks_are_drawn_whole(aligned):
    rng = np.random.default_rng(22)
    drawn = draw_blocks(1003, 95, 10, 50, rng, aligned=aligned)
    assert drawn.shape == (50, 95)
    assert drawn.min() >= 0
    assert drawn.max() < 1003
    steps = np.diff(drawn, axis=1) % 1003
    assert (steps[:, np.arange(94) % 10 != 9] == 1).all()
    assert (drawn[:, ::10] % 10 == 0).all() == aligned


def test_a_window_of_another_size_is_judged_on_the_same_scale():
    made = watch(1)
    found = []
    for rows in (500, 2000):
        traffic = Traffic(np.random.default_rng(23))
        best = []
        for _ in range(40):
            window = made.reference.window()
            made.reference.add(window, traffic.rows(rows))
            scores = made.calibration.judge(made.reference, window)
            best.append(np.median([item.score for item in scores]))
        found.append(np.mean(best))
    assert abs(found[0] - found[1]) < 0.15
