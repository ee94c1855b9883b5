"""The new version beside the previous one: errors, latency, flips, counted as cells of pairs.

Both were run by the mirror child, in an order drawn at random; times are of model computation. The
cells are those of ``validators/sequential/paired.py``: n11 both harmed, n10 only the new version,
n01 only the previous one, n00 neither; by blocks of a thousand pairs, in order of arrival.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchanges import Item
from sidecar.monitor.mirror_protocol import ERRORS, Answer
from sidecar.monitor.plan import ModelPlan, Pair
from sidecar.monitor.record import Recorder
from sidecar.monitor.rows import EvidenceKey
from sidecar.runtimes.base import Array
from validators.sequential import latency
from validators.sequential.paired import BLOCK, CELLS, split
from validators.sketches import LogHistogram

#: A copy that was just loaded is slow, and not by its own fault.
WARM_UP_PAIRS = 20
#: The sides' times, as sketches of milliseconds.
NEW_MS, PREVIOUS_MS = "new_ms", "previous_ms"


class VersionPairs:
    """Counts pairs of versions.

    Args:
        plans: model → its plan, whose config says which slowdown is tolerated.
    """

    def __init__(
        self, evidence: Evidence, recorder: Recorder, plans: Mapping[str, ModelPlan]
    ) -> None:
        self._evidence = evidence
        self._recorder = recorder
        self._plans = plans
        self._history = latency.History()
        self._index: dict[tuple[str, str], int] = {}
        self._warm: dict[tuple[str, str], tuple[int, int]] = {}

    def has_counted(self, item: Item) -> bool:
        """Whether ``count`` takes this item for some pair."""
        return any(
            pair.purpose == "versions" and not pair.blocked and _both(item, pair)
            for pair in item.plan.pairs
        )

    def count(self, items: Sequence[Item], child: int) -> None:
        """Count what these items say about every pair of versions.

        Args:
            child: number of the mirror child's life: a new one has to warm up.
        """
        batches: dict[int, tuple[Pair, list[Item]]] = {}
        for item in items:
            for pair in item.plan.pairs:
                if pair.purpose == "versions" and not pair.blocked and _both(item, pair):
                    batches.setdefault(id(pair), (pair, []))[1].append(item)
        for pair, members in batches.values():
            self._count_pair(pair, members, child)

    def _count_pair(self, pair: Pair, items: list[Item], child: int) -> None:
        new = [item.answers[pair.candidate] for item in items]
        previous = [item.answers[pair.baseline] for item in items]
        blocks = self._next_blocks(pair, len(items))
        failed = np.array([[a.failure != "" for a in new], [a.failure != "" for a in previous]])
        for block in np.unique(blocks).tolist():
            harmed = failed[:, blocks == block].astype(np.float64)
            self._add(self._key(pair, "error", block), split(harmed[0], harmed[1]))
        warm = self._warm_from(pair, child, len(items))
        self._count_latency(pair, items[warm:], blocks[warm:])
        answered: Array = ~np.any(failed, axis=0)
        chosen = [item for item, both in zip(items, answered.tolist(), strict=True) if both]
        self._count_flips(pair, chosen, blocks[answered])

    def _add(self, key: EvidenceKey, cells: Array) -> None:
        self._evidence.add(key, dict(zip(CELLS, cells.tolist(), strict=True)))

    def _key(
        self, pair: Pair, metric: str, block: int, output: str = "", policy: str = ""
    ) -> EvidenceKey:
        sides = (pair.model, pair.candidate, pair.baseline)
        return EvidenceKey(*sides, output, metric, policy or pair.identity, block)

    def _next_blocks(self, pair: Pair, count: int) -> Array:
        """The blocks of the next so many pairs, int64 [count]."""
        sides = (pair.candidate, pair.baseline)
        if sides not in self._index:  # earlier lives' pairs come first
            self._index[sides] = sum(
                int(sum(self._evidence.cells(key).values()))
                for key in self._evidence.all_keys()
                if (key.model, key.candidate, key.baseline) == (pair.model, *sides)
                and (key.metric, key.policy) == ("error", pair.identity)
            )
        start = self._index[sides]
        self._index[sides] = start + count
        return np.arange(start, start + count, dtype=np.int64) // BLOCK

    def _warm_from(self, pair: Pair, child: int, count: int) -> int:
        """How many of the next ``count`` pairs still belong to the warm-up."""
        sides = (pair.candidate, pair.baseline)
        life, seen = self._warm.get(sides, (child, 0))
        seen = seen if life == child else 0
        self._warm[sides] = (child, seen + count)
        return min(max(WARM_UP_PAIRS - seen, 0), count)

    def _count_latency(self, pair: Pair, items: list[Item], blocks: Array) -> None:
        groups: dict[tuple[int, int], list[tuple[float, float]]] = {}
        for item, block in zip(items, blocks.tolist(), strict=True):
            new, previous = item.answers[pair.candidate], item.answers[pair.baseline]
            if ERRORS & {new.failure, previous.failure}:
                continue  # an error may be quick; it is counted as what it is
            times = (_milliseconds(new), _milliseconds(previous))
            groups.setdefault((block, item.rows), []).append(times)
        margin = self._plans[pair.model].config.validation.latency_margin
        sketches = LogHistogram(), LogHistogram()
        for (block, rows), pairs in groups.items():
            new_ms, previous_ms = np.array(pairs, np.float64).T
            # Of one batch all pairs are judged by the thresholds from before it.
            key = (pair.candidate, pair.baseline, rows)
            bounds = self._history.thresholds(key)
            cells = latency.cells(new_ms, previous_ms, margin, bounds)
            for metric, row in zip(latency.METRICS, cells, strict=True):
                self._add(self._key(pair, metric, block), row)
            for time in previous_ms.tolist():
                self._history.add(key, time)
            for sketch, times_ms in zip(sketches, (new_ms, previous_ms), strict=True):
                sketch.add(times_ms[np.isfinite(times_ms)])
        for side, sketch in zip((NEW_MS, PREVIOUS_MS), sketches, strict=True):
            self._evidence.add_sketch(self._key(pair, side, 0), sketch)

    def _count_flips(self, pair: Pair, items: list[Item], blocks: Array) -> None:
        if not items:
            return
        truths = [dict(item.answers[pair.baseline].outputs or {}) for item in items]
        candidates = [dict(item.answers[pair.candidate].outputs or {}) for item in items]
        result = self._recorder.compare(pair, truths, candidates, items)
        assert pair.policies is not None
        for name, output in result.outputs.items():
            policy = pair.policies.hashes.get(name, f"{pair.identity}-")
            for block in np.unique(blocks).tolist():
                chosen = output.compared & (blocks == block)
                flipped = output.x[chosen]
                # Between two answers neither is the wrong one: what differs counts as the new's.
                cells = split(flipped, np.zeros_like(flipped))
                self._add(self._key(pair, "flip", block, name, policy), cells)


def _both(item: Item, pair: Pair) -> bool:
    """Both versions were run, whatever came of it."""
    answers = (item.answers.get(pair.candidate), item.answers.get(pair.baseline))
    return all(answer is not None and answer.failure != "absent" for answer in answers)


def _milliseconds(answer: Answer) -> float:
    return math.inf if answer.failure == "timeout" else answer.compute_ns / 1e6
