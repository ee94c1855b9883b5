"""Counts survive a restart and a store that refuses; certificates stay what they were."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.judge import Judge, certificate_key
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.rows import EvidenceKey, Remark, StoreError
from sidecar.monitor.status import StatusBoard
from sidecar.monitor.store import Store
from tests.monitor import making
from validators.sequential.certificate import certify_live
from validators.sketches import LogHistogram
from validators.verdict import Verdict

KEY = EvidenceKey("m", "m:2/new", "m:2/ref", "y", "disagrees", "p")
LATCH = ("m", "m:2/new", "m:2/ref", "y", "p")


@pytest.fixture
def clock():
    return making.Clock()


def life(folder, clock):
    """One life of a monitor's memory, with what is in the folder."""
    evidence, events = Evidence("unsaved", clock), EventLog(clock)
    keeper = Keeper(folder, evidence, events, clock)
    return evidence, events, keeper


def sketch(*values):
    made = LogHistogram()
    made.add(values)
    return made


def test_lives_add_up_and_none_counts_twice(tmp_path, clock):
    for number in range(3):
        evidence, _, keeper = life(tmp_path, clock)
        assert keeper.open()
        assert evidence.cells(KEY) == ({} if number == 0 else {"n": 3 * number, "k": 0.5 * number})
        evidence.add(KEY, {"n": 2, "k": 0.5})
        keeper.flush()
        evidence.add(KEY, {"n": 1})
        evidence.add_sketch(KEY, sketch(1.0, 2.0))
        keeper.flush()
        keeper.flush()  # nothing changed: nothing is counted again
        assert evidence.sketch(KEY).count == 2 * (number + 1)
        assert len({row.incarnation for row in evidence.rows("m")}) == number + 1
        assert evidence.rows("other") == []
        keeper.close()


def test_a_certificate_stays_certified(tmp_path, clock):
    evidence, _, keeper = life(tmp_path, clock)
    keeper.open()
    assert not evidence.note_certificate(LATCH, 1.0, certified=False)
    assert evidence.note_certificate(LATCH, 3.5, certified=True)
    assert not evidence.note_certificate(LATCH, 2.0, certified=True)
    first = evidence.certificate(LATCH)
    keeper.close()
    clock.advance(100)
    evidence, _, keeper = life(tmp_path, clock)
    keeper.open()
    assert evidence.certificate(LATCH) == first
    assert (first.best_log_e, first.certified_ns) == (3.5, 10**9)
    keeper.close()


class Refusing:
    """A store that refuses until it is told otherwise, and remembers what it got."""

    incarnation = "now"
    generation = 0

    def __init__(self) -> None:
        self.refuses = True
        self.rows: dict = {}

    def evidence(self):
        return []

    sketches = certificates = evidence

    def remarks(self):
        return {}

    def put_evidence(self, rows, gone=()):
        if self.refuses:
            message = "the disk is full"
            raise StoreError(message)
        self.rows |= {row.key: dict(row.cells) for row in rows}

    def put_sketches(self, rows):
        self.rows |= {row.key: row.plain for row in rows}

    def put_certificate(self, *values):
        self.rows[values[:5]] = values[5:]


def test_a_store_that_refuses_is_tried_again_and_said_once(clock, caplog):
    store, evidence = Refusing(), Evidence("unsaved", clock)
    evidence.load(store)
    evidence.add(KEY, {"n": 1})
    evidence.note_certificate(LATCH, 1.0, certified=False)
    with caplog.at_level(logging.INFO, "sidecar.monitor.evidence"):
        assert [evidence.flush(store) for _ in range(3)] == [False] * 3
        evidence.add(KEY, {"n": 1})
        store.refuses = False
        assert evidence.flush(store)
    assert store.rows == {KEY: {"n": 2}, LATCH: (1.0, None)}
    texts = [record.getMessage() for record in caplog.records]
    assert texts == ["evidence is kept in memory only: the disk is full",
                     "evidence is written again"]  # fmt: skip


def test_a_store_that_was_begun_afresh_gets_everything_again(clock):
    store, evidence = Refusing(), Evidence("unsaved", clock)
    store.refuses = False
    evidence.load(store)
    evidence.add(KEY, {"n": 1})
    assert evidence.flush(store)
    store.rows.clear()
    assert evidence.flush(store)
    assert store.rows == {}
    store.generation += 1
    assert evidence.flush(store)
    assert store.rows == {KEY: {"n": 1}}


def test_without_a_store_it_counts_on_and_writes_when_there_is_one(tmp_path, clock):
    folder = tmp_path / "state"
    other = Store.open(folder, clock)  # somebody else has it
    evidence, events, keeper = life(folder, clock)
    assert not keeper.open()
    assert not keeper.status().ok
    assert "in use" in keeper.status().message
    evidence.add(KEY, {"n": 1})
    say(events, "one")
    keeper.flush()
    other.close()
    clock.advance(60)
    evidence.add(KEY, {"n": 1})
    keeper.flush()
    assert keeper.is_open
    keeper.close()
    evidence, events, keeper = life(folder, clock)
    keeper.open()
    assert evidence.cells(KEY) == {"n": 2}
    assert [event.text for event in events.wait(0, 0)] == ["one"]
    keeper.close()


