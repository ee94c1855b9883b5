"""Folding incarnations of a fleet that are long dead into one, ``past``: each has rows of its own,
and with every new pod there would be more to read.

Whoever folds holds the row of ``past`` and that of the dead one. Should it live after all (a pod
that was paused, or cut off for an hour), its next flush finds that it was folded, and it goes on
under a new name with what it had not written (``evidence_shared.py``). Nothing is lost or counted
twice whoever folds, and when; that one of them does it saves the others the work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sidecar.clock import Clock
from sidecar.monitor import shared_tables
from sidecar.monitor import store_tables as tables
from sidecar.monitor.packs import (
    EMPTY,
    Cells,
    Pack,
    PackKey,
    Place,
    add_cells,
    from_stored,
    make_pack,
    parse_layout,
)
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store_fold import PAST, merge_sketches

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.evidence")

#: Who was not heard of for so long is dead.
SILENT_S = 3600.0
#: Between two looks for the dead; one is folded at a time.
_EVERY_S = 60.0
#: How long it is remembered that somebody was folded.
_REMEMBERED_S = 400 * 86400.0

MayFold = Callable[[sa.Connection], bool]


class Folder:
    """Folds one dead incarnation a minute, where it may.

    Args:
        own: this monitor's name, which is never folded here.
        stretch: the first block of the stretch that a key's counts belong to now.

    Attributes:
        may_fold: asked within the transaction.
    """

    def __init__(self, own: str, stretch: Callable[[EvidenceKey], int], clock: Clock) -> None:
        self.may_fold: MayFold = lambda _: True
        self._own = own
        self._stretch = stretch
        self._clock = clock
        self._due_ns = 0

    def step(self, store: Store) -> None:
        """One round of the fleet's thread."""
        if self._clock.monotonic_ns() >= self._due_ns:
            self._due_ns = self._clock.monotonic_ns() + int(_EVERY_S * 1e9)
            self.fold(store)

    def fold(self, store: Store) -> str | None:
        """Fold one; returns its name, ``None``: nobody is dead, or it may not be done here.

        Raises:
            StoreError: the database cannot be written.
        """
        with store.database.writing() as connection:
            if not self.may_fold(connection):
                return None
            dead = _dead(connection, self._own)
            if dead is None:
                return None
            seq = _lock(connection, PAST) + 1
            if _lock(connection, dead) < 0:
                return None
            self._fold_packs(connection, dead, seq)
            _fold_sketches(connection, dead, seq)
            of = tables.LIVES.c
            folded = sa.update(tables.LIVES).where(of.incarnation == dead).values(folded=True)
            connection.execute(folded)
            past = sa.update(tables.LIVES).where(of.incarnation == PAST).values(seq=seq)
            connection.execute(past)
            _forget(connection)
        logger.info("%s is dead; what it counted is part of the past", dead)
        return dead

    def _fold_packs(self, connection: sa.Connection, dead: str, seq: int) -> None:
        before: dict[PackKey, Pack] = {}
        summed: dict[PackKey, dict[Place, Cells]] = {}
        of = tables.PACKS.c
        sides = sa.select(of.model, of.candidate, of.baseline).where(of.incarnation == dead)
        is_concerned = sa.tuple_(of.model, of.candidate, of.baseline).in_(sides)
        mine = of.incarnation.in_([dead, PAST])
        for row in connection.execute(sa.select(tables.PACKS).where(mine, is_concerned)):
            key = PackKey(row.model, row.candidate, row.baseline, row.block)
            pack = from_stored(key, parse_layout(row.layout), row.counts)
            if row.incarnation == PAST:
                before[key] = pack
            for place, cells in pack.cells().items():
                at = key._replace(block=self._stretch(key.key(place)))
                add_cells(summed.setdefault(at, {}).setdefault(place, {}), cells)
        after = {key: make_pack(key, cells) for key, cells in summed.items()}
        gone = {key: make_pack(key, {}) for key in before.keys() - after.keys()}
        now_ns = connection.execute(sa.select(tables.now_ns(connection.dialect))).scalar_one()
        rows = [
            {
                **key._asdict(), "incarnation": PAST, "seq": seq, "layout_id": pack.layout.id,
                "layout": pack.layout.text, "counts": pack.stored(), "updated_ns": now_ns,
            }
            for key, pack in (after | gone).items()
            if not _same(pack, before.get(key))
        ]  # fmt: skip
        tables.upsert(connection, tables.PACKS, rows)
        connection.execute(sa.delete(tables.PACKS).where(of.incarnation == dead))
        long_gone = of.updated_ns < now_ns - int(shared_tables.EMPTY_KEPT_S * 1e9)
        is_empty = of.layout_id == EMPTY.id
        connection.execute(
            sa.delete(tables.PACKS).where(of.incarnation == PAST, is_empty, long_gone)
        )


