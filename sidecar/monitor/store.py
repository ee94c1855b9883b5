"""The monitor's memory over restarts: evidence, sketches, certificates, the index of cases, events.

SQLAlchemy Core, on a SQLite file of this monitor alone or on a PostgreSQL database that all
replicas share. What is written is cumulative per incarnation (one life of the process), and rows
are replaced whole: a write that fails loses nothing, for the next one says everything again.
"""

from __future__ import annotations

import math
import os
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.monitor import view
from sidecar.monitor.rows import (
    CertificateRow,
    EvidenceKey,
    EvidenceRow,
    Remark,
    SketchRow,
    StoreError,
)
from sidecar.monitor.view import CaseView, VerdictEvent

try:
    import sqlalchemy as sa
except ModuleNotFoundError:
    _MESSAGE = "keeping evidence needs SQLAlchemy and Alembic: install model-sidecar[monitor]"
    raise StoreError(_MESSAGE) from None

from sidecar.monitor import store_fold
from sidecar.monitor import store_tables as tables
from sidecar.monitor.database import Database
from sidecar.monitor.database_sqlite import SqliteDatabase
from sidecar.monitor.drift_store import DriftTables

if TYPE_CHECKING:
    from sidecar.config_monitor import StoreConfig

__all__ = ["CertificateRow", "EvidenceKey", "EvidenceRow", "SketchRow", "Store", "StoreError"]

_Part = TypeVar("_Part")

#: Events that are kept.
EVENTS_KEPT = 10_000


