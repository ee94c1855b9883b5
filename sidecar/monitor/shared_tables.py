"""The part of the shared store in which a fleet's counts are: PostgreSQL only.

Each flush of an incarnation takes the next number (``seq``) with its row of ``lives`` locked, so
its flushes come one after the other, and whoever has read up to one of them has missed nothing.
(Numbers of transactions would do as well, but then one long transaction anywhere on the server
would have everybody read everything again and again.)
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import sqlalchemy as sa

from sidecar import __version__
from sidecar.monitor import store_tables as tables
from sidecar.monitor.packs import EMPTY, Pack, PackKey
from sidecar.monitor.rows import CertificateRow, EvidenceKey, Remark, SketchRow

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

#: A pack without counts is kept for so long, for others to read that it is gone; whoever has not
#: read for half of it reads everything again.
EMPTY_KEPT_S = 600.0
REREAD_S = EMPTY_KEPT_S / 2


class FoldedError(Exception):
    """The incarnation was taken for dead, and its counts are part of ``past``.

    ``seq``: of its last flush that is among them.
    """

    def __init__(self, seq: int) -> None:
        self.seq = seq
        super().__init__(f"folded after flush {seq}")


class NotAsLeftError(Exception):
    """The database has not what this incarnation wrote: emptied, or restored from a backup.

    ``seq``: the last flush that it knows of; what is written next must be later.
    """

    def __init__(self, seq: int) -> None:
        self.seq = seq
        super().__init__(f"as of flush {seq}")


@dataclass(slots=True)
class Flush:
    """What is written at once.

    Attributes:
        seq: this flush's number; ``before``: numbers that the last one may have, in the database.
        packs: each whole. ``known``: those whose layout is there already.
        empty: packs that have lost all counts; ``purge``: those that lost them long ago.
        again: begin anew: everything of this incarnation is in it.
        sent: out: the database may have taken it, even when an error says that it has not.
        found: out: the number that the last flush had; ``None``: it could not be asked.
    """

    incarnation: str
    epoch: int
    seq: int
    before: tuple[int, ...]
    packs: list[Pack] = field(default_factory=list)
    known: Mapping[PackKey, str] = field(default_factory=dict)
    purge: Sequence[PackKey] = ()
    sketches: list[SketchRow] = field(default_factory=list)
    updated_ns: int = 0
    again: bool = False
    sent: bool = False
    found: int | None = None


def write(store: Store, flush: Flush) -> None:
    """All of it or nothing.

    Raises:
        FoldedError: nothing may be written under this name any more.
        NotAsLeftError: all of it has to be written again.
        StoreError: the database cannot be written.
    """
    with store.database.writing() as connection:
        _lock(connection, flush)
        if flush.again:
            for table in (tables.PACKS, tables.SKETCHES):
                mine = table.c.incarnation == flush.incarnation
                connection.execute(sa.delete(table).where(mine))
        _write_packs(connection, flush)
        values = [tables.sketch_values(row, flush.seq) for row in flush.sketches]
        tables.upsert(connection, tables.SKETCHES, values)
        _purge(connection, flush)
        flush.sent = True


def _lock(connection: sa.Connection, flush: Flush) -> None:
    """Take the incarnation's row, and its next number."""
    of = tables.LIVES.c
    mine = of.incarnation == flush.incarnation
    if 0 in flush.before:
        enter(connection, flush.incarnation)
    row = connection.execute(
        sa.select(of.seq, of.folded).where(mine).with_for_update()
    ).one_or_none()  # fmt: skip
    flush.found = row.seq if row is not None else 0
    if row is not None and row.folded:
        raise FoldedError(row.seq)
    if row is None:
        if not flush.again:
            raise NotAsLeftError(0)
        enter(connection, flush.incarnation)
    elif row.seq not in flush.before and not (flush.again and row.seq < flush.seq):
        raise NotAsLeftError(row.seq)
    connection.execute(
        sa.update(tables.LIVES).where(mine).values(seq=flush.seq, epoch=flush.epoch)
    )  # fmt: skip


def enter(connection: sa.Connection, incarnation: str) -> None:
    """Make an incarnation's row, where there is none."""
    statement = sa.text(
        "INSERT INTO lives (incarnation, epoch, seq, folded, since_ns, host, version)"
        " VALUES (:incarnation, 0, 0, false,"
        " (extract(epoch FROM clock_timestamp()) * 1000000000)::bigint, :host, :version)"
        " ON CONFLICT (incarnation) DO NOTHING"
    )
    life = {"incarnation": incarnation, "host": socket.gethostname(), "version": __version__}
    connection.execute(statement, life)


