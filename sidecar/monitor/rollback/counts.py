"""The counts that checks are made of, by blocks, read again only where something was added.

A check happens every few seconds and looks at dozens of series of blocks; most of the evidence in
memory is of other kinds. So what was read is kept, and only keys that were counted under since the
last look are read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.monitor.evidence import Evidence
from sidecar.monitor.rows import EvidenceKey
from validators.sequential.paired import CELLS

#: (model, candidate, baseline).
Sides = tuple[str, str, str]
#: (metric, output, policy).
Series = tuple[str, str, str]
#: Counts in the order of ``paired.CELLS``; a plain list, since most are never made an array.
Row = list[float]
#: Block → counts.
Blocks = dict[int, Row]


class Counted:
    """Reads evidence of pairs. Used by one thread."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._watched: frozenset[Sides] = frozenset()
        self._of: dict[Sides, dict[Series, Blocks]] = {}
        self._revision: dict[Sides, int] = {}

    def refresh(self, watched: Iterable[Sides]) -> None:
        """Read what has changed of these pairs since the last call."""
        wanted = frozenset(watched)
        touched = self._evidence.take_touched()
        keys: Iterable[EvidenceKey]
        if touched is None or wanted != self._watched:
            keys = self._evidence.all_keys()
            self._of = {sides: {} for sides in wanted}
            self._revision = {sides: self._revision.get(sides, 0) + 1 for sides in wanted}
            self._watched = wanted
        else:
            keys = touched
        changed = set()
        for key in keys:
            sides = key.model, key.candidate, key.baseline
            if sides in wanted:
                changed.add(sides)
                series = self._of[sides].setdefault((key.metric, key.output, key.policy), {})
                cells = self._evidence.cells(key)
                if cells:
                    series[key.block] = [cells.get(name, 0.0) for name in CELLS]
                else:  # joined to an older stretch
                    series.pop(key.block, None)
        for sides in changed:
            self._revision[sides] += 1

    def revision(self, sides: Sides) -> int:
        """Another number whenever something of the pair has changed."""
        return self._revision.get(sides, 0)

    def series(self, sides: Sides) -> dict[Series, Blocks]:
        """All that was counted of a pair; not to be changed."""
        return self._of.get(sides, {})


@dataclass(frozen=True, slots=True)
class Reset:
    """Where a pair began to be judged anew: what was counted until then is taken off.

    Old blocks are joined to stretches as they age (``blocks.py``), so it is not kept which block
    had what, but the sum of all up to the latest, and that one's number. Later counts up to that
    number, less the sum, are what came since, whatever was joined meanwhile.

    Attributes:
        of: series → (number of the latest block, sums).
    """

    of: dict[Series, tuple[int, Row]] = field(default_factory=dict)

    @classmethod
    def at(cls, counted: Mapping[Series, Blocks]) -> Reset:
        """Of what is counted now."""
        return cls({series: (max(of), _sum(of.values())) for series, of in counted.items() if of})

    def since(self, series: Series, blocks: Blocks) -> Blocks:
        """What was counted after it, in blocks numbered anew from 0 on."""
        found = self.of.get(series)
        if found is None:
            return blocks
        last, before = found
        joined = _sum(row for block, row in blocks.items() if block <= last)
        left = [max(n - gone, 0.0) for n, gone in zip(joined, before, strict=True)]
        after = {block - last: row for block, row in blocks.items() if block > last}
        return {0: left, **after} if any(left) else after

    def to_plain(self) -> list[list[Any]]:
        """As JSON values."""
        return [[*series, last, row] for series, (last, row) in self.of.items()]

    @classmethod
    def from_plain(cls, plain: Iterable[Any]) -> Reset:
        """The inverse of ``to_plain``."""
        return cls({(m, o, p): (int(last), list(map(float, row))) for m, o, p, last, row in plain})


def _sum(rows: Iterable[Row]) -> Row:
    total = [0.0] * len(CELLS)
    for row in rows:
        for at, count in enumerate(row):
            total[at] += count
    return total
