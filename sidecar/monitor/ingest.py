"""Exchanges on their way in: a queue bounded in bytes that drops and never waits.

The listener's threads put, the monitor's one worker takes, a micro-batch at a time.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict, deque

from sidecar.clock import Clock
from sidecar.monitor.exchange import Exchange

#: Remembered identities: retries come within seconds, and this is minutes of a large sample.
IDENTITIES = 65_536
#: Of each waiting exchange, beside its bytes: objects, texts.
_OVERHEAD_BYTES = 1024


class Ingest:
    """The queue, and what it refused.

    A request that is repeated under the same identity (a client's retry) would count one event
    twice, which drives a sequential test to false alarms: it is dropped. Identities that the
    gateway made itself never repeat; an empty one is never a repeat.

    Attributes:
        received: exchanges offered; ``dropped``: reason (``duplicate``, ``queue_full``, ``late``) →
            count.
        lost: of these, how many for want of room or time since ``take_lost`` was last called.
    """

    def __init__(self, *, queue_bytes: int, clock: Clock, stale_s: float = 30.0) -> None:
        self._clock = clock
        self._max_bytes = queue_bytes
        self._stale_ns = int(stale_s * 1e9)
        self._queue: deque[tuple[int, Exchange]] = deque()
        self._bytes = 0
        self._seen: OrderedDict[int, None] = OrderedDict()
        self._ready = threading.Condition()
        self._closed = False
        self._lost = 0
        self.received = 0
        self.dropped: Counter[str] = Counter()

    def offer(self, exchange: Exchange) -> bool:
        """Take one in, from any thread; ``False``: it was dropped, and counted."""
        with self._ready:
            self.received += 1
            reason = self._refusal(exchange)
            if reason is not None:
                self.dropped[reason] += 1
                return False
            self._queue.append((self._clock.monotonic_ns(), exchange))
            self._bytes += _size(exchange)
            self._ready.notify()
            return True

    def _refusal(self, exchange: Exchange) -> str | None:
        if self._closed:
            return "stopping"
        if exchange.request_id:
            # Both halves of a fallback carry one identity; they are different answers.
            # As a number: of the texts themselves so many would be tens of megabytes.
            identity = hash((exchange.model, exchange.variant, exchange.request_id))
            if identity in self._seen:
                self._seen.move_to_end(identity)
                return "duplicate"
            self._seen[identity] = None
            if len(self._seen) > IDENTITIES:
                self._seen.popitem(last=False)
        if self._bytes + _size(exchange) > self._max_bytes:
            self._lost += 1
            return "queue_full"
        return None

    def take(self, count: int, max_bytes: int, timeout_s: float) -> list[Exchange]:
        """Take at most ``count`` exchanges of together ``max_bytes`` (one at least).

        Waits up to ``timeout_s`` seconds for the first. What has waited too long is dropped: the
        traffic it stands for is over, and what comes now matters more.
        """
        taken: list[Exchange] = []
        with self._ready:
            self._ready.wait_for(lambda: self._queue or self._closed, timeout_s)
            oldest_ns = self._clock.monotonic_ns() - self._stale_ns
            total = 0
            while self._queue and len(taken) < count:
                arrived_ns, exchange = self._queue[0]
                if taken and total + exchange.nbytes > max_bytes:
                    break
                self._queue.popleft()
                self._bytes -= _size(exchange)
                if arrived_ns < oldest_ns:
                    self.dropped["late"] += 1
                    self._lost += 1
                    continue
                total += exchange.nbytes
                taken.append(exchange)
        return taken

    def take_lost(self) -> int:
        """How many were lost for want of room or time since the last call."""
        with self._ready:
            lost, self._lost = self._lost, 0
            return lost

    @property
    def queue_bytes(self) -> int:
        """What waits, bytes."""
        return self._bytes

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    @property
    def fill(self) -> float:
        """Share of the queue that is taken, in [0, 1]."""
        return self._bytes / self._max_bytes

    @property
    def behind_s(self) -> float:
        """How long the oldest exchange has waited, seconds."""
        with self._ready:
            if not self._queue:
                return 0.0
            return (self._clock.monotonic_ns() - self._queue[0][0]) / 1e9

    def close(self) -> None:
        """Refuse what comes, and wake who waits. What waits can still be taken."""
        with self._ready:
            self._closed = True
            self._ready.notify_all()


def _size(exchange: Exchange) -> int:
    return exchange.nbytes + _OVERHEAD_BYTES
