"""What is kept of a stream: a fair sample, the worst, the first failures."""

from __future__ import annotations

import math
import random

import pytest
from scipy import stats

from sidecar.cases.choice import Chooser, Limits
from tests.cases.tools import DAY_NS, START_NS, offer


def chooser(seed=0, time_to_live_ns=DAY_NS, **limits):
    limits = {"reservoir": 0, "worst": 0, "per_failure": 0, **limits}
    return Chooser(Limits(**limits, time_to_live_ns=time_to_live_ns), random.Random(seed))


class Keeper:
    """A chooser, and what it keeps: id → reasons."""

    def __init__(self, chosen):
        self.chooser, self.kept = chosen, {}

    def add(self, case_id, now_ns=START_NS, **changes):
        one = offer(**changes)
        choice = self.chooser.choose(one, now_ns)
        if not choice.reasons:
            return
        self.chooser.accept(case_id, one, choice)
        for reason, old in choice.replaced:
            self.kept[old].discard(reason)
            if not self.kept[old]:
                del self.kept[old]
        self.kept[case_id] = set(choice.reasons)

    def forget(self, ids):
        self.chooser.forget(ids)
        for case_id in ids:
            del self.kept[case_id]


def test_nothing_is_wanted_where_nothing_is_asked_for():
    keeper = Keeper(chooser())
    keeper.add("a", failure="boom", metrics={"e": math.inf}, limited={"e": "higher"})
    assert keeper.kept == {}


def test_the_sample_is_uniform():
    size, kept, runs = 40, 5, 1500
    counts = [0] * size
    for run in range(runs):
        keeper = Keeper(chooser(seed=run, reservoir=kept))
        for number in range(size):
            keeper.add(number)
        assert len(keeper.kept) == kept
        for number in keeper.kept:
            counts[number] += 1
    # Seeded: this is one draw for ever. A sample that fills up and stays, or one that prefers the
    # last, gives a p-value of 0 here.
    assert stats.chisquare(counts).pvalue > 0.001


