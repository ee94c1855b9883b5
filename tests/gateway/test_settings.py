"""The settings that clients read and change: checked before anything changes, reset by nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.config import LogConfig, TraceConfig
from sidecar.errors import InvalidRequestError, RequestError, UnsupportedError
from sidecar.gateway.settings import LogSettings, TraceSettings


@pytest.fixture
def trace():
    return TraceSettings(TraceConfig(file=Path("trace.jsonl")), ["a", "b"])


@pytest.fixture
def logs():
    before = logging.getLogger("sidecar").level
    yield LogSettings(LogConfig())
    logging.getLogger("sidecar").setLevel(before)


def test_trace_begins_with_what_the_config_says(trace):
    assert trace.get()["trace_level"] == ["TIMESTAMPS"]
    assert trace.get()["trace_file"] == ["trace.jsonl"] or trace.get()["trace_file"] == [
        str(Path("trace.jsonl").absolute())
    ]
    assert TraceSettings(TraceConfig(), []).get()["trace_level"] == ["OFF"]


def test_nothing_changes_before_commit(trace):
    commit = trace.prepare({"trace_rate": ["5"]}, "")
    assert trace.get()["trace_rate"] == ["1000"]
    commit()
    assert trace.get()["trace_rate"] == ["5"]


def test_a_model_has_its_own_and_else_the_global_ones(trace):
    trace.prepare({"trace_rate": ["5"], "trace_count": ["9"]}, "a")()
    trace.prepare({"trace_rate": ["7"]}, "")()
    assert trace.get("a")["trace_rate"] == ["5"]
    assert trace.get("b")["trace_rate"] == trace.get()["trace_rate"] == ["7"]
    trace.prepare({"trace_rate": []}, "a")()  # back to the global one
    assert trace.get("a")["trace_rate"] == ["7"]
    assert trace.get("a")["trace_count"] == ["9"]
    trace.prepare({"trace_rate": []}, "")()  # back to the beginning
    assert trace.get("a")["trace_rate"] == ["1000"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nothing", ["1"]), ("trace_level", ["SOME"]), ("trace_rate", ["0"]),
        ("trace_rate", ["-1"]), ("trace_rate", ["1", "2"]), ("trace_rate", ["x"]),
        ("trace_rate", [""]), ("trace_rate", ["--5"]), ("trace_rate", ["²"]),
        ("trace_rate", ["1" * 5000]), ("trace_count", ["-2"]), ("log_frequency", ["-1"]),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_and_named(trace, name, value):
    before = trace.get()
    with pytest.raises(InvalidRequestError, match=name if name != "trace_level" else "SOME"):
        trace.prepare({"trace_count": ["3"], name: value}, "")
    assert trace.get() == before


def test_what_clients_may_not_set(trace):
    for name, value in (
        ("trace_file", ["/etc/x"]), ("trace_mode", ["opentelemetry"]), ("trace_level", ["TENSORS"])
    ):  # fmt: skip
        with pytest.raises(UnsupportedError):
            trace.prepare({name: value}, "")
    with pytest.raises(InvalidRequestError, match="unknown model 'z'"):
        trace.prepare({}, "z")


@given(
    st.dictionaries(
        st.sampled_from(["trace_level", "trace_rate", "trace_count", "log_frequency", "x"]),
        st.lists(st.text(max_size=6) | st.integers().map(str), max_size=3),
    )
)
def test_any_settings_are_taken_or_refused_with_an_error_of_ours(settings):
    trace = TraceSettings(TraceConfig(), ["a"])
    try:
        trace.prepare(settings, "a")()
    except RequestError:
        return
    for name in ("trace_rate", "trace_count", "log_frequency"):
        assert int(trace.get("a")[name][0]) >= -1


def test_log_settings_set_the_level(logs):
    logger = logging.getLogger("sidecar")
    for settings, level in (
        ({"log_verbose_level": 1}, logging.DEBUG), ({"log_verbose_level": 0}, logging.INFO),
        ({"log_info": False}, logging.WARNING), ({"log_warning": False}, logging.ERROR),
        ({"log_error": False}, logging.CRITICAL), ({"log_info": True}, logging.INFO),
    ):  # fmt: skip
        logs.prepare(settings)()
        assert logger.level == level


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"nothing": True}, InvalidRequestError), ({"log_info": 1}, InvalidRequestError),
        ({"log_info": None}, InvalidRequestError),
        ({"log_verbose_level": True}, InvalidRequestError),
        ({"log_file": "x"}, UnsupportedError), ({"log_format": "ISO8601"}, UnsupportedError),
    ],
)  # fmt: skip
def test_wrong_log_settings_change_nothing(logs, settings, error):
    before = logs.get()
    with pytest.raises(error):
        logs.prepare({"log_warning": False, **settings})
    assert logs.get() == before


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_what_is_read_is_what_the_config_said(level):
    values = LogSettings(LogConfig(level=level, format="json")).get()
    assert values["log_verbose_level"] == (level == "debug")
    assert values["log_info"] == (level in ("debug", "info"))
    assert values["log_warning"] == (level != "error")
    assert values["log_error"] is True
    assert values["log_format"] == "json"
