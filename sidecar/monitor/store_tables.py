"""The store's tables, the engine they are reached by, and the statements that SQLite and PostgreSQL
share.

Values that no query looks into (cells, sketches, cases, events) are JSON in a text column: both
databases keep it to the letter, while PostgreSQL's own JSON type refuses infinities.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from typing_extensions import override

from sidecar.monitor.rows import EvidenceKey, EvidenceRow, Remark, SketchRow

#: How long a statement waits for another process that holds the database, milliseconds.
BUSY_TIMEOUT_MS = 2000
#: An execution option: the transaction takes the write lock when it begins, so that it cannot fail
#: half-way because somebody else wrote meanwhile.
WRITES = "sidecar_writes"


class Json(sa.types.TypeDecorator[Any]):
    """A JSON value as text; what cannot be read back comes out as ``None``."""

    impl = sa.Text
    cache_ok = True

    @override
    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str:
        return json.dumps(value, separators=(",", ":"))

    @override
    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        try:
            return json.loads(value)
        except (TypeError, ValueError):
            return None


METADATA = sa.MetaData()
KEY = ("model", "candidate", "baseline", "output", "metric", "policy", "block")


def _counted(name: str, value: str, *more: sa.Column[Any]) -> sa.Table:
    texts = (sa.Column(part, sa.Text, primary_key=True) for part in KEY[:-1])
    return sa.Table(
        name,
        METADATA,
        *texts,
        sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("incarnation", sa.Text, primary_key=True),
        sa.Column(value, Json, nullable=False),
        sa.Column("updated_ns", sa.BigInteger, nullable=False),
        *more,
    )


def _number(name: str) -> sa.Column[Any]:
    return sa.Column(name, sa.BigInteger, nullable=False, default=0, server_default="0")


EVIDENCE = _counted("evidence", "cells")
#: ``seq``: which flush of its incarnation wrote the row last (``lives``); SQLite: 0.
SKETCHES = _counted("sketches", "plain", _number("seq"))
sa.Index("sketches_by_seq", SKETCHES.c.incarnation, SKETCHES.c.seq)
#: PostgreSQL: who counts. Each flush of an incarnation takes the next ``seq``, with its row locked:
#: so whoever has read up to one of them has read all that is older. ``epoch`` is another one when
#: all of it was written again; ``folded``: its counts are part of ``past`` now.
LIVES = sa.Table(
    "lives",
    METADATA,
    sa.Column("incarnation", sa.Text, primary_key=True),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("folded", sa.Boolean, nullable=False),
    sa.Column("since_ns", sa.BigInteger, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
)
#: PostgreSQL: the counts of a pair's stretch in one incarnation, all in one row (``packs.py``).
PACKS = sa.Table(
    "packs",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in KEY[:3]),
    sa.Column("block", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("incarnation", sa.Text, primary_key=True),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("layout_id", sa.Text, nullable=False),
    sa.Column("layout", sa.Text, nullable=False),
    sa.Column("counts", sa.LargeBinary, nullable=False),
    sa.Column("updated_ns", sa.BigInteger, nullable=False),
)
sa.Index("packs_by_seq", PACKS.c.incarnation, PACKS.c.seq)
CERTIFICATES = sa.Table(
    "certificates",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in (*KEY[:4], "policy")),
    sa.Column("best_log_e", sa.Double, nullable=False),
    sa.Column("certified_ns", sa.BigInteger),
)
REMARKS = sa.Table(
    "remarks",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in (*KEY[:4], "policy")),
    sa.Column("plain", Json, nullable=False),
)
CASES = sa.Table(
    "cases",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("wall_ns", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
sa.Index("cases_by_age", CASES.c.model, CASES.c.wall_ns)
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("plain", Json, nullable=False),
)
DRIFT_REFERENCES = sa.Table(
    "drift_references",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("plain", Json, nullable=False),
)


def _numbered(name: str) -> sa.Table:
    return sa.Table(
        name,
        METADATA,
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("plain", Json, nullable=False),
    )


DRIFT_ROWS, DRIFT_HISTORY = _numbered("drift_rows"), _numbered("drift_history")
DRIFT_WINDOWS = sa.Table(
    "drift_windows",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("incarnation", sa.Text, primary_key=True),
    sa.Column("plain", Json, nullable=False),
    sa.Column("updated_ns", sa.BigInteger, nullable=False),
)
ROLLBACK_PAIRS = sa.Table(
    "rollback_pairs",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in ("model", "new", "previous")),
    sa.Column("identity", sa.Text, primary_key=True),
    sa.Column("plain", Json, nullable=False),
)
ROLLBACK_FREEZES = sa.Table(
    "rollback_freezes",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("plain", Json, nullable=False),
)
DECISIONS = sa.Table(
    "decisions",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("wall_ns", sa.BigInteger, nullable=False),
    sa.Column("action_state", sa.Text, nullable=False),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
sa.Index("decisions_by_age", DECISIONS.c.model, DECISIONS.c.wall_ns)
OUTBOX = sa.Table(
    "outbox",
    METADATA,
    sa.Column("alert", sa.Text, primary_key=True),
    sa.Column("channel", sa.Text, primary_key=True),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("due_ns", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
sa.Index("outbox_by_due", OUTBOX.c.state, OUTBOX.c.due_ns)
INCARNATIONS = sa.Table(
    "incarnations",
    METADATA,
    sa.Column("incarnation", sa.Text, primary_key=True),
    sa.Column("started_ns", sa.BigInteger, nullable=False),
    sa.Column("pid", sa.BigInteger, nullable=False),
    sa.Column("host", sa.Text, nullable=False),
    sa.Column("version", sa.Text, nullable=False),
)
LABELS = sa.Table(
    "labels_waiting",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in ("model", "kind", "request_id")),
    sa.Column("wall_ns", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
sa.Index("labels_waiting_by_age", LABELS.c.model, LABELS.c.wall_ns)

#: Who decides: one row, ``name`` = ``rollback``. ``fence`` grows with each new owner.
LEADER = sa.Table(
    "leader",
    METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("owner", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("expires_ns", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
#: Every monitor that lives, with what it tells of itself (traffic served, route applied, address).
REPLICAS = sa.Table(
    "replicas",
    METADATA,
    sa.Column("incarnation", sa.Text, primary_key=True),
    sa.Column("seen_ns", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
#: The route of each model, for every replica to follow.
ROUTES = sa.Table(
    "routes",
    METADATA,
    sa.Column("model", sa.Text, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
#: What was left of each replica's blocks of pairs, and how much of it has been joined to blocks.
POOLS = sa.Table(
    "pools",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in KEY[:-1]),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("plain", Json, nullable=False),
)
#: Labels that came to a replica which has no answer for them: another one may.
LABELS_OFFERED = sa.Table(
    "labels_offered",
    METADATA,
    *(sa.Column(part, sa.Text, primary_key=True) for part in ("model", "request_id")),
    sa.Column("wall_ns", sa.BigInteger, nullable=False),
    sa.Column("written", sa.BigInteger, nullable=False, default=0, server_default="0"),
    sa.Column("plain", Json, nullable=False),
)
sa.Index("labels_offered_by_written", LABELS_OFFERED.c.written)


def evidence_values(row: EvidenceRow) -> dict[str, Any]:
    """A row of counts as one of its table."""
    life = {"incarnation": row.incarnation, "updated_ns": row.updated_ns}
    return {**asdict(row.key), **life, "cells": row.cells}


def sketch_values(row: SketchRow, seq: int = 0) -> dict[str, Any]:
    """A sketch as a row of its table."""
    life = {"incarnation": row.incarnation, "updated_ns": row.updated_ns, "seq": seq}
    return {**asdict(row.key), **life, "plain": row.plain}


def remark_values(key: EvidenceKey, remark: Remark) -> dict[str, Any]:
    """A remark as a row of its table; metric and block of its key are none."""
    parts = {part: getattr(key, part) for part in (*KEY[:4], "policy")}
    return {**parts, "plain": remark.to_plain()}


def remark_of(row: sa.RowMapping) -> tuple[EvidenceKey, Remark]:
    """The inverse of ``remark_values``."""
    key = EvidenceKey(**{part: row[part] for part in (*KEY[:4], "policy")})
    return key, Remark.from_plain(row["plain"])


def merge_remarks(
    connection: sa.Connection, values: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Remarks as rows, each merged with what is there, which stays locked until they are written.

    In the order of keys, so that no two wait for each other; each is made first where there is
    none, for what does not exist cannot be locked.
    """
    parts = (*KEY[:4], "policy")
    merged = []
    for value in sorted(values, key=lambda one: tuple(one[part] for part in parts)):
        nothing = {**value, "plain": Remark().to_plain()}
        made = postgresql.insert(REMARKS).values(**nothing).on_conflict_do_nothing()
        connection.execute(made)
        mine = [REMARKS.c[part] == value[part] for part in parts]
        statement = sa.select(REMARKS.c.plain).where(*mine).with_for_update()
        there = Remark.from_plain(connection.execute(statement).scalar_one() or {})
        there.merge(Remark.from_plain(value["plain"]))
        merged.append({**value, "plain": there.to_plain()})
    return merged


