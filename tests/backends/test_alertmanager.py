"""Debian's Alertmanager, really: alerts are read back from it, kept while they fire, resolved."""

from __future__ import annotations

from contextlib import contextmanager
from time import monotonic

import pytest

from exporters.alerts import alertmanager
from exporters.alerts.base import Common
from sidecar.clock import SystemClock
from sidecar.config_alerts import AlertsConfig
from sidecar.monitor.outbox import Outbox
from sidecar.monitor.outbox_store import OutboxTables
from sidecar.monitor.store import Store
from tests.backends.processes import NO_ALERTMANAGER, Alertmanager, until
from tests.exporters.alerts.conftest import no_proxies  # noqa: F401 - a fixture of every test here
from tests.support.alert_receiver import AlertReceiver, alert, resolved

pytestmark = pytest.mark.skipif(bool(NO_ALERTMANAGER), reason=NO_ALERTMANAGER)

CLOCK = SystemClock()
MINE = {"alertname": "ModelRollback", "model": "digits", "new": "3/onnx", "team": "ml"}


def now_alert(**changes):
    return alert(started_ns=CLOCK.now_ns(), **changes)


def over(fired):
    return resolved(started_ns=fired.started_ns, ended_ns=CLOCK.now_ns())


@contextmanager
def telling(folder, url: str, *, resend_s: float):
    """An outbox with threads that tells the Alertmanager at ``url``; gives what puts an alert."""
    channel = alertmanager.make(
        Common("am", timeout_s=30), url=url, headers={}, resend_s=resend_s, labels={"team": "ml"}
    )
    store = Store.open(folder, CLOCK)
    tables = store.part(OutboxTables)
    config = AlertsConfig(first_retry_s=0.1, last_retry_s=0.5)
    outbox = Outbox(lambda: tables, [channel], config, CLOCK)

    def put(*alerts) -> None:
        with tables.writing() as connection:
            outbox.put(connection, alerts)
        outbox.wake()

    outbox.start()
    try:
        yield put
    finally:
        outbox.close(within_s=30)
        store.close()


def test_an_alert_is_read_back_kept_while_it_fires_and_seen_resolved(tmp_path):
    with (
        AlertReceiver() as human,
        Alertmanager(tmp_path, receiver=human.url) as manager,
        telling(tmp_path / "state", manager.url, resend_s=1) as put,
    ):
        fired = now_alert()
        put(fired)
        [seen] = until(lambda: manager.alerts(**MINE), "the alert")
        assert seen["labels"] == {**alert().labels, "severity": "critical", **MINE}
        assert seen["annotations"]["decision_id"] == "d-17"
        assert seen["annotations"]["log_e"] == "7.25"
        assert seen["annotations"]["summary"] == "digits 3 is worse than 2"
        assert seen["status"]["state"] == "active"
        assert seen["generatorURL"] == "https://grafana.example/d/1"
        # It would end 4 s after it was said last.
        first_end, began = seen["endsAt"], monotonic()
        until(
            lambda: monotonic() > began + 6 and manager.alerts(**MINE)[0]["endsAt"] > first_end,
            "it is said again, and goes on",
        )
        put(over(fired))
        until(lambda: not manager.alerts(**MINE), "it is over")
        until(lambda: len(human.got) >= 2, "whom Alertmanager tells has heard of both")
    told = [one.json for one in human.got]
    assert [one["status"] for one in told] == ["firing", "resolved"]
    assert told[1]["alerts"][0]["labels"] == told[0]["alerts"][0]["labels"]


def test_one_that_is_no_longer_said_ends_by_itself(tmp_path):
    with Alertmanager(tmp_path) as manager:
        with telling(tmp_path / "state", manager.url, resend_s=1) as put:
            put(now_alert())
            until(lambda: manager.alerts(**MINE), "the alert")
        until(lambda: not manager.alerts(**MINE), "the monitor is gone, and the alert with it")


def test_an_alertmanager_that_is_away_and_one_that_has_forgotten(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with Alertmanager(tmp_path / "first") as manager:
        port = manager.port
    with telling(tmp_path / "state", manager.url, resend_s=1) as put:
        fired = now_alert()
        put(fired)
        with Alertmanager(tmp_path / "first", port) as manager:
            until(lambda: manager.alerts(**MINE), "it is told when it is there")
        with Alertmanager(tmp_path / "second", port) as manager:  # with no memory
            until(lambda: manager.alerts(**MINE), "it is told again")
            put(over(fired))
            until(lambda: not manager.alerts(**MINE), "it is over")


def test_a_test_alert_arrives(tmp_path):
    with Alertmanager(tmp_path) as manager:
        channel = alertmanager.make(
            Common("am", timeout_s=30), url=manager.url, headers={}, resend_s=60, labels={}
        )
        outbox = Outbox(lambda: None, [channel], AlertsConfig(), CLOCK)
        [said] = outbox.test()
        assert (said.state, said.error) == ("sent", "")
        [seen] = until(lambda: manager.alerts(alertname="TestAlert"), "the test")
        assert seen["labels"] == {"alertname": "TestAlert", "model": "test", "severity": "info"}
        outbox.close()
