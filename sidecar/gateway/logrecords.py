"""A worker's log records, for the monitor to tell: plain values, with the trace they belong to.

They go to standard error as well (``sidecar/logs.py``). What the sending itself says stays here:
told, it would be sent, and say more.
"""

from __future__ import annotations

import logging
from typing import Any

from exporters.telemetry.loghandler import LogHandler
from exporters.telemetry.model import Log, bounded_log
from sidecar.gateway.backlog import Backlog
from sidecar.gateway.tracing import current

#: Loggers of what sends records to the monitor.
_QUIET = ("sidecar.gateway.tap", "sidecar.gateway.backlog")
#: Of a log record; a frame has room for as many with the longest texts.
_ATTRIBUTES_MAX = 16


class LogRecords:
    """Between ``attach`` and ``detach``, what is logged in this process goes to a backlog."""

    def __init__(self, backlog: Backlog[dict[str, Any]]) -> None:
        self._backlog = backlog
        self._handler = LogHandler(self._put, current=current)
        self._handler.addFilter(lambda record: not record.name.startswith(_QUIET))

    def attach(self) -> None:
        """Listen to the root logger, beside whoever does."""
        logging.getLogger().addHandler(self._handler)

    def detach(self) -> None:
        """Stop listening. Idempotent."""
        logging.getLogger().removeHandler(self._handler)

    def _put(self, log: Log) -> None:
        log = bounded_log(log)
        self._backlog.put(
            {
                "body": log.body,
                "time_ns": log.time_ns,
                "severity": log.severity,
                "severity_text": log.severity_text,
                "attributes": dict(list(log.attributes.items())[:_ATTRIBUTES_MAX]),
                "traceparent": "" if log.context is None else log.context.traceparent,
            }
        )
