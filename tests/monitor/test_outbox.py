"""Alerts arrive: once where all goes well, at least once where it does not, and in their order."""

from __future__ import annotations

import random
import threading
from contextlib import suppress
from dataclasses import replace

import pytest

from exporters.alerts.alert import Severity, State
from sidecar.errors import NotFoundError
from sidecar.monitor.measured_alerts import MeasuredAlerts
from sidecar.monitor.outbox_sender import RETRY_AFTER_MAX_S, Patience
from sidecar.monitor.outbox_store import put
from sidecar.monitor.rows import StoreError
from tests.exporters.alerts.conftest import no_proxies  # noqa: F401 - a fixture of every test here
from tests.monitor.alerting import Desk, TwoClocks, manager, webhook
from tests.support.alert_receiver import NOON_NS, AlertReceiver, Reply, alert, resolved
from tests.support.ports import free_port

HOUR_S = 3600


@pytest.fixture
def receiver():
    with AlertReceiver() as running:
        yield running


def states(receiver: AlertReceiver) -> list[str]:
    return [one.json["data"]["state"] for one in receiver.got]


def ids(receiver: AlertReceiver) -> list[str]:
    return [one.json["id"] for one in receiver.got]


# --- where all goes well --------------------------------------------------------------------------


def test_an_alert_is_told_at_once_and_once(tmp_path, receiver):
    with Desk(
        tmp_path, webhook(receiver.url), links={"wiki": "https://w", "runbook": "no"}
    ) as desk:
        desk.put(alert())
        assert desk.state == "waiting"
        desk.step()
        [said] = desk.of()
        assert (said.channel, said.name, said.state) == ("hook", "ModelRollback", "sent")
        assert (said.attempts, said.error, said.sent_wall_ns) == (1, "", NOON_NS)
        desk.put(alert())
        desk.run(HOUR_S, every_s=60)
        assert states(receiver) == ["firing"]
        assert (desk.count("sent"), desk.count("suppressed")) == (1, 1)
        links = receiver.got[0].json["data"]["links"]
        assert links == {**alert().links, "wiki": "https://w"}, "the alert's own win"
        desk.resolve(resolved())
        desk.resolve(resolved())
        desk.run(HOUR_S, every_s=60)
        assert states(receiver) == ["firing", "resolved"]
        assert desk.outbox.waiting() == {"hook": 0}


def test_of_a_transaction_that_fails_nothing_is_told(tmp_path, receiver):
    with Desk(tmp_path, webhook(receiver.url)) as desk:
        with suppress(ZeroDivisionError), desk.tables.writing() as connection:
            desk.outbox.put(connection, [alert()])
            raise ZeroDivisionError
        desk.step(1)
        assert (desk.of(), receiver.got) == ([], [])


def test_a_channel_is_told_of_what_is_severe_enough(tmp_path, receiver):
    channels = webhook(receiver.url, "all"), webhook(receiver.url, "few", least=Severity.CRITICAL)
    with Desk(tmp_path, *channels) as desk:
        desk.put(alert(severity=Severity.WARNING), alert(id="d-18"))
        desk.step()
        assert [one.channel for one in desk.of()] == ["all"]
        assert [one.channel for one in desk.of("d-18")] == ["all", "few"]


def test_the_resolved_one_is_the_one_that_was_told(tmp_path, receiver):
    with Desk(tmp_path, webhook(receiver.url)) as desk:
        desk.put(alert())
        desk.step()
        other = resolved(
            labels={}, severity=Severity.INFO, name="x", started_ns=1, text="Now it is 2 again.",
            values={"requests": 5},
        )  # fmt: skip
        desk.put(other)  # a resolved one that is put is resolved
        desk.step()
        said = receiver.got[1].json["data"]
        assert said["text"] == "Now it is 2 again."
        assert (said["labels"], said["severity"]) == (alert().labels, "critical")
        assert said["values"] == {**alert().values, "requests": 5}
        assert said["ended"] == "2026-03-01T12:01:00.000000Z"