# --- events ---------------------------------------------------------------------------------------


def say(events, text, verdict=Verdict.FAIL):
    events.append(model="m", candidate="c", baseline="b", output="y", verdict=verdict, text=text)


def test_events_are_numbered_over_lives_and_waited_for(tmp_path, clock):
    _, events, keeper = life(tmp_path, clock)
    keeper.open()
    assert events.last_seq == 0
    assert events.wait(0, 0) == []
    say(events, "one")
    say(events, "two")
    assert [(event.seq, event.text) for event in events.wait(1, 0)] == [(2, "two")]
    keeper.close()
    _, events, keeper = life(tmp_path, clock)
    keeper.open()
    say(events, "three")
    assert [(event.seq, event.text) for event in events.wait(0, 0)] == [
        (1, "one"), (2, "two"), (3, "three"),
    ]  # fmt: skip
    keeper.close()


# --- judging --------------------------------------------------------------------------------------


class Bench:
    """A plan with one pair, evidence for it, and its judge."""

    def __init__(self, clock, evidence=None, **validation):
        self.evidence = evidence or Evidence("now", clock)
        self.events = EventLog(clock)
        config = making.model(
            ("2", "ref", ["reference"]), ("2", "new", ["serving"]), validation=validation
        )
        self.plan = making.plan(config)
        [self.pair] = self.plan.pairs
        self.key = EvidenceKey(
            "m", "m:2/new", "m:2/ref", "y", "disagrees", f"{self.pair.identity}-p"
        )
        plans = {"m": self.plan}
        self.judge = Judge(self.evidence, plans, self.events)
        self.board = StatusBoard(self.evidence, self.judge)

    def add(self, n, k=0.0, **cells):
        self.evidence.add(self.key, {"n": n, "k": k, "rows": n, "bad_rows": k, **cells})

    def told(self):
        self.judge.look()
        return [event.verdict for event in self.events.wait(0, 0)]

    def certificate(self):
        return self.judge.certificate(self.plan, self.pair, self.key)


def test_verdicts_are_told_when_they_change(clock):
    bench = Bench(clock)
    bench.add(100)
    assert bench.told() == []
    view = bench.certificate()
    assert (view.verdict, view.n, view.requests_to_go) == (Verdict.INCONCLUSIVE, 100, 244)
    bench.add(243)
    assert bench.told() == []
    bench.add(1)
    assert bench.told() == [Verdict.PASS]
    [event] = bench.events.wait(0, 0)
    assert event.text.startswith("m:2/new beside m:2/ref, output y: 0 of 344 requests disagree")
    assert event.certificate.certified_wall_ns == clock.now_ns()
    bench.add(100)
    assert bench.told() == [Verdict.PASS]
    bench.add(60, k=60)
    assert bench.told() == [Verdict.PASS, Verdict.FAIL]
    assert bench.certificate().verdict is Verdict.FAIL


def test_a_certificate_agrees_with_the_statistics(clock):
    bench = Bench(clock, retention_class="edge", alpha=0.1)
    bench.add(50, k=1.5)
    bench.judge.look()
    view, expected = bench.certificate(), certify_live(1.5, 50, 0.05, 0.1)
    assert (view.limit, view.alpha, view.retention_class) == (0.05, 0.1, "edge")
    assert (view.bound, view.log_e) == (expected.bound, expected.log_e)
    assert bench.certificate() == view
    assert bench.judge.certificates("m") == [view]
    assert bench.judge.certificates("other") == []


def test_what_was_certified_before_a_restart_is_still_and_not_told_again(tmp_path, clock):
    evidence, _, keeper = life(tmp_path, clock)
    keeper.open()
    first = Bench(clock, evidence)
    first.add(400)
    assert first.told() == [Verdict.PASS]
    keeper.close()
    evidence, _, keeper = life(tmp_path, clock)
    keeper.open()
    again = Bench(clock, evidence)
    again.judge.look(quiet=True)
    assert again.told() == []
    # Three bad ones are too many for 403 requests, but not for what was certified.
    again.add(3, k=3)
    assert again.told() == []
    assert again.certificate().verdict is Verdict.PASS
    assert again.certificate().log_e < again.certificate().best_log_e
    keeper.close()


