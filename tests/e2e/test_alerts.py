"""Alerts of a real ``sidecar serve``: tried out, told after a restart, and no reason to hang."""

from __future__ import annotations

import re

import httpx
import pytest
import yaml

from sidecar.monitor.client import MonitorClient
from tests.e2e.support import LOCAL, running, until, write
from tests.e2e.test_monitor import monitor_of
from tests.exporters.alerts.conftest import no_proxies  # noqa: F401 - a fixture of every test here
from tests.monitor.alerting import Desk, webhook
from tests.support import models
from tests.support.alert_receiver import AlertReceiver, Reply, alert
from tests.support.ports import free_port

WITHIN_S = 120


@pytest.fixture
def config(tmp_path):
    """Writes one that tells ``url``; gives its path."""

    def written(url: str, **gateway):
        path = models.onnx_mlp(tmp_path)
        variant = {
            "version": "1", "name": "onnx", "roles": ["serving"],
            "runtime": {"kind": "onnxruntime", "path": str(path)},
        }  # fmt: skip
        made = write(tmp_path, [{"name": "mlp", "variants": [variant]}], **gateway)
        tree = yaml.safe_load(made.read_text(encoding="utf-8"))
        tree["monitor"] = {"enabled": True, "grpc": LOCAL}
        tree["telemetry"] = {"exporter": "prometheus", "prometheus": LOCAL}
        tree["alerts"] = {
            "channels": [{"kind": "log"}, {"kind": "cloudevents", "name": "hook", "url": url}]
        }
        made.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return made

    return written


def test_a_test_alert_and_what_an_earlier_life_had_not_told(config, tmp_path):
    # What a monitor that died had decided, and nobody was there to hear.
    with Desk(tmp_path / "sidecar-state", webhook(f"http://127.0.0.1:{free_port()}")) as desk:
        desk.put(alert(lasting=True))  # no decision stands behind this one
        desk.run(5)
        assert desk.state == "waiting"
    with (
        AlertReceiver() as receiver,
        running(config(receiver.url, admin={"token": "hush"})) as server,
    ):
        [got] = receiver.wait(1)
        assert got.json["data"]["id"] == "d-17"
        with MonitorClient(monitor_of(server), timeout_s=WITHIN_S) as client:
            tried = client.test_alerts(token="hush", timeout_s=WITHIN_S)
        assert [(one.channel, one.state) for one in tried] == [
            ("log", "sent"),
            ("hook", "sent"),
        ]
        until(lambda: "A test of the alerts of model-sidecar" in server.text, "the log has it")
        page = until(
            lambda: re.search(r"metrics: (http://\S+)", server.text), "where metrics are"
        ).group(1)
        sent = 'model_sidecar_alerts_total{channel="hook",outcome="sent"} 1\n'
        metrics = httpx.get(page, timeout=WITHIN_S, trust_env=False).text
        assert sent in metrics, "the test does not count"
        server.signal()
        assert server.wait() == 0
    assert len(receiver.got) == 2


def test_a_receiver_that_hangs_does_not_keep_it_from_ending(config, tmp_path):
    with AlertReceiver(lambda _: Reply(hang=True)) as receiver:
        with Desk(tmp_path / "sidecar-state", webhook(receiver.url)) as desk:
            desk.put(alert(lasting=True))
        with running(config(receiver.url)) as server:
            receiver.wait(1)
            monitor_of(server)
            server.signal()
            assert server.wait() == 0
        with Desk(tmp_path / "sidecar-state", webhook(receiver.url)) as desk:
            assert desk.state == "waiting", "the next life tells it"
