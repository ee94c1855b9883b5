"""One route for all replicas: changed in their database first, then followed by each of them.

Every monitor reads the database's table each ``monitor.store.sync_s`` and writes its own pod's
``routes.json``, which is all that gateways know of. So the database is needed to change a route,
and never to serve by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from sidecar.clock import Clock
from sidecar.errors import UnavailableError
from sidecar.monitor.route_book import RouteBook
from sidecar.monitor.route_store import RouteTables, TakenError, newer
from sidecar.monitor.rows import StoreError
from sidecar.monitor.store import Store
from sidecar.route_table import Route

logger = logging.getLogger("sidecar.monitor.routes")

_TRIES = 5
#: Without a word of the database for so many times ``sync_s``, that is said.
_LATE = 3


class RouteFleet:
    """Any thread.

    Args:
        path: of this pod's table.
        models: those that are served here; of others nothing is written.
        store: the replicas' store, while it can be reached.
    """

    def __init__(
        self,
        path: Path,
        models: Collection[str],
        store: Callable[[], Store | None],
        clock: Clock,
        sync_s: float,
    ) -> None:
        self._path = path
        self._book = RouteBook(path)
        self._models = tuple(models)
        self._store = store
        self._clock = clock
        self._late_ns = int((_LATE * sync_s + 1) * 1e9)
        self._heard_ns = clock.monotonic_ns()
        self._unwritten = ""

    @property
    def problem(self) -> str:
        """What keeps this replica from following the others, empty: nothing."""
        silent_ns = self._clock.monotonic_ns() - self._heard_ns
        if silent_ns > self._late_ns:
            return (
                f"nothing was heard of the replicas' database for {silent_ns / 1e9:.0f} s: the "
                "routes that were there last stand, and cannot be changed"
            )
        return self._unwritten

    def sync(self, store: Store) -> None:
        """Follow the database's table; write back what it lacks.

        Raises:
            StoreError: it cannot be reached.
        """
        tables = store.part(RouteTables)
        # In this order: what is set here meanwhile is in both, or in the database only.
        own = self._book.read()
        there = tables.load(self._models)
        lacking = {
            model: own[model]
            for model in self._models
            if model in own and newer(there.get(model), own[model]) is own[model]
        }
        if lacking:
            names = ", ".join(f"{name} ({route.revision})" for name, route in lacking.items())
            logger.warning("written back to the replicas' database, which has less: %s", names)
            tables.restore(lacking)
            there = tables.load(self._models)
        self._heard_ns = self._clock.monotonic_ns()
        self._follow(there)

    def _follow(self, there: dict[str, Route]) -> None:
        """Write this pod's table, where it is another one; also an empty one: a gateway that has
        just been started waits until it is told that there is no route."""
        own = self._book.read()
        if self._book.is_there and not any(self._differs(own, *item) for item in there.items()):
            self._unwritten = ""
            return
        try:
            with self._book.changing() as table:
                for model, route in there.items():
                    if self._differs(table, model, route):
                        table[model] = route
                        logger.warning(
                            "%s is routed by revision %d of the replicas' database (by %s)",
                            model, route.revision, route.by,
                        )  # fmt: skip
        except UnavailableError as error:
            if str(error) != self._unwritten:
                logger.error("%s; gateways go on as they did", error)
            self._unwritten = str(error)
        else:
            self._unwritten = ""

    @staticmethod
    def _differs(table: Mapping[str, Route], model: str, route: Route) -> bool:
        """Whether the database's route is to be written over what the table has."""
        mine = table.get(model)
        same = mine is not None and replace(mine, since=route.since) == route
        return not same and newer(route, mine) is route

    def change(
        self, model: str, known: Route | None, change: Callable[[Route | None], Route]
    ) -> Route:
        """Change the route of all replicas; ``change`` as in ``RouteTables``.

        It is durable, and the other replicas follow within ``sync_s``, when this returns.

        Raises:
            UnavailableError: the database cannot be reached; nothing was changed, as far as is
                known. And what ``change`` raises.
        """
        store = self._store()
        if store is None:
            raise UnavailableError(_refused(model, "it cannot be reached"))
        try:
            after = self._changed(store.part(RouteTables), model, known, change)
        except StoreError as error:
            raise UnavailableError(_refused(model, str(error))) from None
        self._follow({model: after})
        return after

    @staticmethod
    def _changed(
        tables: RouteTables, model: str, known: Route | None,
        change: Callable[[Route | None], Route],
    ) -> Route:  # fmt: skip
        for _ in range(_TRIES):
            try:
                return tables.change(
                    model, known, lambda before: replace(change(before), shared=True)
                )
            except TakenError:
                continue
        raise UnavailableError(_refused(model, "others change it all the time"))


def _refused(model: str, why: str) -> str:
    return (
        f"the route of {model!r} is that of all replicas, and their database does not take it "
        f"({why}): gateways go on as they did; look again when it is back"
    )
