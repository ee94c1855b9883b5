"""Times of both versions, and of the previous version beside itself.

A pair's five bets are those of ``validators/sequential/latency.py``, counted pair by pair and by
blocks of pairs. Which length of block is to be believed the calibration says: on some exchanges the
previous version runs twice, so that whatever looks like a difference there is noise.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchanges import Item
from sidecar.monitor.mirror_protocol import ERRORS, Answer
from sidecar.monitor.plan import Pair
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.version_blocks import BlockBets, PairIndex, add_cells
from sidecar.monitor.version_thresholds import PREVIOUS_MS, Thresholds
from sidecar.runtimes.base import Array
from validators.sequential import latency
from validators.sequential.autocorrelation import Autocorrelation
from validators.sequential.paired import BLOCK
from validators.sketches import LogHistogram

#: The new version's times, as a sketch of milliseconds; ``PREVIOUS_MS`` is the other one's.
NEW_MS = "new_ms"
#: Log-ratios of the calibration that the next one is centred by, and how many there must be.
_CENTRE_OF, _CENTRE_FROM = 200, 20
#: So many further values are told together, or such a share of those before.
_TELL_EVERY, _TELL_MORE = 10, 0.05


class Latency:
    """Counts times, for one thread."""

    def __init__(self, evidence: Evidence, bets: BlockBets) -> None:
        self._evidence = evidence
        self._bets = bets
        self._thresholds = Thresholds(evidence)
        self._calibrations: dict[tuple[str, str], _Calibration] = {}
        self._index = PairIndex(evidence)

    def count(
        self, pair: Pair, items: list[Item], blocks: Array, positions: Array, *, margin: float
    ) -> None:
        """Count what items say about one pair.

        Args:
            items: that both versions were run on, warm.
            blocks: the stretches that they are counted under, int64 [items].
            positions: which of this life's pairs they are, int64 [items], rising.
            margin: tolerated slowdown, relative.
        """
        kept = [at for at, item in enumerate(items) if not _failed(item, pair)]
        if not kept:
            return
        chosen = [items[at] for at in kept]
        key = EvidenceKey(pair.model, pair.candidate, pair.baseline, "", "", pair.identity)
        sizes = [item.rows for item in chosen]
        # Of one batch all pairs are judged by the thresholds from before it.
        bounds = self._thresholds.of(key, sizes)
        new_ms, previous_ms = (
            np.array([_milliseconds(item.answers[side]) for item in chosen], np.float64)
            for side in (pair.candidate, pair.baseline)
        )
        harmed = latency.harms(new_ms, previous_ms, margin, bounds)
        self._bet(key, harmed, blocks[kept], seen_ns(chosen))
        self._calibrate(pair, chosen, positions[kept], bounds, margin)
        for side, times_ms in ((NEW_MS, new_ms), (PREVIOUS_MS, previous_ms)):
            sketch = LogHistogram()
            sketch.add(times_ms[np.isfinite(times_ms)])
            self._evidence.add_sketch(replace(key, metric=side), sketch)
        self._thresholds.add(key, sizes, previous_ms)

    def _bet(
        self, key: EvidenceKey, harmed: tuple[Array, Array], blocks: Array, times: Sequence[int]
    ) -> None:
        new, previous = (side.astype(np.float64) for side in harmed)
        sides = key.model, key.candidate, key.baseline
        keys = [EvidenceKey(*sides, "", metric, key.policy) for metric in latency.METRICS]
        add_cells(self._evidence, keys, new, previous, blocks)
        of_pairs = blocks.tolist()
        for place, differences in zip(keys, (new - previous).T.tolist(), strict=True):
            self._bets.add(place, differences, of_pairs, seen_ns=times)

    def _calibrate(
        self, pair: Pair, items: list[Item], positions: Array, bounds: Array, margin: float
    ) -> None:
        """Count the previous version beside itself, where it ran twice."""
        found = [
            at
            for at, item in enumerate(items)
            if item.twice is not None and item.twice.pair is pair and _ran_twice(item)
        ]
        if not found:
            return
        first, second, swapped = [], [], []
        for at in found:
            item = items[at]
            assert item.twice is not None
            assert item.twice.answer is not None
            first.append(_milliseconds(item.twice.answer))
            second.append(_milliseconds(item.answers[pair.baseline]))
            swapped.append(item.twice.is_swapped)
        times = np.array([first, second], np.float64)
        new = np.where(swapped, times[1], times[0])
        previous = np.where(swapped, times[0], times[1])
        key = EvidenceKey(pair.model, pair.baseline, pair.baseline, "", "", pair.identity)
        counted = self._index.take(replace(key, metric=latency.METRICS[0]), len(found))
        harmed = latency.harms(new, previous, margin, bounds[found])
        self._bet(key, harmed, counted // BLOCK, seen_ns([items[at] for at in found]))
        self._evidence.add(replace(key, metric=harms.CALIBRATION), {"pairs": float(len(found))})
        calibration = self._calibrations.setdefault((pair.candidate, pair.baseline), _Calibration())
        calibration.add(times, positions[found])
        if told := calibration.news():
            self._evidence.add(replace(key, metric=harms.NOISE), told)


@dataclass(slots=True)
class _Calibration:
    """The noise of one pair's previous version, in this life."""

    noise: Autocorrelation = field(default_factory=Autocorrelation)
    told: dict[str, float] = field(default_factory=dict)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=_CENTRE_OF))

    def add(self, times: Array, numbers: Array) -> None:
        """``times``: float64 [2, n], of the first and the second run; in order of arrival.

        The first run of an item finds its input cold. What that costs is the same for all, and
        taken off: the values are centred by the median of those before.
        """
        for (first, second), number in zip(times.T.tolist(), numbers.tolist(), strict=True):
            if not (0 < first < math.inf and 0 < second < math.inf):
                continue
            value = math.log(first / second)
            if len(self.recent) >= _CENTRE_FROM:
                self.noise.add([value - float(np.median(self.recent))], [number])
            self.recent.append(value)

    def news(self) -> dict[str, float]:
        """What was added to the sums since they were last told, once there are some more: they are
        hundreds of numbers."""
        told = self.told.get("c0", 0.0)
        if self.noise.values < told + max(_TELL_EVERY, _TELL_MORE * told):
            return {}
        sums = self.noise.to_cells()
        news = {name: value - self.told.get(name, 0.0) for name, value in sums.items()}
        self.told = sums
        return {name: value for name, value in news.items() if value}


def _failed(item: Item, pair: Pair) -> bool:
    """An error may be quick; it is counted as what it is."""
    sides = item.answers[pair.candidate], item.answers[pair.baseline]
    return bool(ERRORS & {answer.failure for answer in sides})


def seen_ns(items: Sequence[Item]) -> list[int]:
    """When the requests were answered, wall clock, [items]."""
    return [item.exchange.wall_ns for item in items]


def _ran_twice(item: Item) -> bool:
    answer = None if item.twice is None else item.twice.answer
    return answer is not None and answer.failure in {"", "timeout"}


def _milliseconds(answer: Answer) -> float:
    return math.inf if answer.failure == "timeout" else answer.compute_ns / 1e6
