"""The chart's pod, run as kubelet runs it: it starts, is probed, and ends without a failed request.

Native and ordinary form; with a model container that ends at SIGTERM, and with the runtime in the
sidecar. Clients go through a balancer that never tries a request again.
"""

from __future__ import annotations

import itertools

import httpx
import pytest

from tests.e2e.support import Client, until
from tests.support.balancer import Backend, Balancer, Load
from tests.support.kubelet import grpc_probe
from tests.support.pods import BODY, pod, request, upstream

pytestmark = pytest.mark.timeout(600)
FORMS = ["native", "ordinary"]
KINDS = ["remote", "onnx"]
#: Shorter than the drain's delay: who reads readiness must have seen it fall by its end.
ASKS_EVERY_S = 0.5


def answers(address: str) -> bool:
    with Client(address) as client:
        return len(client.call("ModelInfer", request(), timeout=20).outputs) == 1


def started(running, within_s=180):
    until(
        lambda: running.passes,
        "the pod is ready: " + str([running.log(name)[-2000:] for name in running.containers]),
        within_s=within_s,
    )
    return running


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_is_replaced_under_load_and_no_request_fails(tmp_path, kind, form):
    with (
        pod(tmp_path / "a", kind, form) as old,
        pod(tmp_path / "b", kind, form) as new,
        Balancer(every_s=ASKS_EVERY_S) as balancer,
    ):
        started(old.start())
        names = [spec["name"] for spec in old.spec.get("initContainers", [])]
        assert names == (["gateway", "monitor"] if form == "native" else [])
        balancer.add(Backend.of(old))
        until(balancer.ready, "it is found ready")
        with Load(balancer.addresses, request(), BODY) as load:
            until(lambda: load.answered >= 200, "it answers")
            started(new.start())
            balancer.add(Backend.of(new))
            until(lambda: len(balancer.ready()) == 2, "both are found ready")
            before = load.answered
            took_s = old.delete()
            balancer.remove(Backend.of(old))
            assert took_s < old.spec["terminationGracePeriodSeconds"]
            assert load.answered > before
            until(lambda: load.answered > before + 400, "the other one answers")
    assert load.failures == [], old.log("gateway")
    assert load.grpc.answered > 100
    assert load.http.answered > 50
    assert [event for event in old.events if event.reason in ("Killed", "Unhealthy")] == []
    assert old.told("FailedPreStopHook") == []
    hooked = {event.container for event in old.told("PreStopHook")}
    assert hooked == {"gateway", "monitor"} | ({"model"} if kind == "remote" else set())
    ended = {event.container: event for event in old.told("Exited")}
    assert ended["gateway"].text == "0"
    assert "drained in" in old.log("gateway")
    if kind == "remote":  # it answered until nobody waited any more
        assert old.told("SIGTERM")[0].at_s >= old.told("PreStopHook")[0].at_s
        assert ended["model"].at_s >= min(event.at_s for event in old.told("PreStopHook"))
    if form == "native":
        order = sorted(("gateway", "monitor"), key=lambda name: ended[name].at_s)
        assert order == ["monitor", "gateway"]


@pytest.mark.parametrize("form", FORMS)
def test_a_model_that_is_slow_to_start_holds_up_no_start_up_probe(tmp_path, form):
    """It is let go by the test: until then the sidecar has started, lives, and is not ready."""
    go = tmp_path / "go"
    slow = ["sh", "-c", f"until [ -e {go} ]; do sleep 0.05; done; exec {' '.join(upstream())}"]
    with pod(tmp_path / "a", "remote", form, images={"model": slow}) as running:
        running.start()
        gateway = running.containers["gateway"]
        until(gateway.started.is_set, "the start-up probe has passed")
        until(lambda: running.containers["model"].alive, "the model's container runs")
        health = running.address("health")
        assert grpc_probe(health, "live", 5)
        assert not grpc_probe(health, "", 5)
        assert not running.passes
        go.touch()
        started(running)
        assert grpc_probe(health, "", 5)
        assert answers(running.address("grpc"))
        assert gateway.restarts == 0
        assert running.told("Unhealthy") == []


def test_a_monitor_that_is_killed_fails_no_request_and_counts_go_on(tmp_path):
    with pod(tmp_path / "a", "onnx", "native") as running:
        started(running.start())
        monitor = running.containers["monitor"]
        until(lambda: grpc_probe(running.address("monitor-health"), "", 5), "it watches")
        direct = {name: running.address(name) for name in ("grpc", "http")}
        with Load(direct, request(), BODY, channels=2, sessions=0) as load:
            until(lambda: load.answered >= 100, "it answers")
            monitor.kill()
            before = load.answered
            until(lambda: monitor.restarts == 1, "it is started again")
            until(lambda: load.answered >= before + 100, "it answers on")
        until(lambda: grpc_probe(running.address("monitor-health"), "", 5), "it watches again")
        assert load.failures == []
        assert running.containers["gateway"].restarts == 0
        until(lambda: requests_told(running) == load.answered, "every request is told")


def test_every_request_is_told_by_the_monitor_over_restarts_of_the_gateway(tmp_path):
    """The two containers share pages: what Prometheus reads is what was sent."""
    gateway = {"workers": 2}
    with pod(tmp_path / "a", "onnx", "ordinary", config={"gateway": gateway}) as running:
        started(running.start())
        sent = itertools.count(1)
        assert send(running, sent, 40) == 40
        until(lambda: requests_told(running) == 40, "they are told")
        running.containers["gateway"].kill()
        until(lambda: running.containers["gateway"].restarts == 1, "it is started again")
        started(running)
        assert send(running, sent, 25) == 65
        until(lambda: requests_told(running) == 65, "they are told, with those of before")
        pages = sorted((running.volume("sidecar-run") / "pages").iterdir())
        assert [path.name for path in pages] == ["worker-0.page", "worker-1.page"]
        # What is no page is left out, and ends nobody.
        pages[0].unlink()
        pages[0].write_bytes(b"x" * 100)
        until(lambda: 0 <= requests_told(running) < 65, "one worker's are told")
        assert "of another version" in running.log("monitor")
        assert running.containers["monitor"].restarts == 0


def send(running, numbers, count) -> int:
    last = 0
    for _ in range(count):  # a connection each, so that both workers get some
        assert answers(running.address("grpc"))
        last = next(numbers)
    return last


def requests_told(running) -> int:
    """What ``model_sidecar.requests`` comes to, as Prometheus reads it from the monitor."""
    try:
        text = httpx.get(f"http://{running.address('metrics')}/metrics", timeout=20).text
    except httpx.HTTPError:
        return -1
    lines = [line for line in text.splitlines() if line.startswith("model_sidecar_requests_total{")]
    return sum(int(float(line.rpartition(" ")[2])) for line in lines)
