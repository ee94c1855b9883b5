"""The checks: what each says of counts, beside computation by hand, and how often it is wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.validators.sequential import twin
from validators.sequential import latency
from validators.sequential.checks import (
    FLIPS_UNKNOWN,
    SIGN_LENGTH,
    Harm,
    judge_accuracy,
    judge_error,
    judge_flips,
    judge_latency,
    judge_output,
    odds,
    ordered,
    thresholds,
)
from validators.sequential.paired import BLOCK, StartMixture, budget_evidence, cell_evidence

ALPHA = 0.05
ERROR, FLIP, LATENCY, OUTPUT = (Harm(name) for name in ("error", "flip", "latency", "output"))
RUNS, PAIRS, EVERY = 300, 10_000, 100


def blocks_of(new_only, previous_only):
    """One run, pair by pair → block → [n11, n10, n01, n00], and → [n10, n01, n00] by signs."""
    pairs, signs = {}, {}
    by_sign = twin.signs(new_only[None], previous_only[None], SIGN_LENGTH)
    for block in range(math.ceil(len(new_only) / BLOCK)):
        now = slice(block * BLOCK, min((block + 1) * BLOCK, len(new_only)))
        size = now.stop - now.start
        new, previous = float(new_only[now].sum()), float(previous_only[now].sum())
        pairs[block] = [0.0, new, previous, size - new - previous]
        worse, better = (float(side[0, now].sum()) for side in by_sign)
        signs[block] = [worse, better, size // SIGN_LENGTH - worse - better]
    return pairs, signs


def drawn(rng, size, new, previous):
    share = rng.random(size)
    return share < new, share > 1 - previous


# --- what is said ---------------------------------------------------------------------------------


def test_the_lesser_of_both_tests_counts():
    pairs = {0: [1.0, 14.0, 2.0, 983.0], 1: [0.0, 3.0, 0.0, 97.0]}
    signs = {0: [9.0, 2.0, 39.0], 1: [2.0, 0.0, 3.0]}
    found = judge_error(ERROR, pairs, signs)
    by_pair = StartMixture.of_blocks(pairs).log_e(cell_evidence())
    as_cells = {block: [0.0, *cells] for block, cells in signs.items()}
    by_block = StartMixture.of_blocks(as_cells).log_e(cell_evidence())
    assert found.log_e == found.log_e_act == pytest.approx(min(by_pair, by_block))
    assert by_block < by_pair
    assert (found.pairs, found.new_only, found.previous_only) == (1100, 17, 2)
    assert (
        "of 1100 pairs only the new version failed in 17, only the previous one in 2" in found.text
    )
    # Without whole blocks there is no evidence, however many pairs speak.
    assert judge_error(ERROR, pairs, {}).log_e <= 0
    # The other way round the pairs are the lesser.
    few = judge_error(ERROR, {0: [0.0, 1.0, 0.0, 99.0]}, {0: [40.0, 0.0, 10.0]})
    assert few.log_e == pytest.approx(
        StartMixture.of_blocks({0: [0.0, 1.0, 0.0, 99.0]}).log_e(cell_evidence())
    )
    assert "was wrong in 17" in judge_accuracy(Harm("accuracy"), pairs, signs).text


def test_a_margin_is_tolerated():
    pairs, signs = {0: [20.0, 30.0, 10.0, 940.0]}, {0: [20.0, 8.0, 22.0]}
    strict, lenient = (
        judge_error(Harm("error", margin=margin), pairs, signs) for margin in (0.0, 0.5)
    )
    assert lenient.log_e < strict.log_e
    assert "50 % more tolerated" in lenient.text


def test_latency_acts_by_blocks_of_the_calibrated_length_alone():
    cells = {0: np.tile([10.0, 60.0, 20.0, 910.0], (5, 1))}
    signs = {
        length: {0: np.tile([0.8 * count, 0.0, 0.2 * count], (5, 1))}
        for length, count in ((20, 50), (100, 10), (500, 2))
    }
    short, long = (judge_latency(LATENCY, cells, signs, block) for block in (20, 100))
    by_pair = StartMixture.of_blocks(cells).log_e(latency.evidence)
    assert long.log_e_act == long.log_e < short.log_e_act == short.log_e <= by_pair
    unknown = judge_latency(LATENCY, cells, signs, 0)
    assert unknown.log_e_act == 0
    assert 0 < unknown.log_e < long.log_e  # the longest is looked at, for alerts
    assert "not calibrated" in unknown.text
    assert judge_latency(Harm("latency", may_act=False), cells, signs, 20).log_e_act == 0
    with pytest.raises(ValueError, match="blocks of 50 pairs were not counted"):
        judge_latency(LATENCY, cells, signs, 50)


def test_flips_only_alert_without_a_budget():
    cells = {0: [0.0, 400.0, 0.0, 600.0]}
    unknown = judge_flips(FLIP, {"y": cells})
    assert unknown.log_e_act == 0
    assert unknown.log_e == pytest.approx(
        StartMixture.of_blocks({0: [400.0, 1000.0]}).log_e(budget_evidence(FLIPS_UNKNOWN))
    )
    assert "no budget is known" in unknown.text
    known = judge_flips(Harm("flip", budget=0.001), {"y": cells})
    assert known.log_e_act == known.log_e > unknown.log_e


def test_flips_by_blocks_are_tested_against_the_budget_of_a_block():
    cells, signs = {0: [0.0, 9.0, 0.0, 991.0]}, {0: [3.0, 0.0, 47.0]}
    found = judge_flips(Harm("flip", budget=0.001), {"y": cells}, {"y": signs})
    by_hand = StartMixture.of_blocks({0: [3.0, 50.0]}).log_e(budget_evidence(0.02))
    assert found.log_e == found.log_e_act == pytest.approx(by_hand)
    assert (found.pairs, found.new_only) == (1000, 9)
    # Two outputs of which one never flips: the mean of both.
    quiet = {0: [0.0, 0.0, 0.0, 1000.0]}, {0: [0.0, 0.0, 50.0]}
    two = judge_flips(
        Harm("flip", budget=0.001), {"y": cells, "z": quiet[0]}, {"y": signs, "z": quiet[1]}
    )
    assert found.log_e - math.log(2) < two.log_e < found.log_e


def test_output_is_looked_at_in_both_directions():
    more, less = {0: [100.0, 60.0, 5.0, 835.0]}, {0: [100.0, 5.0, 60.0, 835.0]}
    up, down = judge_output(OUTPUT, {"7": more}), judge_output(OUTPUT, {"7": less})
    assert up.log_e == pytest.approx(down.log_e)
    sides = [StartMixture.of_blocks(cells).log_e(cell_evidence()) for cells in (more, less)]
    assert up.log_e == pytest.approx(np.logaddexp(*sides) - math.log(2))
    three = judge_output(OUTPUT, {"7": more, "1": {0: [0.0] * 4}, "2": {0: [0.0] * 4}})
    assert three.log_e < up.log_e
    assert "class 7: only the new version gave it in 60" in three.text
    held = judge_output(OUTPUT, {"7": more}, {"7": {0: [1.0, 1.0, 48.0]}})
    assert held.log_e < math.log(20) < up.log_e


def test_nothing_counted_is_no_evidence():
    for found in (
        judge_error(ERROR, {}, {}),
        judge_flips(FLIP, {}),
        judge_output(OUTPUT, {}),
        judge_latency(LATENCY, {}, {20: {}}, 20),
    ):
        assert (found.pairs, found.log_e, found.log_e_act) == (0, 0, 0)


def test_weights_share_alpha():
    harms = [Harm("error", 2.0), Harm("flip", 1.0), Harm("latency", 1.0)]
    found = thresholds(harms, 0.01)
    assert found["error"] == pytest.approx(math.log(200))
    assert sum(math.exp(-limit) for limit in found.values()) == pytest.approx(0.01)
    assert odds(math.log(40)) == "evidence 40"
    assert odds(100 * math.log(10)) == "evidence 10^100.0"
    assert ordered({"n10": 2.0}) == [0.0, 2.0, 0.0, 0.0]


counts = st.lists(
    st.tuples(*(st.integers(0, 300) for _ in range(4)), *(st.integers(0, 40) for _ in range(3))),
    min_size=1, max_size=5,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(counts, counts)
def test_what_two_processes_counted_adds_up(first, second):
    """Sums of counts give the evidence of one process that saw it all."""

    def split(rows):
        return (
            {number: np.array(row[:4], float) for number, row in enumerate(rows)},
            {number: np.array(row[4:], float) for number, row in enumerate(rows)},
        )

    one, two = split(first), split(second)
    merged = [
        {key: a.get(key, 0) + b.get(key, 0) for key in a.keys() | b.keys()}
        for a, b in zip(one, two, strict=True)
    ]
    whole = judge_error(ERROR, *merged)
    assert whole.pairs == sum(sum(row[:4]) for row in first + second)
    by_pair = StartMixture.of_blocks(merged[0]).log_e(cell_evidence())
    assert whole.log_e <= by_pair + 1e-12
    assert math.isfinite(whole.log_e)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Harm("error", weight=0), "a weight"),
        (lambda: Harm("error", margin=19), "a margin"),
        (lambda: Harm("flip", budget=1.0), "a budget"),
        (lambda: thresholds([ERROR], 1.0), "alpha"),
        (lambda: thresholds([ERROR, ERROR], 0.05), "named once"),
        (lambda: judge_error(ERROR, {0: [1.0, 2.0]}, {}), "shape"),
        (lambda: judge_error(ERROR, {0: [1.0, -2.0, 0.0, 0.0]}, {}), "not under 0"),
        (lambda: judge_error(ERROR, {0: [math.nan, 2.0, 0.0, 0.0]}, {}), "finite"),
        (lambda: judge_error(ERROR, {-1: [1.0, 2.0, 0.0, 0.0]}, {}), "from 1 on"),
        (lambda: judge_latency(LATENCY, {}, {}, 20), "not counted"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- the twin is what ships -----------------------------------------------------------------------


@pytest.mark.parametrize("every", [20, 100, 500])
def test_the_twin_gives_what_the_checks_give(every):
    rng = np.random.default_rng(70)
    new, previous = drawn(rng, 3000, 0.02, 0.012)
    by_look = [twin.between_looks(side[None, :, None], every) for side in (new, previous)]
    pairs = twin.mixed(*by_look, every)
    signs = twin.signs(new[None, :, None], previous[None, :, None], SIGN_LENGTH)
    blocks = twin.mixed(*(twin.between_looks(side, every) for side in signs), every)
    flips = twin.budgeted(twin.between_looks(new[None], every), every, every, 0.005)
    for look in (0, 1, 1000 // every - 1, 1000 // every, 3000 // every - 1):
        seen = (look + 1) * every
        counted, signed = blocks_of(new[:seen], previous[:seen])
        ships = judge_error(ERROR, counted, signed).log_e
        assert min(pairs[0, look], blocks[0, look]) == pytest.approx(ships, abs=1e-9)
        of_new = {
            block: [0.0, cells[1], 0.0, sum(cells) - cells[1]] for block, cells in counted.items()
        }
        against = judge_flips(Harm("flip", budget=0.005), {"y": of_new}).log_e
        assert flips[0, look] == pytest.approx(against, abs=1e-9)


# --- false alarms ---------------------------------------------------------------------------------


def alarms(new, previous, limit):
    """Shares of runs with an alarm: pair by pair, and as it ships."""
    new_only, previous_only = (new & ~previous)[..., None], (previous & ~new)[..., None]
    pairs = twin.mixed(
        *(twin.between_looks(side, EVERY) for side in (new_only, previous_only)), EVERY
    )
    signs = twin.signs(new_only, previous_only, SIGN_LENGTH)
    blocks = twin.mixed(*(twin.between_looks(side, EVERY) for side in signs), EVERY)
    both = np.minimum(pairs, blocks)
    return [float((log_e >= limit).any(axis=1).mean()) for log_e in (pairs, blocks, both)]


def test_repeats_without_ids_seldom_alarm():
    rng = np.random.default_rng(71)
    new, previous = (
        np.repeat(rng.random((RUNS, PAIRS // 3 + 1)) < 0.01, 3, axis=1)[:, :PAIRS] for _ in range(2)
    )
    pairs, _, ships = alarms(new, previous, -math.log(ALPHA))
    assert ships <= ALPHA
    assert pairs > 0.3  # what the blocks are for


def test_a_steady_side_against_one_in_pairs_of_failures_seldom_acts():
    rng = np.random.default_rng(72)
    steady = rng.random((RUNS, PAIRS)) < 0.01
    starts = rng.random((RUNS, PAIRS)) < 0.005
    bursty = starts | np.roll(starts, 1, axis=1)
    _, blocks, ships = alarms(steady, bursty, math.log(400))
    assert ships <= ALPHA
    assert blocks > 2 * ALPHA  # what the pairs are for


def test_flips_that_hang_together_seldom_alarm():
    rng = np.random.default_rng(73)
    flips = np.repeat(rng.random((RUNS, PAIRS // 5)) < 0.001, 5, axis=1)
    pairs = twin.budgeted(twin.between_looks(flips, EVERY), EVERY, EVERY, 0.001)
    any_flip = flips.reshape(RUNS, -1, SIGN_LENGTH).any(axis=2)
    per_look = any_flip.reshape(RUNS, -1, EVERY // SIGN_LENGTH).sum(axis=2)
    blocks = twin.budgeted(per_look, EVERY // SIGN_LENGTH, EVERY, SIGN_LENGTH * 0.001)
    found = [(log_e >= -math.log(ALPHA)).any(axis=1).mean() for log_e in (pairs, blocks)]
    assert found[1] <= ALPHA < 0.2 < found[0]
