"""Who decides: one monitor of all that share a store, by a lease in it that is renewed.

With PostgreSQL the row ``leader('rollback')`` names the owner, until when (by the database's clock)
and by which number, the *fence*, that grows with every term. Its owner believes in it until the
lease, counted from **before** the renewal was sent, less a margin is over: so it has stopped before
anybody else may begin, also where it was itself stopped and wakes up late. What it writes is
guarded in the same transaction: the row must still be its own (``guard``); and what it does outside
carries the fence.

Without PostgreSQL the folder's lock says who decides: the one that has it, and ``fence`` grows with
each start.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from sidecar.clock import Clock
from sidecar.errors import ConflictError
from sidecar.monitor import store_tables as tables
from sidecar.monitor.rows import StoreError
from sidecar.monitor.view import LeaderStatus

if TYPE_CHECKING:
    from sidecar.config_monitor import StoreConfig
    from sidecar.monitor.fleet_side import FleetSide
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.fleet")

#: The lease's name: who has it decides, acts, tells, folds and pools.
NAME = "rollback"
#: Renewals in one lease.
RENEWALS = 4
#: The last part of a lease in which its owner no longer believes in it.
MARGIN = 0.1
_JOIN_S = 1.0


class NotLeaderError(ConflictError):
    """Somebody else decides by now: whoever gets this steps down, and has changed nothing."""


@dataclass(frozen=True, slots=True)
class Term:
    """Who decides, as it was last read.

    Attributes:
        owner: a name of its own for each process.
        fence: grows with every term.
        since_ns: wall clock, when it began.
    """

    owner: str
    fence: int
    host: str
    pid: int
    since_ns: int


class LeaderTables:
    """The row; raises ``StoreError`` as the store does."""

    def __init__(
        self,
        writing: Callable[[], AbstractContextManager[sa.Connection]],
        read: Callable[[sa.Select[Any]], list[sa.RowMapping]],
        clock: Clock,
    ) -> None:
        self._writing = writing
        self._read = read
        self._clock = clock

    def hold(
        self, owner: str, lease_ns: int, *, take: bool = False, least: int = 0
    ) -> tuple[Term, bool]:
        """Renew the lease, or take it where it is over; else look who has it.

        Args:
            take: whoever has it, it is taken (and a new term begins).
            least: the new term's fence is greater.

        Returns:
            The term, and whether it is ``owner``'s.
        """
        with self._writing() as connection:
            now_ns = _now_ns(connection, self._clock)
            table = tables.LEADER
            look = sa.select(table).where(table.c.name == NAME)
            # Most look only: they need not wait for who writes.
            row = connection.execute(look).mappings().first()
            if (
                row is not None
                and not take
                and row["owner"] != owner
                and row["expires_ns"] > now_ns
            ):
                return _term(row), False
            row = connection.execute(look.with_for_update()).mappings().first()
            if row is not None and not take and row["expires_ns"] > now_ns:
                if row["owner"] != owner:
                    return _term(row), False
                expires = {"expires_ns": now_ns + lease_ns}
                connection.execute(sa.update(table).where(table.c.name == NAME).values(expires))
                return _term(row), True
            return self._begin(connection, row, owner, now_ns + lease_ns, least)

    def _begin(
        self, connection: sa.Connection, row: sa.RowMapping | None, owner: str, expires_ns: int,
        least: int,
    ) -> tuple[Term, bool]:  # fmt: skip
        # Decisions of an earlier release count as terms, too: a fence never falls.
        known = connection.scalar(sa.select(sa.func.max(tables.DECISIONS.c.fence))) or 0
        values = {
            "name": NAME, "owner": owner, "expires_ns": expires_ns,
            "fence": max(0 if row is None else row["fence"], known, least) + 1,
            "plain": {
                "host": socket.gethostname(), "pid": os.getpid(), "since_ns": self._clock.now_ns()
            },
        }  # fmt: skip
        if row is None:
            # Two may find that there is none: then the second does nothing, and looks again later.
            made = connection.execute(
                tables.insert_once(connection.dialect, tables.LEADER), values
            ).rowcount
        else:
            change = sa.update(tables.LEADER).where(tables.LEADER.c.name == NAME)
            made = connection.execute(change.values(values)).rowcount
        return _term(values), made == 1

    def release(self, owner: str, fence: int) -> None:
        """End the lease: the next one need not wait until it is over."""
        of = tables.LEADER.c
        mine = (of.name == NAME) & (of.owner == owner) & (of.fence == fence)
        with self._writing() as connection:
            connection.execute(sa.update(tables.LEADER).where(mine).values(expires_ns=0))


def _term(row: Any) -> Term:
    plain = row["plain"] if isinstance(row["plain"], dict) else {}
    return Term(
        row["owner"], row["fence"], str(plain.get("host", "?")), int(plain.get("pid", 0)),
        int(plain.get("since_ns", 0)),
    )  # fmt: skip


def _now_ns(connection: sa.Connection, clock: Clock) -> int:
    """Of the database's clock where it has one of its own: those of several machines differ."""
    if connection.dialect.name != "postgresql":
        return clock.now_ns()
    return int(connection.execute(sa.select(tables.now_ns(connection.dialect))).scalar_one())


