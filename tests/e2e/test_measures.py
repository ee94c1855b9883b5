"""Counts outlive a worker and the monitor, and say what the statistics say."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import yaml

from exporters import instruments
from sidecar.config import load
from sidecar.gateway.pages import Page
from sidecar.monitor.measures import Measures
from tests.e2e.support import LOCAL, Client, fails, onnx_times, request, running, until

# A monitor has the lowest priority: on a busy machine it starts, and compares, when others rest.
pytestmark = pytest.mark.timeout(900)
WORKERS = 2
MONITOR_PID = re.compile(r"monitor \(gRPC\): \S+, pid (\d+)")


@pytest.fixture
def config(tmp_path):
    model = onnx_times(tmp_path, 2, "double.onnx")
    runtime = {"kind": "onnxruntime", "path": model.name}
    variants = [
        {"version": "1", "name": name, "roles": [role], "runtime": runtime}
        for name, role in (("ref", "reference"), ("onnx", "serving"))
    ]
    tree = {
        "models": [{"name": "double", "variants": variants}],
        "gateway": {
            "workers": WORKERS, "grpc": {"address": LOCAL}, "http": {"address": LOCAL},
            "drain": {"delay_s": 0, "timeout_s": 2},
        },
        "monitor": {"grpc": LOCAL},
    }  # fmt: skip
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def page_descriptors(pid):
    """Open pages of a process."""
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if str(entry.readlink()).startswith("/memfd:sidecar-page"):
                found.append(entry)
        except FileNotFoundError:  # closed meanwhile
            continue
    return sorted(found, key=lambda entry: int(entry.name))


def page_mappings(pid):
    """Access of each mapping of a page: ``r--s`` is for reading only."""
    lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
    return [line.split()[1] for line in lines if "/memfd:sidecar-page" in line]


def monitors(server):
    return [int(pid) for pid in MONITOR_PID.findall(server.text)]


def told(measures):
    """Of the requests: (model, transport's method, error) → calls; rows; bytes in."""
    calls, rows = {}, 0
    for point in measures.points():
        attributes = point.attributes
        if point.instrument is instruments.CALL_DURATION:
            method = attributes["rpc.method"].rpartition("/")[2]
            key = attributes.get("model.name", ""), method, attributes.get("error.type", "")
            calls[key] = calls.get(key, 0) + sum(point.counts)
        elif point.instrument is instruments.ROWS:
            rows += point.value
    return calls, rows


def test_counts_go_on_whoever_is_killed(config):
    with running(config) as server:
        until(lambda: monitors(server), "a monitor", within_s=150)
        pages = []
        for entry in page_descriptors(server.process.pid):
            descriptor = os.open(entry, os.O_RDONLY)
            pages.append(Page(descriptor, 2, read_only=True))
            os.close(descriptor)
        assert len(pages) == WORKERS
        measures = Measures(pages, load(config))
        expected = ask_in_every_way(server)
        check(server, measures, expected)

        killed = monitors(server)[-1]
        check_reader(killed)
        os.kill(killed, signal.SIGKILL)
        expected = added(expected, ask_in_every_way(server))  # while there is no monitor
        until(lambda: len(monitors(server)) == 2, "another monitor", within_s=150)
        check(server, measures, expected)
        check_reader(monitors(server)[-1])

        os.kill(server.pids[0], signal.SIGKILL)
        until(lambda: "is ready again" in server.text, "another worker", within_s=150)
        expected = added(expected, ask_in_every_way(server))
        check(server, measures, expected)
        for page in pages:
            page.close()


def check_reader(pid):
    """The monitor has each page once, and cannot write to it; its children have none."""
    assert page_mappings(pid) == ["r--s"] * WORKERS
    assert len(page_descriptors(pid)) == WORKERS  # each mapping keeps its own
    for child in psutil.Process(pid).children(recursive=True):
        assert page_descriptors(child.pid) == []


def ask_in_every_way(server):
    """Requests of every transport and end; returns how they are to be counted."""
    with Client(server.addresses["grpc"]) as client:
        for _ in range(3):
            client.infer("double", 1.0)
        list(client.stream(iter([request("double", 1.0), request("double", 2.0)])))
        with fails(grpc.StatusCode.INVALID_ARGUMENT):
            client.call("ModelInfer", request("double", 1.0, name="other"))
        with fails(grpc.StatusCode.NOT_FOUND):
            client.infer("nobody", 1.0)
        garbage = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with fails(grpc.StatusCode.INVALID_ARGUMENT):
            garbage(b"\xff\xff\xff", timeout=60, wait_for_ready=True)
    url = f"http://{server.addresses['http']}/v2/models/double/infer"
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    assert httpx.post(url, json={"inputs": [tensor]}, timeout=60).status_code == 200
    assert httpx.post(url, content=b"{", timeout=60).status_code == 400
    assert (
        httpx.post(url, content=b"", headers={"content-encoding": "x"}, timeout=60).status_code
        == 415
    )
    return {
        ("double", "ModelInfer", ""): 3, ("double", "ModelStreamInfer", ""): 2,
        ("double", "ModelInfer", "InvalidRequestError"): 1, ("double", "infer", ""): 1,
        ("", "ModelInfer", "NotFoundError"): 1, ("", "ModelInfer", "InvalidRequestError"): 1,
        ("", "infer", "InvalidRequestError"): 2,
    }  # fmt: skip


def added(first, second):
    return {key: first.get(key, 0) + second.get(key, 0) for key in first.keys() | second.keys()}


def check(server, measures, expected):
    """The points are what was asked, and what the statistics call says."""
    until(lambda: told(measures)[0] == expected, f"{expected}, not {told(measures)[0]}")
    calls, rows = told(measures)
    with Client(server.addresses["grpc"]) as client:
        row = client.statistics("double")
    stats = row.inference_stats
    assert stats.success.count == sum(
        count for (model, _, error), count in calls.items() if model and not error
    )
    assert stats.fail.count == sum(n for (model, _, error), n in calls.items() if model and error)
    assert row.inference_count == rows == stats.success.count
