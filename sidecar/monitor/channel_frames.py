"""What goes over the channel between gateway workers and the monitor, in frames.

Frames (see ``sidecar/frames.py``)::

    worker → monitor   HELLO {worker, pid} · EXCHANGE {e: [...]} request, response…
                       COUNTERS {name: count} (absolute, since ``serve`` began)
                       SPANS {spans: [[...], …]} · LOGS {logs: [{...}, …]}
                       ROUTED {...} · PROBED {...} (see ``routed_frames.py``)
    monitor → worker   RATE {rate} · ACK {exchanges, spans, logs} (since the connection began)
                       PROBE {...}

Both ends are of one installation, and still nothing that came is believed before it was looked at:
a value of another type would be found by whoever uses it, far from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sidecar.monitor.exchange import Bytes, Exchange
from sidecar.traces import SpanRecord

HELLO, EXCHANGE, COUNTERS, RATE, ACK, SPANS, LOGS = 1, 2, 3, 4, 5, 6, 7
ROUTED, PROBE, PROBED = 8, 9, 10

#: Nanoseconds and sizes, as they are told on.
_INT64 = 2**63
_INT32 = 2**31
#: A span's identity.
_UINT64 = 2**64


# --- exchanges ------------------------------------------------------------------------------------


def pack_exchange(
    exchange: Exchange, response_parts: Sequence[Bytes] | None
) -> tuple[dict[str, Any], list[Bytes]]:
    """An exchange as a frame's fields and parts.

    Args:
        exchange: its ``response`` is not looked at.
        response_parts: the response in pieces, which are joined by the receiver; ``None``: none.
    """
    fields = {
        "e": [
            exchange.request_id, exchange.traceparent, exchange.model, exchange.variant,
            exchange.transport, exchange.request_header_bytes, exchange.response_header_bytes,
            exchange.outcome, exchange.start_ns, exchange.end_ns, exchange.execute_ns,
            exchange.wall_ns, response_parts is not None,
        ]
    }  # fmt: skip
    return fields, [exchange.request, *(response_parts or ())]


_KINDS: tuple[Any, ...] = (
    str, str, str, str, str, int | None, int | None, str, int, int, int, int, bool,
)  # fmt: skip


def unpack_exchange(fields: dict[str, Any], parts: list[Bytes], worker: int) -> Exchange:
    """The other way.

    Raises:
        ValueError: not an exchange.
    """
    values = fields.get("e")
    if (
        not isinstance(values, list)
        or len(values) != len(_KINDS)
        or not all(map(isinstance, values, _KINDS))
        or not parts
    ):
        message = "a frame that should hold an exchange does not"
        raise ValueError(message)
    response: Bytes | None = None
    if values[12]:
        response = parts[1] if len(parts) == 2 else b"".join(parts[1:])
    return Exchange(
        request_id=values[0], traceparent=values[1], model=values[2], variant=values[3],
        transport=values[4], request=parts[0], response=response, request_header_bytes=values[5],
        response_header_bytes=values[6], outcome=values[7], start_ns=values[8], end_ns=values[9],
        execute_ns=values[10], wall_ns=values[11], worker=worker,
    )  # fmt: skip


# --- spans ----------------------------------------------------------------------------------------

#: In the order of ``SpanRecord``: the type, and for numbers what they are less than.
_RECORD: tuple[tuple[Any, int], ...] = (
    (str, 0), (str, 0), (int, _UINT64), (int, _UINT64), (str, 0), (str, 0), (str, 0), (str, 0),
    (str, 0), (str, 0), (int, _INT64), (int, _INT64), (int, _INT64), (int, _INT64), (int, _INT64),
    (int, _INT64), (int, _INT32), (bool, 2), (bool, 2), (str, 0), (int, _INT64), (int, _INT64),
)  # fmt: skip


def pack_spans(records: Sequence[SpanRecord]) -> dict[str, Any]:
    """Records as a frame's fields: a tuple is a JSON array, whatever its class."""
    return {"spans": records}


def unpack_spans(fields: dict[str, Any]) -> list[SpanRecord]:
    """The other way.

    Raises:
        ValueError: not a list of records: another length, another type, a number out of bounds.
    """
    values = fields.get("spans")
    if not isinstance(values, list) or not all(map(_is_record, values)):
        message = "a frame that should hold spans does not"
        raise ValueError(message)
    return [SpanRecord._make(each) for each in values]


def _is_record(values: Any) -> bool:
    if not isinstance(values, list) or len(values) != len(_RECORD):
        return False
    for value, (kind, limit) in zip(values, _RECORD, strict=True):
        if type(value) is not kind or (limit and not 0 <= value < limit):
            return False
    return True


# --- log records ----------------------------------------------------------------------------------

_LOG_TEXTS = ("body", "severity_text", "traceparent")


def pack_logs(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Log records as a frame's fields (see ``sidecar/gateway/logrecords.py``)."""
    return {"logs": records}


def unpack_logs(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The other way: each has ``body``, ``time_ns`` (wall clock), ``severity`` (OpenTelemetry's, 1
    to 24), ``severity_text``, ``attributes`` (text → text, truth or number), ``traceparent`` (or
    ``""``), and nothing else.

    Raises:
        ValueError: not a list of log records.
    """
    values = fields.get("logs")
    if not isinstance(values, list) or not all(map(_is_log, values)):
        message = "a frame that should hold log records does not"
        raise ValueError(message)
    return values


def _is_log(log: Any) -> bool:
    if not isinstance(log, dict) or log.keys() != {
        "body", "time_ns", "severity", "severity_text", "attributes", "traceparent",
    }:  # fmt: skip
        return False
    attributes = log["attributes"]
    return (
        all(isinstance(log[name], str) for name in _LOG_TEXTS)
        and type(log["time_ns"]) is int
        and 0 <= log["time_ns"] < _INT64
        and type(log["severity"]) is int
        and 1 <= log["severity"] <= 24
        and isinstance(attributes, dict)
        and all(isinstance(value, str | bool | int | float) for value in attributes.values())
    )