def test_alertmanager_is_told_again_and_for_a_while_that_it_is_over(tmp_path, receiver):
    with Desk(tmp_path, manager(receiver.url)) as desk:
        desk.put(alert())
        desk.run(600)
        assert 10 <= len(receiver.got) <= 11, "at once, and each minute"
        ends = [one.json[0]["endsAt"] for one in receiver.got]
        assert ends == sorted(set(ends))
        before = len(receiver.got)
        desk.resolve(resolved())
        desk.run(HOUR_S, every_s=5)
        over = receiver.got[before:]
        assert len(over) == 1 + 5, "at once, and for five minutes"
        assert {one.json[0]["endsAt"] for one in over} == {"2026-03-01T12:01:00.000000Z"}
        assert desk.outbox.counts()["am", "sent"] == 2


def test_what_was_done_is_told_although_it_is_over(tmp_path, receiver):
    """A rollback takes a second: less than the first retry of a channel that was away."""
    with Desk(tmp_path, webhook(receiver.url), still_stands=lambda _: False) as desk:
        receiver.reply = lambda number: Reply(500 if number < 2 else 200)
        desk.put(alert(lasting=True))
        desk.step()
        desk.resolve(resolved(text="It was rolled back."))
        desk.run(HOUR_S, every_s=10)
        taken = receiver.got[2:]
        assert [one.json["data"]["state"] for one in taken] == ["firing", "resolved"]
        assert {one.json["data"]["text"] for one in taken} == {"It was rolled back."}
        assert (desk.state, desk.count("sent")) == ("sent", 2)


def test_what_no_longer_stands_is_not_told(tmp_path, receiver):
    standing = {"d-17", "d-18"}
    with Desk(
        tmp_path, manager(receiver.url), still_stands=standing.__contains__
    ) as desk:  # fmt: skip
        desk.put(alert(), alert(id="d-18", labels={}))
        standing.remove("d-17")
        desk.step()
        assert (desk.state, len(receiver.got)) == ("suppressed", 1)
        standing.remove("d-18")
        desk.run(300, every_s=10)
        assert len(receiver.got) == 1, "nor again"
        desk.resolve(resolved(id="d-18", labels={}))
        desk.step()
        assert len(receiver.got) == 2, "but that it is over"
        desk.resolve(resolved())
        desk.step()
        assert (desk.state, len(receiver.got)) == ("suppressed", 2)


def test_where_nobody_knows_whether_it_stands_it_is_told(tmp_path, receiver):
    def unknown(_: str) -> bool:
        raise StoreError("locked")

    with Desk(tmp_path, webhook(receiver.url), still_stands=unknown) as desk:
        desk.put(alert())
        desk.step()
        assert states(receiver) == ["firing"]


# --- receivers that fail --------------------------------------------------------------------------


def test_a_receiver_that_is_down_for_an_hour(tmp_path):
    port = free_port()
    with Desk(tmp_path, webhook(f"http://127.0.0.1:{port}"), last_retry_s=300) as desk:
        desk.put(*(alert(id=f"d-{n}", started_ns=NOON_NS + n) for n in range(17, 27)))
        desk.run(HOUR_S)
        waiting = [desk.of(f"d-{n}")[0] for n in range(17, 27)]
        assert {one.state for one in waiting} == {"waiting"}
        assert "cannot be reached" in waiting[0].error
        tried = sum(one.attempts for one in waiting)
        assert HOUR_S / 300 <= tried <= 60, "not hammered"
        with AlertReceiver(port=port) as receiver:
            desk.run(301)
            assert len(receiver.got) == 10, "each once"
            assert desk.count("sent") == 10
            assert desk.outbox.waiting() == {"hook": 0}


def test_an_alert_that_came_and_went_while_nobody_listened_is_not_told(tmp_path):
    port = free_port()
    with Desk(tmp_path, webhook(f"http://127.0.0.1:{port}")) as desk:
        desk.put(alert())
        desk.run(100)
        desk.resolve(resolved())
        with AlertReceiver(port=port) as receiver:
            desk.run(900, every_s=10)
            assert (receiver.got, desk.state) == ([], "suppressed")
            assert desk.outbox.waiting() == {"hook": 0}