def make_engine(path: Path) -> sa.Engine:
    """Return an engine on a SQLite file; nothing is opened yet."""
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)))

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _record: object) -> None:
        # The driver's own transactions leave DDL outside; ours begin in `_begin`.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode = WAL")
        # Survives the end of the process; a power cut may cost the last transactions, not more.
        connection.execute("PRAGMA synchronous = NORMAL")

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        writes = connection.get_execution_options().get(WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def now_ns(dialect: sa.Dialect) -> sa.ColumnElement[int]:
    """The database's own clock at this moment, nanoseconds since the Unix epoch."""
    if dialect.name == "postgresql":
        seconds = sa.func.extract("epoch", sa.func.clock_timestamp())
        return sa.cast(seconds * 1_000_000_000, sa.BigInteger)
    days = sa.func.julianday("now") - 2440587.5
    return sa.cast(days * 86_400_000_000_000, sa.BigInteger)


def upsert(
    connection: sa.Connection,
    table: sa.Table,
    rows: Sequence[Mapping[str, Any]],
    changes: Mapping[str, Any] | None = None,
) -> None:
    """Insert rows, or replace those that have the same primary key.

    Args:
        rows: column → value, all with the same columns.
        changes: column → expression for a row that is there already; default: the new value.
    """
    if rows:
        connection.execute(upsert_statement(connection.dialect, table, changes), list(rows))


def remove(
    connection: sa.Connection, table: sa.Table, gone: Iterable[tuple[EvidenceKey, str]]
) -> None:
    """Delete rows by their key and incarnation; those that are not there are nothing."""
    rows = [{f"gone_{n}": v for n, v in asdict(k).items()} | {"gone_life": i} for k, i in gone]
    if rows:
        mine = [table.c[part] == sa.bindparam(f"gone_{part}") for part in KEY]
        mine.append(table.c.incarnation == sa.bindparam("gone_life"))
        connection.execute(sa.delete(table).where(*mine), rows)


def upsert_statement(
    dialect: sa.Dialect, table: sa.Table, changes: Mapping[str, Any] | None = None
) -> sa.sql.Executable:
    """Return the statement of ``upsert`` in a dialect: ``sqlite`` or ``postgresql``."""
    module = {"sqlite": sqlite, "postgresql": postgresql}[dialect.name]
    statement = module.insert(table)
    keys = [column.name for column in table.primary_key.columns]
    values = {c.name: statement.excluded[c.name] for c in table.columns if c.name not in keys}
    values |= changes or {}
    made: sa.sql.Executable = statement.on_conflict_do_update(index_elements=keys, set_=values)
    return made


def never_lower(dialect: sa.Dialect) -> dict[str, Any]:
    """The ``changes`` of a certificate: the best stays the best, the first date the date.

    Written with CASE: the function for it is ``max`` in one database and ``greatest`` in the other.
    """
    module = {"sqlite": sqlite, "postgresql": postgresql}[dialect.name]
    new, old = module.insert(CERTIFICATES).excluded, CERTIFICATES.c
    best = sa.case((new.best_log_e > old.best_log_e, new.best_log_e), else_=old.best_log_e)
    return {
        "best_log_e": best,
        "certified_ns": sa.func.coalesce(old.certified_ns, new.certified_ns),
    }
