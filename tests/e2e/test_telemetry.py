"""``serve`` tells a real backend on a real socket; whatever it does, no request notices."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading

import httpx
import pytest
import yaml

from exporters.instruments import INSTRUMENTS
from sidecar.monitor.client import MonitorClient
from tests.e2e.support import LOCAL, Client, onnx_times, request, running, until
from tests.support.otlp_receiver import (
    GrpcReceiver,
    HttpReceiver,
    Reply,
    always,
    garbage,
    refusing,
    silent,
)

MONITOR = re.compile(r"^monitor \(gRPC\): ([^\s,]+)(?:, pid (\d+))?", re.MULTILINE)
#: What a drain, the monitor's finishing and its telling may take together on a busy machine; each
#: has its own bound, and the supervisor kills the monitor after ten seconds.
ENDED_WITHIN_S = 20
NAMES = {instrument.name for instrument in INSTRUMENTS}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def write(tmp_path):
    """Writes a config with this ``telemetry``; its one model is watched by nobody."""

    def make(telemetry: dict | None = None, **more):
        model = onnx_times(tmp_path, 2, "double.onnx")
        runtime = {"kind": "onnxruntime", "path": model.name}
        variants = [{"version": "1", "name": "onnx", "roles": ["serving"], "runtime": runtime}]
        tree = {
            "models": [{"name": "double", "variants": variants}],
            "gateway": {
                "workers": 2, "grpc": {"address": LOCAL}, "http": {"address": LOCAL},
                "drain": {"delay_s": 0, "timeout_s": 2},
            },
            "monitor": {"grpc": LOCAL},
            **more,
        }  # fmt: skip
        if telemetry is not None:
            tree["telemetry"] = telemetry
        path = tmp_path / "sidecar.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return make


def monitors(server):
    """(address, pid) of every monitor that was ready so far."""
    return [(address, int(pid or 0)) for address, pid in MONITOR.findall(server.text)]


def await_monitor(server, count: int = 1):
    until(lambda: len(monitors(server)) == count, f"{count} monitors", within_s=60)
    return monitors(server)[-1]


def status(server):
    with MonitorClient(monitors(server)[-1][0], timeout_s=20) as client:
        return client.status().telemetry


def ask(server, count: int) -> None:
    """Calls over gRPC, one over a stream, one over HTTP, one that is the caller's mistake."""
    with Client(server.addresses["grpc"]) as client:
        for _ in range(count):
            client.infer("double", 1.0)
        list(client.stream(iter([request("double", 1.0)])))
    url = f"http://{server.addresses['http']}/v2/models/double/infer"
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    assert httpx.post(url, json={"inputs": [tensor]}, timeout=20).status_code == 200
    assert httpx.post(url, content=b"{", timeout=20).status_code == 400


def calls(metrics) -> dict[tuple[str, str], int]:
    """(Method, error) → calls, of the latest metrics."""
    metric = metrics.get("rpc.server.call.duration")
    found: dict[tuple[str, str], int] = {}
    for point in [] if metric is None else metric.histogram.data_points:
        names = {a.key: a.value.string_value for a in point.attributes}
        key = names["rpc.method"].rpartition("/")[2], names.get("error.type", "")
        found[key] = found.get(key, 0) + point.count
    return found


def expected(count: int, times: int = 1) -> dict[tuple[str, str], int]:
    each = {
        ("ModelInfer", ""): count, ("ModelStreamInfer", ""): 1, ("infer", ""): 1,
        ("infer", "InvalidRequestError"): 1,
    }  # fmt: skip
    return {key: number * times for key, number in each.items()}


def instances(receiver) -> list[str]:
    """``service.instance.id`` of everything received, in order of their first metrics."""
    found = [
        attribute.value.string_value
        for one in receiver.of("metrics")
        for resource in one.message.resource_metrics
        for attribute in resource.resource.attributes
        if attribute.key == "service.instance.id"
    ]
    return list(dict.fromkeys(found))


def test_counts_are_those_of_the_requests_whoever_is_killed(write):
    with GrpcReceiver() as backend:
        telemetry = {
            "exporter": "otlp-grpc", "endpoint": backend.endpoint, "metrics": {"interval_s": 0.2},
        }  # fmt: skip
        with running(write(telemetry)) as server:
            _, pid = await_monitor(server)
            where = f"telemetry: traces, metrics, logs: otlp-grpc → {backend.endpoint}"
            until(lambda: where in server.text, "where it tells")
            ask(server, 3)
            until(lambda: calls(backend.metrics()) == expected(3), "every call is told")
            os.kill(pid, signal.SIGKILL)
            ask(server, 3)  # while nobody tells
            await_monitor(server, 2)
            until(lambda: calls(backend.metrics()) == expected(3, 2), "nothing is lost")
            assert len(instances(backend)) == 2
            assert {one.name for one in backend.metrics().values()} <= NAMES
            found = status(server)
            assert found.state == "ok"
            metrics = next(one for one in found.signals if one.signal == "metrics")
            assert (metrics.up, metrics.endpoint, metrics.error) == (True, backend.endpoint, "")
            assert metrics.exported > 0
            starts = {
                point.start_time_unix_nano
                for point in backend.metrics()["rpc.server.call.duration"].histogram.data_points
            }
            assert len(starts) == 1  # since `serve` began, also of a later life
            ask(server, 3)
            server.signal()
            assert server.wait(ENDED_WITHIN_S) == 0
        # The last words are said at the end, not at the next interval.
        assert calls(backend.metrics()) == expected(3, 3)