@pytest.mark.parametrize("reply", [Reply(500), Reply(drop=True)], ids=["500", "drop"])
def test_a_receiver_that_may_have_taken_it_hears_that_it_is_over(tmp_path, reply):
    with (
        AlertReceiver(lambda n: Reply() if n else reply) as receiver,
        Desk(tmp_path, webhook(receiver.url)) as desk,
    ):
        desk.put(alert())
        desk.step()
        assert desk.state == "waiting"
        desk.resolve(resolved())
        desk.run(10)
        assert states(receiver) == ["firing", "resolved"]


def test_what_is_sent_twice_has_the_same_id(tmp_path):
    with (
        AlertReceiver(lambda n: Reply(502) if n < 3 else Reply()) as receiver,
        Desk(tmp_path, webhook(receiver.url)) as desk,
    ):
        desk.put(alert())
        desk.run(60)
        assert states(receiver) == ["firing"] * 4
        assert len(set(ids(receiver))) == 1
        assert (desk.count("retried"), desk.count("sent")) == (3, 1)
        [said] = desk.of()
        assert (said.attempts, said.error) == (4, "")


def test_the_pause_that_a_receiver_asks_for_is_kept_within_bounds(tmp_path):
    asked = {0: "120", 1: "9999999"}
    with AlertReceiver(
        lambda n: Reply(429, {"retry-after": asked[n]}) if n in asked else Reply()
    ) as receiver, Desk(tmp_path, webhook(receiver.url)) as desk:  # fmt: skip
        desk.put(alert(), alert(id="d-18"))
        desk.run(119)
        assert len(receiver.got) == 1, "nor is the other alert tried meanwhile"
        desk.run(2)
        assert len(receiver.got) == 2
        desk.run(RETRY_AFTER_MAX_S + 5, every_s=5)
        assert len(receiver.got) == 4, "nobody silences alerts for days"
        assert desk.count("sent") == 2


def test_it_is_given_up_after_so_long_and_said(tmp_path, caplog):
    with (
        AlertReceiver(lambda _: Reply(503)) as receiver,
        Desk(tmp_path, webhook(receiver.url), give_up_after_s=100, last_retry_s=20) as desk,
    ):
        desk.put(alert())
        desk.run(200)
        [said] = desk.of()
        assert (said.state, desk.count("failed")) == ("failed", 1)
        assert "answered 503" in said.error
        told = len(receiver.got)
        assert "will not be: 127.0.0.1" in caplog.text
        desk.run(200)
        assert len(receiver.got) == told


def test_of_many_that_wait_each_is_given_up_in_time(tmp_path):
    dead = webhook(f"http://127.0.0.1:{free_port()}")
    with Desk(tmp_path, dead, give_up_after_s=600, last_retry_s=10) as desk:
        desk.put(*(alert(id=f"d-{n}") for n in range(30)))
        desk.run(500)
        assert desk.count("failed") == 0
        desk.put(alert(id="late"))
        desk.run(550)
        assert desk.count("failed") == 30, "though a pause lies between two attempts"
        assert desk.of("late")[0].state == "waiting"


def test_the_time_that_the_process_was_away_does_not_count(tmp_path):
    clock, dead = TwoClocks(), webhook(f"http://127.0.0.1:{free_port()}")
    with Desk(tmp_path, dead, clock=clock, give_up_after_s=600, last_retry_s=20) as desk:
        desk.put(alert())
        desk.run(300)
    clock.advance(48 * HOUR_S)
    with Desk(tmp_path, dead, clock=clock, give_up_after_s=600, last_retry_s=20) as desk:
        desk.run(200)
        assert desk.state == "waiting"
        desk.run(200)
        assert desk.state == "failed"


