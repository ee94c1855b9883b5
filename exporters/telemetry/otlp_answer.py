"""What an OTLP backend answers: all taken, part of it, or something that is no answer."""

from __future__ import annotations

import json

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from exporters.telemetry.delivery import SendError, Sent
from exporters.telemetry.settings import Signal

#: An answer is a number and a sentence; whoever sends more is no OTLP backend.
ANSWER_BYTES_MAX = 64 * 1024

_Answer = ExportTraceServiceResponse | ExportMetricsServiceResponse | ExportLogsServiceResponse


def read_answer(signal: Signal, body: bytes, *, as_json: bool = False) -> Sent:
    """What a successful answer says. An empty one is "all taken".

    Raises SendError(garbage) for bytes that are no answer: something else listens there (a login
    page, another protocol) and what was sent is lost, which must not look like success.
    """
    answer = _empty(signal)
    try:
        if as_json:
            text = json.loads(body or b"{}")
            json_format.ParseDict(text, answer, ignore_unknown_fields=True)
        else:
            answer.ParseFromString(body)
    except (DecodeError, ValueError, json_format.ParseError) as error:
        raise SendError("garbage", f"no answer of OTLP: {body[:60]!r}", retry=False) from error
    if isinstance(answer, ExportTraceServiceResponse):
        rejected = answer.partial_success.rejected_spans
    elif isinstance(answer, ExportMetricsServiceResponse):
        rejected = answer.partial_success.rejected_data_points
    else:
        rejected = answer.partial_success.rejected_log_records
    return Sent(rejected, answer.partial_success.error_message)


def _empty(signal: Signal) -> _Answer:
    if signal is Signal.TRACES:
        return ExportTraceServiceResponse()
    if signal is Signal.METRICS:
        return ExportMetricsServiceResponse()
    return ExportLogsServiceResponse()
