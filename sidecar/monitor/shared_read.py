"""Reading what the other monitors of a fleet have counted, and only what is new of it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sidecar.monitor import shared_tables
from sidecar.monitor.packs import EMPTY, Layout, Pack, PackKey, from_stored, parse_layout
from sidecar.monitor.rows import CertificateRow, EvidenceKey, Remark, SketchRow
from sidecar.monitor.shared_tables import Life, Reader

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.evidence")

#: Remarks and certificates are read whole, so often (seconds of the database's clock).
_REST_EVERY_S = 5.0


@dataclass(slots=True)
class Reading:
    """What was read, and up to where.

    Attributes:
        seen: incarnation → up to where its rows were read and taken; ``identity``, ``at_s``: of
            the database, then.
        own: how far this incarnation's own flushes are there.
        all_again: forget everything that was known before.
        dropped: incarnations that are to be forgotten.
        packs: with the incarnation and ``updated_ns``.
    """

    seen: dict[str, Life] = field(default_factory=dict)
    identity: str = ""
    at_s: float = 0.0
    rest_at_s: float = 0.0
    own: Life | None = None
    all_again: bool = False
    dropped: list[str] = field(default_factory=list)
    packs: list[tuple[Pack, str, int]] = field(default_factory=list)
    sketches: list[SketchRow] = field(default_factory=list)
    remarks: dict[EvidenceKey, Remark] = field(default_factory=dict)
    certificates: list[CertificateRow] = field(default_factory=list)
    _next: dict[str, Life] = field(default_factory=dict)
    _layouts: dict[str, Layout] = field(default_factory=dict)

    def fresh(self) -> Reading:
        """One that goes on from the same place."""
        return Reading(dict(self.seen), self.identity, self.at_s, _layouts=self._layouts)

    def taken(self) -> None:
        """What was read is taken; go on from there."""
        self.seen = self._next
        self.dropped, self.packs, self.sketches = [], [], []
        self.remarks, self.certificates, self.all_again = {}, [], False


def read(store: Store, reading: Reading, own: str) -> None:
    """Read what is new; raises ``StoreError``, and then ``reading`` goes on from where it was."""
    with shared_tables.reading(store) as reader:
        identity, at_s = reader.identity()
        lives = reader.lives()
        late = not 0 <= at_s - reading.at_s < shared_tables.REREAD_S
        reading.all_again = late or identity != reading.identity
        if reading.all_again:
            reading.seen = {}
        found = {life.incarnation: life for life in lives}
        reading.own = found.pop(own, None)
        since, dropped = _what_is_new(reading.seen, found)
        rows, sketches = reader.packs(since), reader.sketches(since)
        needed = {row["layout_id"] for row in rows} - reading._layouts.keys()
        lives_of_them = sorted({row["incarnation"] for row in rows})
        for name, text in reader.layouts(needed, lives_of_them).items():
            reading._layouts[name] = parse_layout(text)
        if reading.all_again or at_s - reading.rest_at_s >= _REST_EVERY_S:
            reading.remarks = reader.remarks()
            reading.certificates = reader.certificates()
            reading.rest_at_s = at_s
    reading.packs = list(_packs(rows, reading._layouts))
    reading.sketches, reading.dropped = sketches, dropped
    reading.identity, reading.at_s, reading._next = identity, at_s, found


def _what_is_new(seen: dict[str, Life], found: dict[str, Life]) -> tuple[dict[str, int], list[str]]:
    """Incarnation → from which flush on to read it, and which are to be forgotten before."""
    dropped = [name for name in seen if name not in found]
    since = {}
    for name, life in found.items():
        before = seen.get(name)
        if before is None:
            since[name] = -1
        elif before.epoch != life.epoch or life.seq < before.seq:
            dropped.append(name)
            since[name] = -1
        elif life.seq > before.seq:
            since[name] = before.seq
    return since, dropped


def _packs(rows: Iterable[Any], layouts: dict[str, Layout]) -> Iterable[tuple[Pack, str, int]]:
    for row in rows:
        key = PackKey(row["model"], row["candidate"], row["baseline"], row["block"])
        layout = layouts.get(row["layout_id"], EMPTY)
        try:
            pack = from_stored(key, layout, row["counts"])
        except ValueError as error:
            logger.error("counts of %s in %s cannot be read: %s", key, row["incarnation"], error)
            continue
        yield pack, row["incarnation"], row["updated_ns"]


__all__ = ["Reader", "Reading", "read"]
