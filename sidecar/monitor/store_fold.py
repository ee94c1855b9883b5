"""Folding the counts of lives long past into one, so that a monitor that restarts often does not
fill its store: every incarnation has rows of its own, and only their sums are ever looked at.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from sidecar.monitor import store_tables as tables
from sidecar.monitor.blocks import join
from sidecar.monitor.rows import EvidenceKey, EvidenceRow
from validators.sketches import LogHistogram

#: The incarnation that the folded rows carry.
PAST = "past"
#: Incarnations that keep rows of their own.
KEPT = 20


def fold(connection: sa.Connection) -> int:
    """Fold the counts of all but the latest ``KEPT`` incarnations; return how many were folded.

    Rows that cannot be read, and sketches of another layout, stay as they are.
    """
    lives = tables.INCARNATIONS.c
    old = list(
        connection.execute(
            sa.select(lives.incarnation)
            .where(lives.incarnation != PAST)
            .order_by(lives.started_ns.desc())
            .offset(KEPT)
        ).scalars()
    )
    if not old:
        return 0
    _fold_table(connection, tables.EVIDENCE, "cells", old, _add_cells)
    _fold_table(connection, tables.SKETCHES, "plain", old, merge_sketches)
    connection.execute(sa.delete(tables.INCARNATIONS).where(lives.incarnation.in_(old)))
    return len(old)


def _fold_table(
    connection: sa.Connection, table: sa.Table, value: str, old: list[str], add: Any
) -> None:
    sums: dict[tuple[Any, ...], list[Any]] = {}
    rows = connection.execute(sa.select(table).where(table.c.incarnation.in_([*old, PAST])))
    for row in rows.mappings():
        key = tuple(row[part] for part in tables.KEY)
        sums.setdefault(key, []).append(row)
    for key, found in sums.items():
        total = add([row[value] for row in found])
        if total is None:
            continue
        mine = sa.and_(*(table.c[part] == text for part, text in zip(tables.KEY, key, strict=True)))
        gone = [row["incarnation"] for row in found]
        connection.execute(sa.delete(table).where(mine, table.c.incarnation.in_(gone)))
        folded = dict(zip(tables.KEY, key, strict=True))
        folded |= {"incarnation": PAST, "updated_ns": max(row["updated_ns"] for row in found)}
        connection.execute(sa.insert(table), [folded | {value: total}])


def fold_blocks(connection: sa.Connection) -> int:
    """Join blocks of pairs that are long past, of every incarnation; return how many rows went."""
    rows = list(connection.execute(sa.select(tables.EVIDENCE)).mappings())
    sound = [row for row in rows if isinstance(row["cells"], dict)]
    found = [
        EvidenceRow(
            EvidenceKey(*(row[part] for part in tables.KEY)), row["incarnation"], row["cells"],
            row["updated_ns"],
        )
        for row in sound
    ]  # fmt: skip
    changed, gone = join(found)
    tables.remove(connection, tables.EVIDENCE, gone)
    tables.upsert(connection, tables.EVIDENCE, [tables.evidence_values(row) for row in changed])
    return len(gone)


def _add_cells(values: Iterable[Any]) -> dict[str, float] | None:
    total: dict[str, float] = {}
    for cells in values:
        if not isinstance(cells, dict):
            return None
        for name, count in cells.items():
            total[name] = total.get(name, 0) + count
    return total


def merge_sketches(values: Iterable[Any]) -> dict[str, Any] | None:
    """All in one, as they are stored; ``None``: one of them cannot be read."""
    total = None
    for plain in values:
        try:
            sketch = LogHistogram.from_plain(plain)
            if total is None:
                total = sketch
            else:
                total.merge(sketch)
        except (TypeError, ValueError, KeyError, AttributeError):
            return None
    return None if total is None else total.to_plain()
