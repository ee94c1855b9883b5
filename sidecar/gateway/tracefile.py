"""The trace file: timing records as JSON lines, while the trace level is TIMESTAMPS.

It takes the records off the buffer, in small slices and off the request's path. ``trace_rate``
keeps one in so many, ``trace_count`` ends after so many.
"""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from sidecar.config import TraceConfig
    from sidecar.gateway.core import Gateway
    from sidecar.gateway.timing import TimingRecord

logger = logging.getLogger(__name__)

_SLICE = 256
_EVERY_S = 0.2


class TraceWriter:
    """Writes records to ``gateway.trace.file``; does nothing where none is configured."""

    def __init__(self, config: TraceConfig, gateway: Gateway) -> None:
        self._path: Path | None = config.file
        self._gateway = gateway
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._seen: dict[str, int] = {}
        self._written: dict[str, int] = {}

    def start(self) -> None:
        """Begin, in a thread."""
        if self._path is None:
            return
        self._thread = threading.Thread(target=self._run, name="trace-file", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, and end."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(5)

    def _run(self) -> None:
        assert self._path is not None
        try:
            with self._path.open("ab", buffering=0) as file:
                while not self._stopped.wait(_EVERY_S):
                    self._drain(file)
                self._drain(file)
        except OSError as error:
            logger.error("the trace file cannot be written, tracing ends: %s", error.strerror)

    def _drain(self, file: BinaryIO) -> None:
        while records := self._gateway.timings.take(_SLICE):
            lines = [json.dumps(line) + "\n" for r in records if (line := self._line(r))]
            # One append for all: a buffer would cut lines where it is full, and other workers,
            # which write into the same file, would write between the halves.
            if lines:
                file.write("".join(lines).encode())

    def _line(self, record: TimingRecord) -> dict[str, object] | None:
        model = record.variant.partition(":")[0]
        if model not in self._gateway.registry.entries:
            return None
        settings = self._gateway.trace.get(model)
        if "TIMESTAMPS" not in settings["trace_level"]:
            return None
        seen = self._seen[model] = self._seen.get(model, 0) + 1
        if (seen - 1) % int(settings["trace_rate"][0]):
            return None
        count = int(settings["trace_count"][0])
        written = self._written.get(model, 0)
        if 0 <= count <= written:
            return None
        self._written[model] = written + 1
        timing = record.timing
        return {
            "request_id": record.request_id,
            "traceparent": record.traceparent,
            "variant": record.variant,
            "outcome": record.outcome,
            "start_ns": record.start_ns,
            "end_ns": record.end_ns,
            "decode_ns": timing.decode_ns,
            "queue_ns": timing.queue_ns,
            "execute_ns": timing.execute_ns,
            "encode_ns": timing.encode_ns,
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
        }
