"""The store as a SQLite file in WAL mode, in a folder that one monitor holds at a time.

One that is damaged is moved aside, kept, and begun afresh: evidence can be gathered again, and a
monitor that does not start watches nothing. One that a newer release wrote is left alone.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from typing_extensions import override

from sidecar.clock import Clock
from sidecar.monitor import store_files, store_migrate
from sidecar.monitor import store_tables as tables
from sidecar.monitor.database import Database
from sidecar.monitor.rows import StoreError
from sidecar.monitor.store_files import FolderLock, HeldError

logger = logging.getLogger("sidecar.monitor.store")


class SqliteDatabase(Database):
    """A file, and the lock of its folder.

    Args:
        folder: made where there is none.

    Raises:
        StoreError: another monitor holds it, or it cannot be used.
    """

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.path = folder / store_files.DATABASE
        super().__init__(str(self.path))
        self._clock = clock
        self._lock = threading.RLock()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._folder_lock: FolderLock | None = FolderLock(folder)
        except HeldError as error:
            message = (
                f"the store in {folder} is in use by {error}: give each monitor a "
                "monitor.state_dir of its own"
            )
            raise StoreError(message) from None
        except OSError as error:
            message = f"the store's folder {folder} cannot be used: {error.strerror}"
            raise StoreError(message) from None

    @override
    def start(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._set_damaged_aside()
            engine = tables.make_engine(self.path)
            self._engine = engine
            with engine.execution_options(**{tables.WRITES: True}).begin() as connection:
                store_migrate.migrate(connection)
                self.enter(connection)
        except store_migrate.NewerSchemaError as error:
            message = (
                f"{self.path} was written by a newer release ({error}): upgrade model-sidecar, or "
                "move the file away to begin afresh"
            )
            raise StoreError(message) from None
        except (OSError, sqlite3.Error, sa.exc.SQLAlchemyError) as error:
            message = f"{self.path} cannot be opened: {self.reason(error)}"
            raise StoreError(message) from None

    def _set_damaged_aside(self) -> None:
        wrong = store_files.damage(self.path)
        if wrong:
            kept = store_files.move_aside(self.path, self._clock.now_ns())
            self._notice = (
                f"the store was damaged ({wrong}) and begun afresh; the old one is kept as {kept}"
            )
            logger.error("%s", self._notice)

    @override
    def reason(self, error: BaseException) -> str:
        return store_files.reason_of(error)

    @override
    def is_damage(self, error: BaseException | None) -> bool:
        return store_files.is_damage(error) or store_files.is_moved(error)

    @override
    def is_gone(self) -> bool:
        return self._engine is not None and not self.path.exists()

    @override
    def size_bytes(self) -> int:
        return store_files.size_bytes(self.path)

    @override
    def _alone(self) -> AbstractContextManager[Any]:
        return self._lock

    @override
    def close(self) -> None:
        with self._lock:
            super().close()
            if self._folder_lock is not None:
                self._folder_lock.release()
                self._folder_lock = None
