"""Verdict events: numbered, kept in memory for watchers, and in the store over restarts."""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.monitor.rows import StoreError
from sidecar.monitor.view import EVENTS_AT_ONCE, CertificateView, VerdictEvent
from validators.verdict import Verdict

if TYPE_CHECKING:
    from sidecar.monitor.store import Store

logger = logging.getLogger("sidecar.monitor.events")

#: Kept for watchers that come back.
_KEPT = 1024


class EventLog:
    """Appended to by any thread; watched by any number."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._events: deque[VerdictEvent] = deque(maxlen=_KEPT)
        self._unwritten: deque[VerdictEvent] = deque(maxlen=_KEPT)
        self._next_seq = 1

    @property
    def last_seq(self) -> int:
        """Of the latest event; 0 before the first."""
        return self._next_seq - 1

    def load(self, store: Store) -> None:
        """Go on after what earlier lives left; call it before the first event.

        Raises:
            StoreError: it cannot be read.
        """
        last = store.last_seq()
        kept = store.events(max(0, last - _KEPT), _KEPT)
        with self._changed:
            own = list(self._events)
            self._events.clear()
            self._unwritten.clear()
            self._events.extend(kept)
            self._next_seq = last + 1
            for event in own:  # the store came late: these follow what it holds
                self._append(event)

    def append(
        self,
        *,
        model: str,
        candidate: str,
        baseline: str,
        output: str,
        verdict: Verdict,
        text: str,
        certificate: CertificateView | None = None,
    ) -> None:
        """Say something to whoever watches, and to the log."""
        logger.info("%s: %s", verdict.value, text)
        with self._changed:
            self._append(
                VerdictEvent(
                    0, self._clock.now_ns(), model, candidate, baseline, output, verdict, text,
                    certificate,
                )
            )  # fmt: skip
            self._changed.notify_all()

    def _append(self, event: VerdictEvent) -> None:
        numbered = VerdictEvent(
            self._next_seq, event.wall_ns, event.model, event.candidate, event.baseline,
            event.output, event.verdict, event.text, event.certificate,
        )  # fmt: skip
        self._next_seq += 1
        self._events.append(numbered)
        self._unwritten.append(numbered)

    def wait(self, after_seq: int, timeout_s: float) -> list[VerdictEvent]:
        """As ``MonitorView.wait_events``."""
        with self._changed:
            self._changed.wait_for(lambda: self._next_seq - 1 > after_seq, timeout_s)
            return [event for event in self._events if event.seq > after_seq][:EVENTS_AT_ONCE]

    def flush(self, store: Store) -> bool:
        """Write what is not written yet; ``False``: the store refused, and it is tried again."""
        while self._unwritten:
            event = self._unwritten[0]
            try:
                store.append_event(event)
            except StoreError:
                return False
            with self._changed:
                if self._unwritten and self._unwritten[0] is event:
                    self._unwritten.popleft()
        return True
