"""What is counted of a pair of versions beside single pairs: repeats, blocks, outputs, and the
previous version beside itself."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchanges import Planner, Twice
from sidecar.monitor.mirror_protocol import Answer
from sidecar.monitor.record import Recorder
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.version_blocks import BlockBets
from sidecar.monitor.version_outputs import BINS, CLASSES_MAX, FIRST_ROWS, OutputClasses
from sidecar.monitor.version_repeats import Repeats
from sidecar.monitor.versions import WARM_UP_PAIRS, VersionPairs
from tests.monitor import making
from validators.sequential.autocorrelation import Autocorrelation

NEW, OLD = "m:2/new", "m:1/old"
CLASSES = {"outputs": {"y": {"kind": "class_scores"}}}
LOOSE = {"outputs": {"y": {"kind": "tensor", "limits": {"max_abs": 0.5}}}}


@pytest.fixture
def evidence():
    return Evidence("now", making.Clock())


def planned(validation=None, **settings):
    config = making.model(
        ("1", "old", ["previous"]), ("2", "new", ["serving"]), validation=validation or CLASSES,
        **settings,
    )  # fmt: skip
    return making.plan(config)


def counting(evidence, plan):
    return VersionPairs(evidence, Recorder(evidence), {"m": plan})


def scores(*classes, width=4):
    return {"y": np.eye(width, dtype=np.float32)[list(classes)]}


def timed(outputs, ms):
    return Answer(outputs, compute_ns=int(ms * 1e6))


def pair_of(plan, new, old, request_id=""):
    return making.item(plan, NEW, scores(0), {NEW: new, OLD: old}, request_id=request_id)


def cells(evidence, plan, metric, *, sides=(NEW, OLD)):
    """The sum over all blocks, outputs and policies."""
    total = {}
    for key in evidence.all_keys():
        if (key.candidate, key.baseline, key.metric) == (*sides, metric):
            assert key.policy.startswith(plan.pairs[0].identity)
            for name, count in evidence.cells(key).items():
                total[name] = total.get(name, 0) + count
    return total


def noise_of(evidence, plan):
    return Autocorrelation.from_cells(cells(evidence, plan, harms.NOISE, sides=(OLD, OLD)))


def block_of(evidence, plan):
    return noise_of(evidence, plan).block(harms.BLOCK_LENGTHS)


def both(new=0, old=0):
    return {"n11": 0, "n10": new, "n01": old, "n00": 0}


# --- repeats --------------------------------------------------------------------------------------


def test_the_same_request_counts_once_whoever_answered_it(evidence):
    plan = planned()
    counter = counting(evidence, plan)
    failed, fine = Answer(None, "error", "why"), timed(scores(0), 1)
    first = pair_of(plan, failed, fine, "a")
    # Its retry was answered by the previous version (a fallback, another route).
    retry = making.item(plan, OLD, scores(0), {NEW: failed, OLD: fine}, request_id="a")
    counter.count([first, retry, pair_of(plan, fine, fine, "b")], 1)
    counter.count([first, retry], 1)
    assert cells(evidence, plan, "error") == {"n11": 0, "n10": 1, "n01": 0, "n00": 1}
    assert cells(evidence, plan, harms.REPEATS) == {"dropped": 3}
    assert counter.has_counted(retry)  # it was compared, and is nobody's loss


def test_requests_without_an_identity_are_never_repeats(evidence):
    plan = planned()
    fine = timed(scores(0), 1)
    counting(evidence, plan).count([pair_of(plan, fine, fine) for _ in range(3)], 1)
    assert cells(evidence, plan, "error")["n00"] == 3
    assert cells(evidence, plan, harms.REPEATS) == {}


def test_identities_are_remembered_by_pair_and_not_for_ever():
    repeats = Repeats(remembered=3)
    assert [repeats.is_repeat(("a", "b"), name) for name in "wxyw"] == [False, False, False, True]
    assert not repeats.is_repeat(("a", "c"), "w")
    assert not repeats.is_repeat(("a", "b"), "z")
    assert not repeats.is_repeat(("a", "b"), "w")  # the oldest, which had to go


# --- blocks ---------------------------------------------------------------------------------------


def test_a_block_is_one_bet_on_what_its_pairs_add_up_to(evidence):
    bets = BlockBets(evidence)
    key = EvidenceKey("m", NEW, OLD, "", "error", "p")
    rng = random.Random(3)
    harmed = [rng.choice([-1.0, 0.0, 0.0, 1.0]) for _ in range(1234)]
    at = 0
    while at < len(harmed):  # in batches of any size
        size = rng.randint(1, 70)
        part = harmed[at : at + size]
        bets.add(key, part, [number // 1000 for number in range(at, at + len(part))])
        at += size
    for length in harms.BLOCK_LENGTHS:
        expected: dict[int, dict[str, int]] = {}
        for end in range(length, len(harmed) + 1, length):
            total = sum(harmed[end - length : end])
            cell = "n10" if total > 0 else "n01" if total < 0 else "n00"
            block = expected.setdefault((end - 1) // 1000, {"n11": 0, "n10": 0, "n01": 0, "n00": 0})
            block[cell] += 1
        found = {
            k.block: evidence.cells(k)
            for k in evidence.all_keys()
            if k.metric == harms.by("error", length)
        }
        assert found == expected


def test_errors_and_times_are_bet_on_by_blocks_too(evidence):
    plan = planned(LOOSE)
    counter = counting(evidence, plan)
    slow, fine = timed(scores(0), 12), timed(scores(0), 10)
    failed = Answer(None, "error", "why")
    counter.count([pair_of(plan, failed, fine), *[pair_of(plan, slow, fine)] * 519], 1)
    assert cells(evidence, plan, "error/20") == {"n11": 0, "n10": 1, "n01": 0, "n00": 25}
    # 500 pairs are warm: one block of 500, five of 100, 25 of 20.
    for length in harms.BLOCK_LENGTHS:
        assert cells(evidence, plan, harms.by("slow", length)) == both(new=500 // length)
    assert cells(evidence, plan, "slow") == both(new=500)
    assert WARM_UP_PAIRS == 20


def test_flips_of_a_block_are_capped_at_one(evidence):
    plan = planned()
    same, other = timed(scores(0), 1), timed(scores(1), 1)
    changed = [0, 1, 2, 3, 25, 41]  # four in the first block, one in each of the others
    items = [pair_of(plan, other if n in changed else same, same) for n in range(79)]
    counting(evidence, plan).count(items, 1)
    assert cells(evidence, plan, "flip")["n10"] == len(changed)
    assert cells(evidence, plan, "flip/20") == {"n11": 0, "n10": 3, "n01": 0, "n00": 0}


# --- outputs --------------------------------------------------------------------------------------


def test_classes_are_counted_in_shares_of_the_rows(evidence):
    plan = planned()
    counter = counting(evidence, plan)
    counter.count([pair_of(plan, timed(scores(2, 1), 1), timed(scores(1, 1), 1))], 1)
    counter.count([pair_of(plan, timed(scores(3, 2), 1), timed(scores(2, 3), 1))], 1)
    assert cells(evidence, plan, "output:1") == {"n11": 0.5, "n10": 0, "n01": 0.5, "n00": 1}
    assert cells(evidence, plan, "output:2") == {"n11": 0.5, "n10": 0.5, "n01": 0, "n00": 1}
    # Each gives class 3 once: on other rows, but as often.
    assert cells(evidence, plan, "output:3") == {"n11": 0.5, "n10": 0, "n01": 0, "n00": 0.5}
    [policy] = {key.policy for key in evidence.all_keys() if key.metric.startswith(harms.OUTPUT)}
    assert policy == plan.pairs[0].policies.hashes["y"]


def test_a_class_that_the_new_version_gives_more_often_wins_its_blocks(evidence):
    plan = planned()
    often, seldom = timed(scores(1), 1), timed(scores(0), 1)
    items = [pair_of(plan, often if n % 4 == 0 else seldom, seldom) for n in range(100)]
    counting(evidence, plan).count(items, 1)
    assert cells(evidence, plan, "output:1/20") == both(new=5)
    assert cells(evidence, plan, "output:0/20") == both(old=5)


def test_classes_are_bounded_and_known_after_a_restart(evidence):
    key = EvidenceKey("m", NEW, OLD, "y", "", "p")
    blocks = np.zeros(CLASSES_MAX + 8, np.int64)
    answers = [(np.array([n]), np.array([0])) for n in range(CLASSES_MAX + 8)]
    for _ in range(2):  # the second counter is another life's
        OutputClasses(evidence, BlockBets(evidence)).count(
            key, answers, "exact", blocks, batched=True
        )
    names = {k.metric for k in evidence.all_keys() if "/" not in k.metric}
    assert names == {f"output:{n}" for n in range(CLASSES_MAX)} | {"output:other"}
    assert evidence.cells(replace(key, metric="output:other"))["n10"] == 16


def test_scores_are_counted_between_quantiles_of_the_previous_version(evidence):
    key = EvidenceKey("m", NEW, OLD, "y", "", "p")
    rng = np.random.default_rng(0)
    first = rng.normal(size=(FIRST_ROWS, 1))
    zeros = np.zeros(1, np.int64)

    def count(new, old, counter):
        counter.count(key, [(new, old)], "regression", zeros, batched=True)

    counter = OutputClasses(evidence, BlockBets(evidence))
    count(first + 9, first, counter)
    assert [k for k in evidence.all_keys() if k.metric.startswith(harms.OUTPUT)] == []
    again = OutputClasses(evidence, BlockBets(evidence))  # another life goes on with the bounds
    old = rng.normal(size=(1000, 1))
    count(np.where(np.arange(1000)[:, None] < 10, np.nan, old + 1), old, again)
    shares = {
        k.metric: evidence.cells(k)
        for k in evidence.all_keys()
        if k.metric.startswith(harms.OUTPUT)
    }
    assert set(shares) == {f"output:q{n}" for n in range(BINS)} | {"output:invalid"}
    for name, found in shares.items():
        if name != "output:invalid":
            assert found["n11"] + found["n01"] == pytest.approx(1 / BINS, abs=0.06)
    assert shares["output:q4"]["n10"] > 0.3
    assert shares["output:q0"]["n01"] > 0.1
    assert shares["output:invalid"]["n10"] == pytest.approx(0.01)


def test_texts_are_classes_and_a_slash_in_one_is_no_length(evidence):
    key = EvidenceKey("m", NEW, OLD, "y", "", "p")
    answers = [(np.array([b"n/a"], object), np.array([b"cat"], object))]
    counter = OutputClasses(evidence, BlockBets(evidence))
    counter.count(key, answers, "exact", np.zeros(1, np.int64), batched=True)
    assert {k.metric for k in evidence.all_keys()} == {"output:n_a", "output:cat"}


# --- calibration ----------------------------------------------------------------------------------


def test_the_previous_version_runs_twice_around_the_new_one():
    plan = planned(rollback={"calibration": {"rate": 0.25}})
    planner = Planner({}, 0.0, random.Random(1))
    items = [making.item(plan, NEW, scores(0), {}) for _ in range(400)]
    planner.plan(items)
    twice = [item for item in items if item.twice is not None]
    assert 60 < len(twice) < 140
    for item in items:
        variants = [run.variant for run in item.job.runs]
        if item.twice is None:
            assert sorted(variants) == [OLD, NEW]
        else:
            assert variants == [OLD, NEW, OLD]
            assert item.twice.place == 0
    assert 20 < sum(item.twice.is_swapped for item in twice) < len(twice) - 20
    orders = {tuple(run.variant for run in item.job.runs) for item in items}
    assert len(orders) == 3


@pytest.mark.parametrize("rollback", [{"calibration": {"rate": 0}}, {"enabled": False}])
def test_without_checks_nothing_runs_twice(rollback):
    plan = planned(rollback=rollback)
    items = [making.item(plan, NEW, scores(0), {}) for _ in range(100)]
    Planner({}, 0.0, random.Random(1)).plan(items)
    assert all(item.twice is None and len(item.job.runs) == 2 for item in items)


class Calibrated:
    """Feeds times of the previous version's two runs; every pair is calibrated."""

    def __init__(self, evidence, pairs=100):
        self.plan = planned(LOOSE, rollback={"calibration": {"pairs": pairs}})
        self.counter = counting(evidence, self.plan)
        self.rng = random.Random(1)
        self.count([(1.0, 1.0)] * WARM_UP_PAIRS)

    def count(self, times):
        items = []
        for first, second in times:
            items.append(pair_of(self.plan, timed(scores(0), 10), timed(scores(0), second)))
            answer = timed(scores(0), first)
            items[-1].twice = Twice(self.plan.pairs[0], 0, self.rng.random() < 0.5, answer)
        for at in range(0, len(items), 50):
            self.counter.count(items[at : at + 50], 1)


