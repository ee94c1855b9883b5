"""Limits that fit: the loosest of three sources, and never the candidate's own noise."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from validators.calibrate import arbitrate, calibrate, precision_factor, too_noisy, worst_of
from validators.comparators import metric_specs
from validators.limits import Limit, default_limits
from validators.sketches import LogHistogram

TENSOR = metric_specs("tensor")


def limit_of(limits, metric):
    return next(limit for limit in limits if limit.metric == metric)


def test_without_measurements_the_table_stays():
    table = default_limits("tensor", "fp16")
    assert calibrate(table, TENSOR, "fp16") == table


def test_the_loosest_of_three_wins_and_says_so():
    table = default_limits("tensor", "fp16")  # 50 dB, 2e-2
    against = {"sqnr_db": np.array([48.0, 60.0]), "max_rel_rms": np.array([0.001, 0.002])}
    noise = {"sqnr_db": np.array([70.0, math.inf]), "max_rel_rms": np.array([0.015, math.nan])}
    found = calibrate(table, TENSOR, "fp16", against_float64=against, reference_noise=noise)
    assert limit_of(found, "sqnr_db") == Limit(
        "sqnr_db", ">=", 48 - 20 * math.log10(3), "3 × fp16 against float64 (p99.9 of 2 rows: 48)"
    )
    assert limit_of(found, "max_rel_rms") == Limit(
        "max_rel_rms", "<=", 0.03, "2 × the reference against itself (p99.9 of 1 rows: 0.015)"
    )


def test_the_wider_of_two_measurements_is_taken_whatever_their_order():
    table = (Limit("max_rel_rms", "<=", 1e-4), Limit("cosine", ">=", 0.999))
    small = {"max_rel_rms": np.array([0.01]), "cosine": np.array([0.99])}
    large = {"max_rel_rms": np.array([0.1]), "cosine": np.array([0.9])}
    one = calibrate(table, TENSOR, "fp32", against_float64=small, reference_noise=large)
    other = calibrate(table, TENSOR, "fp32", against_float64=large, reference_noise=small)
    for found in (one, other):
        assert limit_of(found, "max_rel_rms").value == pytest.approx(0.2)
        assert limit_of(found, "cosine").value == pytest.approx(0.8)
    assert "itself" in limit_of(one, "cosine").source
    assert "float64" in limit_of(other, "cosine").source


def test_equal_reruns_widen_nothing():
    table = default_limits("tensor", "fp32")
    equal = {"sqnr_db": np.full(9, math.inf), "max_rel_rms": np.zeros(9)}
    assert calibrate(table, TENSOR, "fp32", reference_noise=equal) == table
    unmeasured = {"sqnr_db": np.full(9, math.nan)}
    assert calibrate(table, TENSOR, "fp32", reference_noise=unmeasured) == table


def test_what_was_declared_and_what_is_exact_stays():
    wild = {"max_rel_rms": np.array([5.0]), "flip": np.ones(10)}
    declared = (Limit("max_rel_rms", "<=", 1e-4, "config"),)
    assert calibrate(declared, TENSOR, "fp32", reference_noise=wild) == declared
    flips = default_limits("class_scores", "fp32")
    specs = metric_specs("class_scores")
    assert calibrate(flips, specs, "fp32", reference_noise=wild) == flips


def test_a_limit_never_grows_until_nothing_can_violate_it():
    table = (Limit("neighbours", ">=", 0.9),)
    noise = {"neighbours": np.array([0.3, 1.0])}
    (found,) = calibrate(table, metric_specs("embedding"), "fp32", reference_noise=noise)
    assert found.value == 0.9
    assert "would allow anything" in found.source


def test_histograms_serve_where_more_is_worse():
    histogram = LogHistogram()
    histogram.add(np.full(100, 0.5))
    (found,) = calibrate(
        (Limit("max_abs", "<=", 0.1),), TENSOR, "fp32", reference_noise={"max_abs": histogram}
    )
    assert found.value == pytest.approx(1.0, rel=0.05)
    with pytest.raises(ValueError, match="needs the values themselves"):
        calibrate(
            (Limit("cosine", ">=", 0.9),), TENSOR, "fp32", against_float64={"cosine": histogram}
        )
    with pytest.raises(ValueError, match="no metric 'speed'"):
        calibrate((Limit("speed", "<=", 1),), TENSOR, "fp32")


def test_the_worst_of_many_is_their_quantile_on_the_bad_side():
    values = np.append(np.arange(2000.0), math.nan)
    assert worst_of(values, Limit("max_abs", "<=", 0)) == (1997, 2000)
    assert worst_of(values, Limit("sqnr_db", ">=", 0)) == (2, 2000)
    worst, rows = worst_of(np.array([math.nan]), Limit("sqnr_db", ">=", 0))
    assert (math.isnan(worst), rows) == (True, 0)


def test_a_candidate_noisier_than_its_limit_fails():
    limits = default_limits("tensor", "fp16")
    noise = {"sqnr_db": np.array([40.0, 90.0]), "max_rel_rms": np.array([1e-3, 2e-3])}
    assert too_noisy(limits, noise) == (
        "it disagrees with itself: sqnr_db is 40 at p99.9 of 2 rows run again in another batch, "
        "and the limit is >= 50",
    )
    assert too_noisy(limits, {"sqnr_db": np.array([90.0])}) == ()
    assert too_noisy(limits, {}) == ()


@pytest.mark.parametrize(
    ("precision", "factor"), [("fp32", 2), ("tf32", 2), ("fp16", 3), ("bf16", 3), ("int8", 3)]
)
def test_factors_follow_the_precision(precision, factor):
    assert precision_factor(precision) == factor
    with pytest.raises(ValueError, match="no precision 'fp12'"):
        precision_factor("fp12")


# --- the float64 arbiter --------------------------------------------------------------------------


def test_a_candidate_as_near_to_float64_as_the_reference_passes():
    rng = np.random.default_rng(60)
    truth = rng.normal(size=(8, 64))
    reference = truth.astype(np.float16)
    twice = truth + 2 * (reference - truth)
    found = arbitrate(twice, reference, truth, "fp16", 0.0)
    assert found.candidate_rmse == pytest.approx(2 * found.reference_rmse, rel=1e-6)
    assert found.allowed == 3 * found.reference_rmse
    assert found.passed
    worse = truth + 4 * (reference - truth)
    assert not arbitrate(worse, reference, truth, "fp16", 0.0).passed
    # An exact reference would forbid any rounding: that is what the tolerance is for.
    assert not arbitrate(reference, truth, truth, "fp16", 0.0).passed
    assert arbitrate(reference, truth, truth, "fp16", 0.1).passed
    assert "allowed: 0.01" in arbitrate(reference, truth, truth, "fp16", 0.1).sentence


def test_the_arbiter_takes_any_float_and_equal_infinities():
    truth = np.array([[1.0, np.inf, np.nan], [2.0, 3.0, 4.0]])
    narrow = truth.astype(ml_dtypes.bfloat16)
    assert arbitrate(narrow, truth.astype(np.float32), truth, "bf16", 0.1).passed


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ((np.ones(3), np.ones(4), np.ones(3)), "shapes differ"),
        ((np.array([np.nan]), np.ones(1), np.ones(1)), "finite on one side only"),
        ((np.full(2, np.inf),) * 3, "no finite values"),
        ((np.ones(0),) * 3, "no finite values"),
    ],
)
def test_the_arbiter_refuses_what_it_cannot_weigh(arrays, says):
    with pytest.raises(ValueError, match=says):
        arbitrate(*arrays, "fp32", 0.0)
