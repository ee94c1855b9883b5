"""Blocks of pairs over replicas: every pair is in one place, in whichever order things happen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.pool import HOLD, Pool, Pooled, Row, pairs_in
from sidecar.monitor.pool_rests import (
    LUMPS_MAX,
    POOLED,
    SLICE_NS,
    Lump,
    Rests,
    bet,
    from_plain,
    join,
    to_plain,
)
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.version_blocks import BlockBets, PairIndex
from tests.monitor import making
from validators.sequential.paired import budget_evidence

ERROR = EvidenceKey("m", "m:2/new", "m:1/old", "", "error", "p")
FLIP = replace(ERROR, metric="flip", output="y")
SECOND = 10**9


def by_20(key: EvidenceKey, block: int = 0) -> EvidenceKey:
    return replace(key, metric=harms.by(key.metric, POOLED), block=block)


def lumps(*pairs: int, slot: int = 0, total: float = 0.0) -> list[Lump]:
    return [Lump(slot + at, 0, count, total) for at, count in enumerate(pairs)]


# --- one bet --------------------------------------------------------------------------------------


def test_a_block_bets_on_the_side_that_its_pairs_are_on():
    assert bet("error", 20, 20, 1e-12) == {"n11": 0, "n10": 0, "n01": 0, "n00": 1}
    assert bet("slow", 20, 25, 3.0)["n10"] == bet("slow", 20, 31, -1.0)["n01"] == 1


def test_flips_are_capped_and_longer_blocks_count_as_more():
    assert bet("flip", 20, 20, 3.0) == {"n11": 0, "n10": 1, "n01": 0, "n00": 0}
    assert bet("flip", 20, 30, 0.4) == {"n11": 0, "n10": 0.4, "n01": 0, "n00": pytest.approx(1.1)}


@given(st.floats(0.001, 0.04), st.integers(20, 60), st.floats(0, 1))
def test_a_longer_block_is_no_better_a_bet_at_the_budget(budget, pairs, together):
    # Flips at the budget, of which some come together: the wealth's mean is 1 at most.
    in_block = min(1.0, pairs * budget * (1 - together))
    cells = [bet("flip", 20, pairs, flips) for flips in (0.0, 1.0)]
    wealth = np.exp(budget_evidence(20 * budget)(
        np.array([[one["n10"], one["n10"] + one["n00"]] for one in cells])
    ))  # fmt: skip
    assert (1 - in_block) * wealth[0] + in_block * wealth[1] <= 1 + 1e-9


# --- what waits in memory -------------------------------------------------------------------------


def test_what_is_seen_within_a_slice_stays_together():
    rests = Rests()
    assert rests.add(ERROR, [1, 0, -1, 1], [0, 0, 0, 1], [5, 9, SLICE_NS, SLICE_NS + 1]) == []
    assert rests.pairs(ERROR) == 4
    assert rests.take() == {ERROR: [Lump(0, 0, 2, 1), Lump(1, 1, 2, 0)]}
    assert not rests
    assert rests.take() == {}


def test_a_whole_block_within_a_slice_is_the_replicas_own():
    rests = Rests()
    assert rests.add(ERROR, [1.0] * 45, [0] * 45, [7] * 45) == [(0, 20, 20), (0, 20, 20)]
    assert rests.pairs(ERROR) == 5


def test_what_nobody_takes_becomes_blocks_here():
    rests, found = Rests(), []
    for at in range(LUMPS_MAX + 100):
        found += rests.add(ERROR, [1.0], [0], [at * SLICE_NS])
    assert found == [(0, 20, 20)] * 5
    assert rests.pairs(ERROR) == LUMPS_MAX
    assert sum(pairs for _, pairs, _ in found) + rests.pairs(ERROR) == LUMPS_MAX + 100


def test_lumps_go_over_the_wire_as_they_are():
    rests = {ERROR: lumps(3, 4, total=0.5), FLIP: lumps(1)}
    assert dict(from_plain(to_plain(rests))) == rests
    pooled = Pooled(lumps(2), Lump(1, 2, 3, 4.5), 60)
    assert Pooled.from_plain(pooled.to_plain()) == pooled


# --- joining --------------------------------------------------------------------------------------


def test_blocks_end_by_numbers_of_pairs_alone():
    given_lumps = lumps(7, 9, 3, 1, 19, 2, 45, 4)
    ends = []
    for total in (0.0, 1.0, -5.0):
        given = [replace(one, total=total) for one in given_lumps]
        whole, left = join(None, given, whole_slots=False)
        ends.append([pairs for _, pairs, _ in whole])
        assert left is not None
        assert left.pairs == 4
    assert ends == [[20, 21, 45]] * 3


def test_a_block_ends_between_two_slots():
    slots = [(1, 15), (2, 4), (2, 6), (2, 3), (3, 19), (4, 1), (4, 2), (5, 7)]
    given = [Lump(slot, 0, pairs, 0.0) for slot, pairs in slots]
    whole, left = join(None, given)
    assert [pairs for _, pairs, _ in whole] == [28, 22]
    assert left == Lump(5, 0, 7, 0.0)
    # What is left has all of its slot: it may be whole, too.
    whole, left = join(None, given[:4])
    assert [pairs for _, pairs, _ in whole] == [28]
    assert left is None


def test_of_times_a_block_ends_when_it_is_full():
    for metric, expected in (("error/20", [40]), ("flip/20", [40]), ("slow_p99/20", [20, 20])):
        pool, key = Pool(), replace(ERROR, metric=metric)
        for life in "abcd":
            pool.take(Row(life, 1, 15, {key: [Lump(9, 0, 10, 0.0)]}), 2 * SECOND)
        whole = pool.join(2 * SECOND, 2 * SECOND)
        assert [pairs for _, (_, pairs, _) in whole] == expected


def test_what_happened_together_is_joined_together():
    pool = Pool()
    # One event makes a pair in each of three replicas; there are 19 other pairs in between.
    for number, life in enumerate("abc"):
        rests = [Lump(9, 0, 6 + number, 0.0), Lump(12, 0, 1, 1.0), Lump(13, 0, 7, 0.0)]
        pool.take(Row(life, 1, 15, {ERROR: rests}), 2 * SECOND)
    whole = pool.join(2 * SECOND, 2 * SECOND)
    assert [total for _, (_, _, total) in whole] == [0.0, 3.0]


def test_replicas_that_have_not_told_yet_are_waited_for_and_not_for_ever():
    pool, hold = Pool(), HOLD * SECOND
    pool.take(Row("a", 1, 100, {ERROR: lumps(20, slot=95)}), 10 * SECOND)
    pool.take(Row("b", 1, 92, {ERROR: lumps(1, slot=90)}), 10 * SECOND)
    assert pool.join(10 * SECOND, hold) == []
    assert pairs_in(pool.series.values()) == 21
    pool.take(Row("b", 2, 101, {}), int(10.1 * SECOND))
    assert len(pool.join(int(10.1 * SECOND), hold)) == 1
    pool.take(Row("a", 2, 110, {ERROR: lumps(20, slot=105)}), 11 * SECOND)
    assert pool.join(11 * SECOND, hold) == []  # b may still tell of 105
    assert len(pool.join(13 * SECOND, hold)) == 1  # b is gone


def test_a_clock_that_is_ahead_holds_nothing_up():
    pool = Pool()
    pool.take(Row("a", 1, 10**9, {ERROR: lumps(20, slot=10**9)}), 10 * SECOND)
    assert pool.seen["a"] == (1, 100)
    assert len(pool.join(13 * SECOND, 2 * SECOND)) == 1


def test_lives_that_are_long_gone_are_forgotten():
    pool = Pool()
    pool.take(Row("a", 1, 10, {}), 2 * SECOND)
    assert pool.forget(3600 * SECOND) == []
    assert pool.forget(26 * 3600 * SECOND) == ["a"]
    assert pool.seen == {}


# --- nothing twice, nothing lost ------------------------------------------------------------------

OPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 45)),
        st.tuples(st.just("hand over"), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("die"), st.integers(0, 3), st.just(0)),
        st.tuples(st.just("join"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("wait"), st.integers(1, 40), st.just(0)),
    ),
    max_size=60,
)


@given(OPS)
def test_every_pair_is_in_exactly_one_place(ops):
    """``Row`` numbers and the pool's state are all that the database keeps."""
    now_ns, seqs, lives = SECOND, [0] * 4, [0] * 4
    sides = [Rests() for _ in range(4)]
    table: list[Row] = []
    pool, came, went, blocks = Pool(), np.zeros(2), np.zeros(2), np.zeros(2)

    def places() -> np.ndarray:
        waiting = [one for side in sides for one in side._waiting.get(ERROR, ())]
        in_rows = [
            lump
            for row in {(row.life, row.seq): row for row in table}.values()
            if row.seq > pool.seen.get(row.life, (0, 0))[0]
            for lump in row.rests.get(ERROR, ())
        ]
        of_pool = pool.series.get(ERROR, Pooled())
        left = [of_pool.left] if of_pool.left else []
        all_lumps = [*waiting, *in_rows, *of_pool.waiting, *left]
        return np.array([[one.pairs, one.total] for one in all_lumps]).reshape(-1, 2).sum(axis=0)

    for what, at, more in ops:
        if what == "add":
            values = [float(n % 3 == 0) for n in range(more)]
            came += [more, sum(values)]
            own = sides[at].add(ERROR, values, [0] * more, [now_ns] * more)
            blocks += np.array([[p, t] for _, p, t in own]).reshape(-1, 2).sum(axis=0)
        elif what == "hand over":
            seqs[at] += 1
            life = f"{at}.{lives[at]}"
            row = Row(life, seqs[at], now_ns // SLICE_NS, sides[at].take())
            # The answer was lost, and it is written again: before or after it was taken.
            table += [row, row] if more else [row]
        elif what == "die":
            waiting = sides[at]._waiting.get(ERROR, ())
            went += [sum(one.pairs for one in waiting), sum(one.total for one in waiting)]
            sides[at], lives[at], seqs[at] = Rests(), lives[at] + 1, 0
        elif what == "join":
            # Another leader begins from what is written.
            again = Pool(
                {k: Pooled.from_plain(v.to_plain()) for k, v in pool.series.items()},
                dict(pool.seen),
            )
            taken = table[: len(table) // 2] if more else table
            for row in sorted(taken, key=lambda one: (one.life, one.seq)):
                again.take(Row(row.life, row.seq, row.upto,
                               dict(from_plain(to_plain(dict(row.rests))))), now_ns)  # fmt: skip
            whole = again.join(now_ns, 2 * SECOND)
            if at == 2:
                continue  # its transaction fails: nothing of it happened
            pool, table = again, table[len(taken) :]
            blocks += np.array([[p, t] for _, (_, p, t) in whole]).reshape(-1, 2).sum(axis=0)
            assert all(pairs >= POOLED for _, (_, pairs, _) in whole)
        else:
            now_ns += at * SLICE_NS
        assert came.tolist() == (went + blocks + places()).tolist()
        left = pool.series.get(ERROR, Pooled()).left
        assert left is None or left.pairs < POOLED


# --- beside one replica ---------------------------------------------------------------------------


def test_without_others_blocks_are_what_they_were():
    rng = np.random.default_rng(5)
    values = rng.choice([-1.0, 0.0, 1.0], 500).tolist()
    evidence = Evidence("now", making.Clock())
    BlockBets(evidence).add(ERROR, values, [0] * 500, [20])
    sums = np.array(values).reshape(-1, 20).sum(axis=1)
    assert evidence.cells(by_20(ERROR)) == {
        "n11": 0, "n10": (sums > 0).sum(), "n01": (sums < 0).sum(), "n00": (sums == 0).sum(),
    }  # fmt: skip


def test_a_fleet_of_one_joins_the_same_blocks():
    rng = np.random.default_rng(6)
    values = rng.choice([-1.0, 0.0, 1.0], 500).tolist()
    alone, clock = Evidence("alone", making.Clock()), making.Clock()
    BlockBets(alone).add(ERROR, values, [at // 400 for at in range(500)], [20])
    evidence = Evidence("one", clock)
    evidence.rests, pool = Rests(), Pool()
    bets = BlockBets(evidence)
    for at, value in enumerate(values):
        bets.add(ERROR, [value], [at // 400], seen_ns=[at * SLICE_NS])
        if at % 7 == 6 or at == 499:
            row = Row("one", at + 1, at + 1, evidence.rests.take())
            pool.take(row, (at + 1) * SLICE_NS)
            for key, (block, pairs, total) in pool.join((at + 1) * SLICE_NS, 2 * SECOND):
                evidence.add(replace(key, block=block), bet(key.metric, POOLED, pairs, total))
    for block in (0, 1):
        assert evidence.cells(by_20(ERROR, block)) == alone.cells(by_20(ERROR, block))
    # Longer blocks are for noise of one replica, and stay with it.
    hundred = [replace(ERROR, metric="error/100", block=block) for block in (0, 1)]
    assert sum(sum(evidence.cells(key).values()) for key in hundred) == 5


# --- numbers --------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(-500, 3000), st.booleans()), max_size=40))
def test_numbers_go_by_what_all_have_counted_and_never_back(steps):
    evidence = Evidence("now", making.Clock())
    index, others, highest = PairIndex(evidence), 0, -1
    for count, more, is_read in steps:
        others = max(0, others + more)  # less: a database that was restored
        if is_read:
            evidence._older[replace(ERROR, block=3)] = {"n00": float(others)}
            evidence.refreshes += 1
        numbers = index.take(replace(ERROR, block=9), count).tolist()
        assert numbers == list(range(numbers[0], numbers[0] + count)) if numbers else True
        for number in numbers:
            assert number > highest
            highest = number
            key = replace(ERROR, block=number // 1000)
            evidence.add(key, {"n11": 0, "n10": 0, "n01": 0, "n00": 1})
        if is_read and numbers:
            assert numbers[0] >= others


def test_counts_of_other_pairs_do_not_move_numbers():
    evidence = Evidence("now", making.Clock())
    others = (
        FLIP, by_20(ERROR), replace(ERROR, policy="q"), replace(ERROR, candidate="m:3/new"),
        replace(ERROR, model="n"), replace(ERROR, baseline="m:0/old"),
    )  # fmt: skip
    for other in others:
        evidence.add(other, {"n00": 5000})
    assert PairIndex(evidence).take(ERROR, 1).tolist() == [0]
    evidence.add(replace(ERROR, block=2), {"n00": 7, "n10": 1})
    assert PairIndex(evidence).take(ERROR, 1).tolist() == [8]