def _write_packs(connection: sa.Connection, flush: Flush) -> None:
    """A layout is many times the size of the counts, and is only written where it is another."""
    new, known = [], []
    for pack in flush.packs:
        row = {
            **pack.key._asdict(), "incarnation": flush.incarnation, "seq": flush.seq,
            "counts": pack.stored(), "updated_ns": flush.updated_ns,
        }  # fmt: skip
        if not flush.again and flush.known.get(pack.key) == pack.layout.id:
            known.append({f"_{name}": value for name, value in row.items()})
        else:
            new.append({**row, "layout_id": pack.layout.id, "layout": pack.layout.text})
    if known:
        done = connection.execute(_UPDATE, known)
        if done.rowcount != len(known):
            raise NotAsLeftError(flush.seq)
    tables.upsert(connection, tables.PACKS, new)


def _purge(connection: sa.Connection, flush: Flush) -> None:
    if flush.purge:
        rows = [{f"_{n}": v for n, v in key._asdict().items()} for key in flush.purge]
        rows = [{**row, "_incarnation": flush.incarnation} for row in rows]
        connection.execute(sa.delete(tables.PACKS).where(*_MINE, _OF.layout_id == EMPTY.id), rows)


_OF = tables.PACKS.c
_MINE = [
    _OF[name] == sa.bindparam(f"_{name}") for name in (*PackKey._fields, "incarnation")
]  # fmt: skip
_UPDATE = (
    sa.update(tables.PACKS)
    .where(*_MINE)
    .values({name: sa.bindparam(f"_{name}") for name in ("seq", "counts", "updated_ns")})
)


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Life:
    """An incarnation whose counts are rows of its own."""

    incarnation: str
    epoch: int
    seq: int


class Reader:
    """Reads of one moment."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def identity(self) -> tuple[str, float]:
        """What is another one when this is another database, or one that was restored; and its
        clock, seconds."""
        row = self._connection.execute(
            sa.text(
                "SELECT pg_postmaster_start_time()::text || ' ' || 'packs'::regclass::oid,"
                " extract(epoch FROM clock_timestamp())::float8"
            )
        ).one()
        return row[0], row[1]

    def lives(self) -> list[Life]:
        """All that were not folded."""
        of = tables.LIVES.c
        statement = sa.select(of.incarnation, of.epoch, of.seq).where(of.folded.is_(sa.false()))
        return [Life(*row) for row in self._connection.execute(statement)]

    def packs(self, since: Mapping[str, int]) -> list[sa.RowMapping]:
        """Packs that were written later than this: incarnation → ``seq``; without layouts."""
        return self._later(
            "model, candidate, baseline, block, incarnation, layout_id, counts, updated_ns",
            "packs", since,
        )  # fmt: skip

    def sketches(self, since: Mapping[str, int]) -> list[SketchRow]:
        """The same of sketches."""
        names = (*tables.KEY, "incarnation", "plain", "updated_ns")
        rows = self._later(", ".join(names), "sketches", since)
        json = tables.Json()
        made = []
        for row in rows:
            plain = json.process_result_value(row["plain"], self._connection.dialect)
            key = EvidenceKey(*(row[part] for part in tables.KEY))
            if isinstance(plain, dict):
                made.append(SketchRow(key, row["incarnation"], plain, row["updated_ns"]))
        return made

    def _later(self, names: str, table: str, since: Mapping[str, int]) -> list[sa.RowMapping]:
        if not since:
            return []
        statement = sa.text(
            f"SELECT {names} FROM {table} JOIN unnest(CAST(:lives AS text[]),"  # noqa: S608 - ours
            f" CAST(:seqs AS bigint[])) AS known(life, after) ON {table}.incarnation = known.life"
            f" AND {table}.seq > known.after"
        )
        given = {"lives": list(since), "seqs": list(since.values())}
        return list(self._connection.execute(statement, given).mappings())

    def layouts(self, ids: set[str], incarnations: Sequence[str]) -> dict[str, str]:
        """Layouts by their id, among the packs of some incarnations."""
        if not ids:
            return {}
        of = tables.PACKS.c
        statement = (
            sa.select(of.layout_id, sa.func.min(of.layout).label("layout"))
            .where(of.incarnation.in_(list(incarnations)), of.layout_id.in_(ids))
            .group_by(of.layout_id)
        )
        return {row.layout_id: row.layout for row in self._connection.execute(statement)}

    def remarks(self) -> dict[EvidenceKey, Remark]:
        """All remarks that can be read."""
        rows = self._connection.execute(sa.select(tables.REMARKS)).mappings()
        return dict(tables.remark_of(row) for row in rows if isinstance(row["plain"], dict))

    def certificates(self) -> list[CertificateRow]:
        """All certificates."""
        rows = self._connection.execute(sa.select(tables.CERTIFICATES)).mappings()
        return [CertificateRow(**row) for row in rows]


@contextmanager
def reading(store: Store) -> Iterator[Reader]:
    """Read what one moment has; raises ``StoreError``."""
    with store.database.reading() as connection:
        yield Reader(connection)
