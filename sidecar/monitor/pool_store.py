"""The store's part for blocks over all replicas: PostgreSQL only.

What was joined is counted as if one more incarnation, ``POOL``, had counted it: whoever sums, folds
or resets evidence need not know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, replace
from typing import Any

import sqlalchemy as sa

from sidecar.monitor import blocks, shared_tables
from sidecar.monitor import store_tables as tables
from sidecar.monitor.packs import (
    EMPTY,
    Cells,
    PackKey,
    Place,
    add_cells,
    from_stored,
    make_pack,
    pack_of,
    parse_layout,
)
from sidecar.monitor.pool import Pool, Pooled, Row
from sidecar.monitor.pool_rests import POOLED, Whole, bet, from_plain
from sidecar.monitor.pool_tables import POOLS, RESTS
from sidecar.monitor.rows import EvidenceKey, EvidenceRow

#: The incarnation that counts what is joined.
POOL = "pool"
#: Rows of a replica that may wait for somebody who joins them.
ROWS_MAX = 120
#: Rows that are taken at once: a minute of a large fleet.
_TAKEN_MAX = 5000

#: Checks within the transaction that this monitor still leads; raises otherwise.
Guard = Callable[[sa.Connection], None]


class PoolTables:
    """Hands over and joins; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
    ) -> None:
        self._writing = writing
        self._read = read

    def hand_over(self, life: str, seq: int, upto: int, rests: Any) -> bool:
        """Write one row; one that is there stays. ``False``: too many wait, nothing was written.

        Args:
            rests: as ``pool_rests.to_plain`` gives them.
        """
        of = RESTS.c
        waiting = sa.select(sa.func.count()).where(of.incarnation == life, of.seq != seq)
        row = {"incarnation": life, "seq": seq, "upto": upto, "plain": {"rests": rests}}
        with self._writing() as connection:
            if rests and (connection.scalar(waiting) or 0) >= ROWS_MAX:
                return False
            connection.execute(tables.insert_once(connection.dialect, RESTS), [row])
        return True

    def join(self, guard: Guard, fence: int, now_ns: int, hold_ns: int) -> int:
        """Take what was handed over, and count whole blocks: all of it or nothing.

        Args:
            guard: called first, within the transaction.
            fence: the leader's number, for people to read.
            hold_ns: see ``Pool.join``.

        Returns:
            How many blocks were counted.
        """
        with self._writing() as connection:
            guard(connection)
            pool = _load(connection)
            for row in _taken(connection):
                pool.take(row, now_ns)
            whole = pool.join(now_ns, hold_ns)
            if whole:
                _count(connection, whole, now_ns)
            _save(connection, pool, fence, pool.forget(now_ns))
        return len(whole)

    def pool(self) -> Pool:
        """How it stands."""
        return _pool(self._read(sa.select(POOLS)))

    def handed_over(self) -> list[Row]:
        """Rows that wait."""
        return list(map(_row, self._read(sa.select(RESTS))))


# --- rows -----------------------------------------------------------------------------------------


def _taken(connection: sa.Connection) -> list[Row]:
    """The rows that wait, which are deleted."""
    of = RESTS.c
    order = (of.upto, of.incarnation, of.seq)
    found = sa.select(RESTS).order_by(*order).limit(_TAKEN_MAX)
    rows = list(connection.execute(found).mappings())
    gone = sa.delete(RESTS).where(
        of.incarnation == sa.bindparam("life"), of.seq == sa.bindparam("number")
    )
    if rows:
        names = [{"life": row["incarnation"], "number": row["seq"]} for row in rows]
        connection.execute(gone, names)
    return sorted(map(_row, rows), key=lambda row: (row.life, row.seq))


def _row(row: sa.RowMapping) -> Row:
    plain = row["plain"] if isinstance(row["plain"], dict) else {}
    rests = dict(from_plain(plain.get("rests", ())))
    return Row(row["incarnation"], row["seq"], row["upto"], rests)


def _load(connection: sa.Connection) -> Pool:
    return _pool(connection.execute(sa.select(POOLS)).mappings())


def _pool(rows: Iterable[sa.RowMapping]) -> Pool:
    """A row without a model is of a replica, and says how far its rows were taken."""
    pool = Pool()
    for row in rows:
        plain = row["plain"] if isinstance(row["plain"], dict) else {}
        if not row["model"]:
            pool.seen[row["candidate"]] = int(plain.get("seq", 0)), int(plain.get("upto", 0))
        elif plain:
            key = EvidenceKey(*(row[part] for part in tables.KEY[:-1]))
            pool.series[key] = Pooled.from_plain(plain)
    return pool


