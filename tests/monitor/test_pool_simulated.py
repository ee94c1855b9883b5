"""The simulation of many replicas says what the checks that ship say, of what they would count."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sidecar.monitor.rounds import SPREAD
from tests.benchmarks.fleet_runs import Known, Pairs, alone, fleet, log_es
from validators.sequential import checks, latency

COUNT = 2600


def pairs(bets: int = 1, seed: int = 3) -> Pairs:
    rng = np.random.default_rng(seed)
    times_s = np.cumsum(rng.exponential(0.05, COUNT))
    only = rng.random((2, 2, COUNT, bets)) < np.array([0.03, 0.01]).reshape(2, 1, 1, 1)
    return Pairs(times_s, rng.integers(0, 5, COUNT), only[0], only[1] & ~only[0])


def by_stretch(known: Known, values: np.ndarray) -> dict[int, list]:
    """[pairs, ...] summed by the stretch that each is counted under."""
    return {int(n): values[known.stretches == n].sum(axis=0).tolist()
            for n in np.unique(known.stretches)}  # fmt: skip


def signs(known: Known, run: int) -> dict[int, list]:
    found: dict[int, np.ndarray] = {}
    for _, stretch, _, total in known.blocks:
        sides = np.stack([total[run] > 0, total[run] < 0, total[run] == 0], axis=-1)
        found[stretch] = found.get(stretch, 0) + sides.astype(float)
    return {n: rows.tolist() for n, rows in found.items()}


@pytest.mark.parametrize("way", ["alone", "fleet"])
def test_errors_and_times_are_judged_as_they_ship(way):
    for bets in (1, len(latency.METRICS)):
        seen = pairs(bets)
        known = alone(seen) if way == "alone" else fleet(seen, np.linspace(0, SPREAD, 5))
        end = np.array([known.pairs_s.max() + 10])
        found = log_es(seen, known, end)
        for run in (0, 1):
            new, previous = seen.new_only[run].astype(float), seen.previous_only[run].astype(float)
            cells = np.stack([np.zeros_like(new), new, previous, 1 - new - previous], axis=-1)
            counted, of_blocks = by_stretch(known, cells), signs(known, run)
            if bets == 1:
                judged = checks.judge_error(
                    checks.Harm("error"), {n: row[0] for n, row in counted.items()},
                    {n: row[0] for n, row in of_blocks.items()},
                )  # fmt: skip
            else:
                judged = checks.judge_latency(
                    checks.Harm("latency"), counted, {20: of_blocks}, 20
                )  # fmt: skip
            assert found[run, 0] == pytest.approx(judged.log_e)
            assert judged.log_e > math.log(20)


def test_flips_are_judged_as_they_ship():
    seen = pairs()
    known = fleet(seen, np.linspace(0, SPREAD, 5))
    found = log_es(seen, known, np.array([known.pairs_s.max() + 10]), budget=0.01)
    for run in (0, 1):
        new = seen.new_only[run].astype(float) - seen.previous_only[run]
        counted = by_stretch(known, np.stack([0 * new, new, 0 * new, 1 - new], axis=-1)[:, 0])
        blocks: dict[int, np.ndarray] = {}
        for _, stretch, count, total in known.blocks:
            capped = min(1.0, float(total[run, 0]))
            row = np.array([capped, 0, count / 20 - capped])
            blocks[stretch] = blocks.get(stretch, 0) + row
        positive = {n: np.maximum(row, 0).tolist() for n, row in counted.items()}
        judged = checks.judge_flips(
            checks.Harm("flip", budget=0.01), {"y": positive},
            {"y": {n: np.maximum(row, 0).tolist() for n, row in blocks.items()}},
        )  # fmt: skip
        if all((row >= 0).all() for row in blocks.values()):
            assert found[run, 0] == pytest.approx(judged.log_e)


def test_nothing_is_lost_on_the_way():
    seen = pairs()
    known = fleet(seen, np.linspace(0, SPREAD, 5))
    joined = sum(count for _, _, count, _ in known.blocks)
    assert COUNT - 20 < joined <= COUNT
    assert (known.pairs_s > seen.times_s).all()
    assert (known.pairs_s - seen.times_s).max() <= 2.0
    # A number is by what all had counted when it was given out.
    exact = np.arange(COUNT) // 1000
    assert (known.stretches <= exact).all()
    assert (known.stretches < exact).mean() < 0.05
