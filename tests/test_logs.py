"""What goes to standard error, as people and programs read it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from datetime import datetime, timedelta

import pytest

from exporters.telemetry.context import SAMPLED, TraceContext
from sidecar import logs
from sidecar.config import LogConfig

CONTEXT = TraceContext(0x4BF92F3577B34DA6A3CE929D0E0E4736, 0x00F067AA0BA902B7, SAMPLED)
OTHER = TraceContext(7, 8, SAMPLED)
JSON, TEXT = logs.json_formatter, logs.TextFormatter


@pytest.fixture
def logger():
    """A logger of its own; ``write`` gives what was written with a formatter."""
    logger = logging.getLogger("sidecar.somewhere")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)

    def write(formatter: logging.Formatter, say) -> str:
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        logger.addHandler(handler)
        say(logger)
        logger.removeHandler(handler)
        return stream.getvalue()

    yield write
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def test_a_json_line_has_these_fields(logger):
    before = datetime.now().astimezone() - timedelta(milliseconds=1)
    text = logger(JSON(), lambda log: log.warning("%d of %s\n", 3, "é"))
    assert text.count("\n") == 1
    line = json.loads(text)
    assert list(line) == ["time", "level", "logger", "message", "process"]
    assert line["message"] == "3 of é\n"
    assert (line["level"], line["logger"]) == ("warning", "sidecar.somewhere")
    assert line["process"] == os.getpid()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert before <= datetime.fromisoformat(line["time"]) <= datetime.now().astimezone()


def test_what_a_record_brings_along_is_in_the_line_and_cannot_pretend(logger):
    extra = {"model": "digits", "rows": 3, "level": "fine", "odd": object()}
    line = json.loads(logger(JSON(), lambda log: log.info("x", extra=extra)))
    assert (line["model"], line["rows"], line["level"]) == ("digits", 3, "info")
    assert "object" in line["odd"]


def test_an_exception_is_in_the_line(logger):
    def fail(log: logging.Logger) -> None:
        try:
            1 / 0  # noqa: B018
        except ZeroDivisionError:
            log.exception("it failed")

    line = json.loads(logger(JSON(), fail))
    assert line["exception"].splitlines()[-1] == "ZeroDivisionError: division by zero"
    assert "exc_info" not in line
    assert "ZeroDivisionError" in logger(TEXT(), fail).splitlines()[-1]


def test_a_record_has_the_trace_that_it_names_or_else_the_current_one(logger):
    def say(log: logging.Logger) -> None:
        log.info("named", extra={"trace": CONTEXT})
        log.info("current")

    logs.follow(lambda: OTHER)
    try:
        lines = [json.loads(line) for line in logger(JSON(), say).splitlines()]
        text = logger(TEXT(), say).splitlines()
    finally:
        logs.follow(lambda: None)
    assert [line["trace_id"] for line in lines] == [
        "4bf92f3577b34da6a3ce929d0e0e4736", f"{7:032x}",
    ]  # fmt: skip
    assert [line["span_id"] for line in lines] == ["00f067aa0ba902b7", f"{8:016x}"]
    assert text[0].endswith("INFO    sidecar.somewhere: named [trace " + lines[0]["trace_id"] + "]")
    assert "trace" not in logger(TEXT(), lambda log: log.info("nobody's"))


def test_only_a_terminal_is_given_colours(logger):
    assert "\x1b" not in logger(TEXT(), lambda log: log.error("x", extra={"trace": CONTEXT}))
    colored = logger(TEXT(color=True), lambda log: log.error("x", extra={"trace": CONTEXT}))
    assert "\x1b[31mERROR  \x1b[0m" in colored


@pytest.mark.parametrize(
    ("environ", "color"),
    [
        ({"TERM": "xterm"}, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, False),
        ({"TERM": "dumb"}, False),
        ({}, False),
    ],
)
def test_colours_are_as_the_environment_says(monkeypatch, environ, color):
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert LogConfig().color is color


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_process_is_set_up_without_what_it_does_not_need(form):
    code = f"""
import logging, sys
from types import SimpleNamespace
from sidecar import logs
logs.configure(SimpleNamespace(format={form!r}, level="info", color=True))
logging.getLogger("sidecar.x").info("hello")
logging.getLogger("other").info("not this")
print([name for name in ("pydantic", "asyncio", "rich", "exporters") if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
    (line,) = found.stderr.splitlines()
    assert "hello" in line
    assert "\x1b" not in line
    assert line.startswith("{") is (form == "json")
