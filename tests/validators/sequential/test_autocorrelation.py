"""Which blocks are long enough: noise of known correlation, whole and sampled."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.signal import lfilter

from validators.sequential.autocorrelation import LAGS, VALUES_MIN, Autocorrelation

LENGTHS = (20, 100, 500)


def noise(rng, rho, size):
    """AR(1) with a variance of 1."""
    shocks = rng.normal(size=size) * math.sqrt(1 - rho**2)
    shocks[0] /= math.sqrt(1 - rho**2)
    return lfilter([1], [1, -rho], shocks)


def of(values, positions=None):
    found = Autocorrelation()
    found.add(values, positions)
    return found


@pytest.mark.parametrize(
    ("rho", "block"), [(0, 20), (0.5, 20), (0.8, 100), (0.95, 500), (0.998, 0)]
)
def test_longer_memory_asks_for_longer_blocks(rho, block):
    found = of(noise(np.random.default_rng(50), rho, 6000))
    assert found.block(LENGTHS) == block


@pytest.mark.parametrize(("rho", "allowed"), [(0, {20}), (0.9, {100, 500}), (0.99, {0, 500})])
def test_one_pair_in_ten_tells_as_much_when_their_places_are_known(rho, allowed):
    rng = np.random.default_rng(51)
    values = noise(rng, rho, 20_000)
    kept = np.flatnonzero(rng.random(len(values)) < 0.1)
    assert of(values[kept], kept).block(LENGTHS) in allowed
    if rho == 0.9:  # as if they were neighbours: ten times too short
        assert of(values[kept]).block(LENGTHS) == 20


def test_products_are_those_of_the_definition():
    rng = np.random.default_rng(52)
    values, positions = rng.normal(size=80), np.cumsum(rng.integers(1, 30, 80))
    found = Autocorrelation()
    for at in range(0, 80, 7):  # in portions
        found.add(values[at : at + 7], positions[at : at + 7])
    signs = np.sign(values)
    for lag in (0, 1, 5, 29, LAGS):
        pairs = [
            signs[i] * signs[j]
            for i in range(80)
            for j in range(i + 1)
            if positions[i] - positions[j] == lag
        ]
        assert found.products[lag] == sum(pairs)
        assert found.counts[lag] == len(pairs)


def test_a_lean_to_one_side_and_too_few_values_give_no_length():
    rng = np.random.default_rng(53)
    assert of(rng.normal(size=2000) + 2).block(LENGTHS) == 0
    assert of(rng.normal(size=VALUES_MIN - 1)).block(LENGTHS) == 0
    assert Autocorrelation().tau() == math.inf
    assert of(np.zeros(1000)).tau() == math.inf
    assert of(rng.normal(size=6000)).block(()) == 0


def test_parts_add_up_and_are_kept_as_json():
    values = noise(np.random.default_rng(54), 0.5, 900)
    whole = of(values)
    first = of(values[:500])
    again = Autocorrelation.from_plain(json.loads(json.dumps(first.to_plain())))
    again.add(values[500:])
    assert again.products.tolist() == whole.products.tolist()
    assert again.counts.tolist() == whole.counts.tolist()
    second = of(values[500:])
    first.merge(second)
    assert first.values == 900
    assert first.counts[3] == 497 + 397  # nothing is multiplied over the gap
    restarted = of(values[:500])
    restarted.restart()
    restarted.add(values[500:])
    assert restarted.counts.tolist() == first.counts.tolist()


def test_sums_by_lag_add_up_as_counts_do():
    rng = np.random.default_rng(55)
    replicas = [of(noise(rng, 0.8, 400)) for _ in range(6)]
    together, cells = Autocorrelation(), {}
    for one in replicas:
        together.merge(one)
        for name, value in one.to_cells().items():
            assert value
            cells[name] = cells.get(name, 0) + value
    assert Autocorrelation.from_cells(cells).tau() == together.tau()
    assert Autocorrelation.from_cells({}).block(LENGTHS) == 0


@pytest.mark.parametrize(("rho", "block"), [(0, 20), (0.05, 20), (0.5, 100), (0.9, 100)])
def test_joined_blocks_are_for_noise_that_does_not_hang_together(rho, block):
    rng, together = np.random.default_rng(56), Autocorrelation()
    for _ in range(32):
        together.merge(of(noise(rng, rho, 400)))
    assert together.block(LENGTHS, LENGTHS[:1]) == block
    if rho == 0.5:
        assert together.block(LENGTHS) == 20


def test_few_values_do_not_say_that_nothing_hangs_together():
    few = of(noise(np.random.default_rng(57), 0, 3000)[::10], np.arange(300) * 10)
    assert few.block(LENGTHS, LENGTHS[:1]) != 20


def test_its_size_is_bounded():
    found = of(np.ones(5000))
    plain = found.to_plain()
    assert {len(plain[key]) for key in plain} == {LAGS + 1}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: of([math.nan]), "NaN"),
        (lambda: of([1.0, 2.0], [3, 3]), "rise"),
        (lambda: Autocorrelation.from_cells({"c641": 1.0}), "c641"),
        (lambda: Autocorrelation.from_cells({"block": 20.0}), "block"),
        (lambda: of([1.0, 2.0], [3]), "2 positions"),
        (lambda: Autocorrelation.from_plain({}), "no autocorrelation"),
        (lambda: Autocorrelation.from_plain(of([1.0]).to_plain() | {"counts": [1.0]}), "lengths"),
        (
            lambda: Autocorrelation.from_plain(of([1.0]).to_plain() | {"products": [2.0] * 641}),
            "beyond",
        ),
        (
            lambda: Autocorrelation.from_plain(of([1.0, 1.0]).to_plain() | {"positions": [4, 4]}),
            "rise",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()