def test_what_has_failed_before_a_restart_has_still_failed_and_is_not_told_again(tmp_path, clock):
    evidence, _, keeper = life(tmp_path, clock)
    keeper.open()
    first = Bench(clock, evidence)
    first.add(100, k=10)
    assert first.told() == [Verdict.FAIL]
    keeper.close()
    evidence, _, keeper = life(tmp_path, clock)
    keeper.open()
    again = Bench(clock, evidence)
    again.judge.look(quiet=True)
    # So many good ones since, that these counts alone would prove nothing any more.
    again.add(1000)
    assert again.told() == []
    assert certify_live(10, 1100, 0.01, 0.05).verdict is Verdict.INCONCLUSIVE
    assert again.certificate().verdict is Verdict.FAIL
    assert "over 1 %" in again.judge.sentence(again.plan, again.pair, again.key)
    keeper.close()


def test_worst_values_and_the_first_problem_are_those_of_all_lives(tmp_path, clock):
    found = []
    for worst, problem in ((3.0, "the candidate lacks it"), (2.0, "another")):
        evidence, _, keeper = life(tmp_path, clock)
        keeper.open()
        bench = Bench(clock, evidence)
        bench.add(1)
        place = replace(bench.key, metric="")
        remark = Remark({"max_abs": worst}, {"sqnr_db": -worst}, problem)
        evidence.remark(place, remark)
        evidence.remark(place, Remark({"max_abs": 1.0}, {"sqnr_db": 1.0}))
        [pair] = bench.board.model(bench.plan).pairs
        found.append((pair.outputs[0].worst, evidence.remarks(place).problem))
        keeper.close()
    assert found == [({"max_abs": 3, "sqnr_db": -3}, "the candidate lacks it")] * 2


def test_a_certificate_for_one_rate_is_none_for_a_stricter_one(clock):
    bench = Bench(clock)
    bench.add(400)
    assert bench.told() == [Verdict.PASS]
    strict = Bench(clock, bench.evidence, retention_class="safety-critical")
    assert strict.told() == []
    assert strict.certificate().verdict is Verdict.INCONCLUSIVE
    assert certificate_key(bench.key, 0.01, 0.05) != certificate_key(bench.key, 0.001, 0.05)


def test_answers_that_cannot_be_compared_are_invalid_at_once(clock):
    bench = Bench(clock)
    bench.evidence.remark(replace(bench.key, metric=""), Remark(problem="the candidate lacks it"))
    bench.certificate()  # somebody looked before
    bench.add(1, k=1, structural=1)
    assert bench.told() == [Verdict.INVALID]
    [event] = bench.events.wait(0, 0)
    assert "1 of 1 answers cannot be compared: the candidate lacks it" in event.text


def test_another_artifact_begins_new_evidence(clock):
    bench = Bench(clock)
    bench.add(400)
    bench.pair.identity = "other"
    assert bench.told() == []
    assert bench.board.model(bench.plan).pairs[0].verdict is Verdict.INVALID


def test_the_status_of_a_pair_has_its_noise_beside_it(clock):
    bench = Bench(clock)
    bench.add(200, k=4, invalid=1)
    noise = EvidenceKey("m", "m:2/ref", "m:2/ref", "y", "noise", bench.key.policy)
    bench.evidence.add(noise, {"n": 20, "k": 1})
    [pair] = bench.board.model(bench.plan).pairs
    [output] = pair.outputs
    assert (pair.purpose, pair.compared, pair.verdict) == ("certificate", 200, Verdict.INCONCLUSIVE)
    assert (output.requests, output.rate, output.invalid) == (200, 0.02, 1)
    assert 0 < output.lower < 0.02 < output.upper < 0.1
    assert output.noise.requests == 20
    assert output.noise.lower < output.noise.rate == 0.05 < output.noise.upper
    assert output.noise.excess_upper == pytest.approx(output.upper - output.noise.lower)


def test_a_blocked_pair_says_why(clock):
    bench = Bench(clock)
    bench.pair.blocked = "there is no copy of m:2/ref: it does not exist"
    [pair] = bench.board.model(bench.plan).pairs
    assert (pair.verdict, pair.blocked) == (None, bench.pair.blocked)
    assert bench.told() == []


def test_all_keys_are_known_in_order_whatever_came_and_went(tmp_path, clock):
    evidence, _, keeper = life(tmp_path, clock)
    keys = [replace(KEY, block=number) for number in range(3)]
    for key in reversed(keys):
        evidence.add(key, {"n": 1})
        assert key in evidence.all_keys()
    other = replace(KEY, metric="noise")
    evidence.set_cells(other, {"n": 1})
    assert evidence.all_keys() == [*keys, other]
    evidence.all_keys().clear()  # the caller's own
    assert len(evidence.all_keys()) == 4
    assert keeper.open()
    keeper.close()
    later, _, keeper = life(tmp_path, clock)
    assert later.all_keys() == []
    assert keeper.open()
    assert later.all_keys() == [*keys, other]
    later.add(replace(KEY, block=500), {"n": 1})  # blocks long past are joined
    keeper.flush()
    assert [key.block for key in later.all_keys()] == [0, 500, 0]
    keeper.close()
