"""A real listener that keeps what comes, for tests of either end of the channel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from sidecar.monitor.channel import ExchangeListener
from sidecar.monitor.exchange import Exchange
from sidecar.traces import SpanRecord

MAX_EXCHANGE_BYTES = 4 * 2**20


def until(check: Callable[[], Any], what: str, within_s: float = 150) -> Any:
    """Poll until ``check`` gives something true; return that."""
    deadline = time.monotonic() + within_s
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.002)
    return result


class Listening:
    """A started ``ExchangeListener``; a context manager. ``gate`` holds its thread up."""

    def __init__(self, path: Path, *, rate: float = 1.0) -> None:
        self.exchanges: list[Exchange] = []
        self.spans: list[SpanRecord] = []
        self.logs: list[dict[str, Any]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.listener = ExchangeListener(
            path, self._keep, max_exchange_bytes=MAX_EXCHANGE_BYTES, rate=rate,
            on_spans=self._keep_spans, on_logs=self._keep_logs,
        )  # fmt: skip
        self.listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        self.listener.close()

    def _keep(self, exchange: Exchange) -> None:
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.exchanges.append(exchange)

    def _keep_spans(self, spans: list[SpanRecord]) -> None:
        self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.spans += spans

    def _keep_logs(self, logs: list[dict[str, Any]]) -> None:
        self.gate.wait()
        self.logs += logs

    def take_spans(self, count: int) -> list[SpanRecord]:
        """Wait for so many spans, and forget them; in the order in which the requests began."""
        until(lambda: len(self.spans) >= count, f"{count} spans came")
        taken, self.spans[:] = self.spans[:count], self.spans[count:]
        return sorted(taken, key=lambda one: one.start_ns)

    def take(self, count: int) -> list[Exchange]:
        """Wait for so many exchanges, and forget them."""
        until(lambda: len(self.exchanges) >= count, f"{count} exchanges came")
        taken, self.exchanges[:] = self.exchanges[:count], self.exchanges[count:]
        return taken


def span(**fields: Any) -> SpanRecord:
    """A traced gRPC request that was answered."""
    known: dict[str, Any] = {
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b", "parent_id": 2**64 - 1, "client_span": 0, "request_id": "r1",
        "model": "m", "version": "1", "variant": "onnx", "transport": "grpc", "outcome": "OK",
        "start_ns": 10**18, "end_ns": 10**18 + 5, "queue_ns": 1, "decode_ns": 1, "execute_ns": 1,
        "encode_ns": 1, "rows": 1, "executed": True, "cached": False, "fallback": "",
        "bytes_in": 3, "bytes_out": 4,
    }  # fmt: skip
    return SpanRecord(**{**known, **fields})


def log(**fields: Any) -> dict[str, Any]:
    """A log record of no request."""
    known = {
        "body": "said", "time_ns": 10**18, "severity": 9, "severity_text": "INFO",
        "attributes": {"code.line.number": 7, "logger.name": "sidecar"}, "traceparent": "",
    }  # fmt: skip
    return {**known, **fields}


def exchange(request: bytes = b"question", **fields: Any) -> Exchange:
    """An exchange of a gRPC request that was answered."""
    known: dict[str, Any] = {
        "request_id": "r1", "traceparent": "00-aa-bb-01", "model": "m", "variant": "m:1/onnx",
        "transport": "grpc", "request": request, "response": None, "request_header_bytes": None,
        "response_header_bytes": None, "outcome": "OK", "start_ns": 1, "end_ns": 5,
        "execute_ns": 3, "wall_ns": 7, "worker": 4711,
    }  # fmt: skip
    return Exchange(**{**known, **fields})
