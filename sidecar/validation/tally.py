"""What chunks of rows add up to: metrics of every row, sketches, and the rows that differ most."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.validation.layout import Rows, pick
from validators.judge import Measured
from validators.sketches import LogHistogram

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array
    from validators.compare import OutputComparison
    from validators.limits import Limit
    from validators.policy import OutputPolicy

#: Worst rows kept of each output of each variant, and of what is kept of each at most.
WORST_ROWS = 5
ROW_BYTES_MAX = 32 * 2**20


@dataclass(slots=True)
class KeptRow:
    """A row that is kept with everything: an exchange of one row.

    Attributes:
        variant, input_set, row, output, reason, metrics: as in ``WorstCase``.
        inputs: input → [1, …].
        outputs: variant key → output → [1, …]; a variant that failed has none.
        decides: whether its input set does.
        score: how bad it is; only comparable within one variant and output.
    """

    variant: str
    input_set: str
    row: int
    output: str
    reason: str
    inputs: Rows
    outputs: dict[str, Rows]
    metrics: dict[str, float] = field(default_factory=dict)
    decides: bool = True
    score: float = 0.0


class WorstRows:
    """The rows of one variant that differ most: a few of each output."""

    def __init__(self, limit: int = WORST_ROWS) -> None:
        self.limit = limit
        self._heaps: dict[str, list[tuple[bool, float, int, KeptRow]]] = {}
        self._order = count()

    def offer(self, row: KeptRow) -> None:
        """Keep ``row`` if it is among the worst of its output; copies what it keeps."""
        heap = self._heaps.setdefault(row.output, [])
        # The order breaks ties, for the first of equals, and rows are never compared themselves.
        entry = (row.decides, row.score, -next(self._order), row)
        if len(heap) == self.limit and entry < heap[0]:
            return
        row.inputs = _copied(row.inputs)
        row.outputs = {key: _copied(rows) for key, rows in row.outputs.items()}
        if len(heap) < self.limit:
            heapq.heappush(heap, entry)
        else:
            heapq.heappushpop(heap, entry)

    def least(self, output: str) -> tuple[bool, float]:
        """What a row must be worse than to be kept."""
        heap = self._heaps.get(output, [])
        return heap[0][:2] if len(heap) == self.limit else (False, -math.inf)

    def rows(self) -> list[KeptRow]:
        """All that are kept, the worst of each output first."""
        return [
            entry[-1]
            for heap in self._heaps.values()
            for entry in sorted(heap, key=lambda entry: entry[:3], reverse=True)
        ]


def _copied(rows: Rows) -> Rows:
    return {name: array.copy() for name, array in rows.items()}


class Tally:
    """One variant on one input set: every chunk's comparison, added up."""

    def __init__(self, policies: Mapping[str, OutputPolicy]) -> None:
        self.policies = policies
        self.rows = 0
        self._parts: dict[str, list[OutputComparison]] = {}
        self._problems: dict[str, list[str]] = {}
        self._kinds: dict[str, str] = {}

    def add(self, found: Mapping[str, OutputComparison], rows: int) -> None:
        """Add one chunk's comparison; the metrics of its rows go behind those before."""
        self.rows += rows
        for name, comparison in found.items():
            self._kinds[name] = comparison.kind
            if comparison.problems:
                known = self._problems.setdefault(name, [])
                known += [text for text in comparison.problems if text not in known]
            else:
                self._parts.setdefault(name, []).append(comparison)

    def has_problem(self, output: str) -> bool:
        """Whether structure forbade to compare the output."""
        return output in self._problems

    def measured(self) -> list[Measured]:
        """Every output, before any limit. A problem in one chunk is a problem of the output."""
        return [self._measured(name) for name in self._kinds]

    def _measured(self, name: str) -> Measured:
        policy = self.policies.get(name)
        inferred = policy.inferred if policy else ""
        problems = self._problems.get(name)
        if problems:
            # Of an output with axes in another order, say, each size of batch has its own.
            more = f" (and {len(problems) - 1} more like it)" if len(problems) > 1 else ""
            first = f"{problems[0]}{more}"
            return Measured(name, self._kinds[name], inferred, problems=[first])
        parts = self._parts[name]
        names = dict.fromkeys(metric for part in parts for metric in part.metrics)
        sketches: dict[str, LogHistogram] = {}
        for part in parts:
            for key, sketch in part.sketches.items():
                sketches.setdefault(key, LogHistogram()).merge(sketch)
        return Measured(
            output=name,
            kind=self._kinds[name],
            inferred=inferred,
            invalid=np.concatenate([part.invalid for part in parts]),
            metrics={
                metric: np.concatenate([_of(part, metric) for part in parts]) for metric in names
            },
            sketches={key: sketch.to_plain() for key, sketch in sketches.items()},
        )


