"""The gateway's end of the channel to the monitor: a sample of exchanges, spans, log records.

The request's path never waits for it, and pays for what is sampled only: the decision is made
before anything is referenced, the hand-over appends to a queue bounded in bytes, and nothing is
copied or encoded there. A thread sends (``sidecar/monitor/channel.py`` has the other end). While no
monitor is connected nothing is queued. Spans and log records wait in a ``Backlog`` each, and go in
small slices: all that came in 50 ms at once doubled the gateway's p99.

Never mirrored, and counted: requests with tensors in shared memory (their contents may be others by
the time they would be read), and those of a sequence (a copy that has not seen the beginning cannot
answer the rest). A request that its own client got wrong, or cancelled, has no answer to compare,
and is not counted.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

from sidecar import frames
from sidecar.clock import Clock
from sidecar.gateway.backlog import Told
from sidecar.gateway.messages import InferRequest
from sidecar.gateway.pages import SERVER_COUNTERS, Page
from sidecar.gateway.sample import Sample, uses_regions
from sidecar.monitor.channel_frames import (
    ACK,
    COUNTERS,
    EXCHANGE,
    HELLO,
    RATE,
    pack_exchange,
)
from sidecar.monitor.channel_socket import peer_uid
from sidecar.monitor.exchange import Bytes, Exchange
from sidecar.monitor.places import address_of

if TYPE_CHECKING:
    from sidecar.config_monitor import MonitorConfig
    from sidecar.gateway.aside import Aside

logger = logging.getLogger(__name__)

#: What an exchange costs beside its bytes, so that the bound holds for a million tiny ones as well.
_OVERHEAD_BYTES = 1024
#: After a pause the thread waits so long before it sends: exchanges that come together wake it
#: once, and it does not compete for Python's lock with the very request that woke it.
_GATHER_S = 0.02
#: The same for spans and log records, which are in no hurry, and small.
_GATHER_TOLD_S = 0.1
#: Sent with one call, which gives up Python's lock: in between no request waits for long.
_SLICE = 4
_SLICE_BYTES = 64 * 1024
#: How often the counts are told, and how long an idle thread sleeps.
_TELL_S = 1.0
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 1.0
#: What the monitor says is a few numbers.
_ANSWER_BYTES_MAX = 64 * 1024
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_COUNTERS = tuple(name for name in SERVER_COUNTERS if name.startswith("tap_"))


class Tap:
    """The queue to the monitor, and the thread that empties it.

    Args:
        path: the monitor's socket.
        config: how much to sample, and how much may wait.
        page: where it counts (``tap_…`` in ``SERVER_COUNTERS``).
        clock: for the wall-clock time of exchanges.
        worker: this worker's index, so that one that takes its place goes on in its counts.
        models: whose requests may be sampled; ``None``: everybody's. (What has no other variant
            would only cost, and make the share that was compared look small.)
        told: spans and log records, where they are wanted.
    """

    def __init__(
        self,
        path: Path,
        config: MonitorConfig,
        page: Page,
        clock: Clock,
        worker: int = 0,
        models: frozenset[str] | None = None,
        told: Told | None = None,
    ) -> None:
        self._models = models
        self._told = told or Told(page, spans=False, logs=False)
        for backlog in self._told.all:
            backlog.wake = self._on_told
        self.clock = clock
        self.path = path
        self._page = page
        self._worker = worker
        self._configured_rate = config.mirror.sample_rate
        self._rate = self._configured_rate
        self._max_bytes = config.channel.max_bytes
        self._max_exchange_bytes = config.channel.max_exchange_bytes
        self._random = random.Random().random  # noqa: S311 - which requests are looked at is no secret
        self._lock = threading.Lock()
        self._queue: deque[tuple[Exchange, Sequence[Bytes] | None, int]] = deque()
        self._unacknowledged: deque[int] = deque()
        self._held_bytes = 0
        self._connected = False
        self._idle = self._asleep = False  # `_idle`: an exchange wakes it; `_asleep`: anything does
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._socket: socket.socket | None = None
        self.aside: Aside | None = None  # set by whoever has something else to say
        self._thread = threading.Thread(target=self._run, name="tap", daemon=True)

    # --- on the request's path ------------------------------------------------------------------

    def consider(
        self,
        request: InferRequest,
        transport: str,
        body: bytes,
        header_bytes: int | None = None,
        parameters: Mapping[str, object] | None = None,
    ) -> None:
        """Perhaps make ``request`` a sample.

        Args:
            request: as the transport has read it.
            transport, body, header_bytes: as in ``Exchange``.
            parameters: the request's, where ``request`` does not have them all.
        """
        if self._random() >= self._rate:
            return
        if self._models is not None and request.model_name not in self._models:
            return
        known = request.parameters if parameters is None else parameters
        if known and any(name in known for name in _SEQUENCE):
            self.count("tap_sampled", "tap_sequence")
        elif uses_regions(request):
            self.count("tap_sampled", "tap_shared_memory")
        elif len(body) > self._max_exchange_bytes:
            self.count("tap_sampled", "tap_too_large")
        elif not self._connected:
            self.count("tap_sampled", "tap_dropped_no_monitor")
        else:
            request.sample = Sample(self, request, transport, body, header_bytes)

    def offer(self, exchange: Exchange, response: Sequence[Bytes] | None) -> None:
        """Queue an exchange, or count why not. Never waits."""
        nbytes = len(exchange.request) + sum(map(len, response or ()))
        if nbytes > self._max_exchange_bytes:
            self.count("tap_sampled", "tap_too_large")
            return
        nbytes += _OVERHEAD_BYTES
        with self._lock:
            connected = self._connected
            taken = connected and self._held_bytes + nbytes <= self._max_bytes
            if taken:
                self._held_bytes += nbytes
                self._queue.append((exchange, response, nbytes))
        if taken:
            self._page.add_server("tap_sampled")
            if self._idle:
                self._idle = False
                self._wake.set()
        else:
            self.count("tap_sampled", "tap_dropped_full" if connected else "tap_dropped_no_monitor")

    def _on_told(self) -> None:
        """Something is to be told: only a thread that sleeps deeply is woken for it."""
        if self._asleep:
            self._asleep = self._idle = False
            self._wake.set()

    def count(self, *counters: str) -> None:
        """Add one to each."""
        for counter in counters:
            self._page.add_server(counter)

    # --- life -----------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The share of requests that is sampled now."""
        return self._rate

    @property
    def connected(self) -> bool:
        """Whether a monitor takes exchanges."""
        return self._connected

    def start(self) -> None:
        """Begin to look for the monitor."""
        if self.aside is not None:
            self.aside.wake = self._wake.set
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """Wait a little until what is queued has arrived, and end the thread. Idempotent.

        What has not arrived by then is counted as lost.
        """
        give_up_s = monotonic() + timeout_s / 2
        while self._connected and (self._queue or self._unacknowledged or not self._told.empty):
            self._wake.set()
            if self._stopped.wait(0.01) or monotonic() > give_up_s:
                break
        self._stopped.set()
        self._wake.set()
        if (sock := self._socket) is not None:
            _shut(sock)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    # --- the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        retry_s = _FIRST_RETRY_S
        while not self._stopped.is_set():
            try:
                sock = self._connect()
            except OSError as error:
                logger.debug("no monitor at %s: %s", self.path, error)
                self._stopped.wait(retry_s)
                retry_s = min(2 * retry_s, _LAST_RETRY_S)
                continue
            retry_s = _FIRST_RETRY_S
            self._socket = sock
            reader = threading.Thread(
                target=self._read, args=(sock,), name="tap-answers", daemon=True
            )
            try:
                self._connected = True
                for backlog in self._told.all:
                    backlog.open()
                frames.send(sock, HELLO, {"worker": self._worker, "pid": os.getpid()})
                reader.start()
                what = "connected" if self._models == frozenset() else "mirroring"
                logger.info("%s to the monitor at %s", what, self.path)
                self._send_until_lost(sock)
            except (OSError, ValueError) as error:
                logger.warning("the monitor is gone: %s", error)
            finally:
                self._socket = None
                _shut(sock)
                if reader.ident is not None:
                    reader.join()
                sock.close()
                self._count_lost()
            self._stopped.wait(retry_s)

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with address_of(self.path) as address:
                sock.connect(address)
            if peer_uid(sock) != os.geteuid():
                # Requests are other people's data, and this is not the monitor that we started.
                text = "whoever listens there is another user's process"
                raise PermissionError(text)
        except BaseException:
            sock.close()
            raise
        return sock

    def _send_until_lost(self, sock: socket.socket) -> None:
        told: dict[str, int] | None = None  # where counts begin is told even when they are 0
        tell_at_s = 0.0
        if self.aside is not None:
            self.aside.begin()
        while not self._stopped.is_set():
            if monotonic() >= tell_at_s:
                counters = {name: c for name, c in self._counters().items() if c}
                if counters != told:
                    frames.send(sock, COUNTERS, counters)
                    told = counters
                tell_at_s = monotonic() + _TELL_S
            if self.aside is not None and (said := self.aside.frames()):
                frames.send_many(sock, said)
            # Both, in turn: neither is to wait for the other to have nothing left.
            if self._send_slice(sock) | self._send_told(sock):
                continue
            self._pause()
            if not self._connected:
                return

    def _pause(self) -> None:
        """Sleep until there is something to send, and then until what comes with it is there."""
        self._wake.clear()
        self._idle = self._asleep = True
        # What came in between saw nobody to wake.
        says = self.aside is not None and self.aside.waits
        if not self._queue and not self._told.waiting and not says:
            self._wake.wait(_TELL_S)
        self._asleep = False
        if not self._queue and self._told.waiting:
            self._wake.clear()
            self._idle = True
            if not self._queue:
                self._wake.wait(_GATHER_TOLD_S)
        if self._queue:
            self._stopped.wait(_GATHER_S)
        self._idle = False

    def _send_slice(self, sock: socket.socket) -> bool:
        """Send a few exchanges; whether there were any."""
        batch: list[tuple[int, Mapping[str, object], Sequence[Bytes]]] = []
        size = 0
        while self._queue and len(batch) < _SLICE and size < _SLICE_BYTES:
            exchange, response, nbytes = self._queue.popleft()
            self._unacknowledged.append(nbytes)
            size += nbytes
            batch.append((EXCHANGE, *pack_exchange(exchange, response)))
        if not batch:
            return False
        frames.send_many(sock, batch)
        return True

    def _send_told(self, sock: socket.socket) -> bool:
        """Send a slice of spans, and one of log records; whether to go on without gathering more.

        (With what came meanwhile it would be a frame for each.)
        """
        if batch := self._told.frames():
            frames.send_many(sock, batch)
        return self._told.slice_waits

    def _counters(self) -> dict[str, int]:
        found = self._page.server_counters()
        return {name: found[name] for name in _COUNTERS}

    def _read(self, sock: socket.socket) -> None:
        """What the monitor says, until it is gone."""
        receiver = frames.Receiver(sock, max_bytes=_ANSWER_BYTES_MAX)
        acknowledged: dict[str, int] = {}
        try:
            while (frame := receiver.receive()) is not None:
                if frame.kind == ACK:
                    for name, total in frame.fields.items():
                        if type(total) is int:
                            self._acknowledge(name, total - acknowledged.get(name, 0))
                            acknowledged[name] = total
                elif frame.kind == RATE and isinstance(frame.fields.get("rate"), int | float):
                    self._rate = min(1.0, max(0.0, float(frame.fields["rate"])))
                elif self.aside is not None:
                    self.aside.heard(frame.kind, frame.fields)
        except ValueError as error:
            logger.warning("what the monitor sent cannot be read: %s", error)
        finally:
            receiver.close()
            with self._lock:
                self._connected = False
            _shut(sock)
            self._wake.set()

    def _acknowledge(self, name: str, count: int) -> None:
        if name == "exchanges":
            count = min(count, len(self._unacknowledged))
            freed = sum(self._unacknowledged.popleft() for _ in range(count))
            with self._lock:
                self._held_bytes -= freed
            if count > 0:
                self._page.add_server("tap_sent", count)
        elif self._told.acknowledge(name, count):
            self._wake.set()

    def _count_lost(self) -> None:
        with self._lock:
            self._connected = False
            lost = len(self._queue) + len(self._unacknowledged)
            self._queue.clear()
            self._unacknowledged.clear()
            self._held_bytes = 0
            self._rate = self._configured_rate
        if lost:
            self._page.add_server("tap_dropped_lost", lost)
        for backlog in self._told.all:
            backlog.lose()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
