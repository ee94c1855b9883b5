"""Bets on pairs: the formula, false alarms, and how soon a change is seen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.validators.sequential.simulate import alarm_delays
from validators.sequential.paired import (
    STAKES,
    STARTS_MAX,
    WEIGHTS,
    StartMixture,
    budget_evidence,
    cell_evidence,
    detection_bound,
    divergence,
    log_e,
    log_e_margin,
    split,
)

ALPHA = 0.05
EVERY = 100
LOOKS = 200


def by_hand(n11, n10, n01, margin):
    allowed = [(s, w) for s, w in zip(STAKES, WEIGHTS, strict=True) if s < 1 / (1 + margin)]
    wealth = [
        w * (1 - s * margin) ** n11 * (1 + s) ** n10 * (1 - s * (1 + margin)) ** n01
        for s, w in allowed
    ]
    return math.log(sum(wealth) / sum(w for _, w in allowed))


@pytest.mark.parametrize("margin", [0, 0.1, 1, 10])
@pytest.mark.parametrize("counts", [(0, 0, 0), (3, 5, 1), (20, 0, 4), (0, 12, 0)])
def test_evidence_is_the_mean_of_the_bettors_wealth(counts, margin):
    assert float(log_e_margin(*counts, margin)) == pytest.approx(by_hand(*counts, margin), abs=1e-9)
    if margin == 0:
        assert log_e(*counts[1:]) == log_e_margin(*counts, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300), st.integers(0, 300), st.integers(0, 300),
    st.floats(0, 1), st.floats(0, 1), st.sampled_from([0, 0.1, 0.5, 2]),
)  # fmt: skip
def test_no_pair_is_a_good_bet_when_harms_are_as_tolerated(n11, n10, n01, base, both, margin):
    """Harms whose means are in the ratio 1 + margin, however they fall together."""
    previous = base / (1 + margin)
    joint = both * previous
    share = (joint, base - joint, previous - joint)  # new = base, previous = base/(1+margin)
    if 1 - sum(share) < 0:
        return
    now = float(log_e_margin(n11, n10, n01, margin))
    after = [
        math.exp(float(log_e_margin(n11 + a, n10 + b, n01 + c, margin)) - now)
        for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert sum(p * e for p, e in zip(share, after, strict=True)) + 1 - sum(share) <= 1 + 1e-9


def test_counts_of_any_size_and_shape_are_taken():
    cells = np.arange(24.0).reshape(2, 3, 4)
    values = cell_evidence(0.1)(cells)
    assert values.shape == (2, 3)
    assert values[1, 2] == log_e_margin(20, 21, 22, 0.1)
    assert np.isfinite(log_e(10**9, 10**8))
    assert log_e(0, 10**9) < -1e7


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20))
def test_shares_of_harm_never_give_more_than_their_own_bet_would(harms):
    new, previous = (np.array(side) for side in zip(*harms, strict=True))
    cells = split(new, previous)
    assert cells.sum() == pytest.approx(len(harms))
    assert cells[0] + cells[1] == pytest.approx(new.sum())
    own = [
        math.log(w) + sum(math.log1p(s * d) for d in new - previous)
        for s, w in zip(STAKES, WEIGHTS, strict=True)
    ]
    assert float(cell_evidence()(cells)) <= np.logaddexp.reduce(own) + 1e-9


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: log_e_margin(1, 1, 1, -0.1), "a margin is a share"),
        (lambda: log_e_margin(1, 1, 1, 19.0), "under 19, not 19"),
        (lambda: budget_evidence(0.0), "a budget is a share"),
        (lambda: split([1.5], [0.0]), "between 0 and 1"),
        (lambda: split([math.nan], [0.0]), "between 0 and 1"),
        (lambda: StartMixture((2, 1), np.zeros((2, 4))), "rising"),
        (lambda: StartMixture((0,), np.zeros((1, 4))), "from 1 on"),
        (lambda: StartMixture((1,), np.zeros((2, 4))), "one for each"),
        (lambda: StartMixture((1,), np.zeros((1, 4))).thin(cell_evidence(), 16), "at least 17"),
        (lambda: detection_bound(0, 0.05), "a growth over 0"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- false alarms and delays ----------------------------------------------------------------------


def pairs(rng, runs, *, both, new_only, previous_only, looks=LOOKS, every=EVERY):
    shares = [both, new_only, previous_only, 1 - both - new_only - previous_only]
    return rng.multinomial(every, shares, (runs, looks))


def flips(rng, runs, rate, looks=LOOKS):
    found = rng.binomial(EVERY, rate, (runs, looks))
    return np.stack([found, np.full_like(found, EVERY)], axis=-1)


@pytest.mark.parametrize(
    "shares",
    [
        {"both": 0.01, "new_only": 0.0005, "previous_only": 0.0005},
        {"both": 0.0, "new_only": 0.03, "previous_only": 0.03},
        {"both": 0.5, "new_only": 0.2, "previous_only": 0.2},
    ],
)
def test_equal_harm_seldom_alarms(shares):
    counts = pairs(np.random.default_rng(30), 1000, **shares)
    assert np.isfinite(alarm_delays(cell_evidence(), counts, EVERY, ALPHA)).mean() <= ALPHA


def test_harm_within_the_margin_seldom_alarms():
    counts = pairs(np.random.default_rng(31), 1000, both=0.02, new_only=0.013, previous_only=0.01)
    tolerant = alarm_delays(cell_evidence(0.1), counts, EVERY, ALPHA)
    assert np.isfinite(tolerant).mean() <= ALPHA  # 3.3 % against 3 %: just the margin


def test_flips_within_the_budget_seldom_alarm():
    counts = flips(np.random.default_rng(32), 300, 0.001)
    alarms = alarm_delays(budget_evidence(0.001), counts, EVERY, ALPHA)
    assert np.isfinite(alarms).mean() <= ALPHA


def test_changes_are_seen_as_soon_as_documented():
    """Means of rollback.md: 367, 716 and 806 pairs, with looks at every 100."""
    rng = np.random.default_rng(33)
    flipping = alarm_delays(budget_evidence(0.001), flips(rng, 400, 0.01, 40), EVERY, ALPHA)
    failing = pairs(rng, 1000, both=0.001, new_only=0.009, previous_only=0)
    less_accurate = pairs(rng, 1000, both=0.04, new_only=0.03, previous_only=0.01)
    assert 300 < flipping.mean() < 440
    assert 600 < alarm_delays(cell_evidence(), failing, EVERY, ALPHA).mean() < 830
    assert 680 < alarm_delays(cell_evidence(), less_accurate, EVERY, ALPHA).mean() < 1000


def test_the_bounds_on_delay_are_those_of_the_table():
    assert detection_bound(divergence(0.01, 0.001), ALPHA) == pytest.approx(213, abs=1)
    assert divergence(0.0, 0.5) == pytest.approx(math.log(2))
    assert divergence(0.3, 0.3) == 0


# --- starts ---------------------------------------------------------------------------------------


def mixture_by_hand(blocks, evidence):
    """Σ w_k E^(k) to a million terms, of which those not started are 1."""
    total = 0.0
    for start in range(1, len(blocks) + 1):
        term = math.exp(float(evidence(np.sum(blocks[start - 1 :], axis=0)[None])[0]))
        total += term / (start * (start + 1))
    return math.log(total + sum(1 / (k * (k + 1)) for k in range(len(blocks) + 1, 10**6)))


def test_the_mixture_is_the_sum_over_its_starts():
    rng = np.random.default_rng(34)
    blocks = pairs(rng, 1, both=0.001, new_only=0.004, previous_only=0.002, looks=7, every=1000)[0]
    evidence = cell_evidence()
    mixture = StartMixture.of_blocks(dict(enumerate(blocks)))
    assert mixture.starts == (1, 2, 3, 4, 5, 6, 7)
    assert mixture.log_e(evidence) == pytest.approx(mixture_by_hand(blocks, evidence), abs=1e-5)
    assert StartMixture.of_blocks({}).log_e(evidence) == 0
    untouched = StartMixture.of_blocks({0: [0, 0, 0, 0]})
    assert untouched.log_e(evidence) == pytest.approx(0, abs=1e-12)


def test_a_late_change_is_seen_sooner_with_fresh_starts():
    """rollback.md: 1,444 pairs without, 723 with them, after 10,000 pairs of nothing."""
    rng = np.random.default_rng(35)
    evidence = budget_evidence(0.001)
    delays = {"fresh": [], "plain": []}
    for _ in range(12):
        blocks = {number: np.array([rng.binomial(1000, 0.001), 1000]) for number in range(10)}
        waiting = set(delays)
        for look in itertools.count(1):
            number = 10 + (look - 1) // 10
            happened = np.array([rng.binomial(EVERY, 0.01), EVERY])
            blocks[number] = blocks.get(number, 0) + happened
            mixture = StartMixture.of_blocks(blocks)
            found = {
                "fresh": mixture.log_e(evidence),
                "plain": float(evidence(np.sum(list(blocks.values()), axis=0))),
            }
            for name in sorted(waiting):
                if found[name] >= -math.log(ALPHA):
                    delays[name].append(look * EVERY)
                    waiting.discard(name)
            if not waiting:
                break
    assert np.mean(delays["fresh"]) < 1000 < np.mean(delays["plain"])


def test_equal_harm_seldom_alarms_with_fresh_starts_either():
    rng = np.random.default_rng(36)
    evidence, alarms = cell_evidence(), 0
    for _ in range(100):
        blocks = pairs(rng, 1, both=0, new_only=0.02, previous_only=0.02, looks=40, every=1000)[0]
        looks = range(1, 41)
        best = max(
            StartMixture.of_blocks(dict(enumerate(blocks[:look]))).log_e(evidence) for look in looks
        )
        alarms += best >= -math.log(ALPHA)
    assert alarms <= 5


def test_thinning_only_lowers_the_evidence_and_keeps_every_count():
    rng = np.random.default_rng(37)
    evidence = cell_evidence()
    blocks = pairs(rng, 1, both=0, new_only=0.02, previous_only=0.02, looks=200, every=1000)[0]
    full = StartMixture.of_blocks(dict(enumerate(blocks)))
    thin = full.thin(evidence)
    assert len(thin.starts) == STARTS_MAX
    assert thin.starts[0] == 1
    assert thin.starts[-16:] == tuple(range(185, 201))
    assert thin.counts.sum(axis=0).tolist() == blocks.sum(axis=0).tolist()
    assert thin.log_e(evidence) <= full.log_e(evidence)
    assert thin.thin(evidence) is thin
    # What is kept is what counts: the best half of the terms loses nothing worth speaking of.
    assert thin.log_e(evidence) > full.log_e(evidence) - 0.1
    kept = dict(zip(thin.starts, thin.terms(evidence), strict=True))
    every = dict(zip(full.starts, full.terms(evidence), strict=True))
    assert all(kept[start] == pytest.approx(every[start]) for start in kept)
