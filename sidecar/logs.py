"""Logging: to standard error, for people or as JSON lines, with the trace a record belongs to.

A record says whose it is by ``extra={TRACE: context}``; of one that does not, whoever the process
has named by ``follow`` does. JSON is python-json-logger's: structlog, the usual choice, imports
asyncio and rich (73 to 118 ms of processor time beside what a worker has loaded, against 3 to 6).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from typing_extensions import override

if TYPE_CHECKING:
    from exporters.telemetry.context import TraceContext
    from sidecar.config import LogConfig

#: The name in ``extra`` (``exporters.telemetry.loghandler`` has the same).
TRACE = "trace"

#: Those of a JSON line that are ours, whatever a record brings along.
_FIELDS = ("time", "level", "logger", "message", "process", "trace_id", "span_id", "exception")
_DIM, _RESET = "\x1b[2m", "\x1b[0m"
_COLORS = (
    (logging.CRITICAL, "\x1b[1;31m"),
    (logging.ERROR, "\x1b[31m"),
    (logging.WARNING, "\x1b[33m"),
    (logging.INFO, "\x1b[32m"),
)


class _Followed:
    """Who knows what this thread works on."""

    current: Callable[[], TraceContext | None] = staticmethod(lambda: None)


def follow(current: Callable[[], TraceContext | None]) -> None:
    """Ask ``current``, from now on, for the trace of the request that a thread works on."""
    _Followed.current = staticmethod(current)


def current() -> TraceContext | None:
    """The trace of the request that this thread works on, as far as that is known."""
    return _Followed.current()


def trace_of(record: logging.LogRecord) -> TraceContext | None:
    """The trace that a record belongs to."""
    said: TraceContext | None = getattr(record, TRACE, None)
    return said if said is not None else current()


class TextFormatter(logging.Formatter):
    """For people: local time, level, logger, message, and the trace's id at the end of the line."""

    def __init__(self, *, color: bool = False) -> None:
        super().__init__("%(asctime)s")
        self._color = color

    @override
    def formatMessage(self, record: logging.LogRecord) -> str:
        level, after, end = f"{record.levelname:<7}", "", ""
        if self._color:
            color = next((code for least, code in _COLORS if record.levelno >= least), _DIM)
            level, after, end = f"{color}{level}{_RESET}", _DIM, _RESET
        line = f"{record.asctime} {level} {record.name}: {record.message}"
        if (trace := trace_of(record)) is not None:
            line += f" {after}[trace {trace.trace_id:032x}]{end}"
        return line


def json_formatter() -> logging.Formatter:
    """One JSON object a line: ``_FIELDS``, then what a record brings along by ``extra``."""
    from pythonjsonlogger.core import RESERVED_ATTRS
    from pythonjsonlogger.json import JsonFormatter

    class Lines(JsonFormatter):
        @override
        def add_fields(
            self,
            log_data: dict[str, Any],
            record: logging.LogRecord,
            message_dict: dict[str, Any],
        ) -> None:
            time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
            log_data["time"] = f"{time.removesuffix('+00:00')}Z"
            log_data["level"] = record.levelname.lower()
            log_data["logger"] = record.name
            log_data["message"] = record.message
            log_data["process"] = record.process
            if (trace := trace_of(record)) is not None:
                log_data["trace_id"] = f"{trace.trace_id:032x}"
                log_data["span_id"] = f"{trace.span_id:016x}"
            super().add_fields(log_data, record, message_dict)

    return Lines(
        reserved_attrs=[*RESERVED_ATTRS, TRACE, *_FIELDS],
        rename_fields={"exc_info": "exception", "stack_info": "stack"},
    )


def configure(config: LogConfig) -> None:
    """Set up the process's logging; called once, by whoever owns the process."""
    handler = logging.StreamHandler(sys.stderr)
    if config.format == "json":
        handler.setFormatter(json_formatter())
    else:
        handler.setFormatter(TextFormatter(color=config.color and sys.stderr.isatty()))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("sidecar", "exporters"):
        logging.getLogger(ours).setLevel(config.level.upper())
    # grpcio logs a traceback for each call that our handlers end by `abort`; they are answered.
    logging.getLogger("grpc").setLevel(logging.CRITICAL)
