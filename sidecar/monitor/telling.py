"""Telling: everything that goes to OpenTelemetry goes from here.

The gateway only notes; whatever a backend, a library or a certificate does is met in this process,
and costs what would have been told, nothing else.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from exporters.telemetry import Exporter, Signal, Telemetry
from exporters.telemetry.context import parse
from exporters.telemetry.loghandler import LogHandler
from exporters.telemetry.metrics import Reader
from exporters.telemetry.model import Log, Span
from sidecar import __version__, logs
from sidecar.clock import Clock
from sidecar.monitor import spans
from sidecar.monitor.telemetry_view import SignalStatus, TelemetryStatus
from sidecar.telemetry_settings import Resolved
from sidecar.traces import SpanRecord

logger = logging.getLogger(__name__)

#: Asked to end, it sends what waits for so long; whatever a backend does, not longer.
END_WITHIN_S = 3.0
#: A port that is taken, or a certificate that is not there yet: looked at again so often.
RETRY_S = 30.0
_MISSING = "opentelemetry-sdk is not installed: install model-sidecar[otel]"


class Telling:
    """Owns the ``Telemetry`` of one monitor process.

    ``start`` once, ``close`` once; everything else from any thread, before, between and after.

    Args:
        told: what, and where to.
        exemplar: is shown every request that was traced.
        clock: for trying again.
    """

    def __init__(
        self, told: Resolved, exemplar: Callable[[SpanRecord], None], clock: Clock
    ) -> None:
        # A name of its own for each life: two processes that tell the same series must not be
        # taken for one that counts down.
        own = {"service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        resource = {**own, **told.settings.resource}
        self._told = replace(told, settings=replace(told.settings, resource=resource))
        self._exemplar, self._clock = exemplar, clock
        self._readers: Sequence[Reader] = ()
        self._telemetry: Telemetry | None = None
        self._handler: LogHandler | None = None
        self._message = ""
        self._retry_ns: int | None = None
        self._closed = False
        self._lock = threading.Lock()
        self._untold: Counter[Signal] = Counter()
        self._complained: set[str] = set()

    # --- life ---------------------------------------------------------------------------------

    def start(self, readers: Sequence[Reader]) -> None:
        """Begin to tell; never raises: that it cannot is said, and is a state.

        Args:
            readers: asked for points at each collection of the metrics.
        """
        self._readers = readers
        for note in self._told.notes:
            logger.warning("telemetry: %s", note)
        if self._told.tells:
            self._make()

    def tick(self) -> None:
        """Now and then: try again what may succeed later."""
        if self._retry_ns is not None and self._clock.monotonic_ns() >= self._retry_ns:
            self._make()

    def _make(self) -> None:
        self._retry_ns = None
        message = ""
        try:
            telemetry = Telemetry(
                self._told.settings, version=__version__, now_ns=self._clock.now_ns
            )
        except ModuleNotFoundError as error:
            message = _MISSING if (error.name or "").startswith("opentelemetry") else str(error)
        except OSError as error:
            message = str(error)
            self._retry_ns = self._clock.monotonic_ns() + int(RETRY_S * 1e9)
        except Exception as error:  # noqa: BLE001 - whatever a library raises is only its own loss
            message = f"{type(error).__name__}: {error}"
        else:
            for reader in self._readers:
                telemetry.observe(reader)
            if self._message:
                logger.warning("telemetry: it can be told now")
            self._message = ""
            self._begin(telemetry)
            return
        if message != self._message:
            logger.error("nothing is told through OpenTelemetry, all else goes on: %s", message)
        self._message = message

    def _begin(self, telemetry: Telemetry) -> None:
        with self._lock:
            if not self._closed:
                self._telemetry = telemetry
                if self._told.exports(Signal.LOGS):
                    # What is written is told: the loggers' own levels decide.
                    self._handler = LogHandler(
                        telemetry.log, level=logging.DEBUG, current=logs.current
                    )
                    logging.getLogger().addHandler(self._handler)
                return
        telemetry.shutdown(0.0)

    def close(self, timeout_s: float = END_WITHIN_S) -> None:
        """Send what waits, for at most so long, and stop."""
        with self._lock:
            self._closed, self._retry_ns = True, None
            telemetry, handler = self._telemetry, self._handler
        if handler is not None:
            logging.getLogger().removeHandler(handler)
        if telemetry is None:
            return
        counts = telemetry.shutdown(timeout_s)
        lost = sum(n for (_, _, reason), n in counts.items() if reason == "shutdown")
        if lost:
            logger.warning("telemetry: %d items could not be sent in %g s", lost, timeout_s)

    # --- what is told -------------------------------------------------------------------------

    def span(self, span: Span) -> None:
        """Hand over a span that is over."""
        if (telemetry := self._telemetry) is None:
            self._untold[Signal.TRACES] += 1
        else:
            telemetry.span(span)

    def on_spans(self, records: Sequence[SpanRecord]) -> None:
        """What the gateway noted of requests that are traced."""
        for record in records:
            try:
                self._exemplar(record)
                for span in spans.served(record):
                    self.span(span)
            except Exception as error:  # noqa: BLE001 - one strange record must not cost the others
                self._complain("a record of a request", error)

    def on_logs(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Log records of the gateway: ``body``, ``time_ns``, ``severity``, ``severity_text``,
        ``attributes``, ``traceparent``."""
        telemetry = self._telemetry
        if telemetry is None:
            self._untold[Signal.LOGS] += len(entries)
            return
        for entry in entries:
            try:
                telemetry.log(_log(entry))
            except Exception as error:  # noqa: BLE001 - as above
                self._complain("a log record", error)

    @property
    def tells_spans(self) -> bool:
        """Whether spans go anywhere: else none need be made."""
        return self._told.exports(Signal.TRACES)

    def _complain(self, what: str, error: Exception) -> None:
        text = f"{what} of the gateway cannot be told: {type(error).__name__}: {error}"
        if what not in self._complained:  # once: there may be thousands a second
            self._complained.add(what)
            logger.warning("telemetry: %s", text)

    # --- what is known ------------------------------------------------------------------------

    def lines(self) -> list[str]:
        """Where everything goes, for people; that nothing does, if it should."""
        if self._message:
            return [f"telemetry: nothing is told: {self._message}"]
        return self._told.lines(self._prometheus())

    def status(self) -> TelemetryStatus:
        """How it does."""
        telemetry = self._telemetry
        if not self._told.tells:
            return TelemetryStatus()
        if telemetry is None:
            untold = [
                SignalStatus(*self._place(signal), up=False, dropped={"not_started": count})
                for signal, count in self._untold.items()
            ]
            state = "failed" if self._message else "starting"
            return TelemetryStatus(state, self._message, "", untold)
        signals = [_signal(telemetry, *self._place(s)) for s in Signal if self._told.exports(s)]
        state = "ok" if all(one.up for one in signals) else "failing"
        address = self._prometheus()
        url = f"http://{address}/metrics" if address else ""
        return TelemetryStatus("stopped" if self._closed else state, "", url, signals)

    def _prometheus(self) -> str:
        endpoint = None if self._telemetry is None else self._telemetry.prometheus
        if endpoint is None:
            return ""
        host, port = endpoint.address
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def _place(self, signal: Signal) -> tuple[str, str, str]:
        backend = self._told.settings.backend(signal)
        where = backend.endpoint
        if backend.exporter is Exporter.PROMETHEUS:
            where = self._prometheus()
        return str(signal), str(backend.exporter), where


def _signal(telemetry: Telemetry, signal: str, exporter: str, endpoint: str) -> SignalStatus:
    kind = Signal(signal)
    state = telemetry.states().get(kind)
    counts = telemetry.counts()
    return SignalStatus(
        signal, exporter, endpoint,
        up=state is None or state.up,
        exported=counts.get((kind, "exported", ""), 0),
        dropped={
            reason: count
            for (of, outcome, reason), count in counts.items()
            if of is kind and outcome == "dropped" and count
        },
        waiting=telemetry.waiting().get(kind, 0),
        error="" if state is None else state.error,
    )  # fmt: skip


def _log(entry: Mapping[str, Any]) -> Log:
    severity = int(entry["severity"])
    if not 1 <= severity <= 24:
        message = f"{severity} is no severity of OpenTelemetry"
        raise ValueError(message)
    return Log(
        str(entry["body"]), int(entry["time_ns"]), severity, str(entry["severity_text"]),
        dict(entry["attributes"]), parse(str(entry["traceparent"] or "")),
    )  # fmt: skip
