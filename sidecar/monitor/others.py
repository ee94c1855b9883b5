"""What the other monitors of a fleet have counted, as last read, in memory.

Their rows are kept as they were read. Each incarnation joins its own old stretches when it learns
of newer ones (``blocks.py``), one a second earlier than another: so for summing, all of them are
joined here as far as the newest stretch that anybody has. (Joined stretches nest: they are only
ever joined further.)
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from sidecar.monitor import blocks
from sidecar.monitor.packs import Cells, Pack, PackKey, add_cells, sum_packs
from sidecar.monitor.rows import EvidenceKey, EvidenceRow

_stretch_of = lru_cache(maxsize=65536)(blocks.stretch_of)
#: A key without its block.
Series = tuple[str, str, str, str, str, str]


def series_of(key: EvidenceKey) -> Series:
    """All stretches of a key."""
    return key.model, key.candidate, key.baseline, key.output, key.metric, key.policy


class Others:
    """Not locked: whoever counts holds the lock.

    Args:
        sums: key → cells over all others, kept up to date here; keys that are no more go.
    """

    def __init__(self, sums: dict[EvidenceKey, Cells]) -> None:
        self._sums = sums
        self._packs: dict[PackKey, dict[str, tuple[Pack, int]]] = {}
        self._read: dict[PackKey, set[EvidenceKey]] = {}
        #: As read: series → block → cells over all incarnations.
        self._blocks: dict[Series, dict[int, Cells]] = {}
        #: As joined: series → the first blocks of its stretches that have a sum.
        self._stretches: dict[Series, set[int]] = {}
        self._latest: dict[Series, int] = {}
        self._later: set[Series] = set()
        self._dirty: set[PackKey] = set()

    def latest(self, key: EvidenceKey) -> int:
        """The newest stretch that anybody has of a key's series."""
        return self._latest.get(series_of(key), 0)

    def stretch(self, key: EvidenceKey) -> int:
        """Where a key's counts belong now."""
        return _stretch_of(key.block, self._latest.get(series_of(key), 0))

    def note(self, key: EvidenceKey) -> None:
        """Somebody (this monitor) has a stretch: what is older may have to be joined."""
        series = series_of(key)
        if key.block > self._latest.get(series, -1):
            self._latest[series] = key.block
            self._later.add(series)

    def put(self, pack: Pack, incarnation: str, updated_ns: int) -> None:
        """A row as it was read; one without counts is gone."""
        lives = self._packs.setdefault(pack.key, {})
        if pack.layout.size:
            lives[incarnation] = pack, updated_ns
        else:
            lives.pop(incarnation, None)
        self._dirty.add(pack.key)

    def drop(self, incarnation: str) -> None:
        """Forget an incarnation: what it counted is part of another's rows, or is read again."""
        for key, lives in self._packs.items():
            if lives.pop(incarnation, None) is not None:
                self._dirty.add(key)

    def clear(self) -> None:
        """Forget all of them."""
        for key, lives in self._packs.items():
            lives.clear()
            self._dirty.add(key)

    def take_later(self) -> set[Series]:
        """Series that have a newer stretch since the last call."""
        later, self._later = self._later, set()
        return later

    def settle(self) -> tuple[set[EvidenceKey], set[Series]]:
        """Sum again what has changed.

        Returns:
            Keys whose sums are others now, or gone; and series that have a newer stretch.
        """
        changed: set[EvidenceKey] = set()
        for pack in self._dirty:
            changed |= self._sum(pack)
        self._dirty.clear()
        for key in changed:
            self.note(key)
        later = self.take_later()
        touched: set[EvidenceKey] = set()
        for key in changed:
            series = series_of(key)
            if series not in later:
                touched |= self._join(series, {_stretch_of(key.block, self._latest[series])})
        for series in later:
            touched |= self._join(series, None)
        return touched, later

    def _sum(self, pack: PackKey) -> set[EvidenceKey]:
        """Sum a pack over all incarnations, as read; returns its keys, gone ones too."""
        lives = self._packs[pack]
        summed = sum_packs(one for one, _ in lives.values())
        if not lives:
            del self._packs[pack]
        found = {pack.key(place): cells for place, cells in summed.items()}
        gone = self._read.get(pack, set()) - found.keys()
        if found:
            self._read[pack] = set(found)
        else:
            self._read.pop(pack, None)
        for key, cells in found.items():
            self._blocks.setdefault(series_of(key), {})[key.block] = cells
        for key in gone:
            del self._blocks[series_of(key)][key.block]
        return gone | found.keys()

    def _join(self, series: Series, wanted: set[int] | None) -> set[EvidenceKey]:
        """Sum stretches of a series as they are joined now: those ``wanted``, or (``None``) all."""
        latest = self._latest[series]
        joined: dict[int, Cells] = {}
        for block, cells in self._blocks.get(series, {}).items():
            first = _stretch_of(block, latest)
            if wanted is None or first in wanted:
                if first in joined:
                    add_cells(joined[first], cells)
                else:
                    joined[first] = dict(cells)
        known = self._stretches.setdefault(series, set())
        before = set(known) if wanted is None else wanted
        touched = set()
        for block in before | joined.keys():
            key = EvidenceKey(*series, block)
            found = joined.get(block)
            if found is None:
                self._sums.pop(key, None)
                known.discard(block)
                touched.add(key)
            elif self._sums.get(key) != found:
                self._sums[key] = found
                known.add(block)
                touched.add(key)
        return touched

    def rows(self) -> Iterator[EvidenceRow]:
        """Everything as it was read."""
        for key, lives in self._packs.items():
            for incarnation, (pack, updated_ns) in lives.items():
                for place, cells in pack.cells().items():
                    yield EvidenceRow(key.key(place), incarnation, cells, updated_ns)
