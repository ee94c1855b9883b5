"""Certificates: their evidence, their bounds, and how often they are wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from tests.validators.sequential import simulate
from validators.sequential.certificate import (
    Certificate,
    certify_live,
    certify_offline,
    evidence_over,
    evidence_under,
    log_e,
    log_e_over,
    lower_bound,
    upper_bound,
)
from validators.statistics import clopper_pearson, logistic
from validators.verdict import Verdict

ALPHA = 0.05
SURE = math.log(1 / ALPHA)
RUNS = 2000


# --- evidence -------------------------------------------------------------------------------------


def integral(k, n, limit, prior, low, high):
    """The definition, by scipy."""

    def integrand(theta):
        ratio = k * math.log(theta / limit) + (n - k) * math.log((1 - theta) / (1 - limit))
        return math.exp(ratio) * prior.pdf(theta)

    points = [point for point in (k / n, limit) if low < point < high]
    value, _ = integrate.quad(integrand, low, high, points=points, limit=500)
    return math.log(value / (prior.cdf(high) - prior.cdf(low)))


@pytest.mark.parametrize(
    ("k", "n", "limit"),
    [(0, 10, 0.01), (2.5, 400, 0.01), (3, 100, 0.05), (40, 500, 0.05), (0.125, 7, 0.3)],
)
def test_evidence_is_the_integral_of_its_definition(k, n, limit):
    under = integral(k, n, limit, stats.beta(0.5, 2 / limit), 0, limit)
    over = integral(k, n, limit, stats.beta(1, 1 / (5 * limit)), limit, 1)
    assert log_e(k, n, limit) == pytest.approx(under, abs=1e-6)
    assert log_e_over(k, n, limit) == pytest.approx(over, abs=1e-6)


def test_needs_are_those_of_the_documentation():
    for k, needed in enumerate((344, 649, 882)):
        assert log_e(k, needed, 0.01) >= SURE > log_e(k, needed - 1, 0.01)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([0.001, 0.01, 0.05, 0.3]),
    st.integers(0, 3000),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_no_request_is_a_good_bet_at_the_limit(limit, n, share, x):
    """One more request whose X is ``limit`` on average cannot be expected to raise E."""
    k = share * n
    now = log_e(k, n, limit), log_e_over(k, n, limit)
    # The worst X in [0, 1] are 0 and 1: any other is below the straight line between them, which is
    # the step of the proof.
    for at, evidence in zip(now, (log_e, log_e_over), strict=True):
        none, full = (math.exp(evidence(k + add, n + 1, limit) - at) for add in (0, 1))
        assert (1 - limit) * none + limit * full <= 1 + 1e-6
        part = math.exp(evidence(k + x, n + 1, limit) - at)
        assert part <= (1 - x) * none + x * full + 1e-6


def test_evidence_rises_with_agreement_and_stays_finite():
    k = np.linspace(0, 1000, 101)
    assert np.all(np.diff(evidence_under(k, 1000, 0.05)) < 0)
    assert np.all(np.diff(evidence_over(k, 1000, 0.05)) > 0)
    assert log_e(0, 0, 0.01) == 0
    assert log_e_over(0, 0, 0.01) == 0
    for n in (10**7, 10**12):
        assert math.isfinite(log_e(0.0099 * n, n, 0.01))
        assert log_e(0.5 * n, n, 0.01) < 0 < log_e_over(0.5 * n, n, 0.01) < math.inf


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(0, 344), (3.5, 5000), (9, 10), (500, 1000), (10, 10**6)])
def test_bounds_are_where_the_evidence_reaches_the_risk(k, n):
    upper, lower = upper_bound(k, n, ALPHA), lower_bound(k, n, ALPHA)
    assert 0 <= lower <= k / n <= upper <= 1
    assert log_e(k, n, upper) == pytest.approx(SURE, abs=1e-6)
    if k:
        assert log_e_over(k, n, lower) == pytest.approx(SURE, abs=1e-6)
    # To be allowed to look always costs something.
    assert upper > clopper_pearson(math.floor(k), n, ALPHA)[1]


def test_all_limits_beyond_a_bound_are_rejected():
    """The evidence is monotone in the limit where it speaks, so an inverted bound is one number."""
    limits = logistic(np.linspace(-16, 16, 801))
    for k, n in ((0, 1), (0, 500), (1, 10), (0.5, 3), (3, 1000), (500, 1000), (999, 1000)):
        under, over = evidence_under(k, n, limits), evidence_over(k, n, limits)
        assert np.all(np.diff(np.maximum(under, 0)) > -1e-6), (k, n)
        assert np.all(np.diff(np.maximum(over, 0)) < 1e-6), (k, n)
        assert np.all((under >= SURE) == (limits >= upper_bound(k, n, ALPHA))), (k, n)
        assert np.all((over >= SURE) == (limits <= lower_bound(k, n, ALPHA))), (k, n)


def test_bounds_of_nothing_are_everything():
    assert (upper_bound(0, 0, ALPHA), lower_bound(0, 0, ALPHA)) == (1, 0)
    assert upper_bound(5, 5, ALPHA) == 1
    assert lower_bound(0, 5, ALPHA) == 0


# --- certificates ---------------------------------------------------------------------------------


def test_offline_certificates_follow_the_bounds():
    assert certify_offline(0, 299, 0.01, ALPHA).verdict is Verdict.PASS
    assert certify_offline(0, 298, 0.01, ALPHA).verdict is Verdict.INCONCLUSIVE
    failed = certify_offline(40, 1000, 0.01, ALPHA)
    assert failed.verdict is Verdict.FAIL
    assert failed.lower > 0.01
    assert failed.bound == clopper_pearson(40, 1000, ALPHA)[1]
    assert certify_offline(0, 0, 0.01, ALPHA).verdict is Verdict.INVALID


def test_live_certificates_follow_the_evidence():
    assert certify_live(0, 344, 0.01, ALPHA).verdict is Verdict.PASS
    assert certify_live(0, 343, 0.01, ALPHA).verdict is Verdict.INCONCLUSIVE
    assert certify_live(40, 1000, 0.01, ALPHA).verdict is Verdict.FAIL
    assert certify_live(0, 0, 0.01, ALPHA).verdict is Verdict.INVALID
    fraction = certify_live(0.125, 400, 0.01, ALPHA)
    assert (fraction.verdict, fraction.bound < 0.01) == (Verdict.PASS, True)


def test_a_certificate_once_earned_stays_until_a_failure_is_proven():
    earned = certify_live(0, 344, 0.01, ALPHA)
    later = certify_live(4, 600, 0.01, ALPHA, earned.log_e)
    assert certify_live(4, 600, 0.01, ALPHA).verdict is Verdict.INCONCLUSIVE
    assert (later.verdict, later.log_e) == (Verdict.PASS, earned.log_e)
    failed = certify_live(60, 1000, 0.01, ALPHA, later.log_e)
    assert failed.verdict is Verdict.FAIL
    after = certify_live(60, 6000, 0.01, ALPHA, failed.log_e)
    assert after.verdict is Verdict.PASS  # the caller chose not to keep the failure ...
    kept = certify_live(60, 6000, 0.01, ALPHA, failed.log_e, failed.log_e_over)
    assert kept.verdict is Verdict.FAIL  # ... and here to keep it
    assert certify_live(0, 0, 0.01, ALPHA, 7.0).log_e == 7.0


@pytest.mark.parametrize(
    ("certificate", "says"),
    [
        (certify_live(0, 344, 0.01, ALPHA), "0 of 344 requests disagree: certified to be under"),
        (certify_offline(40, 1000, 0.01, ALPHA), "40 of 1000 rows disagree: over 1 % (95 % sure)"),
        (certify_offline(1, 300, 0.01, ALPHA), "between 0.0171 % and 1.57 %, each 95 % sure"),
        (certify_live(0, 0, 0.01, ALPHA), "no requests were compared"),
    ],
)  # fmt: skip
def test_a_certificate_says_it_in_a_sentence(certificate: Certificate, says):
    assert says in certificate.sentence


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: log_e(1, 0, 0.01), "is no count"),
        (lambda: log_e(-0.1, 5, 0.01), "is no count"),
        (lambda: log_e(math.nan, 5, 0.01), "is no count"),
        (lambda: log_e(0, 5, 0.0), "a limit is a rate"),
        (lambda: certify_live(0, 5, 1.0, ALPHA), "a limit is a rate"),
        (lambda: certify_offline(0, 5, 0.1, 0), "alpha is a risk"),
        (lambda: upper_bound(0, 5, 1), "alpha is a risk"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_a_sum_of_shares_may_be_off_by_rounding():
    assert log_e(sum([0.1] * 30), 3, 0.5) == pytest.approx(log_e(3, 3, 0.5))


# --- how often they are wrong ---------------------------------------------------------------------

LOOKS = simulate.looks_at(100, 20_000)


def false_certificates(evidence, draw):
    found = simulate.requests_to_certify(evidence, draw, LOOKS, ALPHA, 0.01)
    return float(np.isfinite(found).mean())


def test_traffic_at_the_limit_is_seldom_certified_however_often_one_looks():
    rng = np.random.default_rng(20)

    def draw(looks):
        return rng.binomial(100, 0.01, (RUNS, looks))

    assert false_certificates(simulate.e_process_evidence, draw) <= ALPHA
    # The same looks with fixed-sample bounds: what the e-process is for.
    assert false_certificates(simulate.clopper_pearson_evidence, draw) > 4 * ALPHA


def test_neither_is_traffic_of_batches_or_of_changing_kind():
    rng = np.random.default_rng(21)

    def batches(looks):  # requests of 8 rows: half the bad ones are bad throughout, half in part
        whole = rng.binomial(100, 0.005, (RUNS, looks))
        return whole + rng.binomial(100, 0.04, (RUNS, looks)) / 8

    def drifting(looks):  # good and bad hours, the limit on average at each look or more
        rate = np.where(np.arange(looks) % 2 == 0, 0.019, 0.001)
        return rng.binomial(100, rate, (RUNS, looks))

    assert false_certificates(simulate.e_process_evidence, batches) <= ALPHA
    assert false_certificates(simulate.e_process_evidence, drifting) <= ALPHA


def test_a_good_candidate_is_certified_soon_and_a_bad_one_found_out():
    rng = np.random.default_rng(22)
    needed = simulate.requests_to_certify(
        simulate.e_process_evidence,
        lambda looks: rng.binomial(100, 0.001, (RUNS, looks)),
        LOOKS, ALPHA, 0.01,
    )  # fmt: skip
    assert np.isfinite(needed).all()
    assert np.mean(needed) < 600
    counts = rng.binomial(100, 0.02, (200, 100))
    seen = np.arange(1, 101) * 100.0
    failed = evidence_over(counts.cumsum(axis=1), seen, 0.01) >= SURE
    assert failed[:, -1].all()


def test_traffic_at_the_limit_is_seldom_failed_either():
    rng = np.random.default_rng(23)
    counts = rng.binomial(100, 0.01, (400, 100)).cumsum(axis=1)
    failed = evidence_over(counts, np.arange(1, 101) * 100.0, 0.01) >= SURE
    assert failed.any(axis=1).mean() <= ALPHA
