"""Who else is there: each monitor of a fleet says every ``sync_s`` that it lives, and what others
should know of it. Times are those of the database's clock: replicas' own may differ.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.monitor import store_tables as tables

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

#: A row that nobody has renewed for so long is removed.
FORGOTTEN_S = 3600.0


@dataclass(frozen=True, slots=True)
class Replica:
    """A monitor, as it was last heard of.

    Attributes:
        age_s: since it said that it lives.
        plain: what it told: ``host``, ``pid``, ``version``, and whatever ``tell`` was asked for.
    """

    incarnation: str
    age_s: float
    plain: dict[str, Any]


class Replicas:
    """Tells of this monitor, and knows the others; any thread.

    Args:
        incarnation: this monitor's name.
    """

    def __init__(self, incarnation: str, clock: Clock) -> None:
        self.incarnation = incarnation
        self._clock = clock
        self._lock = threading.Lock()
        self._told: dict[str, Callable[[], Any]] = {}
        self._known: list[Replica] = []
        self._read_ns = 0

    def tell(self, name: str, value: Callable[[], Any]) -> None:
        """Have something told of this monitor: ``value`` is called at each heartbeat, in the
        fleet's thread, and gives what JSON can hold. What it raises is the heartbeat's failure."""
        with self._lock:
            self._told[name] = value

    def alive(self, within_s: float) -> list[Replica]:
        """Who was heard of within so many seconds, itself too, in the order of names.

        As far as known here: while the database cannot be read, everybody grows older.
        """
        with self._lock:
            since_s = (self._clock.monotonic_ns() - self._read_ns) / 1e9
            aged = [Replica(one.incarnation, one.age_s + since_s, one.plain) for one in self._known]
        return [one for one in aged if one.age_s <= within_s]

    def beat(self, store: Store) -> None:
        """Say that this one lives, and read who else does.

        Raises:
            StoreError: the database cannot be written or read.
        """
        with self._lock:
            told = dict(self._told)
        plain = {"host": socket.gethostname(), "pid": os.getpid(), "version": __version__}
        plain |= {name: value() for name, value in told.items()}
        asked_ns = self._clock.monotonic_ns()
        with store.database.writing() as connection:
            now_ns = tables.now_ns(connection.dialect)
            row = {"incarnation": self.incarnation, "seen_ns": 0, "plain": plain}
            tables.upsert(connection, tables.REPLICAS, [row])
            of = tables.REPLICAS.c
            mine = of.incarnation == self.incarnation
            connection.execute(sa.update(tables.REPLICAS).where(mine).values(seen_ns=now_ns))
            age_ns = (now_ns - of.seen_ns).label("age_ns")
            statement = sa.select(tables.REPLICAS, age_ns).order_by(of.incarnation)
            rows = list(connection.execute(statement).mappings())
        known = [
            Replica(row["incarnation"], max(0.0, row["age_ns"] / 1e9), row["plain"] or {})
            for row in rows
        ]
        with self._lock:
            self._known, self._read_ns = known, asked_ns

    def leave(self, store: Store) -> None:
        """A clean end: this one is no more, and need not be waited for."""
        with store.database.writing() as connection:
            mine = tables.REPLICAS.c.incarnation == self.incarnation
            connection.execute(sa.delete(tables.REPLICAS).where(mine))

    def forget(self, store: Store) -> None:
        """Remove rows of those that were not heard of for an hour."""
        with store.database.writing() as connection:
            now_ns = tables.now_ns(connection.dialect)
            old = tables.REPLICAS.c.seen_ns < now_ns - int(FORGOTTEN_S * 1e9)
            connection.execute(sa.delete(tables.REPLICAS).where(old))