def noise(count, rho, seed=0):
    """Times whose log-ratio is an AR(1) around a first run that costs 30 % more."""
    rng, value = np.random.default_rng(seed), 0.0
    for _ in range(count):
        value = rho * value + rng.normal()
        yield 1.3 * float(np.exp(0.1 * value)), 1.0


def test_calibration_counts_the_previous_version_beside_itself(evidence):
    bench = Calibrated(evidence)
    bench.count(noise(400, 0.0))
    told = cells(evidence, bench.plan, harms.CALIBRATION, sides=(OLD, OLD))
    assert told == {"pairs": 400}
    assert block_of(evidence, bench.plan) == 20
    slow = cells(evidence, bench.plan, "slow", sides=(OLD, OLD))
    assert sum(slow.values()) == 400  # warm-up is left out
    # The first run is always the slow one: that each side is it as often shows in the counts.
    assert abs(slow["n10"] - slow["n01"]) < 80
    assert sum(cells(evidence, bench.plan, "slow/20", sides=(OLD, OLD)).values()) == 20


def test_noise_that_stays_asks_for_longer_blocks(evidence):
    bench = Calibrated(evidence)
    bench.count(noise(4000, 0.9, seed=2))
    told = cells(evidence, bench.plan, harms.CALIBRATION, sides=(OLD, OLD))
    assert told["pairs"] == 4000
    assert block_of(evidence, bench.plan) in {0, 100, 500}


