"""Traces in a real Arize Phoenix, read back through its own API."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from zlib import crc32

import psutil
import pytest

from exporters.telemetry import Exporter, Override, Signal
from exporters.telemetry.model import Span
from tests.backends.processes import READY_WITHIN_S, Phoenix
from tests.backends.story import MS, S, Story
from tests.exporters.telemetry.support import LONG_S, settings, telling

pytestmark = pytest.mark.timeout(READY_WITHIN_S + 120)

AT_NS = 1_760_000_000 * S
#: Phoenix keeps microseconds.
US_S = 2e-6
CALLER = 0x00F067AA0BA902B7


@pytest.fixture
def story(request):
    """Of each test other ids: Phoenix keeps the first span of an id, over all projects."""
    story = Story(AT_NS, seed=crc32(request.node.name.encode()))
    yield story
    story.close()


def told(phoenix: Phoenix, exporter: Exporter, project: str, spans: list[Span]) -> None:
    """Send ``spans``, as a configuration that names Phoenix would."""
    endpoint = phoenix.grpc if exporter is Exporter.OTLP_GRPC else phoenix.url
    # It takes traces alone, and says so with an error to whoever sends anything else.
    nothing = Override(exporter=Exporter.NONE)
    given = settings(
        exporter, endpoint, resource={"openinference.project.name": project},
        overrides={Signal.METRICS: nothing, Signal.LOGS: nothing},
    )  # fmt: skip
    with telling(given) as telemetry:
        for span in spans:
            assert telemetry.span(span)
        assert telemetry.flush(LONG_S)
        assert telemetry.counts() == {(Signal.TRACES, "exported", ""): len(spans)}
        assert telemetry.states()[Signal.TRACES].up


def seconds(text: str) -> float:
    moment = datetime.fromisoformat(text)
    assert moment.tzinfo == UTC
    return moment.timestamp()


@pytest.mark.parametrize("exporter", [Exporter.OTLP_GRPC, Exporter.OTLP_HTTP])
def test_spans_are_what_was_told(phoenix, story, exporter):
    spans = [
        *story.request(AT_NS, caller=CALLER),
        *story.request(AT_NS + 40 * MS, error="DeadlineError"),
    ]
    told(phoenix, exporter, f"told-{exporter}", spans)
    found = {
        one["context"]["span_id"]: one for one in phoenix.spans(f"told-{exporter}", len(spans))
    }
    assert set(found) == {f"{one.context.span_id:016x}" for one in spans}
    for span in spans:
        one = found[f"{span.context.span_id:016x}"]
        assert one["name"] == span.name
        assert one["context"]["trace_id"] == f"{span.context.trace_id:032x}"
        assert one["parent_id"] == (f"{span.parent_id:016x}" if span.parent_id else None)
        assert seconds(one["start_time"]) == pytest.approx(span.start_ns / 1e9, abs=US_S)
        assert seconds(one["end_time"]) == pytest.approx(span.end_ns / 1e9, abs=US_S)
        assert one["status_code"] == ("UNSET" if span.error is None else "ERROR")
        assert one["status_message"] == (span.error or "")
        assert one["attributes"] == span.attributes


def test_the_tree_is_the_requests(phoenix, story):
    spans = story.request(AT_NS, caller=CALLER)
    told(phoenix, Exporter.OTLP_GRPC, "tree", spans)
    found = phoenix.spans("tree", len(spans))
    served, mirror = spans[0], spans[3]
    children = sorted(
        (one["start_time"], one["name"])
        for one in found
        if one["parent_id"] == f"{served.context.span_id:016x}"
    )
    assert [name for _, name in children] == ["queue", "execute"]
    [root] = [one for one in found if one["name"] == "mirror.execute"]
    assert root["parent_id"] is None, "a mirror lengthens nobody's trace"
    assert root["context"]["trace_id"] != f"{served.context.trace_id:032x}"
    assert seconds(root["start_time"]) > served.end_ns / 1e9
    traces = phoenix.get("/v1/projects/tree/traces")["data"]
    assert {one["trace_id"] for one in traces} == {
        f"{one.context.trace_id:032x}" for one in (served, mirror)
    }


def test_errors_are_found_by_their_status(phoenix, story):
    spans = [
        one
        for number in range(12)
        for one in story.request(
            AT_NS + number * S, error="ExecutionError" if number % 4 == 0 else ""
        )
    ]
    told(phoenix, Exporter.OTLP_GRPC, "errors", spans)
    phoenix.spans("errors", len(spans))
    failed = phoenix.get("/v1/projects/errors/spans", status_code="ERROR", parent_id="null")
    assert len(failed["data"]) == 3
    assert {one["attributes"]["error.type"] for one in failed["data"]} == {"ExecutionError"}


def test_phoenix_keeps_neither_links_nor_kinds(phoenix, story):
    """What docs/backends.md says of it; when this fails, it keeps them now."""
    spans = story.request(AT_NS)
    assert any(one.links for one in spans)
    told(phoenix, Exporter.OTLP_GRPC, "links", spans)
    phoenix.spans("links", len(spans))
    found = phoenix.otlp("links")
    assert [one["links"] for one in found] == [None] * len(spans)
    assert {one["kind"] for one in found} == {"SPAN_KIND_INTERNAL"}


def test_it_listens_on_loopback_alone(phoenix):
    listening = [
        one.laddr
        for one in psutil.Process(phoenix.process.pid).net_connections("inet")
        if one.status == psutil.CONN_LISTEN
    ]
    assert len(listening) == 2
    assert {one.ip.removeprefix("::ffff:") for one in listening} == {"127.0.0.1"}


def test_phoenixs_environment_is_not_ours():
    code = "import importlib.util as u, sys; sys.exit(u.find_spec('phoenix') is not None)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
