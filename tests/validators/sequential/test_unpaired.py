"""Two versions that share the traffic: bounds of rates and quantiles, and what is said of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validators.sequential.certificate import evidence_over, evidence_under
from validators.sequential.unpaired import (
    Comparison,
    Estimate,
    evidence_more,
    quantile_bounds,
    quantiles,
    rates,
    sentence,
)
from validators.statistics import logistic

ALPHA = 0.05
SURE = math.log(2 / ALPHA)
BOUNDS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, math.inf]


def least_product(k1, n1, k2, n2, d):
    """By brute force, on a fine grid."""
    p = logistic(np.linspace(-14, 14, 2001))
    second = np.where(p + d >= 1, 0.0, evidence_over(k2, n2, np.clip(p + d, 1e-9, 1 - 1e-9)))
    return float(np.min(evidence_under(k1, n1, p) + second))


@pytest.mark.parametrize(
    "counts", [(3, 400, 40, 500), (0, 100, 0, 2000), (50, 100, 10, 100), (9, 10, 500, 1000)]
)
def test_the_difference_is_bounded_where_the_least_product_reaches_the_risk(counts):
    k1, n1, k2, n2 = counts
    found = rates(k1, n1, k2, n2, ALPHA).difference
    assert found.lower <= found.value <= found.upper
    if found.lower > -1:
        assert least_product(*counts, found.lower) == pytest.approx(SURE, abs=0.02)
    if found.upper < 1:
        assert least_product(k2, n2, k1, n1, -found.upper) == pytest.approx(SURE, abs=0.02)


def test_the_difference_is_told_better_than_by_subtracting_bounds():
    found = rates(100, 1000, 190, 1000, ALPHA)
    halves = rates(100, 1000, 190, 1000, ALPHA / 2)
    assert found.difference.lower > halves.second.lower - halves.first.upper
    assert found.difference.upper < halves.second.upper - halves.first.lower
    assert found.decided


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 60), st.integers(0, 500), st.integers(0, 60), st.integers(0, 500))
def test_bounds_hold_what_was_seen_and_mirror_each_other(k1, more1, k2, more2):
    n1, n2 = k1 + more1, k2 + more2
    found, mirrored = rates(k1, n1, k2, n2, ALPHA), rates(k2, n2, k1, n1, ALPHA)
    for side in (found.first, found.second):
        assert 0 <= side.lower <= side.upper <= 1
        assert math.isnan(side.value) or side.lower <= side.value <= side.upper
    assert -1 <= found.difference.lower <= found.difference.upper <= 1
    assert found.difference.lower == pytest.approx(-mirrored.difference.upper, abs=1e-9)


def test_equal_rates_are_seldom_told_apart_however_often_one_looks():
    """A fixed-sample interval at 95 % would be wrong in about a quarter of these runs."""
    rng = np.random.default_rng(60)
    wrong = fixed = 0
    for _ in range(60):
        failed = rng.binomial(100, 0.1, (2, 30)).cumsum(axis=1)
        looks = [(int(a), int(b), 100 * at) for at, (a, b) in enumerate(failed.T, 1)]
        wrong += any(
            max(evidence_more(a, n, b, n, 0.0), evidence_more(b, n, a, n, 0.0)) >= SURE
            for a, b, n in looks[::3]
        )
        fixed += any(
            abs(a - b) > 1.96 * math.sqrt(a * (1 - a / n) + b * (1 - b / n)) for a, b, n in looks
        )
    assert wrong <= 3
    assert fixed >= 9


def test_a_real_difference_is_found():
    found = rates(10, 2000, 60, 2000, ALPHA)
    assert found.decided
    assert found.difference.lower < 0.025 < found.difference.upper
    assert "more by at least" in sentence("errors", found, ("m:1", "m:2"), "1", ALPHA)


def cumulative(times):
    return [int(np.sum(times <= bound)) for bound in BOUNDS]


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_quantiles_are_held_at_every_look(q):
    rng = np.random.default_rng(61)
    true = math.exp(1.0 + 0.8 * {0.5: 0.0, 0.9: 1.2816, 0.99: 2.3263}[q])
    wrong, widths = 0, []
    for _ in range(100):
        times = rng.lognormal(1.0, 0.8, 3000)
        looks = [quantile_bounds(cumulative(times[:n]), BOUNDS, q, ALPHA) for n in (100, 900, 3000)]
        wrong += any(not look.lower < true <= look.upper for look in looks)
        widths.append(looks[-1])
    assert wrong <= 5
    # The bucket that holds it, at most one to a side.
    around = BOUNDS.index(next(bound for bound in BOUNDS if bound >= true))
    assert all(BOUNDS.index(look.upper) <= around + 1 for look in widths)
    assert all(look.lower >= BOUNDS[around - 2] for look in widths)
    assert np.mean([look.value for look in widths]) == pytest.approx(true, rel=0.25)


def test_a_quantile_beyond_the_last_bucket_has_no_upper_bound():
    found = quantile_bounds([0, 0, 0, 0, 0, 10, 1000], BOUNDS, 0.5, ALPHA)
    assert found == Estimate(50.0, 50.0, math.inf)
    nothing = quantile_bounds([0] * 7, BOUNDS, 0.5, ALPHA)
    assert (nothing.lower, nothing.upper) == (0.0, math.inf)
    assert math.isnan(nothing.value)


def test_two_histograms_are_compared():
    rng = np.random.default_rng(62)
    fast, slow = rng.lognormal(0.5, 0.5, 4000), rng.lognormal(2.5, 0.5, 4000)
    found = quantiles(cumulative(fast), cumulative(slow), BOUNDS, 0.9, ALPHA)
    assert found.decided
    assert found.difference.lower == 20.0 - 5.0
    said = sentence("latency p90", found, ("m:1", "m:2"), "ms", ALPHA)
    assert said.startswith("latency p90: ")
    assert "more by at least 15 ms (95 % sure, however often" in said
    mirrored = quantiles(cumulative(slow), cumulative(fast), BOUNDS, 0.9, ALPHA)
    assert "less by at least 15 ms" in sentence("p90", mirrored, ("a", "b"), "ms", ALPHA)


def test_what_is_not_known_is_said():
    undecided = sentence("errors", rates(1, 100, 2, 100, ALPHA), ("m:1", "m:2"), "1", ALPHA)
    assert "1 % of m:1 and 2 % of m:2; too little to tell them apart" in undecided
    nothing = rates(0, 0, 2, 100, ALPHA)
    assert (nothing.difference.lower, nothing.difference.upper) == (-1, 1)
    assert sentence("errors", nothing, ("m:1", "m:2"), "1", ALPHA).endswith("seen of m:1")
    decided = Comparison(Estimate(0.2, 0, 1), Estimate(0.1, 0, 1), Estimate(-0.1, -0.2, -0.05))
    assert "less by at least 5 %" in sentence("errors", decided, ("a", "b"), "1", ALPHA)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rates(3, 2, 0, 1, ALPHA), "no count"),
        (lambda: rates(0, 1, 0, 1, 0.0), "alpha"),
        (lambda: quantile_bounds([1, 2], [1.0], 0.5, ALPHA), "one count for each"),
        (lambda: quantile_bounds([], [], 0.5, ALPHA), "one count for each"),
        (lambda: quantile_bounds([2, 1], [1.0, 2.0], 0.5, ALPHA), "cumulative"),
        (lambda: quantile_bounds([1, 2], [2.0, 1.0], 0.5, ALPHA), "rise"),
        (lambda: quantile_bounds([1, 2], [1.0, 2.0], 1.0, ALPHA), "q is between"),
        (lambda: quantile_bounds([1, 2], [1.0, 2.0], 0.5, 1.0), "alpha is between"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
