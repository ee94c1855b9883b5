"""A real listener that keeps what comes, for tests of either end of the channel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from sidecar.monitor.channel import ExchangeListener
from sidecar.monitor.exchange import Exchange

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
        self.gate = threading.Event()
        self.gate.set()
        self.failure: Exception | None = None
        self.listener = ExchangeListener(
            path, self._keep, max_exchange_bytes=MAX_EXCHANGE_BYTES, rate=rate
        )
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

    def take(self, count: int) -> list[Exchange]:
        """Wait for so many exchanges, and forget them."""
        until(lambda: len(self.exchanges) >= count, f"{count} exchanges came")
        taken, self.exchanges[:] = self.exchanges[:count], self.exchanges[count:]
        return taken


def exchange(request: bytes = b"question", **fields: Any) -> Exchange:
    """An exchange of a gRPC request that was answered."""
    known: dict[str, Any] = {
        "request_id": "r1", "traceparent": "00-aa-bb-01", "model": "m", "variant": "m:1/onnx",
        "transport": "grpc", "request": request, "response": None, "request_header_bytes": None,
        "response_header_bytes": None, "outcome": "OK", "start_ns": 1, "end_ns": 5,
        "execute_ns": 3, "wall_ns": 7, "worker": 4711,
    }  # fmt: skip
    return Exchange(**{**known, **fields})