def test_what_lives_and_replicas_know_of_the_noise_adds_up(evidence):
    bench = Calibrated(evidence)
    bench.count(noise(300, 0.0))
    own = Evidence("next", making.Clock())
    own._older = {key: evidence.cells(key) for key in evidence.all_keys()}
    again = Calibrated(own)
    again.count(noise(50, 0.0))
    assert cells(own, again.plan, harms.CALIBRATION, sides=(OLD, OLD)) == {"pairs": 350}
    known = noise_of(own, again.plan).values
    # The first 20 of each life only say where the middle is; and some are told together.
    assert 290 <= known <= 310
    assert block_of(own, again.plan) == 20
    again.count(noise(3000, 0.97, seed=5))
    assert noise_of(own, again.plan).values > 3000
    assert block_of(own, again.plan) in {0, 100, 500}


def test_a_lag_is_one_of_this_monitors_own_pairs(evidence):
    # What others count in between moves the numbers of pairs, and no neighbour away.
    values = list(noise(900, 0.9, seed=7))
    alone, among = Evidence("a", making.Clock()), evidence
    Calibrated(alone).count(iter(values))
    bench = Calibrated(among)
    error = replace(next(k for k in alone.all_keys() if k.metric == "error"), block=0)
    for at in range(0, len(values), 100):
        bench.count(iter(values[at : at + 100]))
        among._older[error] = {"n00": 3100.0 * (at + 1)}
        among.refreshes += 1
    assert max(key.block for key in among.all_keys()) > 1000
    assert noise_of(among, bench.plan).tau() == noise_of(alone, bench.plan).tau() > 5


def test_a_run_that_failed_calibrates_nothing(evidence):
    bench = Calibrated(evidence)
    item = pair_of(bench.plan, timed(scores(0), 1), timed(scores(0), 1))
    item.twice = Twice(bench.plan.pairs[0], 0, False, Answer(None, "crash", "it ended"))
    bench.counter.count([item], 1)
    assert cells(evidence, bench.plan, harms.CALIBRATION, sides=(OLD, OLD)) == {}
    assert cells(evidence, bench.plan, "slow")["n10"] == 0
