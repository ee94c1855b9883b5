"""One number for every write of what rollback keeps, in the order in which they are committed.

A write takes its number first, and holds the row that it is counted in until it is over. So they
follow one another, a row that somebody else has changed is known by its number (compare and swap),
and whoever has read up to a number has missed nothing below it.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from sidecar.monitor import store_tables as tables

#: Of the row in the table ``leader``.
_NAME = "revision"
_MINE = tables.LEADER.c.name == _NAME


def latest() -> sa.Select[Any]:
    """Selects ``revision``, of the latest write; no row: there was none."""
    return sa.select(tables.LEADER.c.fence.label("revision")).where(_MINE)


def take(connection: sa.Connection, *, least: int = 0) -> int:
    """The number of the transaction that the connection is in; it is greater than ``least``."""
    if not _count(connection):
        row = {"name": _NAME, "owner": "", "fence": 0, "expires_ns": 0, "plain": {}}
        connection.execute(tables.insert_once(connection.dialect, tables.LEADER), row)
        _count(connection)
    taken = int(connection.execute(latest()).scalar_one())
    if taken <= least:
        taken = least + 1
        connection.execute(sa.update(tables.LEADER).where(_MINE).values(fence=taken))
    return taken


def _count(connection: sa.Connection) -> bool:
    change = sa.update(tables.LEADER).where(_MINE).values(fence=tables.LEADER.c.fence + 1)
    return connection.execute(change).rowcount == 1
