"""The monitor's memory over restarts: evidence, sketches, certificates, the index of cases, events.

SQLAlchemy Core on SQLite in WAL mode, in a folder that one monitor holds at a time. What is written
is cumulative per incarnation (one life of the process), and rows are replaced whole: a write that
fails loses nothing, for the next one says everything again.

A store that is damaged is moved aside, kept, and begun afresh: evidence can be gathered again, and
a monitor that does not start watches nothing. One that a newer release wrote is left alone.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn, TypeVar

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
from sidecar.monitor.store_files import (
    DATABASE,
    FolderLock,
    HeldError,
    damage,
    is_damage,
    is_moved,
    move_aside,
    reason_of,
    size_bytes,
)
from sidecar.monitor.view import CaseView, VerdictEvent

try:
    import sqlalchemy as sa
except ModuleNotFoundError:
    _MESSAGE = "keeping evidence needs SQLAlchemy and Alembic: install model-sidecar[monitor]"
    raise StoreError(_MESSAGE) from None

from sidecar.monitor import store_fold
from sidecar.monitor import store_tables as tables
from sidecar.monitor.drift_store import DriftTables

__all__ = ["CertificateRow", "EvidenceKey", "EvidenceRow", "SketchRow", "Store", "StoreError"]

logger = logging.getLogger(__name__)
_Part = TypeVar("_Part")

#: Events that are kept.
EVENTS_KEPT = 10_000


class Store:
    """An open store; methods may be called from any thread, and raise ``StoreError``.

    Attributes:
        path: the database file.
        incarnation: this life's name; rows that it writes should carry it.
        message: what happened (moved aside, cannot write), empty when nothing did.
        ok: the last write succeeded.
        generation: grows when the store had to be begun afresh while open: then everything that
            this incarnation knows should be put again.
    """

    def __init__(self, path: Path, clock: Clock, lock: FolderLock) -> None:
        """Take what ``open`` has prepared; call that instead."""
        self.path = path
        self.incarnation = uuid.uuid4().hex
        self.ok = True
        self.generation = 0
        self._clock = clock
        self._folder_lock: FolderLock | None = lock
        self._lock = threading.RLock()
        self._engine: sa.Engine | None = None
        self._started_ns = clock.now_ns()
        self._is_broken = False
        self._notice = ""  # stays: what had to be moved aside
        self._failure = ""  # goes with the next write that succeeds
        self._unread: dict[str, int] = {}

    @classmethod
    def open(cls, folder: Path, clock: Clock) -> Store:
        """Open the store of a folder, making both where there is none.

        A damaged database is moved aside and begun afresh: ``message`` says so.

        Raises:
            StoreError: another monitor has it, a newer release wrote it, the disk is full, …;
                trying again later is safe.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(folder)
        except HeldError as error:
            message = (
                f"the store in {folder} is in use by {error}: give each monitor a "
                "monitor.state_dir of its own"
            )
            raise StoreError(message) from None
        except OSError as error:
            message = f"the store's folder {folder} cannot be used: {error.strerror}"
            raise StoreError(message) from None
        store = cls(folder / DATABASE, clock, lock)
        try:
            store._start()
        except BaseException:
            store.close()
            raise
        return store

    def _start(self) -> None:
        """Check, migrate, and enter this incarnation; also when the file had to be replaced."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._set_damaged_aside()
            engine = tables.make_engine(self.path)
            self._engine = engine
            with engine.execution_options(**{tables.WRITES: True}).begin() as connection:
                tables.migrate(connection)
                life = {
                    "incarnation": self.incarnation, "started_ns": self._started_ns,
                    "pid": os.getpid(), "host": socket.gethostname(), "version": __version__,
                }  # fmt: skip
                tables.upsert(connection, tables.INCARNATIONS, [life])
                store_fold.fold(connection)
                store_fold.fold_blocks(connection)
        except tables.NewerSchemaError as error:
            message = (
                f"{self.path} was written by a newer release ({error}): upgrade model-sidecar, or "
                "move the file away to begin afresh"
            )
            raise StoreError(message) from None
        except (OSError, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            message = f"{self.path} cannot be opened: {reason_of(error)}"
            raise StoreError(message) from None

    def _set_damaged_aside(self) -> None:
        wrong = damage(self.path)
        if wrong:
            kept = move_aside(self.path, self._clock.now_ns())
            self._notice = (
                f"the store was damaged ({wrong}) and begun afresh; the old one is kept as {kept}"
            )
            logger.error("%s", self._notice)

    @property
    def message(self) -> str:
        """What happened, empty when nothing did."""
        unread = ", ".join(f"{count} in {table}" for table, count in self._unread.items())
        parts = (self._failure, self._notice, f"unreadable rows: {unread}" if unread else "")
        return "; ".join(part for part in parts if part)

    # --- writing and reading ----------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """One transaction. All of it is written, or nothing and ``StoreError`` is raised."""
        with self._lock:
            try:
                # A monitor lives for weeks, and a folder may be emptied or restored under it.
                if self._is_broken or (self._engine is not None and not self.path.exists()):
                    self._begin_again()
                writer = self._opened().execution_options(**{tables.WRITES: True})
                with writer.begin() as connection:
                    yield connection
            except sa.exc.SQLAlchemyError as error:
                self._failed(error)
            except StoreError as error:
                self._note(str(error))
                raise
            if not self.ok:
                logger.info("%s can be written again", self.path)
            self.ok, self._failure = True, ""

    def _failed(self, error: sa.exc.SQLAlchemyError) -> NoReturn:
        origin = getattr(error, "orig", None)
        self._is_broken = is_damage(origin) or is_moved(origin)
        message = (
            f"{self.path} cannot be written: {reason_of(error)}; counting goes on in memory, and "
            "is written when that is possible again"
        )
        self._note(message)
        raise StoreError(message) from None

    def _note(self, message: str) -> None:
        if self.ok:  # said once, not every two seconds
            logger.error("%s", message)
        self.ok, self._failure = False, message

    def _begin_again(self) -> None:
        self._is_broken = True  # until all of it has succeeded
        if self._engine is not None:
            self._engine.dispose()
        self._start()
        self._is_broken = False
        self.generation += 1

    def _opened(self) -> sa.Engine:
        if self._engine is None:
            message = f"{self.path} is closed"
            raise StoreError(message)
        return self._engine

    def _read(self, statement: sa.Select[Any]) -> list[sa.RowMapping]:
        try:
            with self._opened().connect() as connection:
                return list(connection.execute(statement).mappings())
        except sa.exc.SQLAlchemyError as error:
            self._is_broken = self._is_broken or is_damage(getattr(error, "orig", None))
            message = f"{self.path} cannot be read: {reason_of(error)}"
            raise StoreError(message) from None

    def _readable(
        self, table: str, rows: Sequence[sa.RowMapping], value: str
    ) -> list[sa.RowMapping]:
        """Leave out rows whose JSON cannot be read, and say how many there are."""
        sound = [row for row in rows if isinstance(row[value], dict)]
        if len(sound) < len(rows):
            self._unread[table] = len(rows) - len(sound)
            logger.error("%s: %d rows of %s cannot be read", self.path, self._unread[table], table)
        return sound

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
        return self._readable(table.name, self._read(statement), value)

    # --- remarks and certificates -----------------------------------------------------------------

    def put_remarks(self, remarks: Mapping[EvidenceKey, Remark]) -> None:
        """Write remarks, replacing those of the same output; keys are without a metric."""
        values = [tables.remark_values(key, remark) for key, remark in remarks.items()]
        with self._writing() as connection:
            tables.upsert(connection, tables.REMARKS, values)

    def remarks(self) -> dict[EvidenceKey, Remark]:
        """Return all remarks."""
        rows = self._readable("remarks", self._read(sa.select(tables.REMARKS)), "plain")
        return dict(map(tables.remark_of, rows))

    def put_certificate(
        self, model: str, candidate: str, baseline: str, output: str, policy: str,
        best_log_e: float, certified_ns: int | None,
    ) -> None:  # fmt: skip
        """Keep what a certificate has reached: never lowered, and the first date stays."""
        if math.isnan(best_log_e):
            message = f"log e of {candidate} {output!r} is not a number"
            raise ValueError(message)
        row = CertificateRow(model, candidate, baseline, output, policy, best_log_e, certified_ns)
        with self._writing() as connection:
            changes = tables.never_lower(connection.dialect)
            tables.upsert(connection, tables.CERTIFICATES, [asdict(row)], changes)

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
        rows = self._readable("cases", self._read(statement), "plain")
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
        rows = self._readable("events", self._read(statement), "plain")
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
        return view.StoreStatus(str(self.path), self.ok, self.message, size_bytes(self.path))

    def close(self) -> None:
        """Close, and let another monitor have the folder; may be called again."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
                self._engine = None
            if self._folder_lock is not None:
                self._folder_lock.release()
                self._folder_lock = None


def _key(row: sa.RowMapping) -> tuple[EvidenceKey, str]:
    return EvidenceKey(*(row[part] for part in tables.KEY)), row["incarnation"]
