"""Bounds against scipy's beta distribution, and the integral below them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from validators.statistics import (
    clopper_pearson,
    log_betainc,
    log_mass_above,
    log_mass_below,
    logistic,
    requests_needed,
    solve_rising,
)

COUNTS = [
    (0, 1), (1, 1), (0, 10), (1, 10), (5, 10), (9, 10), (10, 10), (3, 1000), (50, 1000),
    (999, 1000), (0, 10**7), (1, 10**7), (10**5, 10**7), (5 * 10**6, 10**7), (10**7 - 1, 10**7),
    (10**7, 10**7),
]  # fmt: skip


@pytest.mark.parametrize(("k", "n"), COUNTS)
@pytest.mark.parametrize("alpha", [0.05, 0.025, 1e-6])
def test_bounds_are_those_of_clopper_and_pearson(k, n, alpha):
    lower, upper = clopper_pearson(k, n, alpha)
    assert lower == pytest.approx(stats.beta.ppf(alpha, k, n - k + 1) if k else 0.0, rel=1e-8)
    assert upper == pytest.approx(stats.beta.isf(alpha, k + 1, n - k) if k < n else 1.0, rel=1e-8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_bounds_hold_the_rate_that_was_seen_between_them(counts):
    k, n = counts
    lower, upper = clopper_pearson(k, n, 0.05)
    assert 0 <= lower <= k / n <= upper <= 1
    mirrored = clopper_pearson(n - k, n, 0.05)
    assert (lower, upper) == pytest.approx((1 - mirrored[1], 1 - mirrored[0]), abs=1e-12)


def test_requests_needed_are_those_of_the_table():
    table = {0.05: [59, 93, 124], 0.01: [299, 473, 628], 0.001: [2995, 4742, 6294]}
    for limit, needed in table.items():
        assert [requests_needed(limit, k, 0.05) for k in range(3)] == needed
        for k, n in enumerate(needed):  # the smallest number, neither one less nor one more
            assert clopper_pearson(k, n, 0.05)[1] <= limit < clopper_pearson(k, n - 1, 0.05)[1]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: clopper_pearson(3, 2, 0.05), "3 of 2 is no count"),
        (lambda: clopper_pearson(-1, 2, 0.05), "-1 of 2 is no count"),
        (lambda: clopper_pearson(0, 0, 0.05), "n ≥ 1"),
        (lambda: clopper_pearson(0, 1, 0.0), "between 0 and 1, not 0"),
        (lambda: clopper_pearson(0, 1, 1.0), "between 0 and 1, not 1"),
        (lambda: requests_needed(0.0, 0, 0.05), "between 0 and 1, not 0"),
        (lambda: requests_needed(1.0, 0, 0.05), "between 0 and 1, not 1"),
        (lambda: requests_needed(0.1, -1, 0.05), "-1 of 0 is no count"),
    ],
)
def test_what_is_no_count_or_no_risk_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_incomplete_beta_is_scipys_wherever_scipy_has_digits():
    shapes = [0.2, 0.5, 1, 2, 7.5, 100, 1e4, 1e7]
    for a, b in itertools.product(shapes, shapes):
        mean = a / (a + b)
        spread = math.sqrt(mean * (1 - mean) / (a + b + 1))
        for x in [mean, *(mean + s * spread for s in (-6, -3, -0.1, 0.1, 3, 6)), 0.5, 0.01]:
            if not 1e-9 < x < 1 - 1e-9:
                continue
            below, above = log_betainc(a, b, x)
            for ours, theirs in (
                (below, special.betainc(a, b, x)),
                (above, special.betaincc(a, b, x)),
            ):
                if theirs > 1e-290:
                    assert ours == pytest.approx(math.log(theirs), rel=2e-9, abs=2e-9), (a, b, x)


def test_tails_far_below_the_smallest_float_keep_their_digits():
    # P(at most 0 of n) = (1−x)^n, whose logarithm is known.
    for n in (10**4, 10**7):
        assert float(log_betainc(1, n, 0.5)[1]) == pytest.approx(n * math.log(0.5), rel=1e-12)
        assert float(log_betainc(n, 1, 0.5)[0]) == pytest.approx(n * math.log(0.5), rel=1e-12)


def test_integrals_broadcast_and_mirror_each_other():
    a, b = np.array([[0.5], [3.0], [40.0]]), np.array([2.0, 200.0])
    below = log_mass_below(a, b, 0.2)
    assert below.shape == (3, 2)
    assert below[2, 1] == log_mass_below(40.0, 200.0, 0.2)
    assert log_mass_above(b, a, 0.8) == pytest.approx(below, rel=1e-12)
    # Against the definition: B(a, b) I_x(a, b) / (x^a (1−x)^b).
    expected = np.log(special.betainc(a, b, 0.2)) + special.betaln(a, b)
    assert below == pytest.approx(expected - a * np.log(0.2) - b * np.log(0.8), rel=1e-10)


def test_a_root_is_the_last_one_or_the_end_nearer_to_it():
    assert solve_rising(lambda x: x**3 - 2, -10, 10) == pytest.approx(2 ** (1 / 3), rel=1e-12)
    assert solve_rising(lambda x: x + 20, -10, 10) == -10
    assert solve_rising(lambda x: x - 20, -10, 10) == 10
    # It dips below zero twice: the last crossing counts, the cautious one for an upper bound.
    assert solve_rising(np.sin, -5.0, 1.0) == pytest.approx(0, abs=1e-9)


def test_the_logistic_function_stands_large_arguments():
    assert logistic([-1000, 0, 1000]).tolist() == [0, 0.5, 1]
    assert logistic(-50) == pytest.approx(math.exp(-50), rel=1e-12)
