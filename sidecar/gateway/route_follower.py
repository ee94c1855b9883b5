"""A worker follows the route table: read before it serves, looked at five times a second after.

A thread of its own, since the worker's main loop looks once a second, and waits for servers that
hang. The file is the only way by which routes come: it is there without a monitor, and a push over
a socket would be a second truth.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic

from sidecar.gateway.pages import Page
from sidecar.gateway.registry import Registry
from sidecar.route_table import RouteFile

logger = logging.getLogger(__name__)

#: How often the file is looked at: a route is followed within half a second of being set.
POLL_S = 0.2
#: How often while nothing is served before it is there.
_WAIT_S = 0.05


class RouteFollower:
    """Applies the table to a registry.

    Args:
        path: of the table; it need not be there.
        page: where a damaged table is counted (``route_damaged``), and a start without the table
            of a fleet (``route_missing``).
        wait_s: where replicas share their routes, how long this one may wait for its first table;
            ``None``: they do not.

    Attributes:
        on_change: called when another table is followed, or something is wrong with it.
    """

    def __init__(
        self, path: Path, registry: Registry, page: Page, wait_s: float | None = None
    ) -> None:
        self._file = RouteFile(path)
        self._registry = registry
        self._page = page
        self._damaged = 0
        self._until_s = None if wait_s is None else monotonic() + wait_s
        self._missing = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="routes", daemon=True)
        self.on_change: Callable[[], None] = lambda: None

    @property
    def problem(self) -> str:
        """What is wrong with the file; empty: nothing."""
        return self._file.problem or self._missing

    def look(self) -> None:
        """Look once."""
        changed = self._file.poll()
        if changed:
            self._registry.follow(self._file.routes)
        if self._file.damaged > self._damaged:
            self._page.add_server("route_damaged", self._file.damaged - self._damaged)
            self._damaged = self._file.damaged
            changed = True
        if self._missing and self._file.is_there:
            logger.info("the replicas' route table is there, and followed from now on")
            self._missing, changed = "", True
        if changed:
            self.on_change()

    def await_table(self, stop: threading.Event) -> None:
        """Where replicas share their routes: wait for the first table that the monitor writes.

        Who has none, a fresh pod, would serve as configured, and undo a rollback for its share of
        the requests. The wait is bounded from when this object was made, and ends with ``stop``.
        """
        if self._until_s is None:
            return
        began_s = monotonic()
        self.look()
        if not self._file.is_there:
            left_s = max(0.0, self._until_s - began_s)
            logger.info("not ready: waits for the replicas' route table, %.3g s at most", left_s)
        while not self._file.is_there and not stop.is_set():
            if monotonic() >= self._until_s:
                self._missing = (
                    "the replicas' route table did not come in time (monitor.store.route_wait_s): "
                    "until it does, requests are routed as configured"
                )
                logger.error("%s", self._missing)
                self._page.add_server("route_missing", 1)
                return
            stop.wait(_WAIT_S)
            self.look()
        waited_s = monotonic() - began_s
        if waited_s > _WAIT_S:
            logger.info("waited %.1f s for the replicas' route table", waited_s)

    def start(self) -> None:
        """Go on looking."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(1)

    def _run(self) -> None:
        while not self._stopped.wait(POLL_S):
            try:
                self.look()
            except Exception:  # the next look may do better, and nobody else would look
                logger.exception("the route table could not be looked at")
