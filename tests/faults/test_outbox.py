"""Alerts while the process dies in each gap, and while the store is locked, full or damaged."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sidecar.monitor import store_tables
from sidecar.monitor.rows import StoreError
from tests.exporters.alerts.conftest import no_proxies  # noqa: F401 - a fixture of every test here
from tests.monitor.alerting import Desk, manager, webhook
from tests.support.alert_receiver import AlertReceiver, Reply, alert, resolved

ROOT = Path(__file__).parents[2]
WITHIN_S = 120

#: A monitor's outbox, alone in a process: says when the alert is committed, then tells it.
_TELL = """
import sys
from pathlib import Path
from tests.monitor.alerting import Desk, manager, webhook
from tests.support.alert_receiver import alert

folder, url, kind = sys.argv[1:]
desk = Desk(Path(folder), {"webhook": webhook, "manager": manager}[kind](url))
desk.put(alert())
print("committed", flush=True)
sys.stdin.readline()
desk.outbox.start()
sys.stdin.readline()
"""


def telling(folder: Path, url: str, kind: str = "webhook") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _TELL, str(folder), url, kind],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "committed\n"
    return process


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def ids(receiver: AlertReceiver) -> list[str]:
    return [one.json["id"] for one in receiver.got]


# --- kill -9 --------------------------------------------------------------------------------------


def test_killed_between_the_decision_and_sending(tmp_path):
    with AlertReceiver() as receiver:
        with telling(tmp_path, receiver.url) as process:
            process.kill()
            process.wait(WITHIN_S)
        assert receiver.got == []
        with Desk(tmp_path, webhook(receiver.url)) as desk:
            desk.step()
            assert (desk.state, len(receiver.got)) == ("sent", 1)


@pytest.fixture
def killed(tmp_path):
    """A receiver whose first sender is killed once it has the request, and before it answers."""
    pids: list[int] = []

    def reply(number: int) -> Reply:
        if number > 0:
            return Reply()
        os.kill(pids[0], signal.SIGKILL)
        return Reply(drop=True)

    with AlertReceiver(reply) as receiver:
        with telling(tmp_path, receiver.url) as process:
            pids.append(process.pid)
            go_on(process)
            assert process.wait(WITHIN_S) == -signal.SIGKILL
        assert len(receiver.got) == 1
        yield receiver


def test_killed_between_sending_and_writing_it(killed, tmp_path):
    with Desk(tmp_path, webhook(killed.url)) as desk:
        desk.run(5)
        assert len(killed.got) == 2, "sent twice"
        assert len(set(ids(killed))) == 1, "with the same id"
        assert (desk.state, desk.count("sent")) == ("sent", 1)


def test_killed_then_over_before_it_is_sent_again(killed, tmp_path):
    with Desk(tmp_path, webhook(killed.url)) as desk:
        desk.resolve(resolved())
        desk.run(5)
    assert [one.json["data"]["state"] for one in killed.got] == ["firing", "resolved"]


def test_killed_while_it_is_said_again(tmp_path):
    with AlertReceiver() as receiver:
        with telling(tmp_path, receiver.url, "manager") as process:
            go_on(process)
            receiver.wait(1)
            process.kill()
            process.wait(WITHIN_S)
        with Desk(tmp_path, manager(receiver.url)) as desk:
            desk.run(61)
            assert len(receiver.got) >= 2, "the next life says it again before it is forgotten"


def test_a_monitor_that_ends_while_a_receiver_hangs(tmp_path):
    with AlertReceiver(lambda n: Reply(hang=n == 0)) as receiver:
        with Desk(tmp_path, webhook(receiver.url)) as desk:
            desk.put(alert())
            desk.outbox.start()
            receiver.wait(1)
            desk.outbox.close(within_s=0.05)
        with Desk(tmp_path, webhook(receiver.url)) as desk:
            desk.step()
            assert len(set(ids(receiver))) == 1
            assert desk.state == "sent"


# --- the store ------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(store_tables, "BUSY_TIMEOUT_MS", 1)


def test_a_store_that_is_locked_does_not_hold_up_what_is_in_it(tmp_path, impatient):
    with AlertReceiver() as receiver, Desk(tmp_path, webhook(receiver.url)) as desk:
        desk.put(alert())
        with closing(sqlite3.connect(desk.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            desk.run(30)
            assert len(receiver.got) == 1, "told, and not over and over"
            other.execute("ROLLBACK")
        desk.step(1)
        assert (desk.state, len(receiver.got)) == ("sent", 1)


def test_a_receiver_that_fails_while_the_store_is_locked(tmp_path, impatient):
    with (
        AlertReceiver(lambda n: Reply(503 if n < 3 else 200)) as receiver,
        Desk(tmp_path, webhook(receiver.url), last_retry_s=10) as desk,
    ):
        desk.put(alert())
        with closing(sqlite3.connect(desk.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            desk.run(60)
            assert len(receiver.got) == 4, "with its pauses, as ever"
            other.execute("ROLLBACK")
        desk.step(1)
        [said] = desk.of()
        assert (said.state, said.attempts) == ("sent", 4)


def test_resolved_while_what_was_sent_cannot_be_written(tmp_path, impatient):
    with AlertReceiver() as receiver, Desk(tmp_path, webhook(receiver.url)) as desk:
        desk.put(alert())
        with closing(sqlite3.connect(desk.store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            desk.step()
            other.execute("ROLLBACK")
        desk.resolve(resolved())  # before the sender comes round to writing
        desk.run(3)
        assert [one.json["data"]["state"] for one in receiver.got] == ["firing", "resolved"]


_FULL = """
import json, resource, sys
from pathlib import Path
from tests.monitor.alerting import Desk, webhook
from tests.support.alert_receiver import AlertReceiver, alert

with AlertReceiver() as receiver, Desk(Path(sys.argv[1]), webhook(receiver.url)) as desk:
    desk.put(alert())
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, resource.RLIM_INFINITY))
    desk.run(30)
    said = {"full": desk.store.status().message, "told": len(receiver.got), "state": desk.state}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    desk.run(5)
    said |= {"told_then": len(receiver.got), "state_then": desk.state}
print(json.dumps(said))
"""


def test_a_full_disk_does_not_hold_up_what_is_on_it(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=WITHIN_S,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    said = json.loads(found.stdout)
    assert "cannot be written" in said.pop("full")
    assert said == {"told": 1, "state": "waiting", "told_then": 1, "state_then": "sent"}


def test_a_damaged_store_is_begun_afresh_and_alerts_go_on(tmp_path):
    with AlertReceiver() as receiver, Desk(tmp_path, webhook(receiver.url)) as desk:
        desk.put(alert())
        for path in tmp_path.iterdir():
            if path.name.startswith(desk.store.path.name):
                path.write_bytes(b"damage" * 2000)
        desk.run(3)  # raises nothing
        for _ in range(3):
            with suppress(StoreError):
                desk.put(alert(id="d-18"))
        desk.run(3)
        assert desk.of("d-18")[0].state == "sent"