class Store:
    """An open store; methods may be called from any thread, and raise ``StoreError``.

    Attributes:
        database: where it is.
        incarnation: this life's name; rows that it writes should carry it.
    """

    def __init__(self, database: Database, clock: Clock, incarnation: str | None = None) -> None:
        """Take a database that was not started; call ``open`` or ``connect`` instead."""
        self.database = database
        self.incarnation = incarnation or uuid.uuid4().hex
        self._clock = clock
        self._started_ns = clock.now_ns()
        self._writing, self._read = database.writing, database.read
        database.enter = self._enter

    @classmethod
    def open(cls, folder: Path, clock: Clock, incarnation: str | None = None) -> Store:
        """Open the store of a folder, making both where there is none.

        A damaged database is moved aside and begun afresh: ``message`` says so.

        Raises:
            StoreError: another monitor has it, a newer release wrote it, the disk is full, …;
                trying again later is safe.
        """
        return cls(SqliteDatabase(folder, clock), clock, incarnation)._started()

    @classmethod
    def connect(cls, settings: StoreConfig, clock: Clock, incarnation: str | None = None) -> Store:
        """Open the store that all replicas share, making its tables where there are none.

        Raises:
            StoreError: it cannot be reached, a newer release wrote it, …; trying again is safe.
            ConfigError: the URL cannot be read. MissingExtraError: psycopg is not installed.
        """
        from sidecar.monitor.database_postgres import PostgresDatabase

        return cls(PostgresDatabase(settings), clock, incarnation)._started()

    def _started(self) -> Self:
        try:
            self.database.start()
        except BaseException:
            self.close()
            raise
        return self

    def _enter(self, connection: sa.Connection) -> None:
        if connection.dialect.name == "postgresql":
            return  # whoever writes counts enters itself (``evidence_packs.py``)
        life = {
            "incarnation": self.incarnation, "started_ns": self._started_ns,
            "pid": os.getpid(), "host": socket.gethostname(), "version": __version__,
        }  # fmt: skip
        tables.upsert(connection, tables.INCARNATIONS, [life])
        store_fold.fold(connection)
        store_fold.fold_blocks(connection)

    @property
    def path(self) -> Path:
        """The database file, where it is one."""
        assert isinstance(self.database, SqliteDatabase)
        return self.database.path

    @property
    def ok(self) -> bool:
        """The last write succeeded."""
        return self.database.ok

    @property
    def message(self) -> str:
        """What happened (moved aside, cannot write), empty when nothing did."""
        return self.database.message

    @property
    def generation(self) -> int:
        """Grows when the database turned out not to be what it was (begun afresh, emptied, restored
        from a backup): then everything that this life knows should be put again."""
        return self.database.generation

    # --- evidence and sketches --------------------------------------------------------------------

    def put_evidence(
        self, rows: Sequence[EvidenceRow], gone: Iterable[tuple[EvidenceKey, str]] = ()
    ) -> None:
        """Write counts, replacing those of the same key and incarnation.

        Args:
            rows: each with all of its cells.
            gone: keys and incarnations whose counts are part of ``rows`` now; of ``rows`` and
                ``gone`` both happen, or neither.

        Raises:
            ValueError: a cell is not finite.
        """
        for row in rows:
            if not all(math.isfinite(count) for count in row.cells.values()):
                message = f"evidence that is not finite: {row}"
                raise ValueError(message)
        values = [tables.evidence_values(row) for row in rows]
        with self._writing() as connection:
            tables.remove(connection, tables.EVIDENCE, gone)
            tables.upsert(connection, tables.EVIDENCE, values)

    def evidence(self, model: str | None = None) -> list[EvidenceRow]:
        """Return the counts of a model, or of all, of every incarnation, in the order of keys."""
        rows = self._counted(tables.EVIDENCE, "cells", model)
        return [EvidenceRow(*_key(row), row["cells"], row["updated_ns"]) for row in rows]

    def put_sketch(self, key: EvidenceKey, plain: dict[str, Any]) -> None:
        """Write one sketch of this incarnation."""
        self.put_sketches([SketchRow(key, self.incarnation, plain, self._clock.now_ns())])

    def put_sketches(self, rows: Sequence[SketchRow]) -> None:
        """Write sketches, replacing those of the same key and incarnation."""
        values = [tables.sketch_values(row) for row in rows]
        with self._writing() as connection:
            tables.upsert(connection, tables.SKETCHES, values)

    def sketches(self, model: str | None = None) -> list[SketchRow]:
        """Return the sketches of a model, or of all, of every incarnation."""
        rows = self._counted(tables.SKETCHES, "plain", model)
        return [SketchRow(*_key(row), row["plain"], row["updated_ns"]) for row in rows]

    def _counted(self, table: sa.Table, value: str, model: str | None) -> list[sa.RowMapping]:
        statement = sa.select(table).order_by(*table.primary_key.columns)
        if model is not None:
            statement = statement.where(table.c.model == model)
        return self.database.readable(table.name, self._read(statement), value)

    # --- remarks and certificates -----------------------------------------------------------------

    def put_remarks(self, remarks: Mapping[EvidenceKey, Remark]) -> None:
        """Write remarks; keys are without a metric. What is there of the same output is replaced,
        or, where others write too, merged."""
        values = [tables.remark_values(key, remark) for key, remark in remarks.items()]
        with self._writing() as connection:
            if connection.dialect.name == "postgresql":
                values = tables.merge_remarks(connection, values)
            tables.upsert(connection, tables.REMARKS, values)

    def remarks(self) -> dict[EvidenceKey, Remark]:
        """Return all remarks."""
        rows = self.database.readable("remarks", self._read(sa.select(tables.REMARKS)), "plain")
        return dict(map(tables.remark_of, rows))

    def put_certificate(
        self, model: str, candidate: str, baseline: str, output: str, policy: str,
        best_log_e: float, certified_ns: int | None,
    ) -> None:  # fmt: skip
        """Keep what a certificate has reached: never lowered, and the first date stays."""
        row = CertificateRow(model, candidate, baseline, output, policy, best_log_e, certified_ns)
        self.put_certificates([row])

    def put_certificates(self, rows: Sequence[CertificateRow]) -> None:
        """The same for several, in the order of their keys where others write too."""
        for row in rows:
            if math.isnan(row.best_log_e):
                message = f"log e of {row.candidate} {row.output!r} is not a number"
                raise ValueError(message)
        with self._writing() as connection:
            changes = tables.never_lower(connection.dialect)
            tables.upsert(connection, tables.CERTIFICATES, [asdict(row) for row in rows], changes)

    def certificates(self) -> list[CertificateRow]:
        """Return all certificates."""
        return [CertificateRow(**row) for row in self._read(sa.select(tables.CERTIFICATES))]

    # --- cases and events -------------------------------------------------------------------------

    def put_cases(self, rows: Sequence[CaseView]) -> None:
        """Enter cases into the index, replacing those of the same id."""
        values = [
            {"id": row.id, "model": row.model, "wall_ns": row.wall_ns, "plain": asdict(row)}
            for row in rows
        ]
        with self._writing() as connection:
            tables.upsert(connection, tables.CASES, values)

    def cases(self, model: str | None = None, limit: int = 100) -> list[CaseView]:
        """Return at most ``limit`` cases, the newest first."""
        columns = tables.CASES.c
        statement = (
            sa.select(tables.CASES).order_by(columns.wall_ns.desc(), columns.id).limit(limit)
        )
        if model is not None:
            statement = statement.where(columns.model == model)
        rows = self.database.readable("cases", self._read(statement), "plain")
        return [view.case_from_plain(row["plain"]) for row in rows]

    def delete_cases(self, ids: Sequence[str]) -> None:
        """Remove cases from the index; unknown ids are nothing."""
        if not ids:
            return
        statement = sa.delete(tables.CASES).where(tables.CASES.c.id == sa.bindparam("gone"))
        with self._writing() as connection:
            connection.execute(statement, [{"gone": case} for case in ids])

    def append_event(self, event: VerdictEvent) -> None:
        """Keep an event; the oldest go when there are more than ``EVENTS_KEPT``.

        ``seq`` is the monitor's: one more than the last (``last_seq``, when it starts), so that an
        event that could not be written is simply written again.
        """
        with self._writing() as connection:
            row = {"seq": event.seq, "plain": asdict(event)}
            tables.upsert(connection, tables.EVENTS, [row])
            gone = tables.EVENTS.c.seq <= event.seq - EVENTS_KEPT
            connection.execute(sa.delete(tables.EVENTS).where(gone))

    def events(self, after_seq: int = 0, limit: int = 256) -> list[VerdictEvent]:
        """Return at most ``limit`` events after ``after_seq``, the oldest first."""
        seq = tables.EVENTS.c.seq
        statement = sa.select(tables.EVENTS).where(seq > after_seq).order_by(seq).limit(limit)
        rows = self.database.readable("events", self._read(statement), "plain")
        return [view.event_from_plain(row["plain"]) for row in rows]

    def last_seq(self) -> int:
        """Return the latest event's ``seq``; 0 when there is none."""
        rows = self._read(sa.select(sa.func.max(tables.EVENTS.c.seq).label("last")))
        return rows[0]["last"] or 0

    def drift(self) -> DriftTables:
        """What is kept of drift."""
        return DriftTables(self.incarnation, self._clock, self._writing, self._read)

    def part(self, made: Callable[[Any, Any], _Part]) -> _Part:
        """Another module's part of the store, made of how one writes and how one reads."""
        return made(self._writing, self._read)

    # --- the store itself -------------------------------------------------------------------------

    def status(self) -> view.StoreStatus:
        """Return what ``sidecar status`` shows; never raises."""
        at = self.database
        return view.StoreStatus(at.where, at.ok, at.message, at.size_bytes())

    def close(self) -> None:
        """Close, and let another monitor have the folder; may be called again."""
        self.database.close()


def _key(row: sa.RowMapping) -> tuple[EvidenceKey, str]:
    return EvidenceKey(*(row[part] for part in tables.KEY)), row["incarnation"]