def test_the_sample_stays_one_of_what_was_offered_while_cases_grow_old_and_go():
    """Half the sample is too old: the free places are not filled with what comes next."""
    late = 0
    for run in range(60):
        keeper = Keeper(chooser(seed=run, reservoir=10))
        for number in range(1000):
            keeper.add(f"old-{number}", START_NS + number)
        for number in range(1000):
            keeper.add(f"new-{number}", START_NS + DAY_NS // 2)
        keeper.forget([name for name in keeper.kept if name.startswith("old")])
        for number in range(1000):  # by now the old ones are no longer counted either
            keeper.add(f"late-{number}", START_NS + DAY_NS + DAY_NS // 10)
        late += sum(name.startswith("late") for name in keeper.kept) / len(keeper.kept)
    assert 0.4 < late / 60 < 0.65, "half of what is not too old was offered late"


def test_a_stream_that_stops_and_starts_again_is_sampled_anew():
    keeper = Keeper(chooser(reservoir=5))
    for number in range(10_000):
        keeper.add(f"old-{number}", START_NS)
    keeper.forget(list(keeper.kept))
    for number in range(5):
        keeper.add(f"new-{number}", START_NS + 2 * DAY_NS)
    assert len(keeper.kept) == 5, "the first five after a pause longer than the time to live"


@pytest.mark.parametrize("worse", ["higher", "lower"])
def test_the_worst_of_each_metric_are_kept(worse):
    keeper = Keeper(chooser(worst=3))
    values = list(range(100))
    random.Random(1).shuffle(values)
    for value in values:
        metrics = {"y.e": float(value), "y.free": -value, "z.e": float(-value)}
        keeper.add(value, metrics=metrics, limited={"y.e": worse, "z.e": worse, "absent": worse})
    high, low = {97, 98, 99}, {0, 1, 2}
    first, second = (high, low) if worse == "higher" else (low, high)
    assert {name for name, why in keeper.kept.items() if "worst:y.e" in why} == first
    assert {name for name, why in keeper.kept.items() if "worst:z.e" in why} == second
    assert len(keeper.kept) == 6


def test_infinite_is_worst_and_not_applicable_is_none():
    keeper = Keeper(chooser(worst=2))
    for name, value in {"a": math.nan, "b": 5.0, "c": math.inf, "d": 1.0, "e": -math.inf}.items():
        keeper.add(name, metrics={"e": value}, limited={"e": "higher"})
    assert set(keeper.kept) == {"b", "c"}


def test_among_equals_the_first_stays():
    keeper = Keeper(chooser(worst=2))
    for name in "abcd":
        keeper.add(name, metrics={"e": 1.0}, limited={"e": "higher"})
    assert set(keeper.kept) == {"a", "b"}


def test_the_first_of_each_kind_of_failure_are_kept():
    keeper = Keeper(chooser(per_failure=2))
    for number in range(20):
        keeper.add(number, failure=("disagrees", "invalid", None)[number % 3])
    assert keeper.kept == {
        0: {"failure:disagrees"}, 1: {"failure:invalid"},
        3: {"failure:disagrees"}, 4: {"failure:invalid"},
    }  # fmt: skip
    keeper.forget([0])
    keeper.add(21, failure="disagrees")
    assert 21 in keeper.kept, "its place is free"


def test_kinds_and_metrics_are_bounded_however_many_names_come():
    keeper = Keeper(chooser(per_failure=1, worst=1))
    for number in range(1000):
        keeper.add(
            number, failure=f"kind {number}", metrics={f"m{number}": 1.0},
            limited={f"m{number}": "higher"},
        )  # fmt: skip
    reasons = {reason for why in keeper.kept.values() for reason in why}
    assert "failure:other" in reasons
    assert sum(reason.startswith("failure:") for reason in reasons) == 65
    assert sum(reason.startswith("worst:") for reason in reasons) == 256


def test_one_exchange_may_be_kept_for_several_reasons():
    keeper = Keeper(chooser(reservoir=1, worst=1, per_failure=1))
    keeper.add("a", failure="boom", metrics={"e": 1.0}, limited={"e": "higher"})
    assert keeper.kept["a"] == {"failure:boom", "worst:e", "reservoir"}
    for number in range(200):
        keeper.add(number, failure="boom", metrics={"e": 0.0}, limited={"e": "higher"})
    assert keeper.kept["a"] == {"failure:boom", "worst:e"}, "its place in the sample was given on"
    assert len(keeper.kept) == 2


def test_counts_go_on_where_an_earlier_run_ended():
    first = chooser(reservoir=10)
    for number in range(500):
        first.choose(offer(), START_NS + number * DAY_NS // 1000)
    second = chooser(reservoir=10, seed=1)
    second.restore_seen(first.seen)
    assert second.total == first.total == 500
    assert second.seen == first.seen
    later = START_NS + DAY_NS // 2
    taken = sum(bool(second.choose(offer(), later).reasons) for _ in range(500))
    assert taken < 30, "about 10 × ln 2 = 7 of 500, not the first ten and more"


def test_adopting_more_than_there_are_places_keeps_as_many_as_there_are():
    one = chooser(reservoir=1, worst=1, per_failure=1)
    reasons = ("failure:boom", "worst:e", "reservoir")
    assert one.adopt("a", reasons, {"e": 2.0}, {"e": "higher"}) == reasons
    assert one.adopt("b", reasons, {"e": 1.0}, {"e": "higher"}) == ()
    assert one.adopt("c", ("nonsense",), {}, {}) == ()
    choice = one.choose(offer(metrics={"e": 1.5}, limited={"e": "higher"}, failure="boom"), 0)
    assert "worst:e" not in choice.reasons, "2.0 is remembered"
    choice = one.choose(offer(metrics={"e": 2.5}, limited={"e": "higher"}), 0)
    assert ("worst:e", "a") in choice.replaced
