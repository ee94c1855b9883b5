"""Each distance against scipy, and what bins lose against the values themselves."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from validators.drift.bins import BINS, MISSING, WIDTH, NumericBins
from validators.drift.columns import ColumnType
from validators.drift.distances import (
    BUILTIN,
    DEFAULT,
    anderson_darling,
    chi_square,
    distance,
    jensen_shannon,
    kolmogorov_smirnov,
    ks_exact,
    missing,
    population_stability,
    wasserstein,
    wasserstein_exact,
)

#: Scipy's name for the version for ties changed in 1.17.
VARIANT = (
    {"variant": "midrank"}
    if "variant" in inspect.signature(stats.anderson_ksamp).parameters
    else {"midrank": True}
)
POSITIONS = np.arange(WIDTH) / 3.0


def counts_of(seed: int, rows: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    codes = np.clip(np.round(rng.normal(16 + shift, 6, rows)), 0, WIDTH - 1).astype(int)
    return np.bincount(codes, minlength=WIDTH)


PAIRS = [(counts_of(0, 300), counts_of(1, 4000)), (counts_of(2, 50, 9), counts_of(3, 700))]


@pytest.mark.parametrize(("window", "reference"), PAIRS)
def test_distances_are_those_of_scipy(window, reference):
    p, q = window / window.sum(), reference / reference.sum()
    values = [np.repeat(POSITIONS, side) for side in (window, reference)]
    ks = kolmogorov_smirnov(window, reference, POSITIONS)
    assert ks == pytest.approx(stats.ks_2samp(*values).statistic)
    moved = wasserstein(window, reference, POSITIONS)
    assert moved == pytest.approx(stats.wasserstein_distance(POSITIONS, POSITIONS, p, q))
    assert jensen_shannon(window, reference, POSITIONS) == pytest.approx(
        jensenshannon(p, q, base=2)
    )
    used = (window + reference) > 0
    table = np.stack([window, reference])[:, used]
    assert chi_square(window, reference, POSITIONS) == pytest.approx(
        stats.chi2_contingency(table, correction=False).statistic
    )
    smooth = [side[used] + 0.5 for side in (window, reference)]
    both = stats.entropy(smooth[0], smooth[1]) + stats.entropy(smooth[1], smooth[0])
    assert population_stability(window, reference, POSITIONS) == pytest.approx(both)


def scipy_anderson(window: np.ndarray, reference: np.ndarray) -> float:
    """Scipy gives (A² − mean) / deviation, of which the latter two depend on the sizes alone."""
    values = [np.repeat(POSITIONS, side) for side in (window, reference)]
    return stats.anderson_ksamp(
        values, method=stats.PermutationMethod(n_resamples=1), **VARIANT
    ).statistic


def test_anderson_and_darling_is_scipys_up_to_its_scale():
    sides = [(counts_of(seed, 200, shift), counts_of(90 + seed, 900)) for seed, shift in
             enumerate([0, 1, 2, 4, 8])]  # fmt: skip
    ours = [float(anderson_darling(*side, POSITIONS)) for side in sides]
    theirs = [scipy_anderson(*side) for side in sides]
    slope, offset = np.polyfit(theirs, ours, 1)
    np.testing.assert_allclose(slope * np.array(theirs) + offset, ours, rtol=1e-9)
    assert -offset / slope < 0 < slope
    assert offset == pytest.approx(1)  # the mean of A² of two samples


def test_missing_values_are_a_test_of_two_proportions():
    window, reference = counts_of(0, 900), counts_of(1, 5000)
    window[MISSING], reference[MISSING] = 60, 100
    found = missing(window, reference)
    table = [[60, window.sum() - 60], [100, reference.sum() - 100]]
    expected = np.sqrt(stats.chi2_contingency(table, correction=False).statistic)
    assert found == pytest.approx(expected, rel=0.01)  # half a value is added
    assert missing(window * 0 + 1, window * 0) != missing(window, window)


@pytest.mark.parametrize("item", BUILTIN.values(), ids=lambda item: item.name)
def test_no_drift_has_the_same_scale_at_every_size(item):
    rng = np.random.default_rng(4)
    shares = np.ones(WIDTH) / WIDTH
    medians = []
    for rows, total in ((500, 4000), (2000, 9000), (1000, 100_000)):
        window = rng.multinomial(rows, shares, 800)
        reference = rng.multinomial(total, shares, 800)
        medians.append(float(np.median(item.scaled(window, reference, POSITIONS))))
    assert max(medians) < 1.1 * min(medians)


@pytest.mark.parametrize("item", BUILTIN.values(), ids=lambda item: item.name)
def test_many_windows_at_once_are_as_each_alone(item):
    windows = np.stack([side[0] for side in PAIRS])
    reference = PAIRS[0][1]
    together = item.scaled(windows, reference, POSITIONS)
    alone = [float(item.scaled(window, reference, POSITIONS)) for window in windows]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("item", BUILTIN.values(), ids=lambda item: item.name)
def test_nothing_compared_is_no_agreement(item):
    found = item.scaled(np.zeros(WIDTH, dtype=int), PAIRS[0][1], POSITIONS)
    assert np.isnan(found)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=WIDTH, max_size=WIDTH).filter(any))
def test_a_copy_is_at_distance_zero(values):
    counts = np.array(values)
    for item in BUILTIN.values():
        assert item.measure(counts, counts * 3, POSITIONS) == pytest.approx(
            0, abs=1e-6 if item.name != "psi" else 1
        )
        assert item.measure(counts, counts, POSITIONS) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("left", "right"), [(3000, 200), (50, 50)])
def test_exact_distances_are_those_of_scipy(left, right):
    rng = np.random.default_rng(6)
    a, b = np.round(rng.normal(size=left), 1), rng.exponential(size=right)
    assert ks_exact(a, b) == pytest.approx(stats.ks_2samp(a, b).statistic)
    assert wasserstein_exact(a, b) == pytest.approx(stats.wasserstein_distance(a, b))
    assert np.isnan(ks_exact(a[:0], b))
    assert np.isnan(wasserstein_exact(a, b[:0]))


def test_bins_lose_little():
    rng = np.random.default_rng(7)
    reference = rng.normal(size=20_000)
    bins = NumericBins.of(reference)
    counted = np.bincount(bins.codes(reference), minlength=WIDTH)
    for shift in (0.25, 0.5, 1.0):
        window = rng.normal(shift, 1, 4000)
        found = np.bincount(bins.codes(window), minlength=WIDTH)
        ks = float(kolmogorov_smirnov(found, counted, bins.positions()))
        assert ks <= ks_exact(window, reference) + 1e-12
        assert ks > ks_exact(window, reference) - 1 / BINS
        moved = float(wasserstein(found, counted, bins.positions())) * bins.spread
        assert moved == pytest.approx(wasserstein_exact(window, reference), rel=0.05)


def test_a_distance_must_suit_the_column():
    assert {distance(DEFAULT[kind], kind).name for kind in ColumnType} == set(DEFAULT.values())
    with pytest.raises(ValueError, match="no distance 'ks' of categorical columns; known: psi"):
        distance("ks", ColumnType.CATEGORICAL)
