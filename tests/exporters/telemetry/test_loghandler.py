"""Python's log records become OpenTelemetry's, and sending never logs about itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from exporters.telemetry import Exporter
from exporters.telemetry.loghandler import TRACE, LogHandler
from exporters.telemetry.model import Log
from tests.exporters.telemetry.support import (
    LONG_S,
    SPAN_ID,
    attributes,
    context,
    settings,
    telling,
)
from tests.support.otlp_receiver import HttpReceiver


@pytest.fixture
def told() -> list[Log]:
    return []


@pytest.fixture
def logger(told: list[Log]) -> Iterator[logging.Logger]:
    logger = logging.getLogger("a_test_of_telemetry")
    handler = LogHandler(told.append, level=logging.DEBUG)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield logger
    logger.removeHandler(handler)


def test_a_record(logger, told):
    logger.warning("loaded %s in %d ms", "digits", 7, extra={"model.name": "digits", "odd": {1}})
    [one] = told
    assert one.body == "loaded digits in 7 ms"
    assert (one.severity, one.severity_text) == (13, "WARNING")
    assert one.attributes["model.name"] == "digits"
    assert one.attributes["odd"] == "{1}"
    assert one.attributes["logger.name"] == "a_test_of_telemetry"
    assert one.attributes["code.function.name"] == "test_loghandler.test_a_record"
    assert one.context is None
    assert "args" not in one.attributes


def test_severities(logger, told):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logger.log(level, "x")
    assert [one.severity for one in told] == [5, 9, 13, 17, 21]


def record(**more: Any) -> logging.LogRecord:
    usual = {"name": "x", "msg": "down", "levelno": logging.INFO, "levelname": "INFO"}
    return logging.makeLogRecord({**usual, **more})


def test_the_trace_is_the_records_own_or_the_current_one(told):
    current = context(5)
    handler = LogHandler(told.append, current=lambda: current)
    handler.handle(record(trace=context(6)))
    handler.handle(record())
    assert [one.context.span_id for one in told] == [6, 5]
    assert TRACE not in told[0].attributes


def test_an_exception_is_told_in_the_conventions_words(logger, told):
    try:
        raise ValueError("no such column")
    except ValueError:
        logger.exception("failed")
    [one] = told
    assert one.attributes["exception.type"] == "ValueError"
    assert one.attributes["exception.message"] == "no such column"
    assert "Traceback" in one.attributes["exception.stacktrace"]


def test_a_record_that_cannot_be_formatted_harms_nobody(logger, told, monkeypatch, capsys):
    monkeypatch.setattr(logging, "raiseExceptions", False)
    logger.info("%d", "no number")
    logger.info("next")
    assert [one.body for one in told] == ["next"]


def test_what_sending_says_is_not_sent(told):
    handler = LogHandler(told.append)
    for name in ("exporters.telemetry.delivery", "grpc._channel", "opentelemetry.sdk"):
        handler.handle(record(name=name))
    assert told == []


def test_from_a_logger_to_a_backend():
    logger = logging.getLogger("another_test_of_telemetry")
    logger.propagate = False
    with HttpReceiver() as backend, telling(settings(Exporter.OTLP_HTTP, backend.endpoint)) as it:
        handler = LogHandler(it.log)
        logger.addHandler(handler)
        try:
            logger.error("wrong", extra={TRACE: context()})
        finally:
            logger.removeHandler(handler)
        assert it.flush(LONG_S)
    [found] = backend.records
    assert found.body.string_value == "wrong"
    assert found.span_id == SPAN_ID.to_bytes(8)
    assert attributes(found)["logger.name"] == "another_test_of_telemetry"
