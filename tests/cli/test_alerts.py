"""``sidecar alerts test`` as a process: against a monitor's service, and from a configuration."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from sidecar.alert_channels import make_channels
from sidecar.clock import SystemClock
from sidecar.config_alerts import AlertsConfig
from sidecar.errors import ConfigError, MissingExtraError
from sidecar.monitor.calls_alerts import methods
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.outbox import Outbox
from sidecar.monitor.service import MonitorServer
from tests.cli.conftest import sidecar, write_config
from tests.exporters.alerts.conftest import no_proxies  # noqa: F401 - a fixture of every test here
from tests.monitor.views import FakeView
from tests.support.alert_receiver import AlertReceiver, Reply

SECRET = "sesame-open-sesame"
WITHIN_S = 60


def channels(good: AlertReceiver, bad: AlertReceiver) -> list[dict]:
    return [
        {"kind": "slack", "name": "team", "url": f"{good.url}/services/{SECRET}"},
        {"kind": "pagerduty", "routing_key": SECRET, "url": bad.url, "least": "critical"},
    ]


@pytest.fixture
def receivers() -> Iterator[tuple[AlertReceiver, AlertReceiver]]:
    refusal = Reply(403, body=f"unknown key {SECRET}".encode())
    with AlertReceiver() as good, AlertReceiver(lambda _: refusal) as bad:
        yield good, bad


@contextmanager
def serving(receivers, token: str | None = None) -> Iterator[str]:
    config = AlertsConfig(channels=channels(*receivers))
    outbox = Outbox(lambda: None, make_channels(config), config, SystemClock())
    server = MonitorServer(FakeView(), methods=methods(outbox), admin_token=token)
    try:
        yield server.start("127.0.0.1:0")
    finally:
        server.stop(0)
        outbox.close()


def test_each_channel_says_what_came_of_it(receivers):
    good, bad = receivers
    with serving(receivers) as address:
        found = sidecar("alerts", "test", address)
    assert found.returncode == 1
    first, second = (line.split(None, 2) for line in found.stdout.splitlines())
    assert first[:2] == ["team", "sent"]
    assert second[:2] == ["pagerduty", "failed"]
    assert second[2].strip() == f"127.0.0.1:{bad.port} answered 403 Forbidden: unknown key ***"
    assert "A test of the alerts" in good.got[0].json["text"]
    assert SECRET not in found.stdout + found.stderr


def test_one_channel_for_programs(receivers):
    with serving(receivers) as address:
        found = sidecar("alerts", "test", address, "--channel", "team", "--json")
        wrong = sidecar("alerts", "test", address, "--channel", "x")
    assert found.returncode == 0
    [said] = json.loads(found.stdout)
    assert (said["channel"], said["name"], said["state"]) == ("team", "TestAlert", "sent")
    assert receivers[1].got == []
    assert wrong.returncode != 0
    assert "no channel is called 'x'; there is team, pagerduty" in wrong.stderr


def test_it_needs_the_admin_token_where_there_is_one(receivers):
    with serving(receivers, token="hush") as address:
        without = sidecar("alerts", "test", address)
        with_it = sidecar("alerts", "test", address, "--token", "hush", "--channel", "team")
        with (
            MonitorClient(address, timeout_s=WITHIN_S) as client,
            pytest.raises(MonitorCallError, match="another one") as caught,
        ):
            client.test_alerts(token="wrong", timeout_s=WITHIN_S)
    assert caught.value.code == "PERMISSION_DENIED"
    assert without.returncode != 0
    assert "it needs `authorization: Bearer TOKEN`" in without.stderr
    assert with_it.returncode == 0
    assert len(receivers[0].got) == 1


def test_a_test_at_a_time():
    reached = threading.Event()

    def reply(_: int) -> Reply:
        reached.set()
        return Reply(hang=True)

    with AlertReceiver(reply) as hanging:
        config = AlertsConfig(channels=[{"kind": "slack", "url": hanging.url}])
        outbox = Outbox(lambda: None, make_channels(config), config, SystemClock())
        server = MonitorServer(FakeView(), methods=methods(outbox))
        address = server.start("127.0.0.1:0")
        with MonitorClient(address, timeout_s=WITHIN_S) as client:
            first = threading.Thread(target=outbox.test)
            first.start()
            assert reached.wait(WITHIN_S)
            with pytest.raises(MonitorCallError, match="another test") as caught:
                client.test_alerts(timeout_s=WITHIN_S)
        hanging.__exit__()
        first.join(WITHIN_S)
        server.stop(0)
    assert caught.value.code == "RESOURCE_EXHAUSTED"


def configured(folder, alerts: dict, **more):
    path = write_config(folder)
    tree = {**yaml.safe_load(path.read_text()), "alerts": alerts, **more}
    path.write_text(yaml.safe_dump(tree))
    return path


def test_without_a_monitor(receivers, tmp_path):
    path = configured(tmp_path, {"channels": [{"kind": "log"}, *channels(*receivers)]})
    found = sidecar("alerts", "test", "--config", str(path), "--channel", "team")
    assert (found.returncode, len(receivers[0].got)) == (0, 1)
    found = sidecar("alerts", "test", "--config", str(path), "--json")
    assert found.returncode == 1
    assert [one["state"] for one in json.loads(found.stdout)] == ["sent", "sent", "failed"]
    assert "A test of the alerts" in found.stderr, "the log is one of them"
    assert SECRET not in found.stdout + found.stderr


def test_check_config_shows_where_alerts_go(receivers, tmp_path):
    listed = [
        *channels(*receivers),
        {"kind": "email", "host": "mail", "sender": "a@b", "to": ["c@d", "e@f"], "port": 25,
         "security": "none", "user": "u", "password": SECRET},
        {"kind": "apprise", "url": f"tgram://123456789:{SECRET}/1"},
        {"kind": "cloudevents", "url": f"http://u:{SECRET}@hooks.example/x",
         "headers": {"authorization": SECRET}},
    ]  # fmt: skip
    path = configured(tmp_path, {"channels": listed}, monitor={"enabled": True})
    found = sidecar("check-config", str(path))
    lines = [line.strip("│├└─ ") for line in found.stdout.splitlines()]
    for line in (
        f"team: slack → http://127.0.0.1:{receivers[0].port}",
        f"pagerduty → http://127.0.0.1:{receivers[1].port}, from critical",
        "email → c@d, e@f by mail:25",
        "apprise → tgram://…",
        "cloudevents → http://hooks.example",
        "alerts.channels[2]: the password travels unencrypted: security is none",
        "alerts.channels[4]: secrets travel unencrypted: its url is http",
    ):
        assert line in lines
    assert SECRET not in found.stdout


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alerts", "path", "message"),
    [
        ({"channels": [{"kind": "pager"}]}, "alerts.channels[0]", "alertmanager"),
        ({"channels": [{"kind": "log"}, {"kind": "log"}]}, "alerts.channels[1]",
         "another channel is called log; give it a name of its own"),
        ({"channels": [{"kind": "log", "name": "a"}, {"kind": "slack", "url": "http://x", "name":
         "a"}]}, "alerts.channels[1]", "another channel is called a"),
        ({"channels": [{"kind": "slack", "url": "${NO_SUCH_HOOK}"}]}, "alerts.channels[0].url",
         "the environment variable NO_SUCH_HOOK is not set"),
        ({"channels": [{"kind": "email", "host": "h", "sender": "a@b", "to": ["c@d"],
         "password": "x"}]}, "alerts.channels[0].password", "is given, but no user"),
        ({"first_retry_s": 20, "last_retry_s": 10}, "alerts.last_retry_s", "shorter than"),
        ({"channels": [{"kind": "log", "name": f"l{n}"} for n in range(33)]}, "alerts.channels",
         "32"),
    ],
)  # fmt: skip
def test_mistakes_in_the_configuration(tmp_path, alerts, path, message):
    found = sidecar("check-config", str(configured(tmp_path, alerts)), "--json")
    assert found.returncode == 2
    problems = {one["path"]: one["message"] for one in json.loads(found.stdout)["problems"]}
    assert message in problems[path]


def test_mistakes_that_only_making_the_channel_finds():
    wrong = [
        {"kind": "slack", "url": f"nonsense{SECRET}"},
        {"kind": "email", "host": "h", "sender": "nobody", "to": ["c@d"]},
    ]
    with pytest.raises(ConfigError) as caught:
        make_channels(AlertsConfig(channels=wrong))
    paths = [problem.path for problem in caught.value.problems]
    assert paths == ["alerts.channels[0].url", "alerts.channels[1].sender"]
    assert SECRET not in str(caught.value)


def test_a_library_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "apprise", None)
    with pytest.raises(MissingExtraError, match=re.escape("model-sidecar[apprise]")):
        make_channels(AlertsConfig(channels=[{"kind": "apprise", "url": "json://x"}]))