def _same(pack: Pack, other: Pack | None) -> bool:
    if other is None or pack.layout.id != other.layout.id:
        return False
    return bool((pack.counts == other.counts).all())


def _dead(connection: sa.Connection, own: str) -> str | None:
    """Who was not heard of for long; an incarnation that was renamed is heard of by its first name
    (``NAME+2``)."""
    statement = sa.text(
        "SELECT incarnation FROM lives WHERE NOT folded AND incarnation <> :past"
        " AND split_part(incarnation, '+', 1) <> :own AND since_ns < :until"
        " AND NOT EXISTS (SELECT 1 FROM replicas WHERE seen_ns >= :until"
        " AND replicas.incarnation = split_part(lives.incarnation, '+', 1))"
        " ORDER BY since_ns LIMIT 1"
    )
    now_ns = connection.execute(sa.select(tables.now_ns(connection.dialect))).scalar_one()
    until = now_ns - int(SILENT_S * 1e9)
    given = {"past": PAST, "own": own, "until": until}
    found: str | None = connection.execute(statement, given).scalar_one_or_none()
    return found


def _lock(connection: sa.Connection, incarnation: str) -> int:
    """Hold an incarnation's row; returns its latest flush, -1 where it was folded meanwhile."""
    if incarnation == PAST:
        shared_tables.enter(connection, PAST)
    of = tables.LIVES.c
    statement = sa.select(of.seq, of.folded).where(of.incarnation == incarnation).with_for_update()
    row = connection.execute(statement).one_or_none()
    return -1 if row is None or row.folded else int(row.seq)


def _fold_sketches(connection: sa.Connection, dead: str, seq: int) -> None:
    """Those of another layout go: nobody of this release reads them."""
    of = tables.SKETCHES.c
    found: dict[tuple[Any, ...], list[sa.RowMapping]] = {}
    statement = sa.select(tables.SKETCHES).where(of.incarnation.in_([dead, PAST]))
    for row in connection.execute(statement).mappings():
        found.setdefault(tuple(row[part] for part in tables.KEY), []).append(row)
    changed = []
    for key, rows in found.items():
        total = merge_sketches([row["plain"] for row in rows])
        if total is not None and any(row["incarnation"] == dead for row in rows):
            values = dict(zip(tables.KEY, key, strict=True))
            values |= {"incarnation": PAST, "seq": seq, "plain": total}
            changed.append(values | {"updated_ns": max(row["updated_ns"] for row in rows)})
    tables.upsert(connection, tables.SKETCHES, changed)
    connection.execute(sa.delete(tables.SKETCHES).where(of.incarnation == dead))


def _forget(connection: sa.Connection) -> None:
    """Who was folded more than a year ago does not come back."""
    of = tables.LIVES.c
    now_ns = tables.now_ns(connection.dialect)
    long_ago = of.since_ns < now_ns - int(_REMEMBERED_S * 1e9)
    connection.execute(sa.delete(tables.LIVES).where(of.folded, long_ago))
