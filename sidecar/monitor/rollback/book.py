"""What is known of pairs, decisions and freezes: in memory for whoever looks, in the store first.

Nothing becomes another state here that the store has not taken: a decision that is not durable is
none, and is come to again at the next check. Everything is under one lock, which is never held
while an action is under way.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.errors import ConflictError, NotFoundError, UnavailableError
from sidecar.monitor.rollback.decisions import Decision, PairId
from sidecar.monitor.rollback.states import Standing
from sidecar.monitor.rollback.store import (
    ALL,
    AlertSink,
    Change,
    Freeze,
    RollbackTables,
    TakenError,
)
from sidecar.monitor.rows import StoreError
from sidecar.monitor.view_rollback import Delivery

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.rollback")

_NO_STORE = "there is no store, so nothing can be decided: what is decided must outlive a restart"


class Book:
    """Any thread.

    Attributes:
        lock: for those who look and then write.
        trouble: why nothing can be decided now; empty: it can.
    """

    def __init__(self, sink: AlertSink, clock: Clock) -> None:
        self.lock = threading.RLock()
        self.trouble = _NO_STORE
        self._sink = sink
        self._clock = clock
        self._tables: RollbackTables | None = None
        self._store: Store | None = None
        self._generation = 0
        self._standings: dict[PairId, Standing] = {}
        self._decisions: dict[str, Decision] = {}
        self._freezes: dict[str, Freeze] = {}

    # --- the store --------------------------------------------------------------------------------

    def follow(self, store: Store | None) -> bool:
        """Go by the store as it is now: opened late, begun afresh while open, or (``None``) gone.

        Returns:
            Whether there is one that can be gone by; if not, ``trouble`` says why.
        """
        with self.lock:
            try:
                if store is None:
                    self._store = self._tables = None
                    self.trouble = _NO_STORE
                elif store is not self._store:
                    owner = store.incarnation
                    self._attach(store.part(lambda w, r: RollbackTables(owner, w, r)))
                    self._store, self._generation = store, store.generation
                elif store.generation != self._generation:
                    self._restore()
                    self._generation = store.generation
            except StoreError as error:
                self._failed(error)
                return False
            return store is not None

    def _attach(self, tables: RollbackTables) -> None:
        """Read what is kept, and take over what an earlier life had begun."""
        standings, freezes = tables.standings(), tables.freezes()
        decisions = {one.id: one for one in tables.decisions()}
        self._tables = tables
        self._standings = {**self._standings, **standings}
        self._decisions, self._freezes = decisions, freezes
        self.trouble = ""
        for one in list(decisions.values()):
            if one.is_open and one.owner != tables.owner:
                self.move(one, one)  # a new fence: the earlier owner's actions are stale

    def _restore(self) -> None:
        """The store was begun afresh: write all that is known into it."""
        assert self._tables is not None
        self._tables.restore(self._standings, list(self._decisions.values()))
        for model, freeze in self._freezes.items():
            self._tables.freeze(model, freeze)

    @property
    def life(self) -> str:
        """This life of the process, as the store names it; empty without one."""
        return self._tables.owner if self._tables is not None else ""

    def now_ns(self) -> int:
        """Wall clock."""
        return self._clock.now_ns()

    def _failed(self, error: StoreError) -> None:
        if str(error) != self.trouble:
            logger.error("nothing is decided and nobody is told: %s", error)
        self.trouble = str(error)

    def write(self, change: Change) -> bool:
        """Write it, and go by it from now on.

        Returns:
            Whether it was; if not, ``trouble`` says why, or somebody else was sooner.
        """
        with self.lock:
            if self._tables is None:
                return False
            try:
                made = self._tables.write(change, self._sink)
            except StoreError as error:
                self._failed(error)
                return False
            except TakenError as error:
                logger.warning("%s", error)
                self._reread()
                return False
            if self.trouble:
                logger.info("the store takes decisions again")
            self.trouble = ""
            self._standings.update(change.standings)
            self._decisions.update({one.id: one for one in made})
            return True

    def _reread(self) -> None:
        assert self._tables is not None
        try:
            self._decisions.update({one.id: one for one in self._tables.decisions()})
            self._standings.update(self._tables.standings())
        except StoreError as error:
            self._failed(error)

    def move(self, before: Decision, after: Decision, change: Change | None = None) -> bool:
        """Change one decision; with it whatever else ``change`` says."""
        change = change or Change()
        return self.write(replace(change, moved=[*change.moved, (before, after)]))

    # --- looking ----------------------------------------------------------------------------------

    def standing(self, pair: PairId) -> Standing:
        """How a pair stands; as at the beginning where it was never looked at."""
        with self.lock:
            return self._standings.get(pair, Standing())

    def note(self, pair: PairId, standing: Standing) -> None:
        """Remember it without the store (which has refused it): the best evidence, say."""
        with self.lock:
            self._standings[pair] = standing

    def pairs(self) -> list[PairId]:
        """All that were ever looked at."""
        with self.lock:
            return list(self._standings)

    def decision(self, name: str) -> Decision:
        """One.

        Raises:
            NotFoundError: there is none.
        """
        with self.lock:
            found = self._decisions.get(name)
        if found is None:
            message = f"no decision {name!r}: sidecar rollback history lists them"
            raise NotFoundError(message)
        return found

    def get(self, name: str) -> Decision | None:
        """One, if there is one."""
        with self.lock:
            return self._decisions.get(name)

    def decisions(self, model: str | None = None) -> list[Decision]:
        """The newest first."""
        with self.lock:
            of = [d for d in self._decisions.values() if model in {None, d.pair.model}]
        return sorted(of, key=lambda one: (-one.wall_ns, one.id))

    def open(self) -> list[Decision]:
        """Those that this life goes on with, the oldest first; not what somebody else took over."""
        with self.lock:
            mine = self.life
            return sorted(
                (one for one in self._decisions.values() if one.is_open and one.owner == mine),
                key=lambda one: one.wall_ns,
            )

    def standing_decisions(self) -> list[Decision]:
        """Those that are not resolved."""
        with self.lock:
            return [one for one in self._decisions.values() if one.resolved_ns is None]

    def still_stands(self, alert_id: str) -> bool:
        """Whether an alert is still to be told: its decision is known and not resolved.

        Without the lock, which who asks may not wait for: it may hold the store.
        """
        known = self._decisions
        one = known.get(alert_id)
        if one is None:
            one = next((d for d in list(known.values()) if alert_id == d.blocked_alert), None)
        return one is not None and one.resolved_ns is None

    def deliveries(self, decision: Decision) -> list[Delivery]:
        """What became of its alerts."""
        ids = [name for name in (decision.id, decision.blocked_alert) if name]
        return self._sink.deliveries(ids)

    # --- freezing, and the cool-down --------------------------------------------------------------

    def frozen(self, model: str) -> Freeze | None:
        """The freeze of a model, or of all."""
        with self.lock:
            return self._freezes.get(ALL) or self._freezes.get(model)

    def freeze(self, model: str, *, frozen: bool, by: str, reason: str) -> None:
        """Begin or end a freeze; durable when this returns.

        Raises:
            ConflictError: the model is frozen with all others, which must be ended for all.
            UnavailableError: the store does not take it.
        """
        with self.lock:
            if not frozen and model != ALL and ALL in self._freezes:
                message = f"all models are frozen by {self._freezes[ALL].by}: unfreeze them all"
                raise ConflictError(message)
            freeze = Freeze(by, reason, self._clock.now_ns()) if frozen else None
            if self._tables is None:
                raise UnavailableError(_NO_STORE)
            gone = [model] if frozen or model != ALL else list(self._freezes)
            try:
                for one in gone or [model]:
                    self._tables.freeze(one, freeze)
            except StoreError as error:
                self._failed(error)
                raise UnavailableError(str(error)) from None
            for one in gone:
                self._freezes.pop(one, None)
            if freeze is not None:
                self._freezes[model] = freeze

    def cooling_s(self, model: str, cooldown_s: float) -> float:
        """How long until the model may be acted on again; 0: now.

        In the life of the process that acted, by the clock that never jumps. After a restart by
        both clocks, and the shorter time counts: a wall clock that jumps ahead does not end it
        early, and neither does a restart of the machine, after which the other one begins anew.
        """
        with self.lock:
            acted = [d for d in self._decisions.values() if d.pair.model == model]
        now_ns, mono_ns = self._clock.now_ns(), self._clock.monotonic_ns()
        left = 0.0
        for one in acted:
            if one.performed_ns:
                since_ns = mono_ns - one.performed_mono_ns
                if one.performed_in != self.life:
                    wall_ns = max(now_ns - one.performed_ns, 0)
                    since_ns = wall_ns if since_ns < 0 else min(wall_ns, since_ns)
                left = max(left, cooldown_s - since_ns / 1e9)
        return min(left, cooldown_s)
