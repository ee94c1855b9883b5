"""What is known of pairs, decisions and freezes: in memory for whoever looks, in the store first.

Nothing becomes another state here that the store has not taken: a decision that is not durable is
none, and is come to again at the next check. Several monitors may share the store: one of them
leads, and only it decides and goes on with decisions; the others read again what is new. Operators
may write at any of them.

Two locks. ``lock`` is for those who look and then write: it is held while the store is asked, so
with a store that hangs it is held for as long as that may take. Who only looks does not take it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.errors import ConflictError, NotFoundError, UnavailableError
from sidecar.monitor.leader import Leadership, NotLeaderError
from sidecar.monitor.rollback.decisions import Decision, PairId
from sidecar.monitor.rollback.states import Standing
from sidecar.monitor.rollback.store import (
    ALL,
    DECISIONS_KEPT,
    AlertSink,
    Change,
    Freeze,
    Kept,
    RollbackTables,
    TakenError,
)
from sidecar.monitor.rows import StoreError
from sidecar.monitor.view_rollback import Delivery

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.rollback")

_NO_STORE = "there is no store, so nothing can be decided: what is decided must outlive a restart"
#: An operator does not wait longer for a store that somebody else waits for.
_PATIENCE_S = 10.0


class Book:
    """Any thread.

    Args:
        leadership: of this monitor; ``None``: nobody else has the store.

    Attributes:
        lock: for those who look and then write.
        trouble: why nothing can be decided now; empty: it can.
    """

    def __init__(self, sink: AlertSink, clock: Clock, leadership: Leadership | None = None) -> None:
        self.lock = threading.RLock()
        self.trouble = _NO_STORE
        self._leadership = leadership or Leadership(lambda: None, clock)
        self._sink = sink
        self._clock = clock
        self._tables: RollbackTables | None = None
        self._store: Store | None = None
        self._generation = 0
        self._revision = -1  # that has been read
        self._fence = 0  # of the term for which decisions were taken over
        self._cannot_write = False
        self._known = threading.Lock()  # of the three; never held while the store is asked
        self._standings: dict[PairId, Standing] = {}
        self._decisions: dict[str, Decision] = {}
        self._freezes: dict[str, Freeze] = {}

    # --- the store --------------------------------------------------------------------------------

    def follow(self, store: Store | None) -> bool:
        """Go by the store as it is now: opened late, begun afresh while open, or (``None``) gone;
        and by what others have written. Who leads takes over what an earlier one had begun.

        Returns:
            Whether there is one that can be gone by; if not, ``trouble`` says why.
        """
        with self.lock:
            try:
                if store is None:
                    self._store = self._tables = None
                    self.trouble = _NO_STORE
                    return False
                if not self._leadership.is_shared:
                    self._leadership.attend(store)
                if store is not self._store:
                    self._tables = store.part(lambda w, r: RollbackTables(self._leadership, w, r))
                    self._store, self._generation = store, store.generation
                    self._revision = -1
                self._read()
            except StoreError as error:
                self._failed(error)
                return False
            if not self._cannot_write:
                self.trouble = ""
            self.take_over()
            return True

    def _read(self) -> None:
        """What is new in the store; where it was begun afresh, all that is known is written again,
        so that what it has lost is not taken for gone."""
        assert self._tables is not None
        assert self._store is not None
        generation = self._store.generation
        if generation != self._generation:
            self._tables.restore(self._standings, list(self._decisions.values()), self._freezes)
            self._generation, self._revision = generation, -1
        kept = self._tables.since(self._revision)
        if kept is not None:
            self._take(kept)
            self._revision = kept.revision

    def _take(self, kept: Kept) -> None:
        with self._known:
            self._standings.update(kept.standings)
            self._decisions.update({one.id: one for one in kept.decisions})
            if kept.freezes is not None:
                self._freezes = dict(kept.freezes)
            if len(self._decisions) > 2 * DECISIONS_KEPT:  # those that the store has let go of
                newest = sorted(self._decisions.values(), key=lambda one: -one.wall_ns)
                kept_on = [d for n, d in enumerate(newest) if n < DECISIONS_KEPT or d.is_open]
                self._decisions = {one.id: one for one in kept_on}

    def take_over(self) -> None:
        """Who leads makes every decision its own that is to be gone on with: with a later fence,
        what an earlier leader does of it is stale."""
        with self.lock:
            fence = self._leadership.fence
            if fence != self._fence:
                self._fence = 0
                if fence == 0 or self._tables is None or not self._reread():
                    return  # nothing is decided, or told, before all is known that was
                self._fence = fence
            if not self.leads:
                return
            for one in self._open():
                if not self._is_mine(one):
                    self.move(one, one)

    @property
    def leads(self) -> bool:
        """Whether what is decided here, now, counts."""
        return self._tables is not None and 0 < self._fence == self._leadership.fence

    @property
    def is_shared(self) -> bool:
        """Whether other monitors may lead."""
        return self._leadership.is_shared

    def is_term(self, fence: int) -> bool:
        """Whether this monitor leads, and it is (still, or again without a break) that term."""
        return fence > 0 and self._leadership.fence == fence

    def _is_mine(self, one: Decision) -> bool:
        return one.owner == self._leadership.owner and one.fence == self._fence

    @property
    def life(self) -> str:
        """This life of the process; empty without a store."""
        return self._leadership.owner if self._tables is not None else ""

    def now_ns(self) -> int:
        """Wall clock."""
        return self._clock.now_ns()

    def _failed(self, error: StoreError) -> None:
        if str(error) != self.trouble:
            logger.error("nothing is decided and nobody is told: %s", error)
        self.trouble = str(error)

    @contextmanager
    def held(self) -> Iterator[None]:
        """``lock``, for an operator, with what is new in the store.

        Raises:
            UnavailableError: the store hangs, or cannot be read.
        """
        if not self.lock.acquire(timeout=_PATIENCE_S):
            message = self.trouble or "the store does not answer: try again later"
            raise UnavailableError(message)
        try:
            if self._tables is None:
                raise UnavailableError(self.trouble or _NO_STORE)
            try:
                self._read()
            except StoreError as error:
                self._failed(error)
                raise UnavailableError(str(error)) from None
            yield
        finally:
            self.lock.release()

    def write(self, change: Change, *, operator: bool = False) -> bool:
        """Write it, and go by it from now on.

        Args:
            operator: it is one's word, which counts at whatever monitor it is given; else it is
                the leader's.

        Returns:
            Whether it was; if not, ``trouble`` says why, or somebody else was sooner.
        """
        with self.lock:
            if self._tables is None or not (operator or self.leads):
                return False
            try:
                kept = self._tables.write(change, self._sink, None if operator else self._fence)
            except StoreError as error:
                self._failed(error)
                self._cannot_write = not self._leadership.is_shared
                return False
            except (NotLeaderError, TakenError) as error:
                logger.warning("%s", error)
                self._reread()
                return False
            if self.trouble:
                logger.info("the store takes decisions again")
            self.trouble, self._cannot_write = "", False
            # What others wrote before it is still to be read.
            self._take(kept)
            return True

    def _reread(self) -> bool:
        try:
            self._read()
        except StoreError as error:
            self._failed(error)
            return False
        return True

    def move(
        self, before: Decision, after: Decision, change: Change | None = None, *,
        operator: bool = False,
    ) -> bool:  # fmt: skip
        """Change one decision; with it whatever else ``change`` says."""
        change = change or Change()
        change = replace(change, moved=[*change.moved, (before, after)])
        return self.write(change, operator=operator)

    # --- looking ----------------------------------------------------------------------------------

    def standing(self, pair: PairId) -> Standing:
        """How a pair stands; as at the beginning where it was never looked at."""
        with self._known:
            return self._standings.get(pair, Standing())

    def note(self, pair: PairId, standing: Standing) -> None:
        """Remember it without the store (which has refused it): the best evidence, say."""
        with self._known:
            self._standings[pair] = standing

    def pairs(self) -> list[PairId]:
        """All that were ever looked at."""
        with self._known:
            return list(self._standings)

    def decision(self, name: str) -> Decision:
        """One.

        Raises:
            NotFoundError: there is none.
        """
        found = self.get(name)
        if found is None:
            message = f"no decision {name!r}: sidecar rollback history lists them"
            raise NotFoundError(message)
        return found

    def get(self, name: str) -> Decision | None:
        """One, if there is one."""
        with self._known:
            return self._decisions.get(name)

    def decisions(self, model: str | None = None) -> list[Decision]:
        """The newest first."""
        of = [d for d in self._all() if model in {None, d.pair.model}]
        return sorted(of, key=lambda one: (-one.wall_ns, one.id))

    def _all(self) -> list[Decision]:
        with self._known:
            return list(self._decisions.values())

    def _open(self) -> list[Decision]:
        return sorted((one for one in self._all() if one.is_open), key=lambda one: one.wall_ns)

    @property
    def has_open(self) -> bool:
        """Whether the leader, whoever it is, has something to go on with."""
        return any(one.is_open for one in self._all())

    def open(self) -> list[Decision]:
        """Those that this monitor goes on with, the oldest first: none where it does not lead."""
        return [one for one in self._open() if self._is_mine(one)] if self.leads else []

    def standing_decisions(self) -> list[Decision]:
        """Those that are not resolved."""
        return [one for one in self._all() if one.resolved_ns is None]

    def still_stands(self, alert_id: str) -> bool:
        """Whether an alert is still to be told: its decision is known and not resolved."""
        one = self.get(alert_id)
        if one is None:
            one = next((d for d in self._all() if alert_id == d.blocked_alert), None)
        return one is not None and one.resolved_ns is None

    def deliveries(self, decision: Decision) -> list[Delivery]:
        """What became of its alerts; empty where the store does not answer."""
        if self.trouble:
            return []  # whoever looks does not wait for it
        ids = [name for name in (decision.id, decision.blocked_alert) if name]
        return self._sink.deliveries(ids)

    # --- freezing, and the cool-down --------------------------------------------------------------

    def frozen(self, model: str) -> Freeze | None:
        """The freeze of a model, or of all."""
        with self._known:
            return self._freezes.get(ALL) or self._freezes.get(model)

    def freeze(self, model: str, *, frozen: bool, by: str, reason: str) -> None:
        """Begin or end a freeze, at all monitors; durable when this returns.

        Raises:
            ConflictError: the model is frozen with all others, which must be ended for all.
            UnavailableError: the store does not take it.
        """
        with self.held():
            assert self._tables is not None
            if not frozen and model != ALL and ALL in self._freezes:
                message = f"all models are frozen by {self._freezes[ALL].by}: unfreeze them all"
                raise ConflictError(message)
            freeze = Freeze(by, reason, self._clock.now_ns()) if frozen else None
            every = not frozen and model == ALL
            try:
                self._tables.freeze(sorted({model, *self._freezes} if every else {model}), freeze)
            except StoreError as error:
                self._failed(error)
                self._cannot_write = not self._leadership.is_shared
                raise UnavailableError(str(error)) from None
            with self._known:
                freezes = {} if every else {m: f for m, f in self._freezes.items() if m != model}
                self._freezes = freezes if freeze is None else {**freezes, model: freeze}

    def cooling_s(self, model: str, cooldown_s: float) -> float:
        """How long until the model may be acted on again; 0: now.

        In the life of the process that acted, by the clock that never jumps. After a restart by
        both clocks, and the shorter time counts: a wall clock that jumps ahead does not end it
        early, and neither does a restart of the machine, after which the other one begins anew. Of
        another leader, who may be on another machine, by the wall clock.
        """
        acted = [one for one in self._all() if one.pair.model == model and one.performed_ns]
        now_ns, mono_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        left = 0.0
        for one in acted:
            since_ns = mono_ns - one.performed_mono_ns
            if one.performed_in != self.life:
                wall_ns = max(now_ns - one.performed_ns, 0)
                is_other = since_ns < 0 or self._leadership.is_shared
                since_ns = wall_ns if is_other else min(wall_ns, since_ns)
            left = max(left, cooldown_s - since_ns / 1e9)
        return min(left, cooldown_s)
