"""Own counts and those of the others (``others.py``), with old stretches joined in step.

A stretch that began for one incarnation and not for another would be a start of neither: so both
are joined at the same moment, as far as the newest stretch that anybody has.
"""

from __future__ import annotations

from typing_extensions import override

from sidecar.clock import Clock
from sidecar.monitor.evidence import Cells, Evidence
from sidecar.monitor.others import Others, Series, series_of
from sidecar.monitor.packs import PackKey, add_cells, pack_of
from sidecar.monitor.rows import EvidenceKey

#: Sums of shares that are nearer to 0 than this are rounding.
_NOTHING = 1e-9


class JoinedEvidence(Evidence):
    """What ``SharedEvidence`` has in memory."""

    def __init__(self, incarnation: str, clock: Clock) -> None:
        super().__init__(incarnation, clock)
        self._others = Others(self._older)
        self._own_packs: dict[PackKey, set[EvidenceKey]] = {}
        self._own_blocks: dict[Series, set[int]] = {}
        self._unjoined: set[Series] = set()
        self._changed_packs: set[PackKey] = set()
        self._folded: dict[EvidenceKey, Cells] = {}

    @override
    def _began(self, key: EvidenceKey) -> None:
        self._keys = None
        if not key.model:
            return
        self._own_packs.setdefault(pack_of(key), set()).add(key)
        self._own_blocks.setdefault(series_of(key), set()).add(key.block)
        self._others.note(key)
        if self._others.stretch(key) != key.block:
            self._unjoined.add(series_of(key))

    @override
    def own_cells(self, key: EvidenceKey) -> Cells:
        cells = super().own_cells(key)
        add_cells(cells, self._folded.get(key, {}))
        return cells

    def latest(self, key: EvidenceKey) -> int:
        """The newest stretch that anybody has of a key's series."""
        with self._lock:
            return self._others.latest(key)

    def _take_off(self, key: EvidenceKey, cells: Cells) -> None:
        add_cells(self._folded.setdefault(key, {}), cells)
        at = EvidenceKey(*series_of(key), self._others.stretch(key))
        own = self._own.get(at)
        if own is None:
            at, own = key, self._own.get(key)
        if own is None:
            return
        add_cells(own, {name: -count for name, count in cells.items()})
        if all(abs(count) < _NOTHING for count in own.values()):
            self._forget(at)

    def _forget(self, key: EvidenceKey) -> None:
        """One of our own keys is no more."""
        del self._own[key]
        self._keys = None
        self._changed.discard(key)
        pack = pack_of(key)
        self._own_packs[pack].discard(key)
        if not self._own_packs[pack]:
            del self._own_packs[pack]
        self._own_blocks[series_of(key)].discard(key.block)
        self._changed_packs.add(pack)

    def _settle(self) -> None:
        """Join what is long past: the others' as read, and in step with it our own."""
        touched, later = self._others.settle()
        for series in later | self._unjoined:
            touched |= self._join_own(series)
        self._unjoined.clear()
        if touched:
            self._keys = None
        if self._touched is not None:
            self._touched |= touched

    def _join_own(self, series: Series) -> set[EvidenceKey]:
        touched = set()
        for block in sorted(self._own_blocks.get(series, ())):
            key = EvidenceKey(*series, block)
            first = self._others.stretch(key)
            if first == block:
                continue
            target = EvidenceKey(*series, first)
            cells = self._own[key]
            self._forget(key)
            if target not in self._own:
                self._own[target] = {}
                self._own_packs.setdefault(pack_of(target), set()).add(target)
                self._own_blocks[series].add(first)
            add_cells(self._own[target], cells)
            self._changed.add(target)
            touched |= {key, target}
        return touched
