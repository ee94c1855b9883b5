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

from sidecar.gateway.pages import Page
from sidecar.gateway.registry import Registry
from sidecar.route_table import RouteFile

logger = logging.getLogger(__name__)

#: How often the file is looked at: a route is followed within half a second of being set.
POLL_S = 0.2


class RouteFollower:
    """Applies the table to a registry.

    Args:
        path: of the table; it need not be there.
        page: where a damaged table is counted (``route_damaged``).

    Attributes:
        on_change: called when another table is followed, or something is wrong with it.
    """

    def __init__(self, path: Path, registry: Registry, page: Page) -> None:
        self._file = RouteFile(path)
        self._registry = registry
        self._page = page
        self._damaged = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="routes", daemon=True)
        self.on_change: Callable[[], None] = lambda: None

    @property
    def problem(self) -> str:
        """What is wrong with the file; empty: nothing."""
        return self._file.problem

    def look(self) -> None:
        """Look once."""
        changed = self._file.poll()
        if changed:
            self._registry.follow(self._file.routes)
        if self._file.damaged > self._damaged:
            self._page.add_server("route_damaged", self._file.damaged - self._damaged)
            self._damaged = self._file.damaged
            changed = True
        if changed:
            self.on_change()

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
