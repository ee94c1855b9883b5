"""A bounded queue with a thread behind it, for spans and for log records.

Handing over costs an append under a lock that is never held while anything is encoded or sent. The
thread takes small slices: encoding two thousand spans at once would be felt by everybody on the
same cores.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Generic, TypeVar

from exporters.telemetry.delivery import Delivery
from exporters.telemetry.settings import Bounds

T = TypeVar("T")


class Line(Generic[T]):
    """Items on their way to one backend.

    Handed over = exported + dropped (by reason) + waiting, always.

    Args:
        name: of the thread.
        encode: makes a request of a slice; raises on an item that cannot be encoded.
        delivery: sends it.
        bounds: how much waits.
    """

    def __init__(
        self,
        name: str,
        encode: Callable[[Sequence[T]], bytes],
        delivery: Delivery,
        bounds: Bounds,
    ) -> None:
        self._encode, self._bounds, self.delivery = encode, bounds, delivery
        self._slice = min(bounds.slice, bounds.items)
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._in_hand = 0
        self._flushing = 0
        self._closing = self._abandoned = False
        self._handed_over = self._exported = 0
        self._dropped: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hand ``item`` over. Never waits for a backend; the oldest goes when the queue is full."""
        with self._changed:
            self._handed_over += 1
            if self._closing:
                self._dropped["shutdown"] += 1
                return
            items = self._items
            if len(items) >= self._bounds.items:
                items.popleft()
                self._dropped["queue_full"] += 1
            items.append(item)
            if len(items) == 1 or len(items) == self._slice:
                self._changed.notify_all()

    def counts(self) -> tuple[int, Counter[str]]:
        """Exported, and dropped by reason; since the beginning."""
        with self._changed:
            return self._exported, self._dropped.copy()

    @property
    def handed_over(self) -> int:
        """How many were handed over since the beginning."""
        return self._handed_over

    @property
    def waiting(self) -> int:
        """How many wait, those being sent included; at most ``items`` and one slice."""
        with self._changed:
            return len(self._items) + self._in_hand

    def flush(self, deadline: float) -> bool:
        """Send what waits now, without delay; ``False`` if it was not done by ``deadline``."""
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                while self._items or self._in_hand:
                    left = deadline - monotonic()
                    if left <= 0 or not self._thread.is_alive():
                        return False
                    self._changed.wait(left)
                return True
            finally:
                self._flushing -= 1

    def close(self, deadline: float) -> None:
        """Take nothing more and send the rest, until ``deadline`` (monotonic). Does not wait."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.delivery.close(deadline)

    def join(self, deadline: float) -> None:
        """Wait for the thread until ``deadline``; what is left then counts as dropped."""
        self._thread.join(max(0.0, deadline - monotonic()))
        with self._changed:
            if left := len(self._items) + self._in_hand:
                self._dropped["shutdown"] += left
            self._abandoned = True
            self._items.clear()
            self._in_hand = 0

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        while taken := self._take():
            outcome = self.delivery.encode_and_deliver(taken, self._encode)
            with self._changed:
                if self._abandoned:  # counted already
                    return
                self._exported += outcome.exported
                self._dropped += outcome.dropped
                self._in_hand = 0
                self._changed.notify_all()
                busy = len(self._items) > self._bounds.items // 2
                if not (busy or self._closing or self._flushing):
                    self._changed.wait(self._bounds.breath_s)

    def _take(self) -> list[T]:
        """The next slice; empty at the end."""
        with self._changed:
            while not self._items and not self._closing:
                self._changed.wait()
            ready = monotonic() + self._bounds.delay_s
            while not (len(self._items) >= self._slice or self._closing or self._flushing):
                if (left := ready - monotonic()) <= 0:
                    break
                self._changed.wait(left)
            taken = [self._items.popleft() for _ in range(min(self._slice, len(self._items)))]
            self._in_hand = len(taken)
            return taken