def _of(part: OutputComparison, metric: str) -> Array:
    found = part.metrics.get(metric)
    return np.full(part.rows, np.nan) if found is None else found


def scores(comparison: OutputComparison, limits: Sequence[Limit]) -> Array:
    """How bad each row is, float64 [rows]: the largest excess over a limit, relative to the limit.

    Infinite where the row is non-finite on one side only; of an output without limits, 0.
    """
    worst: Any = np.full(comparison.rows, -np.inf)
    for limit in limits:
        values = comparison.metrics.get(limit.metric)
        if values is None:
            continue
        excess = values - limit.value if limit.op == "<=" else limit.value - values
        worst = np.fmax(worst, excess / max(abs(limit.value), 1e-9))
    worst[comparison.invalid] = np.inf
    return np.where(np.isneginf(worst), -1e300, worst)


def keep_worst(
    worst: WorstRows,
    found: Mapping[str, OutputComparison],
    policies: Mapping[str, OutputPolicy],
    row: KeptRow,
    *,
    inputs: Rows,
    outputs: Mapping[str, Rows],
) -> None:
    """Offer the worst rows of one chunk.

    Args:
        worst: of the variant.
        found: the chunk's comparison.
        policies: output → limits.
        row: what is alike in all of them; its ``row`` is the chunk's first.
        inputs: of the chunk.
        outputs: variant key → the chunk's outputs.
    """
    for name, comparison in found.items():
        if comparison.problems or not comparison.rows or name not in policies:
            continue
        limits = policies[name].limits
        badness = scores(comparison, limits)
        order = np.argsort(-badness, kind="stable")[: worst.limit]
        for at in map(int, order):
            score = float(badness[at])
            if (row.decides, score) <= worst.least(name):
                break
            one = pick(inputs, at, at + 1)
            sides = {key: pick(rows, at, at + 1) for key, rows in outputs.items()}
            if (
                sum(a.nbytes for rows in (one, *sides.values()) for a in rows.values())
                > ROW_BYTES_MAX
            ):
                continue
            metrics = {key: float(values[at]) for key, values in comparison.metrics.items()}
            kept = KeptRow(row.variant, row.input_set, row.row + at, name,
                           _reason(comparison, limits, at), one, sides)  # fmt: skip
            kept.metrics, kept.decides, kept.score = metrics, row.decides, score
            worst.offer(kept)


def _reason(comparison: OutputComparison, limits: Sequence[Limit], at: int) -> str:
    """``failure:…`` where the row disagrees, else which metric made it one of the worst."""
    if comparison.invalid[at]:
        return "failure:not finite"
    over = [limit.metric for limit in limits if _violated(comparison, limit, at)]
    if over:
        return f"failure:{over[0]}"
    first = next((limit.metric for limit in limits if limit.metric in comparison.metrics), "")
    return f"worst:{first}"


def _violated(comparison: OutputComparison, limit: Limit, at: int) -> bool:
    values = comparison.metrics.get(limit.metric)
    return values is not None and bool(limit.violated(values[at]))
