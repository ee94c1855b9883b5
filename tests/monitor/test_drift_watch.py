"""The watch for drift, from exchanges to states, events, metrics and back from the store."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from exporters import instruments
from sidecar.monitor.deep.prepare import accuracy_of
from sidecar.monitor.drift_reference import ReferenceFileError, live_settings, misfit, read
from sidecar.monitor.measured_drift import MeasuredDrift
from sidecar.monitor.sampled import drift_models, sampled_models
from sidecar.monitor.store import Store
from tests.e2e.support import until
from tests.monitor.drifting import SETTINGS, WINDOW, Bench, config, registered, tensors
from tests.monitor.making import Clock, exchange, model


@pytest.fixture
def bench(tmp_path):
    made = Bench.with_reference(tmp_path)
    yield made
    made.watch.close()


def test_clean_rows_are_ok_moved_ones_alarm_in_two_windows_and_it_clears(bench, caplog):
    bench.send(5 * WINDOW)
    assert (bench.view.state, bench.view.windows) == ("ok", 5)
    with caplog.at_level(logging.WARNING):
        bench.send(WINDOW, shift=1.0)
        assert bench.view.state == "suspect"
        assert bench.texts() == []
        bench.send(WINDOW, shift=1.0)
    assert bench.view.state == "alarm"
    [(verdict, text)] = bench.texts()
    assert verdict == "FAIL"
    assert "x.0 moved (anderson_darling" in text
    assert "x.0 moved" in caplog.text
    moved = {unit.unit for unit in bench.view.units if unit.state == "alarm"}
    assert {"x.0", "x.1", "x.2", "(joint)"} <= moved
    assert bench.view.alarm_since_wall_ns == bench.clock.ns
    bench.send(2 * WINDOW)
    assert (bench.view.state, bench.view.alarm_since_wall_ns) == ("ok", None)
    assert bench.texts()[-1][0] == "PASS"
    assert all(len(unit.scores) == 9 for unit in bench.view.units)


def test_the_highest_score_is_named_first(bench):
    bench.send(2 * WINDOW, shift=2.0)
    [(_, text)] = bench.texts()
    scores = {unit.unit: unit.score for unit in bench.view.units}
    first = text.removeprefix("drift: ").partition(" moved")[0]
    assert scores[first] == max(scores.values())


def test_a_correlation_alone_is_seen(bench):
    def flipped(rows):
        inputs, outputs = tensors(bench.rng, rows)
        x = inputs["x"]
        x[:, 1] = 0.9 * x[:, 0] + np.sqrt(1 - 0.81) * x[:, 1]
        outputs["scores"][:, 1] = x[:, 1]
        return inputs, outputs

    for _ in range(3):
        bench.watch.take("m", *flipped(WINDOW), True)
    bench.watch.settle()
    moved = {unit.unit: unit.detail for unit in bench.view.units if unit.state == "alarm"}
    assert "x.0" not in moved
    assert "(correlation)" in moved


def test_without_traffic_nothing_is_ok(bench):
    assert bench.view.state == "insufficient_data"
    bench.clock.advance(3601)
    bench.watch.tick()
    assert bench.view.state == "insufficient_data"
    bench.send(2 * WINDOW)
    assert bench.view.state == "ok"
    bench.send(50)
    bench.clock.advance(3601)
    bench.watch.tick()
    assert bench.view.state == "insufficient_data"
    assert bench.texts()[-1] == ("INCONCLUSIVE", "drift: not enough data: 50 rows in the window")
    # The latest judged window is still shown, with what it was.
    assert bench.view.last_window_rows == WINDOW


def test_broken_numbers_are_counted_and_move_their_column(bench):
    for _ in range(2):
        inputs, outputs = tensors(bench.rng, WINDOW)
        inputs["x"][::4, 1] = np.nan
        inputs["x"][1::8, 1] = np.inf
        bench.watch.take("m", inputs, outputs, True)
    bench.watch.settle()
    [unit] = [unit for unit in bench.view.units if unit.unit == "x.1"]
    assert unit.state == "alarm"
    assert unit.detail in {"NaN: 0.0% → 25.0%", "NaN and infinite: 0.0% → 37.5%"}


def test_exchanges_that_do_not_fit_are_counted_alone_and_said(bench):
    good = tensors(bench.rng, 10)
    bench.watch.take("m", *good, True)
    bench.watch.take("m", {"x": np.zeros((10, 3), np.float32)}, None, True)  # no outputs
    bench.watch.take("m", *good, True)
    bench.watch.settle()
    assert (bench.view.rows_in_window, bench.view.skipped) == (20, {"misfit": 1})
    assert bench.view.state == "insufficient_data"
    for _ in range(12):
        wide = {"x": np.zeros((10, 4), np.float32)}, good[1]
        bench.watch.take("m", *wide, True)
    bench.watch.settle()
    # Four features were asked for by nobody: the first three have the names of the columns.
    assert bench.view.rows_in_window == 140
    for _ in range(12):
        bench.watch.take("m", {"x": np.zeros((10, 2), np.float32)}, good[1], True)
    bench.watch.settle()
    assert bench.view.state == "not_watched"
    assert "sidecar reference" in bench.view.message
    bench.watch.take("m", *good, True)
    bench.watch.settle()
    assert bench.view.state == "insufficient_data"


def test_a_window_is_told_with_its_times_and_what_that_raises_stays_there(tmp_path, caplog):
    bench = Bench.with_reference(tmp_path)
    start = bench.clock.ns
    bench.clock.advance(5)
    bench.send(WINDOW)
    [(model, judged, begin, end)] = bench.told
    assert (model, judged.rows, begin, end) == ("m", WINDOW, start, start + 5 * 10**9)
    bench.watch.on_window = lambda *_: 1 / 0
    bench.send(WINDOW)
    assert bench.view.windows == 2
    assert "could not be told" in caplog.text
    bench.watch.close()


def test_only_good_answers_of_watched_models_are_taken_at_the_rate(tmp_path):
    bench = Bench.with_reference(tmp_path, sample_rate=0.25)
    good = exchange(variant="m:1/v", response=b"x")
    taken = sum(bench.watch.takes(good) for _ in range(2000))
    assert 400 < taken < 600
    for bad in (
        exchange(variant="m:1/v", response=None),
        exchange(variant="m:1/v", response=b"x", outcome="ExecutionError"),
        exchange(variant="other:1/v", response=b"x"),
    ):
        assert not any(bench.watch.takes(bad) for _ in range(100))
    bench.watch.close()


# --- the store --------------------------------------------------------------------------------


def test_another_life_goes_on_in_the_middle_of_a_window(tmp_path):
    one = Bench.with_reference(tmp_path)
    with_store = Store.open(tmp_path / "state", one.clock)
    one.watch.load(with_store)
    one.send(2 * WINDOW, shift=1.0)
    one.send(70, shift=1.0)
    one.watch.flush(with_store)
    before = one.view
    with_store.close()  # nothing else is written: it was killed
    one.watch.close()
    two = Bench.with_reference(tmp_path)
    again = Store.open(tmp_path / "state", two.clock)
    two.watch.load(again)
    assert two.view == before
    assert (two.view.state, two.view.rows_in_window) == ("alarm", 70)
    assert two.texts() == []  # it was told by the one before
    two.send(130, shift=1.0)
    assert two.view.windows == 3
    two.watch.flush(again)
    again.close()
    two.watch.close()


def test_a_window_of_another_reference_is_left(tmp_path, caplog):
    one = Bench.with_reference(tmp_path)
    store = Store.open(tmp_path / "state", one.clock)
    one.watch.load(store)
    one.send(WINDOW + 10)
    one.watch.flush(store)
    tables = store.drift()
    kept = tables.load("m")
    kept.window["reference"] = "another"
    from sidecar.monitor.drift_store import Change

    tables.put(Change("m", window=kept.window))
    two = Bench.with_reference(tmp_path)
    two.watch.load(store)
    assert (two.view.windows, two.view.rows_in_window) == (0, 0)
    assert "another reference" in caplog.text
    two.send(10)
    two.watch.flush(store)
    kept = tables.load("m")
    assert kept.window["window"]["joint"]["rows"] == 10
    assert kept.past == []  # those were of the other reference
    store.close()


def test_history_is_bounded_in_memory_and_in_the_store(tmp_path):
    bench = Bench.with_reference(tmp_path, deep={"rows": 100})
    store = Store.open(tmp_path / "state", bench.clock)
    bench.watch.load(store)
    for _ in range(60):
        bench.send(WINDOW, each=WINDOW)
        bench.watch.flush(store)
    kept = store.drift().load("m")
    assert [past.seq for past in kept.past] == list(range(11, 61))
    assert len(bench.watch.models["m"].history) == 50
    store.close()


# --- live references --------------------------------------------------------------------------


def live(**changes):
    return Bench(**{"enabled": True, "reference_rows": 1000, **changes})


def test_the_first_rows_become_the_reference_and_a_restart_does_not_begin_anew(tmp_path):
    one = live()
    store = Store.open(tmp_path / "state", one.clock)
    one.watch.load(store)
    one.send(300)
    one.watch.flush(store)
    one.send(120)
    one.watch.flush(store)
    assert (one.view.reference_source, one.view.reference_rows) == ("collecting", 420)
    one.watch.close()

    two = live()
    two.watch.load(store)
    assert two.view.reference_rows == 420
    two.send(700)
    until(lambda: two.view.reference_source == "live", "it is calibrated", within_s=60)
    assert (two.view.reference, two.view.reference_rows) == ("live", 1000)
    two.send(2 * WINDOW)
    assert two.view.state == "ok"
    two.watch.flush(store)
    assert store.drift().load("m").rows == []
    two.watch.close()

    three = live()
    three.watch.load(store)
    assert replace(three.view, skipped={}) == replace(two.view, skipped={})
    three.watch.close()

    other = live(window_rows=250)
    other.watch.load(store)
    assert (other.view.reference_source, other.view.reference_rows) == ("collecting", 0)
    other.watch.close()
    store.close()


def test_an_axis_that_was_taken_for_rows_and_is_none_begins_anew():
    bench = live()
    for _ in range(5):
        array = np.zeros((4, 3), np.float32)
        bench.watch.take("m", {"x": array}, {"y": array}, None)
    bench.watch.settle()
    assert bench.view.reference_rows == 20
    array = np.zeros((4, 3), np.float32)
    bench.watch.take("m", {"x": array}, {"y": array[0]}, None)
    bench.watch.settle()
    assert bench.view.reference_rows == 1  # an exchange is a row
    bench.watch.close()


def test_a_setting_that_does_not_fit_is_said_until_an_exchange_fits():
    bench = live(inputs={"image": {"kind": "image"}})
    bench.send(10)
    assert bench.view.state == "not_watched"
    assert "drift.inputs names 'image'" in bench.view.message
    assert "there is x" in bench.view.message
    bench.watch.close()


def test_a_reference_that_cannot_be_calibrated_is_said():
    bench = live(methods={"nothing": "ks"})
    bench.send(1000)
    until(lambda: bench.view.state == "not_watched", "it is said", within_s=60)
    assert "'nothing', which is no column" in bench.view.message
    bench.watch.close()


# --- the sample, metrics, and who is watched --------------------------------------------------


def test_the_sample_is_of_the_latest_windows_and_bounded(tmp_path):
    bench = Bench.with_reference(tmp_path, deep={"rows": 500})
    bench.send(3 * WINDOW, shift=5.0)
    bench.send(3 * WINDOW)
    reference, rows = bench.watch.sample("m")
    assert {column.name for column in reference.columns} == set(rows)
    assert {len(column) for column in rows.values()} == {500}
    assert rows["x.0"].mean() < 1.0  # the shifted ones are gone
    assert rows["scores.class"].dtype.kind == "U"
    assert bench.watch.sample("nobody") is None
    bench.watch.close()


def test_metrics_of_the_latest_window(bench):
    measured = MeasuredDrift(bench.watch.views)
    assert list(measured.points()) == []
    bench.send(2 * WINDOW, shift=2.0)
    points = {}
    for point in measured.points():
        points[point.instrument.name, point.attributes.get("column", "")] = point
        assert set(point.attributes) == set(point.instrument.attributes)
    alarm = points[instruments.DRIFT_ALARM.name, "x.0"]
    assert (alarm.value, alarm.attributes["reference"]) == (1, "m.reference.json.gz")
    assert points[instruments.DRIFT_ROWS.name, ""].value == WINDOW
    score = points[instruments.DRIFT_SCORE.name, "x.0"].value
    assert score > points[instruments.DRIFT_THRESHOLD.name, "x.0"].value
    bench.clock.advance(4000)
    bench.watch.tick()
    bench.send(WINDOW)
    assert points[instruments.DRIFT_LAST_SUCCESS.name, ""].value == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "damaged|cannot be used"),
        (b"{}", "no drift reference"),
        (b"\x1f\x8bgarbage", "damaged"),
        (b'{"format": "model-sidecar drift reference", "version": 2}', "version 2"),
        (b'{"format": "model-sidecar drift reference", "version": 1}', "part is missing"),
        (b"[" * 100_000, "cannot be used"),
    ],
)
def test_a_file_that_is_no_reference_says_what_to_do(tmp_path, text, message):
    path = tmp_path / "r"
    path.write_bytes(text)
    with pytest.raises(ReferenceFileError, match=message) as caught:
        read(path)
    assert "sidecar reference" in str(caught.value)


def test_a_reference_made_with_other_settings_is_not_used(tmp_path):
    bench = Bench.with_reference(tmp_path, window_rows=300)
    assert bench.view.state == "not_watched"
    assert "window_rows 200 → 300" in bench.view.message
    bench.send(300)
    assert bench.view.windows == 0
    bench.watch.close()


def test_who_is_sampled_and_who_is_watched():
    from sidecar.config import parse

    def names(models, **monitor):
        made = parse({"models": models, "monitor": monitor})
        sampled = sampled_models(made)
        watched = [model.name for model in drift_models(made)]
        return made.monitored, None if sampled is None else sorted(sampled), watched

    def model(name, role="serving", **drift):
        variants = [
            {"name": part, "version": "1", "roles": [part],
             "runtime": {"kind": "remote", "address": "127.0.0.1:1"}}
            for part in dict.fromkeys(("serving", role))
        ]  # fmt: skip
        return {"name": name, "variants": variants, "drift": drift}

    assert names([model("a")]) == (False, [], [])
    assert names([model("a", enabled=True), model("b")]) == (True, ["a"], ["a"])
    assert names([model("a", reference="r"), model("b")]) == (True, ["a"], ["a"])
    assert names([model("a", "mirror"), model("b")]) == (True, ["a"], ["a"])
    assert names([model("a", "mirror", enabled=False)]) == (True, ["a"], [])
    assert names([model("a"), model("b")], enabled=True) == (True, None, ["a", "b"])
    assert names([model("a", enabled=True)], enabled=False) == (False, ["a"], [])


def test_config_says_what_makes_no_sense():
    for wrong, said in (
        ({"window_rows": 200}, "under min_rows"),
        ({"block_rows": 600}, "more than window_rows"),
        ({"window_rows": 3000, "enabled": True}, "reference_rows is 5000"),
        ({"inputs": {}, "outputs": {}}, "both empty"),
        ({"methods": {"x": "magic"}}, "no distance 'magic'"),
        ({"inputs": {"x": {"kind": "features", "options": {"nmes": []}}}}, "no option 'nmes'"),
    ):
        with pytest.raises(ValueError, match=said):
            config(**{"min_rows": 500, "window_rows": 500, "block_rows": None, **wrong})
    assert json.loads(config().drift.model_dump_json())["window_rows"] == WINDOW


def test_the_clock_is_the_one_that_was_given(tmp_path):
    clock = Clock()
    bench = Bench.with_reference(tmp_path, clock=clock)
    clock.advance(100)
    bench.send(WINDOW)
    assert bench.view.last_window_wall_ns == clock.ns
    bench.watch.close()


def test_another_version_is_not_looked_at_and_counted(bench):
    assert bench.watch.takes(exchange(variant="m:1/v"))
    assert bench.watch.takes(exchange(variant="m:1/fallback"))  # of the same version
    assert not bench.watch.takes(exchange(variant="m:2/v"))
    assert not bench.watch.takes(exchange(variant="m:10/v"))
    assert bench.view.skipped == {"other_version": 2}


def test_a_reference_of_a_version_that_serves_no_longer_is_said(tmp_path):
    path = tmp_path / "m.reference.json.gz"
    path.write_bytes(registered())
    newer = model(("2", "v", ["serving"]), drift={**SETTINGS, "reference": str(path)})
    assert "of version 1 of 'm', which does not serve" in misfit(read(path), newer, "it")
    assert misfit(read(path), config(), "it") == ""


def test_first_rows_of_another_version_are_no_reference():
    both = [("1", "v", ["serving"]), ("2", "v", ["serving"])]
    settings = [live_settings(model(*variants)) for variants in (both[:1], both)]
    assert [one["version"] for one in settings] == ["1", "2"]


def test_labels_that_come_late_are_judged_beside_the_references(tmp_path):
    bench = Bench.with_reference(tmp_path)
    bench.send(WINDOW)
    drift = bench.watch.models["m"]
    bench.watch.labelled("m", "m:1/v", [True] * 30 + [False] * 70)
    bench.watch.labelled("m", "m:2/v", [True] * 1000)  # another version answers otherwise
    bench.watch.labelled("nobody", "nobody:1/v", [True])
    reference, rows = bench.watch.sample("m")
    assert accuracy_of(drift.model.drift, reference, rows) is None  # the reference has no labels
    drift.registered.facts.update(accuracy=0.95, labelled_rows=2000)
    change = accuracy_of(drift.model.drift, *bench.watch.sample("m"))
    assert (change.reference.right, change.reference.rows) == (1900, 2000)
    assert (change.current.right, change.current.rows) == (30, 100)
    assert change.verdict == "lower"