def _save(connection: sa.Connection, pool: Pool, fence: int, gone: list[str]) -> None:
    values = []
    for key in pool.changed:
        parts = dict(zip(tables.KEY[:-1], astuple(key), strict=False))
        values.append({**parts, "fence": fence, "plain": pool.series[key].to_plain()})
    for life in pool.told - set(gone):
        seq, upto = pool.seen[life]
        plain = {"seq": seq, "upto": upto}
        values.append({**_of_life(life), "fence": fence, "plain": plain})
    tables.upsert(connection, POOLS, values)
    for life in gone:
        mine = (POOLS.c[part] == value for part, value in _of_life(life).items())
        connection.execute(sa.delete(POOLS).where(*mine))


def _of_life(life: str) -> dict[str, str]:
    return {**dict.fromkeys(tables.KEY[:-1], ""), "candidate": life}


# --- counts ---------------------------------------------------------------------------------------

_Sides = tuple[str, str, str]
_Packs = dict[PackKey, dict[Place, Cells]]


def _count(
    connection: sa.Connection, whole: Iterable[tuple[EvidenceKey, Whole]], now_ns: int
) -> None:
    """Add blocks to the counts of ``POOL``."""
    seq = _next_seq(connection)
    added: dict[_Sides, list[tuple[EvidenceKey, Cells]]] = {}
    for key, (block, pairs, total) in whole:
        at = replace(key, block=block)
        cells = bet(key.metric, POOLED, pairs, total)
        added.setdefault((key.model, key.candidate, key.baseline), []).append((at, cells))
    for sides, bets in added.items():
        packs = _read_packs(connection, sides)
        changed = set()
        for key, cells in bets:
            pack = pack_of(key)
            place = (key.output, key.metric, key.policy)
            add_cells(packs.setdefault(pack, {}).setdefault(place, {}), cells)
            changed.add(pack)
        changed |= _join_old(packs)
        _write(connection, {pack: packs[pack] for pack in changed}, seq, now_ns)
    kept_ns = int(2 * shared_tables.EMPTY_KEPT_S * 1e9)
    of = tables.PACKS.c
    old = (of.incarnation == POOL, of.layout_id == EMPTY.id, of.updated_ns < now_ns - kept_ns)
    connection.execute(sa.delete(tables.PACKS).where(*old))


def _next_seq(connection: sa.Connection) -> int:
    """Take the next number. ``POOL`` has no heartbeat, so it is folded about once an hour, as the
    dead are: then it begins anew, and what it had counted is part of the past's."""
    shared_tables.enter(connection, POOL)
    of = tables.LIVES.c
    mine = of.incarnation == POOL
    row = connection.execute(sa.select(of.seq, of.folded).where(mine).with_for_update()).one()
    values: dict[str, Any] = {"seq": row.seq + 1}
    if row.folded:
        now_ns = tables.now_ns(connection.dialect)
        values |= {"folded": False, "epoch": of.epoch + 1, "since_ns": now_ns}
    connection.execute(sa.update(tables.LIVES).where(mine).values(values))
    return int(row.seq) + 1


def _read_packs(connection: sa.Connection, sides: _Sides) -> _Packs:
    """All that was counted of a pair: a few dozen stretches."""
    of = tables.PACKS.c
    mine = [of[name] == side for name, side in zip(PackKey._fields, sides, strict=False)]
    found: _Packs = {}
    statement = sa.select(tables.PACKS).where(of.incarnation == POOL, *mine)
    for row in connection.execute(statement).mappings():
        key = PackKey(*sides, row["block"])
        found[key] = from_stored(key, parse_layout(row["layout"]), row["counts"]).cells()
    return found


def _join_old(packs: _Packs) -> set[PackKey]:
    """Join stretches that are long past, as everybody does with their own; returns what changed."""
    rows = [
        EvidenceRow(pack.key(place), POOL, cells)
        for pack, places in packs.items()
        for place, cells in places.items()
    ]
    joined, gone = blocks.join(rows)
    changed = set()
    for key, _ in gone:
        pack = pack_of(key)
        del packs[pack][key.output, key.metric, key.policy]
        changed.add(pack)
    for row in joined:
        pack = pack_of(row.key)
        packs.setdefault(pack, {})[row.key.output, row.key.metric, row.key.policy] = row.cells
        changed.add(pack)
    return changed


def _write(
    connection: sa.Connection, packs: Mapping[PackKey, dict[Place, Cells]], seq: int, now_ns: int
) -> None:
    values = []
    for key, places in packs.items():
        pack = make_pack(key, places)
        values.append(
            {
                **key._asdict(), "incarnation": POOL, "seq": seq, "layout_id": pack.layout.id,
                "layout": pack.layout.text, "counts": pack.stored(), "updated_ns": now_ns,
            }
        )  # fmt: skip
    tables.upsert(connection, tables.PACKS, values)
