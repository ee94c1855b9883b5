"""The fleet's thread: everything that a monitor does with the database that all replicas share.

Nothing else waits for that database. In each round (``rounds.py``): write what was counted here;
when all have done that, what whoever leads does with it; then read what the others have counted,
say that this monitor lives, and the steps that others registered. What fails is said once, and
tried again in the next round. A mistake of ours keeps nothing else from being done; a database that
refuses evidence or heartbeat is not asked for more in that round: each answer may take its time
limit, and who takes no part need not seem to be there.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.replicas import FORGOTTEN_S, Replica, Replicas
from sidecar.monitor.rounds import Moment, Rounds
from sidecar.monitor.rows import StoreError
from sidecar.monitor.shared_fold import Folder

if TYPE_CHECKING:
    from sidecar.config_monitor import StoreConfig
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.fleet")

#: How long ``close`` waits for the last round.
_END_WITHIN_S = 2.5

#: Who was not heard of for so long is not shown as alive.
_ALIVE_S, _ALIVE_SYNCS = 10.0, 5

Step = Callable[["Store"], None]


class FleetSide:
    """The thread, and who is registered with it.

    Attributes:
        replicas: who else is there.
        folder: folds the counts of dead monitors; its ``may_fold`` says whether it may here.
    """

    def __init__(self, settings: StoreConfig, keeper: Keeper, clock: Clock) -> None:
        self.replicas = Replicas(keeper.incarnation, clock)
        self._settings = settings
        self._keeper = keeper
        self._clock = clock
        self._steps: list[tuple[str, Step]] = []
        self._tells: list[tuple[str, Step]] = []
        self._joins: list[tuple[str, Step]] = []
        self._last: list[tuple[str, Step]] = []
        self._rounds = Rounds(keeper.incarnation, settings.sync_s)
        self._failing: dict[str, str] = {}
        self.folder = Folder(keeper.incarnation, keeper.stretch, clock)
        self.every_sync("folding", self.folder.step)
        self.every_sync("forgetting", self._forget)
        self._forget_ns = 0
        self._is_refused = False
        self._told_ns: int | None = None
        self._exchanged_ns: int | None = None
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)

    def alive(self) -> tuple[str, ...]:
        """Incarnations of all that are alive, as far as known here."""
        within_s = max(_ALIVE_S, _ALIVE_SYNCS * self._settings.sync_s)
        return tuple(one.incarnation for one in self.replicas.alive(within_s))

    @property
    def sync_s(self) -> float:
        """Between two rounds."""
        return self._settings.sync_s

    @property
    def silent_s(self) -> float | None:
        """Since counts were last written, and the others' read; ``None``: they never were."""
        at_ns = self._exchanged_ns
        return None if at_ns is None else (self._clock.monotonic_ns() - at_ns) / 1e9

    def others(self) -> list[Replica]:
        """All that are alive but this one, as far as known here."""
        within_s = max(_ALIVE_S, _ALIVE_SYNCS * self._settings.sync_s)
        alive = self.replicas.alive(within_s)
        return [one for one in alive if one.incarnation != self.replicas.incarnation]

    def every_sync(self, name: str, step: Step) -> None:
        """Have something done in each round, after evidence was read; before ``start``.

        Not called while the database cannot be reached; called where a mistake of ours has kept
        evidence from being written.
        """
        self._steps.append((name, step))

    def when_telling(self, name: str, step: Step) -> None:
        """Have something else written when evidence is, in time for ``when_told``; before
        ``start``."""
        self._tells.append((name, step))

    def when_told(self, name: str, step: Step) -> None:
        """Have something done in each round when the others have written, too; before ``start``."""
        self._joins.append((name, step))

    def at_end(self, name: str, step: Step) -> None:
        """Have something done at a clean end, after evidence was written; before ``start``.

        Called, and not called, as ``every_sync`` says.
        """
        self._last.append((name, step))

    def start(self) -> None:
        """Begin with the rounds; returns at once, whether or not there is a database."""
        self._thread.start()

    def close(self) -> None:
        """Write what is left, say good-bye, close; bounded, whatever the database does."""
        self._ending.set()
        if self._thread.ident is None:
            return
        self._thread.join(_END_WITHIN_S)
        if self._thread.is_alive():
            logger.error("the shared store does not answer: what it lacks is lost with this life")

    def tell(self) -> None:
        """Write what was counted."""
        store = self._keeper.open_shared()
        if store is None:
            return
        self._is_refused = not self._do("evidence", self._share, store)
        if not self._is_refused:
            for name, step in self._tells:
                self._do(name, step, store)

    def join(self) -> None:
        """What is done when all have told."""
        store = self._keeper.open_shared()
        if store is not None and not self._is_refused:
            for name, step in self._joins:
                self._do(name, step, store)

    def sync(self) -> bool:
        """Everything else of a round; ``False``: the database cannot be reached, or refuses."""
        store = self._keeper.open_shared()
        if store is None or self._is_refused:
            return False
        if not self._do("reading", self._read, store):
            return False
        if not self._do("heartbeat", self.replicas.beat, store):
            return False
        for name, step in self._steps:
            self._do(name, step, store)
        return True

    def _share(self, store: Store) -> None:
        asked_ns = self._clock.monotonic_ns()
        self._keeper.share(store)
        self._told_ns = asked_ns

    def _read(self, store: Store) -> None:
        self._keeper.read(store)
        self._exchanged_ns = self._told_ns

    def _run(self) -> None:
        due = {Moment.TELL: self.tell, Moment.JOIN: self.join, Moment.READ: self.sync}
        self.sync()  # at once: who else is there is asked for from the start
        while True:
            wait_ns, moment = self._rounds.next(self._clock.now_ns())
            if self._ending.wait(wait_ns / 1e9):
                break
            due[moment]()
        self._end()

    def _end(self) -> None:
        store = self._keeper.open_shared()
        if store is not None:
            if self._do("evidence", self._share, store):
                for name, step in self._last:
                    self._do(name, step, store)
                self._do("heartbeat", self.replicas.leave, store)
            self._keeper.close_shared()

    def _do(self, name: str, step: Step, store: Store) -> bool:
        """Whether the store can be asked on: it was done, or failed by a mistake of ours."""
        try:
            step(store)
        except StoreError as error:
            self._failed(name, str(error))
            return False
        except Exception as error:  # a mistake in one step is not the others' loss
            if name not in self._failing:
                logger.exception("the fleet's step %s failed", name)
            self._failing[name] = str(error)
        else:
            if self._failing.pop(name, None) is not None:
                logger.info("the fleet's step %s goes on", name)
        return True

    def _forget(self, store: Store) -> None:
        if self._clock.monotonic_ns() >= self._forget_ns:
            self._forget_ns = self._clock.monotonic_ns() + int(FORGOTTEN_S * 1e9)
            self.replicas.forget(store)

    def _failed(self, name: str, text: str) -> None:
        if name not in self._failing:  # once, not every second
            logger.error("the fleet's step %s cannot be done: %s", name, text)
        self._failing[name] = text


def evidence_of(settings: StoreConfig | None, clock: Clock) -> Evidence:
    """The evidence of one monitor alone, or of one of several."""
    name = f"unsaved-{os.getpid()}"
    return Evidence(name, clock) if settings is None else SharedEvidence(name, clock)


def fleet_side(
    settings: StoreConfig | None,
    keeper: Keeper,
    clock: Clock,
    *joins: Callable[[FleetSide], None],
) -> FleetSide | None:
    """The fleet's part of a monitor; ``None``: it is alone.

    Args:
        joins: who has something done in each round.

    Raises:
        ConfigError: the URL cannot be read. MissingExtraError: psycopg is not installed.
    """
    if settings is None:
        return None
    from sidecar.monitor.database_postgres import PostgresDatabase

    PostgresDatabase(settings)  # what is wrong with the settings is said before anything starts
    side = FleetSide(settings, keeper, clock)
    for join in joins:
        join(side)
    return side
