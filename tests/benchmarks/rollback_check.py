"""One rollback check over fifty metric processes: what the monitor does every few seconds."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from sidecar.config import ModelConfig
from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.plan import ModelPlan
from sidecar.monitor.rollback.book import Book
from sidecar.monitor.rollback.desk import Desk
from sidecar.monitor.rollback.watched import Sources
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store
from tests.benchmarks.tools import Row
from tests.monitor.making import Clock, model, plan
from tests.monitor.rollback.bench import Unheard
from validators.sequential import latency

MODELS, HARMS = 1, 5
#: Stretches that a pair of a few hundred thousand requests has (``monitor/blocks.py``).
BLOCKS = 64
CLASSES = 10
#: By pairs and by blocks: errors, accuracy, flips, five of latency, each class up and down.
PROCESSES = MODELS * 2 * (1 + 1 + 1 + 5 + 2 * CLASSES)
#: Keys of other kinds in the same memory: certificates, drift, other pairs.
OTHERS = 20_000
TARGET_MS = 5.0


def rollback_check(rounds: int) -> list[Row]:
    """Every series has grown since the last check, and none has."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        store = Store.open(Path(folder), clock)
        evidence = Evidence("life", clock)
        evidence.load(store)
        plans = {f"m{number}": _plan(number) for number in range(MODELS)}
        configs = {name: one.config for name, one in plans.items()}
        fill = _Filling(evidence, plans)
        book = Book(Unheard(), clock)
        book.follow(store)
        sources = Sources(
            configs, plans, evidence, dict, lambda _: 0.01, lambda _model, _variant: True
        )
        desk = Desk(sources, book, clock, rate=1.0)
        desk.check()
        grown, idle = [], []
        for _ in range(10 * rounds):
            fill.grow()
            grown.append(_timed_ms(desk))
            idle.append(_timed_ms(desk))
        store.close()
    looked = sum(len(one.look.harms) for one in desk.watched() if one.look is not None)
    assert looked == MODELS * HARMS, looked
    detail = f"{HARMS} harms, {CLASSES} classes, {BLOCKS} starts each; CPU time; worst "
    return [
        Row(
            f"one check over {PROCESSES} metric processes, all grown", f"≤ {TARGET_MS:g} ms",
            f"{statistics.median(grown):.2f} ms", statistics.median(grown) <= TARGET_MS,
            f"{detail}{max(grown):.1f} ms",
        ),
        Row(
            "the same when nothing was counted since", f"≤ {TARGET_MS:g} ms",
            f"{statistics.median(idle):.2f} ms", statistics.median(idle) <= TARGET_MS,
            f"worst {max(idle):.1f} ms",
        ),
    ]  # fmt: skip


def _plan(number: int) -> ModelPlan:
    settings = {"labels": {}, "rollback": {"min_pairs": 100}}
    made = model(("1", "old", ["previous"]), ("2", "new", ["serving"]), **settings)
    found = plan(made)
    name = f"m{number}"
    tree = ModelConfig.model_validate({**made.model_dump(mode="json"), "name": name})
    for pair in found.pairs:
        pair.model = name
        pair.candidate = pair.candidate.replace("m:", f"{name}:")
        pair.baseline = pair.baseline.replace("m:", f"{name}:")
    found.config = tree
    return found


class _Filling:
    """Counts of two versions that are alike."""

    def __init__(self, evidence: Evidence, plans: dict[str, ModelPlan]) -> None:
        self._evidence = evidence
        self._rng = np.random.default_rng(0)
        self._pairs = [
            pair for one in plans.values() for pair in one.pairs if pair.purpose == "versions"
        ]
        for number in range(OTHERS):
            evidence.add(EvidenceKey("x", "a", "b", "", f"other{number}"), {"n": 1.0})
        for block in range(BLOCKS):
            self._count(block, 1000)
        for pair in self._pairs:
            sides = pair.model, pair.baseline, pair.baseline
            cells = {"pairs": 1000.0, "block": 20.0}
            evidence.add(EvidenceKey(*sides, "", harms.CALIBRATION, pair.identity), cells)

    def grow(self) -> None:
        """A few more pairs, of every series of every pair."""
        self._count(BLOCKS - 1, 20)

    def _count(self, block: int, pairs: int) -> None:
        for pair in self._pairs:
            sides = pair.model, pair.candidate, pair.baseline
            names = [harms.ERROR, harms.ACCURACY, *latency.METRICS]
            for name in names:
                self._add((*sides, "", name, pair.identity, block), pairs)
                lengths = harms.BLOCK_LENGTHS if name != harms.ACCURACY else (20,)
                for length in lengths:
                    key = (*sides, "", harms.by(name, length), pair.identity, block)
                    self._add(key, pairs / length)
            for name in [harms.FLIP, *(f"{harms.OUTPUT}{number}" for number in range(CLASSES))]:
                self._add((*sides, "y", name, pair.identity, block), pairs)
                key = (*sides, "y", harms.by(name, 20), pair.identity, block)
                self._add(key, pairs / 20)

    def _add(self, key: tuple, count: float) -> None:
        harmed = float(self._rng.integers(0, 2))
        one = min(harmed, count)
        name = EvidenceKey(*key)
        flip = key[4].startswith(harms.FLIP)
        self._evidence.add(
            name, {"n10": 0.0 if flip else one, "n01": 0.0 if flip else one, "n00": count}
        )


def _timed_ms(desk: Desk) -> float:
    start = time.thread_time_ns()
    desk.check()
    return (time.thread_time_ns() - start) / 1e6
