"""One monitor's part in blocks over all replicas: it hands over, and joins while it leads."""

from __future__ import annotations

import logging
import threading
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sidecar.clock import Clock
from sidecar.errors import ConflictError
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.pool import HOLD, QUIET_ROUNDS
from sidecar.monitor.pool_rests import SLICE_NS, Rests, to_plain

if TYPE_CHECKING:
    import sqlalchemy as sa

    from sidecar.monitor.fleet_side import FleetSide
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.fleet")

#: A row that could not be written for so long is given up: how far this replica's rows were taken
#: may be forgotten, and then it would count twice.
_GIVEN_UP_NS = 3600 * 10**9
#: Who looks waits for so many rounds. What was joined so long ago (a part of a round) is new
#: enough: where many models are looked at, each would wait for a round of its own.
_WAIT_ROUNDS, _FRESH = 2, 0.25


class Leads(Protocol):
    """Who decides (``leader.py``)."""

    @property
    def fence(self) -> int:
        """This monitor's number while it leads; 0: it does not."""
        ...

    def guard(self, connection: sa.Connection, fence: int | None = None) -> None:
        """Within a transaction: raises ConflictError where this monitor does not lead."""
        ...


@dataclass(slots=True)
class _Row:
    seq: int
    upto: int
    rests: list[Any]
    made_ns: int


def attach(fleet: FleetSide, evidence: Evidence, leads: Leads, clock: Clock) -> PoolSide:
    """Have a fleet's thread hand over, and join; before it starts."""
    side = PoolSide(evidence, leads, clock, sync_s=fleet.sync_s)
    fleet.when_telling("rests", side.hand_over)
    fleet.when_told("pool", side.join)
    fleet.at_end("rests", side.hand_over)
    return side


class PoolSide:
    """``hand_over`` and ``join`` are steps of the fleet's thread, in this order.

    Args:
        evidence: whose ``rests`` are handed over from now on.
        sync_s: between two rounds.
    """

    def __init__(self, evidence: Evidence, leads: Leads, clock: Clock, *, sync_s: float) -> None:
        self._evidence = evidence
        self._leads = leads
        self._clock = clock
        self._hold_ns = int(HOLD * sync_s * 1e9)
        self._rests = evidence.rests = evidence.rests or Rests()
        self._life = uuid.uuid4().hex
        self._seq, self._upto = 0, 0
        self._row: _Row | None = None
        self._quiet = QUIET_ROUNDS
        self._sync_s = sync_s
        self._joined = threading.Condition()
        self._joined_ns: int | None = None

    def hand_over(self, store: Store) -> None:
        """Hand over what waits.

        Raises:
            StoreError: it cannot be written, or nobody knows; the next call tries the same again.
        """
        from sidecar.monitor.pool_store import PoolTables

        part = store.part(PoolTables)
        now_ns = self._clock.now_ns()
        while (row := self._row or self._next(now_ns)) is not None:
            self._row = row
            if self._clock.monotonic_ns() - row.made_ns > _GIVEN_UP_NS:
                logger.error("blocks of pairs that could not be handed over for an hour are lost")
            elif not part.hand_over(self._life, row.seq, row.upto, row.rests):
                return  # nobody joins: what comes meanwhile becomes blocks of this replica
            self._row = None
            if not self._rests:
                return

    def _next(self, now_ns: int) -> _Row | None:
        self._upto = max(self._upto, now_ns // SLICE_NS)  # a clock may be set back
        rests = to_plain(self._rests.take())
        self._quiet = 0 if rests else self._quiet + 1
        if self._quiet >= QUIET_ROUNDS:
            return None
        self._seq += 1
        return _Row(self._seq, self._upto, rests, self._clock.monotonic_ns())

    def join(self, store: Store) -> None:
        """Join what all have handed over, if this monitor leads, and read what all have counted.

        Raises:
            StoreError: it cannot be read or written; the next call does it.
        """
        from sidecar.monitor.pool_store import PoolTables

        fence = self._leads.fence
        if not fence:
            return
        try:
            store.part(PoolTables).join(
                lambda connection: self._leads.guard(connection, fence), fence,
                self._clock.now_ns(), self._hold_ns,
            )  # fmt: skip
        except ConflictError:
            return  # another one leads by now
        self._evidence.refresh(store)
        with self._joined:
            self._joined_ns = self._clock.monotonic_ns()
            self._joined.notify_all()

    def wait(self) -> None:
        """Until everything that is known of this round was read, if this monitor leads; at most
        two rounds, whatever the database does.

        For whoever looks at the evidence now and then: at any other moment it would be older.
        """
        if not self._leads.fence:
            return
        begun_ns = self._clock.monotonic_ns()

        def is_fresh() -> bool:
            at_ns = self._joined_ns
            return at_ns is not None and at_ns >= begun_ns - _FRESH * self._sync_s * 1e9

        with self._joined:
            self._joined.wait_for(is_fresh, timeout=_WAIT_ROUNDS * self._sync_s)
