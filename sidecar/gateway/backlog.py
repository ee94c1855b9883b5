"""What waits to be told by the monitor: spans, and log records; bounded, and never waited for.

Appending costs a few operations on a deque, without a lock; the tap's thread (``tap.py``) sends.
What the monitor has not acknowledged counts as held, since nobody else knows of it: so that what
was lost with a monitor is known, too. While none is connected nothing is kept.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from sidecar.gateway.pages import Page
from sidecar.monitor.channel_frames import LOGS, SPANS, pack_logs, pack_spans
from sidecar.traces import SpanRecord

T = TypeVar("T")


class Backlog(Generic[T]):
    """Records on their way to the monitor.

    Handed over = acknowledged + dropped (counted in the page) + waiting + sent, at any time.

    Args:
        page: where is counted what was dropped, as ``counter``.
        counter: one of ``SERVER_COUNTERS``.
        capacity: most that wait; beyond, the oldest go.
        unacknowledged: most that are sent and not acknowledged.
        size: of a record, in the unit of ``slice_size``.
        slice_count, slice_size: most that are taken at once; a larger record is taken alone.
    """

    def __init__(
        self,
        page: Page,
        counter: str,
        *,
        capacity: int,
        unacknowledged: int,
        slice_count: int,
        slice_size: int = 0,
        size: Callable[[T], int] | None = None,
    ) -> None:
        self._page, self._counter = page, counter
        self._capacity, self._sent_max = capacity, unacknowledged
        self._slice_count, self._slice_size, self._size = slice_count, slice_size, size
        self._records: deque[T] = deque()
        self._lock = threading.Lock()  # of what is sent: the path never takes it
        self._sent = 0
        self._open = False
        #: Called when a record was appended; set by whoever sends.
        self.wake: Callable[[], None] = lambda: None

    # --- for whoever has something to tell ------------------------------------------------------

    def put(self, record: T) -> None:
        """Keep a record until it is sent; never waits."""
        if not self._open:
            self._page.add_server(self._counter)
            return
        if len(self._records) >= self._capacity:
            try:
                self._records.popleft()
            except IndexError:  # they were sent meanwhile
                pass
            else:
                self._page.add_server(self._counter)
        self._records.append(record)
        self.wake()

    # --- for the thread that sends --------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether ``take`` gives something now."""
        return len(self._records) > 0 and self._sent < self._sent_max

    @property
    def slice_waits(self) -> bool:
        """Whether it gives a whole slice."""
        return self.waiting and len(self._records) >= self._slice_count

    @property
    def empty(self) -> bool:
        """Whether everything that was kept has arrived."""
        return not self._records and not self._sent

    def open(self) -> None:
        """A monitor is connected."""
        self._open = True

    def take(self) -> list[T]:
        """The oldest records, which count as sent from now on; at most one slice."""
        taken: list[T] = []
        room = self._slice_size
        with self._lock:
            most = min(self._slice_count, self._sent_max - self._sent)
            while self._records and len(taken) < most:
                if self._size is not None:
                    room -= self._size(self._records[0])
                    if room < 0 and taken:
                        break
                try:
                    taken.append(self._records.popleft())
                except IndexError:  # `put` has dropped the last one meanwhile
                    break
            self._sent += len(taken)
        return taken

    def acknowledge(self, count: int) -> None:
        """So many of those that were sent have arrived."""
        with self._lock:
            self._sent = max(0, self._sent - max(0, count))

    def lose(self) -> None:
        """The monitor is gone: what waits, and what was not acknowledged, counts as dropped."""
        self._open = False
        with self._lock:
            lost, self._sent = self._sent, 0
            while True:
                try:
                    self._records.popleft()
                except IndexError:
                    break
                lost += 1
        if lost:
            self._page.add_server(self._counter, lost)


#: A record takes about a kilobyte, so that all of them take a few megabytes; as many come in a
#: second where every request of a busy worker is traced.
_SPANS_MAX = 4096
_LOGS_MAX = 1024
#: About as much as the kernel holds for a socket (200 kB).
_UNACKNOWLEDGED_MAX = 512
#: Encoding so many holds Python's lock for some 0.2 ms, which every request waits for.
_SPANS_SLICE = 32
_LOGS_SLICE = 16
#: Characters; in JSON a character takes at most 12 bytes, and a frame at most 1 MiB of it.
_LOGS_SLICE_SIZE = 32 * 1024


class Told:
    """The backlogs of one worker, as the tap sees them; ``None``: there is nothing to tell."""

    def __init__(self, page: Page, *, spans: bool, logs: bool) -> None:
        self.spans: Backlog[SpanRecord] | None = None
        self.logs: Backlog[dict[str, Any]] | None = None
        if spans:
            self.spans = Backlog(
                page, "spans_dropped", capacity=_SPANS_MAX, unacknowledged=_UNACKNOWLEDGED_MAX,
                slice_count=_SPANS_SLICE,
            )  # fmt: skip
        if logs:
            self.logs = Backlog(
                page, "logs_dropped", capacity=_LOGS_MAX, unacknowledged=_UNACKNOWLEDGED_MAX,
                slice_count=_LOGS_SLICE, slice_size=_LOGS_SLICE_SIZE, size=_log_size,
            )  # fmt: skip
        self.all: list[Backlog[Any]] = [b for b in (self.spans, self.logs) if b is not None]

    @property
    def waiting(self) -> bool:
        """Whether ``frames`` gives something now."""
        return any(backlog.waiting for backlog in self.all)

    @property
    def slice_waits(self) -> bool:
        """Whether so much waits that it should be sent without gathering more."""
        return any(backlog.slice_waits for backlog in self.all)

    @property
    def empty(self) -> bool:
        """Whether everything that was kept has arrived."""
        return all(backlog.empty for backlog in self.all)

    def frames(self) -> list[tuple[int, dict[str, Any], tuple[()]]]:
        """A slice of each, which counts as sent."""
        found: list[tuple[int, dict[str, Any], tuple[()]]] = []
        if self.spans is not None and (spans := self.spans.take()):
            found.append((SPANS, pack_spans(spans), ()))
        if self.logs is not None and (logs := self.logs.take()):
            found.append((LOGS, pack_logs(logs), ()))
        return found

    def acknowledge(self, name: str, count: int) -> bool:
        """So many have arrived; whether there is room now for some that wait."""
        backlog = {"spans": self.spans, "logs": self.logs}.get(name)
        if backlog is None:
            return False
        was_full = not backlog.waiting
        backlog.acknowledge(count)
        return was_full and backlog.waiting


def _log_size(log: dict[str, Any]) -> int:
    attributes = log["attributes"]
    return len(log["body"]) + sum(len(key) + len(str(value)) for key, value in attributes.items())
