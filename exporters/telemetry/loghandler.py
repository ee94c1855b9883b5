"""From Python's ``logging`` to telemetry, without waiting, and without telling of the telling."""

from __future__ import annotations

import logging
from collections.abc import Callable

from typing_extensions import override

from exporters.telemetry.context import TraceContext
from exporters.telemetry.model import Attributes, Log

#: Loggers that are not listened to: what sending says would be sent, which would say more.
QUIET = ("exporters.telemetry", "opentelemetry", "grpc", "h11")
#: Where code puts the trace a record belongs to: ``logger.info("…", extra={TRACE: context})``.
TRACE = "trace"
_SEVERITIES = (
    (logging.CRITICAL, 21),
    (logging.ERROR, 17),
    (logging.WARNING, 13),
    (logging.INFO, 9),
)
#: Everything a record has by itself; what is beyond came by ``extra``.
_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", TRACE}


class LogHandler(logging.Handler):
    """Hands records to ``log`` (``Telemetry.log``), with the trace they belong to.

    Args:
        log: takes a record, without waiting.
        current: the trace that is being worked on, for records that do not say.
    """

    def __init__(
        self,
        log: Callable[[Log], object],
        *,
        level: int = logging.INFO,
        current: Callable[[], TraceContext | None] = lambda: None,
    ) -> None:
        super().__init__(level)
        self._log, self._current = log, current

    @override
    def emit(self, record: logging.LogRecord) -> None:
        if str(record.name).startswith(QUIET):
            return
        try:
            self._log(self._record(record))
        except Exception:  # noqa: BLE001  # arguments that do not fit the message, usually
            self.handleError(record)

    def _record(self, record: logging.LogRecord) -> Log:
        trace = getattr(record, TRACE, None)
        attributes: dict[str, str | bool | int | float] = {
            "code.function.name": f"{record.module}.{record.funcName}",
            "code.line.number": record.lineno,
            "logger.name": record.name,
        }
        for key, value in vars(record).items():
            if key not in _USUAL:
                plain = isinstance(value, str | bool | int | float)
                attributes[key] = value if plain else str(value)
        attributes.update(_exception(record))  # type: ignore[arg-type]
        return Log(
            record.getMessage(),
            # `created` is a float of seconds: exact to a fraction of a microsecond.
            int(record.created * 1e6) * 1000,
            next((number for level, number in _SEVERITIES if record.levelno >= level), 5),
            record.levelname,
            attributes,
            trace if isinstance(trace, TraceContext) else self._current(),
        )


def _exception(record: logging.LogRecord) -> Attributes:
    if not record.exc_info or record.exc_info[0] is None:
        return {}
    text = logging.Formatter().formatException(record.exc_info)
    return {
        "exception.type": record.exc_info[0].__qualname__,
        "exception.message": str(record.exc_info[1]),
        "exception.stacktrace": text,
    }