def test_what_is_refused_for_good_is_not_tried_again_and_holds_up_nothing(tmp_path):
    with (
        AlertReceiver(lambda n: Reply(400, body=b"no") if n == 0 else Reply()) as receiver,
        Desk(tmp_path, webhook(receiver.url)) as desk,
    ):
        desk.put(alert(), alert(id="d-18"))
        desk.step()
        assert (desk.state, desk.of("d-18")[0].state) == ("failed", "sent")
        assert len(receiver.got) == 2


def test_a_receiver_that_hangs_holds_up_its_own_channel_only(tmp_path, receiver):
    with (
        AlertReceiver(lambda _: Reply(hang=True)) as hanging,
        Desk(tmp_path, webhook(hanging.url, "stuck"), webhook(receiver.url)) as desk,
    ):
        desk.put(alert())
        desk.outbox.start()
        hanging.wait(1)
        receiver.wait(1)
        desk.put(alert(id="d-18"))
        desk.outbox.wake()
        receiver.wait(2)
        [tried] = desk.outbox.test("hook")
        assert tried.state == "sent"
        threads = {one.name for one in threading.enumerate()}
        assert {"alerts-stuck", "alerts-hook"} <= threads
        assert len(hanging.got) == 1
        desk.outbox.close(within_s=0.1)  # does not wait for it


def test_how_long_it_waits():
    rng, patience = random.Random(1), Patience(1, 300, 86400)
    for failures in range(200):
        limit = min(300, 2.0**failures)
        pauses = [patience.pause_s(failures, rng) for _ in range(50)]
        assert 1 <= min(pauses) <= max(pauses) <= limit
        if failures > 2:
            assert max(pauses) - min(pauses) > limit / 2, "at random over the whole of it"


# --- clocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump_s", [-30 * 24 * HOUR_S, -HOUR_S, -30, 30, 30 * 24 * HOUR_S])
def test_a_clock_that_jumps_does_not_stop_delivery(tmp_path, jump_s):
    port = free_port()
    with Desk(tmp_path, webhook(f"http://127.0.0.1:{port}"), last_retry_s=60) as desk:
        desk.put(alert())
        desk.run(30)
        desk.clock.jump(jump_s)
        desk.run(5)
        assert desk.state == "waiting", "a jump is no reason to give up"
        with AlertReceiver(port=port) as receiver:
            desk.run(65)
            assert states(receiver) == ["firing"]


@pytest.mark.parametrize("jump_s", [-24 * HOUR_S, 24 * HOUR_S])
def test_a_clock_that_jumps_does_not_stop_what_is_said_again(tmp_path, receiver, jump_s):
    with Desk(tmp_path, manager(receiver.url)) as desk:
        desk.put(alert())
        desk.run(61)
        desk.clock.jump(jump_s)
        before = len(receiver.got)
        desk.run(121)
        assert len(receiver.got) - before >= 2
        desk.resolve(resolved())
        desk.step()
        desk.clock.jump(jump_s)
        before = len(receiver.got)
        desk.run(600)
        assert 4 <= len(receiver.got) - before <= 6


def test_a_clock_that_was_set_back_while_the_process_was_away(tmp_path):
    port = free_port()
    clock = TwoClocks()
    with Desk(tmp_path, webhook(f"http://127.0.0.1:{port}"), clock=clock) as desk:
        desk.put(alert())
        desk.run(300)
    clock.jump(-10 * HOUR_S)
    with (
        AlertReceiver(port=port) as receiver,
        Desk(tmp_path, webhook(receiver.url), clock=clock) as desk,
    ):
        desk.step()
        assert states(receiver) == ["firing"]


# --- bounds ---------------------------------------------------------------------------------------


def test_only_so_many_wait_for_a_channel(tmp_path, receiver, caplog):
    dead = webhook(f"http://127.0.0.1:{free_port()}")
    with Desk(tmp_path, dead, webhook(receiver.url, "well"), max_waiting=3) as desk:
        for n in range(5):
            desk.put(alert(id=f"d-{n}"))
            desk.step()
        assert desk.outbox.waiting() == {"hook": 3, "well": 0}
        assert len(receiver.got) == 5, "one that is dead takes no room from the others"
        assert (desk.count("refused"), desk.count("refused", "well")) == (2, 0)
        assert "1 alerts are not told to hook, for which 3 wait already" in caplog.text