class Leadership:
    """One monitor's part in it. ``start`` once, ``stop`` once; everything else from any thread.

    Args:
        store: the shared one, while it is open.
        lease_s: ``None``: nobody else has the store, so this one leads as soon as it is open.
        changed: called (by the thread that renews) when this one begins or ceases to lead.

    Attributes:
        owner: this process.
        terms: how many terms, of anybody, were seen in this life.
        message: why it is not known who leads; empty: it is.
    """

    def __init__(
        self,
        store: Callable[[], Store | None],
        clock: Clock,
        *,
        lease_s: float | None = None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.owner = uuid.uuid4().hex
        self.terms = 0
        self.message = _NOT_OPEN
        self._store = store
        self._clock = clock
        self._lease_ns = None if lease_s is None else int(lease_s * 1e9)
        self._changed = changed
        self._mutex = threading.Lock()  # never held while the store is asked
        self._asking = threading.Lock()
        self._term: Term | None = None
        self._is_mine = False
        self._mine_until: Term | None = None
        self._renewed_ns = (0, 0)  # monotonic, wall: before the renewal was sent
        self._heard_ns: int | None = None
        self._held: object = None  # where nobody else has the store: the one that is led in
        self._told = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leader", daemon=True)

    # --- life -------------------------------------------------------------------------------------

    @property
    def is_shared(self) -> bool:
        """Whether others may lead as well."""
        return self._lease_ns is not None

    def start(self) -> None:
        """Begin to renew, on a thread of its own: nothing slow may cost the lease."""
        if self.is_shared:
            self._thread.start()

    def _run(self) -> None:
        assert self._lease_ns is not None
        pause_s = self._lease_ns / RENEWALS / 1e9
        while True:
            try:
                self.tick()
            except Exception:  # the thread must go on
                logger.exception("who decides could not be looked up")
            if self._stopping.wait(pause_s):
                return

    def tick(self) -> bool:
        """Renew the lease, or look whether it can be had; returns whether this one leads.

        Never raises what the store raises: ``message`` has it, and a lease that is not renewed runs
        out by itself.
        """
        store = self._store()
        if store is not None and not self._stopping.is_set():
            try:
                self.attend(store)
            except StoreError as error:
                self._say(str(error))
        elif store is None:
            self._say(_NOT_OPEN)
        self._tell()
        return self.is_leader

    def _say(self, message: str) -> None:
        if message != self.message:
            logger.warning("who decides is not known: %s", message)
        self.message = message

    def attend(self, store: Store) -> None:
        """Ask a store now.

        Raises:
            StoreError: it does not answer.
        """
        with self._asking:
            if not self.is_shared and self._held is store:
                return
            sent_ns = self._clock.monotonic_ns(), self._clock.now_ns()
            table = store.part(lambda w, r: LeaderTables(w, r, self._clock))
            # Where the folder's lock decides, the row only counts.
            lease_ns = 0 if self._lease_ns is None else self._lease_ns
            # A database that was restored from a backup has forgotten terms.
            least = 0 if self._term is None else self._term.fence
            term, is_mine = table.hold(self.owner, lease_ns, take=not self.is_shared, least=least)
            with self._mutex:
                if self._term is None or term.fence != self._term.fence:
                    self.terms += 1
                    who = "this monitor" if is_mine else f"{term.host} (process {term.pid})"
                    if self.is_shared:
                        logger.info("%s decides from now on (fence %d)", who, term.fence)
                self._term, self._renewed_ns = term, sent_ns
                self._is_mine = is_mine and not self._stopping.is_set()
                self._heard_ns = sent_ns[0]
                self._held = store
            self.message = ""

    def _tell(self) -> None:
        leads = self.is_leader
        if leads != self._told:
            self._told = leads
            self._changed()

    def stop(self) -> None:
        """Cease to lead, without asking the store; ``release`` then lets another one begin."""
        self._stopping.set()
        with self._mutex:
            self._mine_until = self._term if self._is_mine else None
            self._is_mine = False
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def release(self, store: Store) -> None:
        """After ``stop``, and whatever else the next one should find: let it begin at once.

        Raises:
            StoreError: it does not answer; then the lease runs out by itself.
        """
        term = self._mine_until
        if self.is_shared and term is not None:
            table = store.part(lambda w, r: LeaderTables(w, r, self._clock))
            table.release(self.owner, term.fence)

    # --- for whoever decides ----------------------------------------------------------------------

    @property
    def is_leader(self) -> bool:
        """Whether this one decides, at this moment: never while another one may."""
        return self.fence > 0

    @property
    def fence(self) -> int:
        """The number of this one's term; 0: it does not lead."""
        with self._mutex:
            if not self._is_mine or self._term is None or self._left_ns() <= 0:
                return 0
            return self._term.fence

    def _left_ns(self) -> int:
        """Of the lease. By both clocks, since each may stand still while a machine sleeps."""
        if self._lease_ns is None:
            return 1
        mono_ns, wall_ns = self._renewed_ns
        gone = max(self._clock.monotonic_ns() - mono_ns, self._clock.now_ns() - wall_ns)
        return int(self._lease_ns * (1 - MARGIN)) - gone

    def guard(self, connection: sa.Connection, fence: int | None = None) -> None:
        """Within a transaction: it is written only if this one still leads when it is committed.

        Args:
            fence: of the term in which it was decided; ``None``: of the present one.

        Raises:
            NotLeaderError: another one does.
        """
        mine = self.fence
        if mine == 0 or fence not in {None, mine}:
            raise NotLeaderError(_NOT)
        if not self.is_shared:
            return
        of = tables.LEADER.c
        # Shared: who would take over waits until this transaction is over.
        row = connection.execute(
            sa.select(of.owner, of.fence).where(of.name == NAME).with_for_update(read=True)
        ).first()
        if row is None or (row.owner, row.fence) != (self.owner, mine):
            with self._mutex:
                self._is_mine = False
            raise NotLeaderError(_NOT)

    def may(self, connection: sa.Connection) -> bool:
        """``guard`` as a question."""
        try:
            self.guard(connection)
        except NotLeaderError:
            return False
        return True

    # --- to be shown ------------------------------------------------------------------------------

    @property
    def term(self) -> Term | None:
        """Who leads, as far as known."""
        with self._mutex:
            return self._term

    def status(self) -> LeaderStatus:
        """As it is shown; empty where nobody else may lead."""
        if not self.is_shared:
            return LeaderStatus()
        term = self.term
        if term is None:
            return LeaderStatus(message=self.message or "nobody has led yet")
        message = self.message
        here = term.owner == self.owner
        if here and not self.is_leader:
            message = message or "its lease is over, and was not renewed"
        return LeaderStatus(
            term.host, term.pid, term.since_ns, term.fence, here=here, message=message
        )

    @property
    def silent_s(self) -> float | None:
        """Since the store was last asked with success; ``None``: never."""
        with self._mutex:
            heard_ns = self._heard_ns
        return None if heard_ns is None else (self._clock.monotonic_ns() - heard_ns) / 1e9


_NOT = "another monitor decides by now"
_NOT_OPEN = "the store is not open"


def leadership_of(
    settings: StoreConfig | None, store: Callable[[], Store | None], fleet: FleetSide | None,
    clock: Clock, changed: Callable[[], None],
) -> Leadership:  # fmt: skip
    """One monitor's, alone or of a fleet; with a fleet another one begins when it has ended."""
    lease_s = None if settings is None else settings.lease_s
    made = Leadership(store, clock, lease_s=lease_s, changed=changed)
    if fleet is not None:
        fleet.at_end("leader", made.release)
        fleet.folder.may_fold = made.may
    return made
