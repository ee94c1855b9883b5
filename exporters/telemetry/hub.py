"""``Telemetry``: everything that is told goes through one of these.

What callers may rely on:

- Nothing here waits for a backend, but ``flush`` and ``shutdown``, which have deadlines.
- Memory is bounded, whatever the backend does.
- Nothing is lost in silence: handed over = exported + dropped (by reason) + waiting.
- A backend that is dead, slow or lying is a state (``states``) and a metric, never an exception.

Make it after fork or spawn: it has threads.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO

from exporters.instruments import TELEMETRY_ITEMS, TELEMETRY_QUEUE, TELEMETRY_UP
from exporters.telemetry.delivery import Delivery, Sender, State
from exporters.telemetry.line import Line
from exporters.telemetry.metrics import Collector, Periodic, Reader
from exporters.telemetry.model import Log, Number, Point, Span, bounded_log, bounded_span
from exporters.telemetry.settings import Backend, Bounds, Exporter, Settings, Signal, host_and_port

if TYPE_CHECKING:
    from exporters.telemetry.encode import Encoder
    from exporters.telemetry.prometheus import Endpoint

#: Exporter → module and class of what sends, made as ``class(backend, signal)``.
SENDERS = {
    Exporter.OTLP_GRPC: ("exporters.telemetry.otlp_grpc", "GrpcSender"),
    Exporter.OTLP_HTTP: ("exporters.telemetry.otlp_http", "HttpSender"),
}
SHUTDOWN_S = 5.0
#: Of a shutdown's time, so much is kept for closing what is still in an attempt.
_CLOSING_SHARE = 0.1
#: How long a scrape waits for another one at most; Prometheus itself waits for ten seconds.
_SCRAPE_S = 5.0


class Telemetry:
    """Tells what it is handed, as ``settings`` say.

    Args:
        settings: where to, and the bounds.
        version: of this program (the scope's version).
        now_ns: wall-clock time, nanoseconds since 1970.
        console: where the console exporter writes; standard output by default.

    Raises:
        ImportError: something is to be exported, and the extra ``otel`` is not installed.
        OSError: the address for Prometheus cannot be listened on, or a certificate not read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        version: str = "",
        now_ns: Callable[[], int] = time.time_ns,
        console: BinaryIO | None = None,
    ) -> None:
        self.settings = settings
        self._console = console
        self._start_ns, self._version, self._now_ns = now_ns(), version, now_ns
        self._senders: list[Sender] = []
        self._encoder_made: Encoder | None = None
        self._collector = Collector(settings.points_max)
        self._collector.add(self._own_points)
        self._ended = threading.Lock()
        self._over = False
        self.prometheus: Endpoint | None = None
        self._spans: Line[Span] | None = None
        self._logs: Line[Log] | None = None
        self._metrics: Periodic | None = None
        backends = {signal: settings.backend(signal) for signal in Signal}
        self.active = any(one.exporter is not Exporter.NONE for one in backends.values())
        if self.active:
            try:
                self._start(backends)
            except BaseException:
                for sender in self._senders:
                    sender.close()
                raise

    # --- handing over -----------------------------------------------------------------------------

    def span(self, span: Span) -> bool:
        """Hand over a span that is over; whether it will be sent (it is sampled, and spans go
        anywhere). Its attributes must not be changed afterwards."""
        if self._spans is None or (within := bounded_span(span)) is None:
            return False
        self._spans.put(within)
        return True

    def log(self, log: Log) -> bool:
        """Hand over a log record; whether log records go anywhere."""
        if self._logs is None:
            return False
        self._logs.put(bounded_log(log))
        return True

    def observe(self, reader: Reader) -> None:
        """Ask ``reader`` for its points at each collection: a function that gives cumulative
        counts as they are now. It is called from a thread of this object, one call at a time."""
        self._collector.add(reader)

    # --- what is known ----------------------------------------------------------------------------

    def counts(self) -> dict[tuple[Signal, str, str], int]:
        """(signal, ``exported`` or ``dropped``, reason) → how many since the beginning."""
        counts: dict[tuple[Signal, str, str], int] = {}
        for signal, one in self._parts():
            exported, dropped = one.counts()
            counts[signal, "exported", ""] = exported
            for reason, count in dropped.items():
                counts[signal, "dropped", reason] = count
        for reason, count in self._collector.dropped.items():
            counts[Signal.METRICS, "dropped", reason] = count
        return counts

    def waiting(self) -> dict[Signal, int]:
        """How many spans and log records wait, those being sent included."""
        lines = ((Signal.TRACES, self._spans), (Signal.LOGS, self._logs))
        return {signal: line.waiting for signal, line in lines if line is not None}

    def states(self) -> dict[Signal, State]:
        """How the backend of each signal does, as of the last attempt."""
        return {signal: one.delivery.state for signal, one in self._parts()}

    def scrape(self, accept: str = "") -> tuple[str, bytes]:
        """Content type and body as the Prometheus endpoint has them, for an endpoint elsewhere.
        Works with every exporter. Raises TimeoutError while another collection does not end."""
        from exporters.telemetry.prometheus import answer

        return answer(self._data, accept)

    # --- ending -----------------------------------------------------------------------------------

    def flush(self, timeout_s: float = SHUTDOWN_S) -> bool:
        """Collect and send everything now; whether it was done in time. For the metrics also
        whether they were taken; of spans and records see ``counts``."""
        deadline = monotonic() + timeout_s
        flushed = [one.flush(deadline) for _, one in self._parts()]
        return all(flushed)

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> dict[tuple[Signal, str, str], int]:
        """Send what waits, for at most ``timeout_s`` in all, and stop; returns ``counts``.

        Whatever the backends and readers do, this returns in time: threads that do not end are
        daemons and are left behind. A second call does nothing.
        """
        with self._ended:
            if self._over:
                return self.counts()
            self._over = True
        deadline = monotonic() + timeout_s
        sending = deadline - _CLOSING_SHARE * timeout_s
        parts = [one for _, one in self._parts()]
        for one in parts:
            one.close(sending)
        for one in parts:
            one.join(sending)
        closers = [threading.Thread(target=one.close, daemon=True) for one in self._senders]
        for closer in closers:
            closer.start()
        if self.prometheus is not None:
            self.prometheus.close(max(0.0, deadline - monotonic()))
        for closer in closers:
            closer.join(max(0.0, deadline - monotonic()))
        return self.counts()

    # --- inside -----------------------------------------------------------------------------------

    def _parts(self) -> Iterator[tuple[Signal, Line[Span] | Line[Log] | Periodic]]:
        if self._spans is not None:
            yield Signal.TRACES, self._spans
        if self._logs is not None:
            yield Signal.LOGS, self._logs
        if self._metrics is not None:  # last: what the others end with is counted in it
            yield Signal.METRICS, self._metrics

    def _start(self, backends: dict[Signal, Backend]) -> None:
        """Build all senders before the first thread: a mistake leaves nothing behind."""
        encoder = self._encoder()
        ready = {
            signal: self._sending(signal, one, encoder)
            for signal, one in backends.items()
            if one.exporter not in {Exporter.NONE, Exporter.PROMETHEUS}
        }
        if backends[Signal.METRICS].exporter is Exporter.PROMETHEUS:
            from exporters.telemetry.prometheus import Endpoint

            self.prometheus = Endpoint(self._data, *host_and_port(self.settings.prometheus))
        if Signal.TRACES in ready:
            self._spans = self._line(Signal.TRACES, self.settings.spans, *ready[Signal.TRACES])
        if Signal.LOGS in ready:
            self._logs = self._line(Signal.LOGS, self.settings.logs, *ready[Signal.LOGS])
        if Signal.METRICS in ready:
            self._metrics = Periodic(
                self._collector, *ready[Signal.METRICS], self.settings.interval_s
            )

    def _sending(
        self, signal: Signal, backend: Backend, encoder: Encoder
    ) -> tuple[Callable[[Sequence[Any]], bytes], Delivery]:
        if backend.exporter is Exporter.CONSOLE:
            from exporters.telemetry.console import ConsoleSender

            sender: Sender = ConsoleSender(self._console or sys.stdout.buffer)
            encode, name = encoder.lines(signal), "the console"
        else:
            module, made_by = SENDERS[backend.exporter]
            sender = getattr(import_module(module), made_by)(backend, signal)
            encode, name = encoder.otlp(signal), backend.endpoint
        self._senders.append(sender)
        retry_s = backend.retry_s
        if signal is Signal.METRICS:
            # The next collection says all that this one would have said.
            retry_s = min(retry_s, self.settings.interval_s)
        delivery = Delivery(signal, sender, timeout_s=backend.timeout_s, retry_s=retry_s, name=name)
        return encode, delivery

    @staticmethod
    def _line(
        signal: Signal,
        bounds: Bounds,
        encode: Callable[[Sequence[Any]], bytes],
        delivery: Delivery,
    ) -> Line[Any]:
        return Line(f"telemetry-{signal}", encode, delivery, bounds)

    def _encoder(self) -> Encoder:
        """Made when it is needed: only then must the SDK be installed."""
        if self._encoder_made is None:
            from exporters.telemetry.encode import Encoder

            self._encoder_made = Encoder(
                self.settings.resource, self._version, now_ns=self._now_ns, start_ns=self._start_ns
            )
        return self._encoder_made

    def _data(self) -> Any:
        return self._encoder().metrics(
            self._collector.collect(min(_SCRAPE_S, self.settings.timeout_s))
        )

    def _own_points(self) -> Iterator[Point]:
        """How telemetry itself does: what was dropped must be seen where it is missed."""
        counts: Counter[tuple[str, str, str]] = Counter(self.counts())
        for (signal, outcome, reason), count in counts.items():
            attributes = {"signal": str(signal), "outcome": outcome, "reason": reason}
            yield Number(TELEMETRY_ITEMS, count, attributes)
        for signal, state in self.states().items():
            yield Number(TELEMETRY_UP, int(state.up), {"signal": str(signal)})
        for signal, waiting in self.waiting().items():
            yield Number(TELEMETRY_QUEUE, waiting, {"signal": str(signal)})
