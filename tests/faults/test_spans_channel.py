"""Spans and log records: a monitor that dies, hangs, or was never there costs them, counted.

And nothing else: no request fails, and none waits.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.e2e.remotes import HERE, in_front, upstream
from tests.e2e.support import Client, onnx_times, request, running, variant, write
from tests.faults.test_monitor_channel import Load
from tests.gateway.served import Served, configure, make_models, model, serving
from tests.gateway.test_spans import CALLER, SPAN, TRACE, traced
from tests.monitor.listening import Listening, until
from tests.support.upstream import Upstream

#: As many as may be unacknowledged when a monitor dies: they are counted, and may have arrived.
UNKNOWN_MAX = 512
KILLS = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@contextmanager
def loaded(folder: Path, path: Path) -> Iterator[tuple[Served, Load]]:
    with (
        serving(configure(folder, model("mlp"))) as up,
        traced(up, path, connect=False),
        Load(up) as load,
    ):
        yield up, load


def dropped(served: Served) -> int:
    return served.gateway.page.server_counters()["spans_dropped"]


def test_a_listener_that_dies_under_load(folder: Path, tmp_path: Path) -> None:
    """Several times: each request left one record, which has arrived or is counted."""
    path = tmp_path / "tap.sock"
    arrived = 0
    with loaded(folder, path) as (up, load):
        for _ in range(KILLS):
            with Listening(path) as listening:
                until(lambda seen=listening: len(seen.spans) > 20, "spans arrive")
                load.more(20)
            arrived += len(listening.spans)
            load.more(20)
        load.__exit__()
        until(lambda: arrived + dropped(up) >= load.answered, "each is accounted for")
        assert not load.failures
        assert dropped(up) >= KILLS * 20  # while there was nobody, at least
        assert arrived + dropped(up) <= load.answered + KILLS * UNKNOWN_MAX


def test_a_monitor_that_does_not_read(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with loaded(folder, path) as (up, load):
            tap = up.gateway.tap
            assert tap is not None
            told = tap._told.spans
            assert told is not None
            until(lambda: tap.connected, "the connection stands")
            told._capacity = 100  # not 4096, which take a while to come
            until(lambda: dropped(up) > 50, "it is full")
            load.more(50)
            assert not load.failures
            assert tap.connected
            assert len(told._records) <= 101
            assert told._sent <= UNKNOWN_MAX


def test_a_slow_monitor_gets_what_fits(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    with Listening(path) as listening, loaded(folder, path) as (up, load):
        tap = up.gateway.tap
        assert tap is not None
        told = tap._told.spans
        assert told is not None
        until(lambda: listening.spans, "it works")
        told._capacity = 100
        listening.gate.clear()
        until(lambda: dropped(up) > 50, "it is full")
        listening.gate.set()
        load.__exit__()
        until(lambda: told.empty, "what it kept arrives")
        assert not load.failures
        # Before the tap had found the monitor they were dropped, and counted, too.
        assert len(listening.spans) + dropped(up) == load.answered


# --- a gateway's own process ----------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[Upstream]:
    with upstream() as made:
        yield made


def configured(folder: Path, other: Upstream) -> Path:
    local = {"name": "m", "variants": [variant("onnx", onnx_times(folder, 2, "m.onnx"))]}
    config = write(folder, [local, in_front(other.address)])
    document = yaml.safe_load(config.read_text())
    document["telemetry"] = {"exporter": "console", "traces": {"sample_ratio": 0.0}}
    config.write_text(yaml.safe_dump(document))
    return config


def test_a_real_gateway_hands_over_spans_and_logs(tmp_path: Path, other: Upstream) -> None:
    """The test is the monitor. (``serve`` would start one; see ``e2e/test_spans_told.py``.)"""
    config = configured(tmp_path, other)
    context = (("traceparent", CALLER), ("tracestate", "a=1"))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [3.0]}
    with (
        Listening(tmp_path / "sidecar-state" / "tap.sock") as listening,
        running(config, "gateway") as server,
        Client(server.addresses["grpc"]) as client,
    ):
        until(lambda: listening.listener.workers() == 1, "the worker has found the monitor")
        client.infer("m", 1)  # nobody samples it
        client.infer("m", 1, metadata=context)
        list(client.stream(iter([request("m", 1), request("m", 2)]), metadata=context))
        client.infer(HERE, 1, metadata=context)
        url = f"http://{server.addresses['http']}/v2/models/m/infer"
        httpx.post(url, json={"inputs": [tensor]}, headers=dict(context), timeout=20)
        server.signal()
        assert server.wait() == 0
        got = listening.take_spans(5)
        assert listening.spans == []
    assert listening.exchanges == []  # nothing is compared, and nobody asked for everything
    assert sorted(one.transport for one in got) == ["grpc", "grpc", "http", "stream", "stream"]
    assert all(f"{one.parent_id:016x}" == SPAN and TRACE in one.traceparent for one in got)
    [remote] = [one for one in got if one.model == HERE]
    sent = other.calls[-1].metadata
    assert sent["traceparent"] == f"00-{TRACE}-{remote.client_span:016x}-01"
    assert sent["tracestate"] == "a=1"
    bodies = [one["body"] for one in listening.logs]
    assert any(body.startswith("draining: not ready any more") for body in bodies)
    assert not any("monitor at" in body for body in bodies)  # what sending says is not sent
    assert "Traceback" not in server.text


@pytest.mark.parametrize(
    ("more", "loaded"),
    [
        ("", {"sidecar.gateway.tracing"}),
        (
            "from sidecar.gateway import logrecords, tracing\n"
            "tracing.Tracing({'ratio': 1, 'parent': True}, None, None).begin()",
            {"exporters.telemetry.context", "exporters.telemetry.loghandler"},
        ),
    ],
    ids=["off", "on"],
)
def test_a_worker_loads_what_it_needs_and_never_an_sdk(more: str, loaded: set[str]) -> None:
    said = subprocess.run(
        [sys.executable, "-c",
         f"import sidecar.gateway.main, sys\n{more}\nprint(*sys.modules, sep='\\n')"],
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout.splitlines()  # fmt: skip
    assert loaded <= set(said)
    assert "opentelemetry" not in said
    assert ("exporters" in said) is bool(more)
