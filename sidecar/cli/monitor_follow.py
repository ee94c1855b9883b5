"""Following a monitor's stream of verdicts over its restarts, for ``sidecar watch``."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass

from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.view import VerdictEvent

#: How long before a lost monitor is tried again: first, and at most.
_BACKOFF_S, _BACKOFF_MAX_S = 0.2, 2.0


@dataclass(frozen=True, slots=True)
class Connected:
    """A stream has begun."""

    incarnation: str
    counted_anew: bool


@dataclass(frozen=True, slots=True)
class Missed:
    """So many events are no longer kept."""

    count: int


@dataclass(frozen=True, slots=True)
class Lost:
    """The stream ended; it is tried again."""

    reason: str


News = Connected | Missed | Lost | VerdictEvent


class Follower:
    """Reads the stream in a thread of its own, begins again when it breaks off."""

    def __init__(self, client: MonitorClient, *, after_seq: int) -> None:
        self._client = client
        self._after_seq = after_seq
        # Bounded: when nobody takes, nobody reads, and the monitor holds the stream back.
        self._news: queue.Queue[News | MonitorCallError] = queue.Queue(1000)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follow", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def next(self, timeout_s: float) -> News | None:
        """Return what came next, or ``None`` when nothing did in this time.

        Raises:
            MonitorCallError: the stream cannot be had, and trying again would not help.
        """
        try:
            news = self._news.get(timeout=timeout_s)
        except queue.Empty:
            return None
        if isinstance(news, MonitorCallError):
            raise news
        return news

    def stop(self) -> None:
        """End the stream; the connection is closed with it."""
        self._stopped.set()
        self._client.close()

    def _run(self) -> None:
        wait_s, seen_any = _BACKOFF_S, False
        while not self._stopped.is_set():
            try:
                for what in self._client.watch(self._after_seq):
                    wait_s = _BACKOFF_S
                    if isinstance(what, VerdictEvent):
                        self._after_seq, seen_any = what.seq, True
                        self._put(what)
                    elif isinstance(what, int):
                        if seen_any:  # at first, earlier ones were asked for that may never be
                            self._put(Missed(what))
                    else:
                        self._after_seq = what.after_seq
                        self._put(Connected(what.incarnation, what.counted_anew))
                self._put(Lost("the monitor ended the stream"))
            except MonitorCallError as error:
                if not error.is_gone and error.code != "RESOURCE_EXHAUSTED":
                    self._put(error)
                    return
                self._put(Lost(str(error)))
            except ValueError:  # the connection was closed while a stream began
                return
            self._stopped.wait(wait_s)
            wait_s = min(wait_s * 2, _BACKOFF_MAX_S)

    def _put(self, news: News | MonitorCallError) -> None:
        while not self._stopped.is_set():
            try:
                self._news.put(news, timeout=0.5)
            except queue.Full:
                continue
            return
