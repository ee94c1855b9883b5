"""The noise floor: bounds of both rates, and what is left between them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from validators.noise import noise_floor
from validators.sequential.certificate import lower_bound, upper_bound
from validators.statistics import clopper_pearson

ALPHA = 0.05


def test_each_bound_takes_half_of_the_risk():
    floor = noise_floor(12, 1000, 3, 100, ALPHA)
    assert floor.raw_upper == clopper_pearson(12, 1000, ALPHA / 2)[1]
    assert floor.noise_lower == clopper_pearson(3, 100, ALPHA / 2)[0]
    assert floor.excess == floor.raw_upper - floor.noise_lower
    assert (floor.raw_rate, floor.noise_rate) == (0.012, 0.03)
    live = noise_floor(12.5, 1000, 3.25, 100, ALPHA, live=True)
    assert live.raw_upper == upper_bound(12.5, 1000, ALPHA / 2)
    assert live.noise_lower == lower_bound(3.25, 100, ALPHA / 2)
    assert live.excess > floor.excess  # looking at any time costs something


def test_noise_above_the_raw_rate_leaves_nothing():
    assert noise_floor(0, 10_000, 500, 1000, ALPHA).excess == 0


@pytest.mark.parametrize("live", [False, True])
def test_what_was_not_measured_explains_nothing(live):
    floor = noise_floor(3, 100, 0, 0, ALPHA, live=live)
    assert (floor.noise_lower, floor.excess) == (0, floor.raw_upper)
    assert math.isnan(floor.noise_rate)
    assert "was not measured" in floor.sentence
    nothing = noise_floor(0, 0, 0, 0, ALPHA, live=live)
    assert (nothing.raw_upper, nothing.sentence) == (1, "nothing was compared")
    assert math.isnan(nothing.raw_rate)


def test_the_sentence_has_all_three_rates():
    assert noise_floor(12, 1000, 3, 100, ALPHA).sentence.startswith(
        "1.2 % disagree; the reference with itself: 3 % of 100; beyond noise at most 1.4"
    )


@pytest.mark.parametrize("counts", [(3, 2, 0, 0), (0, 5, 2, 1), (0.5, 5, 0, 0), (1, 0, 0, 0)])
def test_what_is_no_count_is_refused(counts):
    with pytest.raises(ValueError, match="no count"):
        noise_floor(*counts, ALPHA)


def test_the_excess_is_seldom_below_the_truth():
    """The candidate adds 1 % to a noise of 2 %, measured on a tenth of the same requests."""
    rng = np.random.default_rng(50)
    short = 0
    for _ in range(300):
        noisy = rng.random(1000) < 0.02
        raw = int((noisy | (rng.random(1000) < 0.01)).sum())
        short += noise_floor(raw, 1000, int(noisy[:100].sum()), 100, ALPHA).excess < 0.0098
    assert short / 300 <= ALPHA
