"""The store's part for routes: one table for all replicas, changed by compare-and-swap."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from sidecar import route_table
from sidecar.monitor import store_tables as tables
from sidecar.route_table import DamagedError, Route

#: How many rows a statement has written is asked for: of an insertion it is else not kept.
_COUNTED = {"preserve_rowcount": True}
#: What a change makes of the route as it stands (``None``: never set).
Change = Callable[[Route | None], Route]


class TakenError(Exception):
    """Somebody else has entered the model's first route at the same moment."""


class RouteTables:
    """Reads and writes it; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
    ) -> None:
        self._writing = writing
        self._read = read

    def load(self, models: Iterable[str]) -> dict[str, Route]:
        """The routes of these models, as far as any was set; one that cannot be read is none."""
        statement = sa.select(tables.ROUTES).where(tables.ROUTES.c.model.in_(list(models)))
        found = {row["model"]: _route(row) for row in self._read(statement)}
        return {model: route for model, route in found.items() if route is not None}

    def change(self, model: str, known: Route | None, change: Change) -> Route:
        """Change one in one step: nobody else changes it between reading and writing.

        Args:
            known: what this replica has; it counts where the database has less (begun afresh).
            change: gives the new route, with a revision above that of what it is given, or raises.

        Returns:
            What was written.

        Raises:
            TakenError: try again.
        """
        columns = tables.ROUTES.c
        with self._writing() as connection:
            statement = sa.select(tables.ROUTES).where(columns.model == model).with_for_update()
            row = connection.execute(statement).mappings().first()
            there = None if row is None else _route(row)
            after = change(newer(there, known))
            values = {"revision": after.revision, "plain": route_table.to_plain(after)}
            if row is None:
                insert = _insert_unless_there(connection.dialect).values(model=model, **values)
                done = connection.execute(insert, execution_options=_COUNTED)
            else:
                of_it = (columns.model == model) & (columns.revision == row["revision"])
                update = sa.update(tables.ROUTES).where(of_it).values(values)
                done = connection.execute(update, execution_options=_COUNTED)
            if done.rowcount != 1:
                raise TakenError
        return after

    def restore(self, routes: Mapping[str, Route]) -> None:
        """Write back what a database that was begun afresh (or an older copy of it) lacks; what it
        has at the same or a higher revision stands.

        A route that never was in such a database is entered only where there is none.
        """
        ordered = sorted(routes.items())
        with self._writing() as connection:
            unless_there = _insert_unless_there(connection.dialect)
            for model, route in ordered:
                plain = {**route_table.to_plain(route), "shared": True}
                values = {"model": model, "revision": route.revision, "plain": plain}
                done = connection.execute(unless_there, values, execution_options=_COUNTED)
                if done.rowcount == 0 and route.shared:
                    lower = tables.ROUTES.c.revision < route.revision
                    of_it = (tables.ROUTES.c.model == model) & lower
                    statement = sa.update(tables.ROUTES).where(of_it)
                    connection.execute(statement.values(revision=route.revision, plain=plain))


def newer(there: Route | None, known: Route | None) -> Route | None:
    """What stands, of the database's route and a replica's own.

    The database's, except where it has none, or an earlier one of its own than it had before.
    """
    if there is None or known is None:
        return there or known
    return known if known.shared and known.revision > there.revision else there


def _insert_unless_there(dialect: sa.Dialect) -> sa.Insert:
    module = {"sqlite": sqlite, "postgresql": postgresql}[dialect.name]
    made: sa.Insert = module.insert(tables.ROUTES).on_conflict_do_nothing()
    return made


def _route(row: sa.RowMapping) -> Route | None:
    try:
        return route_table.from_plain(row["model"], row["plain"])
    except DamagedError:
        return None
