"""The store's files: who holds them, whether they are sound, and moving damaged ones aside."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

DATABASE = "monitor.sqlite3"
LOCK = "monitor.lock"
#: What SQLite keeps beside a database in WAL mode; moved with it, or it could not be read again.
_BESIDE = ("-wal", "-shm")
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_CHECK_TIMEOUT_S = 2.0


class HeldError(Exception):
    """Another process holds the folder; the text says which, as far as known."""


class FolderLock:
    """One monitor a folder, until ``release`` or the end of the process, however it ends.

    Raises:
        HeldError: another process holds it.
        OSError: the lock file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        # Not inherited by the children that a monitor starts: they may outlive it.
        self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                message = f"process {holder}" if holder else "another process"
                raise HeldError(message) from None
            raise
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another monitor have the folder; the file stays, for removing it would be a race."""
        os.close(self._descriptor)


def is_damage(error: BaseException | None) -> bool:
    """Whether SQLite says that the file is no database, or a broken one."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED


def is_moved(error: BaseException | None) -> bool:
    """Whether SQLite says that the file it has open is no longer where it was."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_READONLY_DBMOVED


def damage(path: Path) -> str:
    """Return what is wrong with a database, or an empty text.

    Raises:
        sqlite3.Error: it cannot be looked at (permissions, locked, …), so nothing can be said.
        OSError: likewise.
    """
    if not path.exists():
        return ""
    if path.stat().st_size == 0:
        return "it was empty"
    uri = f"{path.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=_CHECK_TIMEOUT_S)) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(1)")]
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return str(error)
    return "" if found == ["ok"] else found[0].replace("\n", " ")


def move_aside(path: Path, now_ns: int) -> Path:
    """Rename a database and what belongs to it; return its new name. Nothing is deleted.

    Raises:
        OSError: it cannot be renamed.
    """
    stamp = datetime.fromtimestamp(now_ns // 1_000_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    target = path.with_name(f"{path.name}.damaged-{stamp}")
    number = 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.damaged-{stamp}-{number}")
    path.rename(target)
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        if beside.exists():
            beside.rename(target.with_name(target.name + suffix))
    return target


def size_bytes(path: Path) -> int:
    """Return how much a database takes on disk, with what is not yet merged into it."""
    total = 0
    for suffix in ("", *_BESIDE):
        try:
            total += path.with_name(path.name + suffix).stat().st_size
        except OSError:
            continue
    return total


def reason_of(error: BaseException) -> str:
    """The database's own words, without the statement and the link to a manual."""
    origin = getattr(error, "orig", None)
    text = str(origin if origin is not None else getattr(error, "strerror", None) or error)
    return text or type(error).__name__