def test_variables_alone_do_the_same(write, monkeypatch):
    with HttpReceiver() as backend:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", backend.endpoint)
        monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "60000")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "digits-gateway")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=blue")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "sometimes")
        with running(write()) as server:
            await_monitor(server)
            assert f"otlp-http → {backend.endpoint}" in server.text
            assert "OTEL_TRACES_SAMPLER=sometimes is ignored" in server.text
            ask(server, 2)
            server.signal()
            assert server.wait(ENDED_WITHIN_S) == 0
        assert calls(backend.metrics()) == expected(2)
        assert {one.headers["x-tenant"] for one in backend.received} == {"blue"}
        names = {
            a.value.string_value
            for one in backend.of("metrics")
            for resource in one.message.resource_metrics
            for a in resource.resource.attributes
            if a.key == "service.name"
        }
        assert names == {"digits-gateway"}


# --- backends that are none -----------------------------------------------------------------------


@contextlib.contextmanager
def rejecting():
    """Takes everything, and says that it wants none of it."""
    with HttpReceiver() as backend:
        backend.reply = always(Reply(rejected=10**9, message="not this month"))
        yield int(backend.endpoint.rpartition(":")[2])


@contextlib.contextmanager
def hanging():
    """Reads what it is sent, and answers nothing until the end."""
    over = threading.Event()

    def wait(signal: str) -> Reply:
        over.wait(60)
        return Reply()

    with HttpReceiver() as backend:
        backend.reply = wait
        yield int(backend.endpoint.rpartition(":")[2])
        over.set()


@pytest.mark.parametrize("exporter", ["otlp-http", "otlp-grpc"])
@pytest.mark.parametrize("backend", [refusing, silent, garbage])
def test_a_backend_that_is_none_costs_nobody_anything(write, exporter, backend):
    with backend() as port:
        check_unharmed(write, exporter, port)


def test_nor_does_one_that_wants_nothing_of_it(write):
    with rejecting() as port:
        check_unharmed(write, "otlp-http", port)


@pytest.mark.parametrize(
    ("backend", "exporter"),
    [(silent, "otlp-grpc"), (silent, "otlp-http"), (hanging, "otlp-http")],
)
def test_an_attempt_that_never_ends_holds_up_no_end(write, backend, exporter):
    with backend() as port:
        check_unharmed(write, exporter, port, timeout_s=300)


def check_unharmed(write, exporter: str, port: int, timeout_s: float = 0.5) -> None:
    telemetry = {
        "exporter": exporter, "endpoint": f"http://127.0.0.1:{port}", "timeout_s": timeout_s,
        "metrics": {"interval_s": 0.2},
    }  # fmt: skip
    with running(write(telemetry)) as server:
        await_monitor(server)
        if timeout_s < ENDED_WITHIN_S:
            until(lambda: any(one.error for one in status(server).signals), "it is seen")
        ask(server, 5)
        with Client(server.addresses["grpc"]) as client:
            assert client.health() == "SERVING"
        metrics = next(one for one in status(server).signals if one.signal == "metrics")
        assert metrics.exported == 0
        server.signal()
        assert server.wait(ENDED_WITHIN_S) == 0
        assert "the monitor has ended" in server.text  # by itself, not by a signal


def test_what_cannot_be_told_at_all_is_said_and_serving_goes_on(write):
    with refusing() as port:
        telemetry = {"exporter": "prometheus", "prometheus": f"127.0.0.1:{port}"}
        with running(write(telemetry)) as server:
            await_monitor(server)
            until(lambda: "telemetry: nothing is told:" in server.text, "it is said")
            found = status(server)
            assert found.state == "failed"
            assert "in use" in found.message
            ask(server, 2)
            server.signal()
            assert server.wait(ENDED_WITHIN_S) == 0


# --- Prometheus, the console ----------------------------------------------------------------------


def test_prometheus_scrapes_the_counts(write):
    with running(write({"exporter": "prometheus", "prometheus": LOCAL})) as server:
        await_monitor(server)
        url = until(
            lambda: re.search(r"^metrics: (http://\S+/metrics)$", server.text, re.MULTILINE),
            "the address",
        )[1]
        ask(server, 4)

        def counted() -> bool:
            text = httpx.get(url, timeout=20).text
            line = 'model_sidecar_requests_total{model_name="double",model_version="1",'
            line += 'variant="onnx",outcome="success",reason=""} 6'
            return line in text.splitlines()

        until(counted, "the requests")
        assert status(server).prometheus == url


def test_the_console_is_the_standard_output_of_serve(write):
    config = write({"metrics": {"exporter": "console", "interval_s": 0.2}})
    with running(config) as server:
        await_monitor(server)
        ask(server, 1)

        def told() -> list[str]:
            lines = server.text.splitlines(keepends=True)
            found = [json.loads(one) for one in lines if one[0] == "{" and one[-1] == "\n"]
            return [
                metric["name"]
                for one in found
                for resource in one["resource_metrics"]
                for scope in resource["scope_metrics"]
                for metric in scope["metrics"]
            ]

        until(lambda: "rpc.server.call.duration" in told(), "metrics on the console")


def test_a_monitor_alone_says_where_it_tells(write):
    with HttpReceiver() as backend:
        telemetry = {"exporter": "otlp-http", "endpoint": backend.endpoint}
        with running(write(telemetry), "monitor") as server:
            assert f"telemetry: traces, metrics, logs: otlp-http → {backend.endpoint}" in (
                server.text
            )
            server.signal()
            assert server.wait(ENDED_WITHIN_S) == 0
        assert "model_sidecar.route.version" in backend.metrics()


def test_without_a_monitor_serve_says_that_nothing_is_told(write):
    config = write({"exporter": "console"}, monitor={"enabled": False})
    with running(config) as server:
        until(lambda: "nothing is told through OpenTelemetry" in server.text, "it is said")