def test_what_is_done_is_kept_up_to_a_number(tmp_path, receiver):
    with Desk(tmp_path, webhook(receiver.url)) as desk:
        for n in range(6):
            desk.put(alert(id=f"d-{n}"))
            desk.step(1)
        desk.put(alert(id="new"))
        desk.tables.prune(kept=4)
        left = [n for n in range(6) if desk.of(f"d-{n}")]
        assert left == [2, 3, 4, 5]
        assert desk.of("new")[0].state == "waiting"


def test_what_waits_for_a_channel_that_is_no_more_is_given_up(tmp_path, receiver, caplog):
    with Desk(tmp_path, webhook(f"http://127.0.0.1:{free_port()}", "old")) as desk:
        desk.put(alert())
    with Desk(tmp_path, webhook(receiver.url)) as desk:
        desk.put(alert(id="d-18"))
        desk.outbox.start()
        receiver.wait(1)
        assert (desk.state, desk.of()[0].error) == ("failed", "there is no such channel any more")
        desk.outbox.close(within_s=30)
    assert "alerts for old are given up" in caplog.text


def test_a_row_that_cannot_be_read_holds_up_nothing(tmp_path, receiver):
    with Desk(tmp_path, webhook(receiver.url)) as desk:
        desk.put(alert(), alert(id="d-18"))
        with desk.tables.writing() as connection:
            connection.exec_driver_sql("UPDATE outbox SET plain = '{\"x' WHERE alert = 'd-17'")
        desk.step()
        assert desk.of("d-18")[0].state == "sent"


# --- trying it out, and numbers -------------------------------------------------------------------


def test_a_test_goes_through_every_channel_and_is_not_kept(tmp_path, receiver):
    with (
        AlertReceiver(lambda _: Reply(403, body=b"who are you?")) as refusing,
        Desk(tmp_path, webhook(receiver.url), webhook(refusing.url, "bad")) as desk,
    ):
        good, bad = desk.outbox.test()
        assert (good.channel, good.name, good.state) == ("hook", "TestAlert", "sent")
        assert (bad.channel, bad.state) == ("bad", "failed")
        assert "403 Forbidden: who are you?" in bad.error
        with pytest.raises(NotFoundError, match="no channel is called 'x'; there is hook, bad"):
            desk.outbox.test("x")
        assert desk.outbox.waiting() == {"hook": 0, "bad": 0}
        [said] = receiver.got
        assert said.json["data"]["severity"] == "info"


def test_points(tmp_path, receiver):
    with Desk(tmp_path, webhook(receiver.url)) as desk:
        measured = MeasuredAlerts(desk.outbox.counts, desk.outbox.waiting, NOON_NS)
        desk.put(alert(), alert(id="d-18"), alert(id="d-18"))
        desk.step()
        desk.put(alert(id="d-19"))
        points = {
            (one.instrument.name, one.attributes.get("outcome")): one.value
            for one in measured.points()
        }
    assert points == {
        ("model_sidecar.alerts", "sent"): 2,
        ("model_sidecar.alerts", "retried"): 0,
        ("model_sidecar.alerts", "failed"): 0,
        ("model_sidecar.alerts", "suppressed"): 1,
        ("model_sidecar.alerts", "refused"): 0,
        ("model_sidecar.alerts.waiting", None): 1,
    }


def test_an_alert_that_fires_again_after_it_was_over_is_told_again(tmp_path, receiver):
    channel = webhook(receiver.url)
    with Desk(tmp_path, channel) as desk:
        for one in (alert(), resolved(), replace(alert(), state=State.FIRING)):
            with desk.tables.writing() as connection:
                put(connection, [one], [channel], desk.clock.now_ns())
            desk.step(1)
        assert states(receiver) == ["firing", "resolved", "firing"]
