"""Counts of many keys in one row: how a fleet's counts are kept and exchanged.

A replica changes hundreds of counts a second, and every other replica reads them. A row for each
would be tens of thousands of rows written a second, and a million read. So all counts of one pair's
stretch are one row: numbers in an order that a layout describes. Layouts hardly ever change, and
mostly are the same in all replicas, so that what many replicas have counted is summed as arrays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sidecar.monitor.rows import EvidenceKey

Cells = dict[str, float]
Counts = npt.NDArray[np.float64]
#: Output, metric, policy: what is left of a key within a pack.
Place = tuple[str, str, str]

#: As they are stored, whatever the machine.
_STORED = np.dtype("<f8")


class PackKey(NamedTuple):
    """Which counts are in one row."""

    model: str
    candidate: str
    baseline: str
    block: int

    def key(self, place: Place) -> EvidenceKey:
        """The key of one of its counts."""
        return EvidenceKey(self.model, self.candidate, self.baseline, *place, self.block)


def pack_of(key: EvidenceKey) -> PackKey:
    """The pack that a key's counts are in."""
    return PackKey(key.model, key.candidate, key.baseline, key.block)


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of numbers in a pack.

    Attributes:
        id: hash of ``text``.
        text: JSON, [[output, metric, policy, [name of a cell, …]], …].
        places: in the order of the numbers, each with the names of its cells.
        size: how many numbers.
    """

    id: str
    text: str
    places: tuple[tuple[Place, tuple[str, ...]], ...]
    size: int

    def unpack(self, counts: Counts) -> dict[Place, Cells]:
        """Numbers, float64 [size], as cells."""
        numbers = iter(counts.tolist())
        # `zip` stops with the names, before it takes a number that is the next place's.
        return {place: dict(zip(names, numbers, strict=False)) for place, names in self.places}


@lru_cache(maxsize=4096)
def layout_of(places: tuple[tuple[Place, tuple[str, ...]], ...]) -> Layout:
    """The layout of places and names of cells, both in order."""
    plain = [[*place, names] for place, names in places]
    text = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
    name = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return Layout(name, text, places, sum(len(names) for _, names in places))


#: Of a pack that has lost all its counts.
EMPTY = layout_of(())


def parse_layout(text: str) -> Layout:
    """The inverse of ``Layout.text``.

    Raises:
        ValueError: it is none.
    """
    try:
        places = tuple(
            ((str(output), str(metric), str(policy)), tuple(map(str, names)))
            for output, metric, policy, names in json.loads(text)
        )
    except TypeError as error:
        raise ValueError(str(error)) from None
    return layout_of(places)


@dataclass(frozen=True, slots=True)
class Pack:
    """All counts of a pair's stretch in one incarnation."""

    key: PackKey
    layout: Layout
    counts: Counts

    def cells(self) -> dict[Place, Cells]:
        """Its counts, by place."""
        return self.layout.unpack(self.counts)

    def stored(self) -> bytes:
        """Its numbers, as they are stored."""
        return self.counts.astype(_STORED).tobytes()


def make_pack(key: PackKey, counted: Mapping[Place, Cells]) -> Pack:
    """Put counts into a pack."""
    sides = sorted(counted)
    layout = layout_of(tuple((place, tuple(sorted(counted[place]))) for place in sides))
    numbers = [counted[place][name] for place, names in layout.places for name in names]
    return Pack(key, layout, np.array(numbers, np.float64))


def from_stored(key: PackKey, layout: Layout, stored: bytes) -> Pack:
    """Read a pack back.

    Raises:
        ValueError: it does not fit its layout.
    """
    counts = np.frombuffer(stored, _STORED).astype(np.float64)
    if counts.size != layout.size:
        message = f"{counts.size} numbers, where the layout has {layout.size}"
        raise ValueError(message)
    return Pack(key, layout, counts)


def add_cells(total: Cells, cells: Mapping[str, float]) -> None:
    """Add counts to others, in place."""
    for name, count in cells.items():
        total[name] = total.get(name, 0.0) + count


def sum_packs(packs: Iterable[Pack]) -> dict[Place, Cells]:
    """The counts of one pair's stretch over several incarnations."""
    sums: dict[str, tuple[Layout, Counts]] = {}
    for pack in packs:
        found = sums.get(pack.layout.id)
        counts = pack.counts if found is None else found[1] + pack.counts
        sums[pack.layout.id] = pack.layout, counts
    total: dict[Place, Cells] = {}
    for layout, counts in sums.values():
        if not total:
            total = layout.unpack(counts)
            continue
        for place, cells in layout.unpack(counts).items():
            add_cells(total.setdefault(place, {}), cells)
    return total
