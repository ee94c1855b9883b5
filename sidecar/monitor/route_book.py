"""The route table, as the monitor writes it: one writer at a time, and nothing half written.

A change is a file of its own, flushed to the disk, then renamed over the table: whoever is killed,
and whenever, leaves the old table or the new one. A lock makes read, compare and write one step,
between monitors as well.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from sidecar import route_table
from sidecar.errors import UnavailableError
from sidecar.route_table import DamagedError, Route, Routes

logger = logging.getLogger("sidecar.monitor.routes")


class RouteBook:
    """Reads and writes ``path``. Any thread, any process.

    Attributes:
        problem: why the table cannot be read; empty: it can.
        is_there: when it was read last, there was a good one, be it an empty one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.problem = ""
        self.is_there = False

    def read(self) -> Routes:
        """The table as it is; empty where there is none, or where it is damaged (said once)."""
        try:
            data = route_table.read(self._path)
            routes = {} if data is None else route_table.parse(data)
        except (DamagedError, OSError) as error:
            why = error.strerror or "" if isinstance(error, OSError) else str(error)
            problem = f"the route table {self._path} cannot be read: {why}"
            if problem != self.problem:
                logger.error("%s; gateways go on as they did, a change begins it anew", problem)
            self.problem, self.is_there = problem, False
            return {}
        self.problem, self.is_there = "", data is not None
        return routes

    @contextmanager
    def changing(self) -> Iterator[dict[str, Route]]:
        """Read, let the caller change what is given, write. Nobody else writes meanwhile.

        Nothing is written when the caller raises.

        Raises:
            UnavailableError: it cannot be written; the old table stands.
        """
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(
                self._path.with_name(self._path.name + ".lock"),
                os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600,
            )  # fmt: skip
        except OSError as error:
            raise self._failed(error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            routes = dict(self.read())
            yield routes
            try:
                self._write(routes)
            except (OSError, DamagedError) as error:
                raise self._failed(error) from None
        finally:
            os.close(lock)

    def _write(self, routes: Routes) -> None:
        try:
            data = route_table.dump(routes)
        except DamagedError:  # of many models and workers: go without what was counted
            data = route_table.dump({name: replace(r, since={}) for name, r in routes.items()})
        if self.problem:  # somebody may want to look at it
            kept = self._path.with_name(self._path.name + ".damaged")
            with suppress(OSError):
                kept.unlink(missing_ok=True)
                kept.hardlink_to(self._path)
        fresh = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._path)  # noqa: PTH105 - likewise
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)  # else a power cut may undo the renaming
        finally:
            os.close(folder)
        self.problem, self.is_there = "", True

    def _failed(self, error: Exception) -> UnavailableError:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return UnavailableError(f"the route table {self._path} cannot be written: {why}")
