"""Labels over several replicas: each goes to the one that has the answer, and counts there.

A label comes to whichever replica it is sent to. Where that one has no answer for it, it is offered
to all in their database; every replica reads what is new, and takes out what it has an answer for.
Only in the thread of the fleet (``fleet_side.py``): neither a request nor ``PutLabels`` waits for
the database. What it does not take now waits in memory and in this monitor's own store, as before.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from sidecar.clock import Clock
from sidecar.monitor.label_offers import Offer, OfferTables
from sidecar.monitor.rows import StoreError
from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.labels")

#: Of one statement, and how many of them in one go.
ROWS = 5000
_STATEMENTS_MAX = 40
_PRUNE_S = 30.0


class Room(Protocol):
    """Where answers and labels of this replica wait; any thread."""

    def outgoing(self, model: str, most: int) -> list[Offer]:
        """Take labels out that are to be offered, the oldest first."""
        ...

    def offered(self, model: str, ids: Iterable[str], known: int) -> None:
        """They are in the database; of ``known`` of them another one was there."""
        ...

    def put_back(self, model: str, offers: Sequence[Offer]) -> None:
        """They could not be offered: they wait here."""
        ...

    def holds(self, model: str, ids: Iterable[str]) -> list[str]:
        """Those whose answer waits here, or has had its label."""
        ...

    def taken(self, model: str, offers: Sequence[Offer]) -> None:
        """Count labels that were offered."""
        ...

    def lost(self, model: str, expired: int, full: int) -> None:
        """Labels nobody has had an answer for."""
        ...


class LabelFleet:
    """One replica's part.

    Args:
        limits: model → within how many nanoseconds a label must find its answer, and how many may
            wait.
    """

    def __init__(self, room: Room, limits: Mapping[str, tuple[int, int]], clock: Clock) -> None:
        self._room = room
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        #: By model what is on offer, as numbers: an answer that comes late looks here.
        self._known: dict[str, set[int]] = {model: set() for model in limits}
        self._wanted: dict[str, list[str]] = {model: [] for model in limits}
        self._read_up_to = 0
        self._generation: int | None = None
        self._prune_ns = 0

    def want(self, model: str, request_id: str) -> None:
        """An answer waits from now on: where its label is on offer, it is taken soon."""
        with self._lock:
            if hash(request_id) in self._known[model]:
                self._wanted[model].append(request_id)

    def sync(self, store: Store) -> None:
        """Offer, read what is new, take what is ours.

        Raises:
            StoreError: the database does not take it; nothing is lost, and it is tried again.
        """
        tables = store.part(OfferTables)
        if store.generation != self._generation:
            self._forget()
            self._generation = store.generation
        for model in self._limits:
            self._offer(tables, model)
        self._look(tables)
        if self._clock.monotonic_ns() >= self._prune_ns:
            self._prune_ns = self._clock.monotonic_ns() + int(_PRUNE_S * 1e9)
            for model, (within_ns, most) in self._limits.items():
                before_ns = self._clock.now_ns() - within_ns
                self._room.lost(model, *tables.prune(model, before_ns, most))

    def _forget(self) -> None:
        """Read everything that is on offer anew."""
        with self._lock:
            for known in self._known.values():
                known.clear()
        self._read_up_to = 0

    def _offer(self, tables: OfferTables, model: str) -> None:
        for _ in range(_STATEMENTS_MAX):
            offers = self._room.outgoing(model, ROWS)
            if not offers:
                return
            ids = [request_id for request_id, _ in offers]
            # Before it is sent: it may be taken as soon as it is there, by us as well.
            with self._lock:
                self._known[model].update(map(hash, ids))
            try:
                known = tables.offer(model, offers)
            except BaseException:
                # Where the answer was lost on its way they are there all the same: whoever has the
                # answer then takes and counts what is offered twice once.
                self._room.put_back(model, offers)
                raise
            self._room.offered(model, ids, known)

    def _look(self, tables: OfferTables) -> None:
        news, up_to = tables.since(self._read_up_to)
        found: dict[str, list[str]] = {}
        for model, request_id in news:
            found.setdefault(model, []).append(request_id)
        overfull = False
        for model, (_, most) in self._limits.items():
            ids = found.get(model, [])
            with self._lock:
                # Known first, then looked for: an answer that comes between the two is not missed.
                known = self._known[model]
                known.update(map(hash, ids))
                overfull = overfull or len(known) > 2 * most + ROWS
                wanted, self._wanted[model] = self._wanted[model], []
            self._take(tables, model, [*self._room.holds(model, ids), *wanted])
        self._read_up_to = up_to
        if overfull:  # most of it was taken by others since
            self._forget()

    def _take(self, tables: OfferTables, model: str, ids: Sequence[str]) -> None:
        for at in range(0, len(ids), ROWS):
            part = ids[at : at + ROWS]
            try:
                offers = tables.take(model, part)
            except StoreError:
                with self._lock:
                    self._wanted[model] += ids[at:]
                raise
            self._room.taken(model, offers)
