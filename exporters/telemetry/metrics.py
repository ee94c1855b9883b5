"""Metrics: read from whoever counts, on a schedule, and sent.

Nothing is counted here. A reader is a function that gives the points as they are now (the sums over
the gateway's pages, say); what it gives is cumulative, so that a collection that is lost is made up
for by the next one, and nothing needs to wait in a queue.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from time import monotonic

from exporters.telemetry.delivery import Delivery, Outcome
from exporters.telemetry.model import Point

logger = logging.getLogger(__name__)

Reader = Callable[[], Iterable[Point]]
#: Points in one request: gRPC servers take 4 MiB by default, a histogram is about 500 bytes.
SLICE_POINTS = 2000


class Collector:
    """All readers. A reader that raises loses its own points, and nobody else's."""

    def __init__(self, points_max: int) -> None:
        self._readers: list[Reader] = []
        self._points_max = points_max
        self._lock = threading.Lock()
        self._complaints: set[str] = set()
        self.dropped: Counter[str] = Counter()

    def add(self, reader: Reader) -> None:
        """Ask ``reader`` at each collection, in the order they were added."""
        with self._lock:
            self._readers.append(reader)

    def collect(self, timeout_s: float) -> list[Point]:
        """Every point now. Raises TimeoutError while another collection does not end."""
        if not self._lock.acquire(timeout=max(0.0, timeout_s)):
            raise TimeoutError("another collection has not ended")
        try:
            points: list[Point] = []
            for reader in self._readers:
                try:
                    points.extend(reader())
                except Exception as error:  # noqa: BLE001
                    self._complain(f"a reader failed: {type(error).__name__}: {error}")
            if len(points) > self._points_max:
                self.dropped["too_many"] += len(points) - self._points_max
                self._complain(f"more than {self._points_max} points (points_max)")
                del points[self._points_max :]
            return points
        finally:
            self._lock.release()

    def _complain(self, text: str) -> None:
        """Say it once; a reader that always fails would fill the log otherwise."""
        if text not in self._complaints and len(self._complaints) < 100:
            self._complaints.add(text)
            logger.warning("metrics: %s", text)


class Periodic:
    """A thread that collects and sends every ``interval_s``, and once more at the end."""

    def __init__(
        self,
        collector: Collector,
        encode: Callable[[Sequence[Point]], bytes],
        delivery: Delivery,
        interval_s: float,
    ) -> None:
        self._collector, self._encode, self.delivery = collector, encode, delivery
        self._interval_s = interval_s
        self._changed = threading.Condition()
        self._asked = self._done = 0
        self._complete = True
        self._closing = False
        self._exported = 0
        self._dropped: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="telemetry-metrics", daemon=True)
        self._thread.start()

    def counts(self) -> tuple[int, Counter[str]]:
        """Exported, and dropped by reason; since the beginning."""
        with self._changed:
            return self._exported, self._dropped.copy()

    def flush(self, deadline: float) -> bool:
        """Collect and send now; whether all of it was taken by ``deadline``."""
        with self._changed:
            self._asked += 1
            mine = self._asked
            self._changed.notify_all()
            while self._done < mine:
                left = deadline - monotonic()
                if left <= 0 or not self._thread.is_alive():
                    return False
                self._changed.wait(left)
            return self._complete

    def close(self, deadline: float) -> None:
        """Send a last time until ``deadline`` (monotonic). Does not wait."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self.delivery.close(deadline)

    def join(self, deadline: float) -> None:
        """Wait for the thread until ``deadline``."""
        self._thread.join(max(0.0, deadline - monotonic()))

    def _run(self) -> None:
        closing = False
        while not closing:
            with self._changed:
                due = monotonic() + self._interval_s
                while not (self._closing or self._asked > self._done):
                    if (left := due - monotonic()) <= 0:
                        break
                    self._changed.wait(left)
                closing, answering = self._closing, self._asked
            outcome = self._export()
            with self._changed:
                self._exported += outcome.exported
                self._dropped += outcome.dropped
                self._complete, self._done = not outcome.dropped, answering
                self._changed.notify_all()

    def _export(self) -> Outcome:
        total = Outcome()
        try:
            points = self._collector.collect(self._interval_s)
        except TimeoutError as error:
            logger.warning("metrics: %s", error)
            return Outcome(dropped=Counter({"invalid": 1}))
        for at in range(0, len(points), SLICE_POINTS):
            outcome = self.delivery.encode_and_deliver(points[at : at + SLICE_POINTS], self._encode)
            total.exported += outcome.exported
            total.dropped += outcome.dropped
        return total
