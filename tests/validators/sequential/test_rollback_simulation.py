"""The simulation of rollback checks: its traffic, and that it judges times as the checks do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.benchmarks import rollback_simulation as simulation
from tests.benchmarks import rollback_traffic as traffic
from validators.sequential import checks, latency
from validators.sequential.latency import QUANTILES

ALPHA = 0.05


def test_times_are_judged_as_the_checks_judge_them():
    rng = np.random.default_rng(80)
    new, previous = traffic.tail_slower(rng, 1, 2400)
    found = simulation.timed((new, previous), 200, renew=200)["ships"]
    times = np.exp(new[0].astype(float)), np.exp(previous[0].astype(float))
    pairs: dict[int, np.ndarray] = {}
    signs: dict[int, np.ndarray] = {}
    for at in range(0, 2400, 200):
        past = times[1][:at]
        bounds = np.quantile(past, QUANTILES, method="higher") if at else [math.nan] * 4
        pairs[at // 1000] = pairs.get(at // 1000, 0) + latency.cells(
            times[0][at : at + 200], times[1][at : at + 200], 0.0, bounds
        )
        for begin in range(at, at + 200, 20):
            now = slice(begin, begin + 20)
            cells = latency.cells(times[0][now], times[1][now], 0.0, bounds)
            sign = np.sign(cells[:, 1] - cells[:, 2])
            block = np.stack([sign > 0, sign < 0, sign == 0], axis=1).astype(float)
            signs[at // 1000] = signs.get(at // 1000, 0) + block
        ships = checks.judge_latency(checks.Harm("latency"), pairs, {20: signs}, 20).log_e
        assert found[0, at // 200] == pytest.approx(ships, abs=1e-6)


def test_noise_of_each_version_breaks_pairs_and_not_the_calibrated_blocks():
    rng = np.random.default_rng(81)
    chosen: list[int] = []
    found = simulation.calibrated(rng, 60, 0.9, False, chosen)
    alarms = {name: (log_e >= -math.log(ALPHA)).any(axis=1).mean() for name, log_e in found.items()}
    assert alarms["ships"] <= ALPHA
    assert alarms["pairs"] > 0.5
    assert set(chosen) <= {100, 500, 0}  # τ is 19: never a block of 20


@pytest.mark.parametrize("length", [1, 5, 20])
def test_steady_and_bursty_harm_have_equal_means(length):
    steady, bursty = traffic.steady_and_bursty(np.random.default_rng(82), 200, 5000, length)
    assert bursty.mean() == pytest.approx(steady.mean(), rel=0.1)
    # Failures come in stretches of the burst's length, or of several.
    edges = np.diff(bursty[:, :-length].astype(int), axis=1)
    assert (edges == 1).sum() <= bursty.sum() / length * 1.05


def test_flips_looked_at_at_every_request_agree_with_every_hundred():
    flips = np.random.default_rng(83).random((20, 2000)) < 0.005
    often, seldom = (simulation.flipped(flips, every)["ships"] for every in (1, 100))
    assert often[:, 99::100] == pytest.approx(seldom, abs=1e-9)


def test_the_bounds_are_those_of_the_definition():
    growth = simulation.growths()
    assert growth["error"] == pytest.approx(0.009 * math.log(2))
    assert growth["accuracy"] == pytest.approx(
        max(0.03 * math.log1p(s) + 0.01 * math.log1p(-s) for s in np.linspace(0.01, 0.99, 99)),
        rel=1e-3,
    )
    assert math.log(1 / ALPHA) / growth["slow"] == pytest.approx(25, abs=2)
    assert math.log(1 / ALPHA) / growth["tail"] == pytest.approx(462, rel=0.1)


def test_the_quick_parts_run():
    rows = simulation.false_flip_alarms(simulation.seeded("quick"), 1)
    assert all(row.met for row in rows)
