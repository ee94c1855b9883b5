"""A database behind the store: how one writes to it and reads from it, and what happened to it.

Two kinds: ``database_sqlite.py`` (a file in a folder that one monitor holds) and
``database_postgres.py`` (shared by all replicas).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NoReturn

import sqlalchemy as sa
from typing_extensions import override

from sidecar.monitor import store_tables as tables
from sidecar.monitor.rows import StoreError

logger = logging.getLogger("sidecar.monitor.store")

#: Enters this life, within the transaction that has made the tables.
Enter = Callable[[sa.Connection], None]


class Database(ABC):
    """One that is open; methods may be called from any thread, and raise ``StoreError``.

    Attributes:
        where: as people are shown it: a path, or host, port and name. Never a password.
        ok: the last write succeeded.
        generation: grows when the database turned out not to be what it was (begun afresh, emptied,
            restored from a backup): then everything that this life knows should be put again.
        enter: called within the transaction that makes the tables, also when that is done again.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.ok = True
        self.generation = 0
        self.enter: Enter = lambda _: None
        self._engine: sa.Engine | None = None
        self._is_broken = False
        self._notice = ""  # stays: what had to be moved aside
        self._failure = ""  # goes with the next write that succeeds
        self._unread: dict[str, int] = {}

    # --- what the two differ in -------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Open, make the tables, and enter; also when all of it has to be begun again."""

    @abstractmethod
    def reason(self, error: BaseException) -> str:
        """The database's own words, without the statement, and without a password."""

    @abstractmethod
    def is_damage(self, error: BaseException | None) -> bool:
        """Whether an error says that the database has to be begun again."""

    @abstractmethod
    def size_bytes(self) -> int:
        """On disk; 0 where that is not known."""

    def is_gone(self) -> bool:
        """Whether it has vanished since it was opened."""
        return False

    def _alone(self) -> AbstractContextManager[Any]:
        """Held while writing, where one writes at a time."""
        return nullcontext()

    # --- writing and reading ----------------------------------------------------------------------

    @property
    def message(self) -> str:
        """What happened, empty when nothing did."""
        unread = ", ".join(f"{count} in {table}" for table, count in self._unread.items())
        parts = (self._failure, self._notice, f"unreadable rows: {unread}" if unread else "")
        return "; ".join(part for part in parts if part)

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction. All of it is written, or nothing and ``StoreError`` is raised."""
        with self._alone():
            try:
                # A monitor lives for weeks, and a folder may be emptied or restored under it.
                if self._is_broken or self.is_gone():
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
                logger.info("%s can be written again", self.where)
            self.ok, self._failure = True, ""

    def read(self, statement: sa.Select[Any]) -> list[sa.RowMapping]:
        """The rows of one statement."""
        with self.reading() as connection:
            return list(connection.execute(statement).mappings())

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """Several statements that see the database as it was at one moment."""
        try:
            with self._snapshot(self._opened()) as connection:
                yield connection
        except sa.exc.SQLAlchemyError as error:
            self._is_broken = self._is_broken or self.is_damage(getattr(error, "orig", None))
            message = f"{self.where} cannot be read: {self.reason(error)}"
            raise StoreError(message) from None

    def _snapshot(self, engine: sa.Engine) -> AbstractContextManager[sa.Connection]:
        return engine.connect()

    def readable(
        self, table: str, rows: Sequence[sa.RowMapping], value: str
    ) -> list[sa.RowMapping]:
        """Leave out rows whose JSON cannot be read, and say how many there are."""
        sound = [row for row in rows if isinstance(row[value], dict)]
        if len(sound) < len(rows):
            self._unread[table] = len(rows) - len(sound)
            logger.error("%s: %d rows of %s cannot be read", self.where, self._unread[table], table)
        return sound

    def put_again(self) -> None:
        """It is not what it was: have everybody put again what they know."""
        self.generation += 1

    def _failed(self, error: sa.exc.SQLAlchemyError) -> NoReturn:
        self._is_broken = self.is_damage(getattr(error, "orig", None))
        message = (
            f"{self.where} cannot be written: {self.reason(error)}; counting goes on in memory, "
            "and is written when that is possible again"
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
        self.start()
        self._is_broken = False
        self.put_again()

    def _opened(self) -> sa.Engine:
        if self._engine is None:
            message = f"{self.where} is closed"
            raise StoreError(message)
        return self._engine

    def close(self) -> None:
        """Let go of it; may be called again."""
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    @override
    def __str__(self) -> str:
        return self.where
