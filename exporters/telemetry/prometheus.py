"""Prometheus: the same points as text, and an endpoint to scrape.

Text format 0.0.4 and, where the scraper accepts it, OpenMetrics 1.0.0, which has exemplars and the
time a counter began. Written from the SDK's ``MetricsData``, so that every exporter tells the same.
"""

from __future__ import annotations

import contextlib
import math
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import accumulate
from typing import Any

from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricsData,
    NumberDataPoint,
)
from typing_extensions import override

from exporters.instruments import INSTRUMENTS, Kind

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_BY_NAME = {one.name: one for one in INSTRUMENTS}
#: Scrapes at once; more are told to come again.
_SCRAPES_MAX = 4
#: A scraper that does not say what it wants, or does not read, is let go after this.
_PATIENCE_S = 5.0


def exposition(data: MetricsData, *, open_metrics: bool = False) -> bytes:
    """All of ``data`` in Prometheus' text format (or in OpenMetrics). Resource: ``target_info``."""
    lines: list[str] = []
    for resource in data.resource_metrics:
        lines += _resource(resource.resource.attributes, open_metrics=open_metrics)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                lines += _metric(metric, open_metrics=open_metrics)
    if open_metrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode() if lines else b""


def _resource(attributes: Mapping[str, Any], *, open_metrics: bool) -> list[str]:
    name = "target" if open_metrics else "target_info"
    kind = "info" if open_metrics else "gauge"
    return [
        f"# HELP {name} What is observed.",
        f"# TYPE {name} {kind}",
        f"target_info{_labels(attributes)} 1",
    ]


def _metric(metric: Metric, *, open_metrics: bool) -> Iterator[str]:
    instrument = _BY_NAME[metric.name]
    name, kind = instrument.prometheus_name, str(instrument.kind)
    # OpenMetrics names the family, text format 0.0.4 the sample.
    family = name.removesuffix("_total") if open_metrics else name
    yield f"# HELP {family} {_escaped(metric.description or '', quotes=open_metrics)}"
    yield f"# TYPE {family} {kind}"
    if open_metrics and (unit := instrument.prometheus_unit):
        yield f"# UNIT {family} {unit}"
    for point in metric.data.data_points:
        if isinstance(metric.data, Histogram):
            assert isinstance(point, HistogramDataPoint)
            yield from _histogram(name, point, open_metrics=open_metrics)
            continue
        assert isinstance(point, NumberDataPoint)
        mark = ""
        if open_metrics and instrument.kind is Kind.COUNTER and point.exemplars:
            mark = _exemplar(point.exemplars[-1])
        yield f"{name}{_labels(point.attributes or {})} {_number(point.value)}{mark}"
        if open_metrics and instrument.kind is Kind.COUNTER:
            yield _created(family, point)


def _histogram(name: str, point: HistogramDataPoint, *, open_metrics: bool) -> Iterator[str]:
    attributes = point.attributes or {}
    bounds = [*point.explicit_bounds, math.inf]
    low = -math.inf
    for bound, count in zip(bounds, accumulate(point.bucket_counts), strict=True):
        labels = _labels(attributes, le=_bound(bound))
        mark = ""
        if open_metrics:
            within = [one for one in point.exemplars if low < one.value <= bound]
            mark = _exemplar(within[-1]) if within else ""
        yield f"{name}_bucket{labels} {count}{mark}"
        low = bound
    yield f"{name}_sum{_labels(attributes)} {_number(point.sum)}"
    yield f"{name}_count{_labels(attributes)} {point.count}"
    if open_metrics:
        yield _created(name, point)


def _created(family: str, point: NumberDataPoint | HistogramDataPoint) -> str:
    labels = _labels(point.attributes or {})
    return f"{family}_created{labels} {point.start_time_unix_nano / 1e9:.3f}"


def _exemplar(exemplar: Exemplar) -> str:
    labels = f'{{trace_id="{exemplar.trace_id or 0:032x}",span_id="{exemplar.span_id or 0:016x}"}}'
    return f" # {labels} {_number(exemplar.value)} {exemplar.time_unix_nano / 1e9:.3f}"


def _labels(attributes: Mapping[str, Any], **more: str) -> str:
    pairs = [(key.replace(".", "_"), str(value)) for key, value in attributes.items()]
    pairs += more.items()
    if not pairs:
        return ""
    return "{" + ",".join(f'{key}="{_escaped(value, quotes=True)}"' for key, value in pairs) + "}"


def _escaped(text: str, *, quotes: bool) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))


def _bound(value: float) -> str:
    """OpenMetrics wants the canonical form of a float: ``1.0``, not ``1``."""
    return _number(float(value))


# --- the endpoint ---------------------------------------------------------------------------------

#: Gives the data of one scrape; raises TimeoutError while another one does not end.
Collect = Callable[[], MetricsData]


def answer(collect: Collect, accept: str) -> tuple[str, bytes]:
    """Content type and body for a scraper that sends ``accept``."""
    wanted = [one.partition(";")[0].strip() for one in accept.split(",")]
    open_metrics = "application/openmetrics-text" in wanted
    body = exposition(collect(), open_metrics=open_metrics)
    return (OPEN_METRICS if open_metrics else TEXT), body


class Endpoint:
    """``GET /metrics`` on a socket of its own. Raises OSError when the address is taken.

    Attributes:
        address: where it listens.
    """

    def __init__(self, collect: Collect, host: str, port: int) -> None:
        self._server = _Server((host, port), collect)
        bound = self._server.socket.getsockname()
        self.address: tuple[str, int] = (bound[0], bound[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="telemetry-scrape", daemon=True
        )
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop listening; scrapes in progress are not waited for beyond ``timeout_s``."""
        stopper = threading.Thread(target=self._server.shutdown, daemon=True)
        stopper.start()
        stopper.join(timeout_s)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], collect: Collect) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.collect = collect
        self._places = threading.BoundedSemaphore(_SCRAPES_MAX)
        super().__init__(address, _Handler)

    @override
    def server_bind(self) -> None:
        # Without asking a name server what this host is called, which HTTPServer does.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.settimeout(0.1)  # in the accepting thread: others wait behind
                request.sendall(b"HTTP/1.0 503 Too many scrapes\r\nContent-Length: 0\r\n\r\n")
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    @override
    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a scraper that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _PATIENCE_S
    server: _Server

    def do_GET(self) -> None:  # the name is http.server's
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(404)
            return
        try:
            kind, body = answer(self.server.collect, self.headers.get("Accept", ""))
        except TimeoutError as error:
            self.send_error(503, str(error))
            return
        except Exception as error:  # noqa: BLE001  # shown to who operates it, not to clients
            self.send_error(500, type(error).__name__)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line a scrape would be all there is in the log."""
