"""The store, if there is one: opened, written to, and tried again while it refuses.

With ``monitor.store`` there are two: this monitor's own, for what is nobody else's business, and
the one that all replicas share. Each is opened and tried again without the other.
"""

from __future__ import annotations

import logging
import uuid
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.monitor.drift_watch import DriftWatch
from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.evidence_shared import SharedEvidence
from sidecar.monitor.labels import LateLabels
from sidecar.monitor.rows import EvidenceKey, StoreError
from sidecar.monitor.store import Store
from sidecar.monitor.view import StoreStatus

if TYPE_CHECKING:
    from sidecar.config_monitor import StoreConfig

logger = logging.getLogger("sidecar.monitor.keeper")

_RETRY_S = 15.0
#: Of the shared one, which is tried in a thread of its own.
_RETRY_SHARED_S = 2.0


class Keeper:
    """Keeps evidence and events in a store, and goes on in memory without one.

    A full disk or a folder that is not there must not end the watching: what is counted meanwhile
    is written when the store can be opened.

    Args:
        shared: of the database that all replicas share; ``None``: there is none.

    Attributes:
        incarnation: this life's name, in both.
    """

    def __init__(
        self, folder: Path, evidence: Evidence, events: EventLog, clock: Clock,
        drift: DriftWatch | None = None, labels: LateLabels | None = None,
        shared: StoreConfig | None = None,
    ) -> None:  # fmt: skip
        self.incarnation = uuid.uuid4().hex
        self._settings = shared
        if isinstance(evidence, SharedEvidence):
            evidence.become(self.incarnation)
        self._shared: Store | None = None
        self._shared_message = "not connected yet"
        self._retry_shared_ns = 0
        self._folder = folder
        self._evidence = evidence
        self._events = events
        self._drift = drift
        self._labels = labels
        self._clock = clock
        self._store: Store | None = None
        self._message = ""
        self._retry_ns = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a store."""
        return self._store is not None

    @property
    def store(self) -> Store | None:
        """The store of this monitor alone (events, cases, drift, labels), while it is open."""
        return self._store

    @property
    def shared(self) -> Store | None:
        """Where evidence, decisions, alerts and routes are, while it is open: with
        ``monitor.store`` one database of all replicas, else the same as ``store``."""
        return self._store if self._settings is None else self._shared

    def open(self) -> bool:
        """Open the store and read it; ``False``: it cannot be opened now (said once)."""
        self._retry_ns = self._clock.monotonic_ns() + int(_RETRY_S * 1e9)
        store: Store | None = None
        try:
            store = Store.open(self._folder, self._clock, self.incarnation)
            self._evidence.load(store)
            self._events.load(store)
            if self._drift is not None:
                self._drift.load(store)
            if self._labels is not None:
                self._labels.load(store)
        except StoreError as error:
            if store is not None:
                store.close()
            if str(error) != self._message:
                logger.error("evidence is kept in memory only: %s", error)
            self._message = str(error)
            return False
        self._store, self._message = store, ""
        return True

    def flush(self) -> None:
        """Write what has changed; never raises."""
        wait = self._clock.monotonic_ns() < self._retry_ns
        if self._store is None and (wait or not self.open()):
            return
        assert self._store is not None
        if self._labels is not None:
            with suppress(StoreError):
                self._labels.flush(self._store)
        if self._evidence.flush(self._store):
            self._events.flush(self._store)
        if self._drift is not None:
            with suppress(StoreError):  # which the store has said; tried again the next time
                self._drift.flush(self._store)

    # --- what all replicas share: called by the fleet's thread only -------------------------------

    def open_shared(self) -> Store | None:
        """The shared store, opened where that is not done yet; ``None``: it cannot be opened now
        (said once)."""
        now_ns = self._clock.monotonic_ns()
        if self._shared is not None or self._settings is None or now_ns < self._retry_shared_ns:
            return self._shared
        try:
            self._shared = Store.connect(self._settings, self._clock, self.incarnation)
        except StoreError as error:
            if str(error) != self._shared_message:
                logger.error("nothing is shared with other replicas: %s", error)
            self._shared_message = str(error)
            self._retry_shared_ns = self._clock.monotonic_ns() + int(_RETRY_SHARED_S * 1e9)
        return self._shared

    def share(self, store: Store) -> None:
        """Write what was counted here.

        Raises:
            StoreError: it cannot be done; the next call does all of it.
        """
        assert isinstance(self._evidence, SharedEvidence)
        self._evidence.share(store)

    def read(self, store: Store) -> None:
        """Read what the others have counted; raises as ``share`` does."""
        assert isinstance(self._evidence, SharedEvidence)
        self._evidence.refresh(store)

    def stretch(self, key: EvidenceKey) -> int:
        """The first block of the stretch that a key's counts belong to now."""
        assert isinstance(self._evidence, SharedEvidence)
        return self._evidence.stretch(key)

    def close_shared(self) -> None:
        """After the last ``share``."""
        if self._shared is not None:
            self._shared.close()

    # --- the end ----------------------------------------------------------------------------------

    def status(self) -> StoreStatus:
        """As it is shown."""
        own = self._own_status()
        if self._settings is None:
            return own
        if self._shared is None:
            return replace(own, shared="PostgreSQL", shared_message=self._shared_message)
        at = self._shared.database
        return replace(own, shared=at.where, shared_ok=at.ok, shared_message=at.message)

    def _own_status(self) -> StoreStatus:
        if self._store is None:
            return StoreStatus(str(self._folder), ok=False, message=self._message, bytes=0)
        return self._store.status()

    def close(self) -> None:
        """Write what is left, and close."""
        self.flush()
        if self._store is not None:
            self._store.close()
