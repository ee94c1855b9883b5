"""What each channel sends, to the letter of what its receiver has published."""

from __future__ import annotations

import json
import math
import re
import uuid
from dataclasses import replace
from datetime import datetime

import pytest

from exporters.alerts import alertmanager, cloudevents, pagerduty, slack
from exporters.alerts.alert import Alert, ChannelError, DeliveryError, Severity, State
from exporters.alerts.base import Common, event_id, rfc3339
from exporters.alerts.build import BUILTIN, build
from tests.support.alert_receiver import NOON_NS, AlertReceiver, Reply, alert, resolved

COMMON = Common("ops", timeout_s=10)
LATER_NS = NOON_NS + 5 * 10**9


@pytest.fixture
def receiver():
    with AlertReceiver() as running:
        yield running


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def test_an_alert_survives_being_stored():
    for one in (alert(), resolved(), alert(values={"log_e": 1e300, "text": "ü"})):
        again = Alert.from_plain(json.loads(json.dumps(one.to_plain())))
        assert again == one
        assert isinstance(again.state, State)
    with pytest.raises(ValueError, match="burning"):
        Alert.from_plain({**alert().to_plain(), "state": "burning"})


def test_times_are_to_the_microsecond():
    assert rfc3339(NOON_NS + 123_456_789) == "2026-03-01T12:00:00.123456Z"


# --- Alertmanager ---------------------------------------------------------------------------------


def manager(url: str, **changes) -> alertmanager.AlertmanagerChannel:
    settings = {"url": url, "headers": {}, "resend_s": 60.0, "labels": {"team": "ml"}, **changes}
    return alertmanager.make(COMMON, **settings)


def test_alertmanager_firing_and_resolved(receiver):
    channel = manager(receiver.url + "/am/", headers={"x-scope-orgid": "7"})
    channel.send(alert(), LATER_NS)
    channel.send(resolved(), LATER_NS)
    channel.close()
    firing, over = receiver.got
    assert (firing.method, firing.path) == ("POST", "/am/api/v2/alerts")
    assert firing.headers["content-type"] == "application/json"
    assert firing.headers["x-scope-orgid"] == "7"
    [said] = firing.json
    assert said["labels"] == {
        "alertname": "ModelRollback", "severity": "critical", "model": "digits", "new": "3/onnx",
        "previous": "2/onnx", "metric": "error", "team": "ml",
    }  # fmt: skip
    assert said["annotations"]["summary"] == "digits 3 is worse than 2"
    assert said["annotations"]["decision_id"] == "d-17"
    assert (said["annotations"]["log_e"], said["annotations"]["pairs"]) == ("7.25", "812")
    assert said["annotations"]["runbook_url"] == "https://wiki.example/r"
    assert said["generatorURL"] == "https://grafana.example/d/1"
    assert all(isinstance(text, str) for text in said["annotations"].values())
    assert said["startsAt"] == "2026-03-01T12:00:00.000000Z"
    assert at(said["endsAt"]) == LATER_NS / 1e9 + 4 * 60
    [said_then] = over.json
    assert said_then["labels"] == said["labels"], "the identity is the same"
    assert at(said_then["endsAt"]) == NOON_NS / 1e9 + 60
    assert (channel.resend_s, channel.keeps_resolved_s) == (60, 300)


def test_alertmanager_labels_are_valid_and_never_empty(receiver):
    odd = alert(labels={"model.name": "a", "1st": "b", "output": ""})
    manager(receiver.url, labels={"model.name": "not this one"}).send(odd, LATER_NS)
    labels = receiver.got[0].json[0]["labels"]
    assert labels == {
        "alertname": "ModelRollback", "severity": "critical", "model_name": "a", "_1st": "b",
    }  # fmt: skip


def test_alertmanager_an_older_alert_does_not_end_a_newer_one(receiver):
    channel = manager(receiver.url)
    newer = alert(id="d-18", started_ns=NOON_NS + 10)
    channel.send(alert(), LATER_NS)
    channel.send(newer, LATER_NS)
    channel.send(resolved(), LATER_NS)
    assert len(receiver.got) == 2, "both have the same labels, and one of them goes on"
    channel.send(replace(newer, state=State.RESOLVED, ended_ns=LATER_NS), LATER_NS)
    assert len(receiver.got) == 3


def test_alertmanager_an_alert_that_ended_before_it_began_is_still_one(receiver):
    manager(receiver.url).send(resolved(ended_ns=NOON_NS - 10**9), LATER_NS)
    [said] = receiver.got[0].json
    assert said["endsAt"] == said["startsAt"]


# --- PagerDuty ------------------------------------------------------------------------------------


@pytest.fixture
def pager():
    with AlertReceiver(lambda _: Reply(202, body=b'{"status":"success"}')) as running:
        yield running


def test_pagerduty_triggers_and_resolves(pager):
    channel = pagerduty.make(COMMON, routing_key="R" * 32, url=pager.url + "/v2/enqueue")
    channel.send(alert(), LATER_NS)
    channel.send(resolved(), LATER_NS)
    first, last = (one.json for one in pager.got)
    assert first == {
        "routing_key": "R" * 32, "event_action": "trigger", "dedup_key": "d-17",
        "client": "model-sidecar",
        "links": [
            {"href": "https://grafana.example/d/1", "text": "dashboard"},
            {"href": "https://wiki.example/r", "text": "runbook"},
        ],
        "payload": {
            "summary": "digits 3 is worse than 2", "source": "digits", "severity": "critical",
            "timestamp": "2026-03-01T12:00:00.000000Z", "component": "3/onnx", "group": "digits",
            "class": "ModelRollback",
            "custom_details": {
                "text": alert().text, "decision_id": "d-17", **alert().labels, **alert().values,
            },
        },
    }  # fmt: skip
    assert (last["event_action"], last["dedup_key"]) == ("resolve", "d-17")
    assert channel.ends_tests


@pytest.mark.parametrize("severity", Severity)
def test_pagerduty_severities_are_its_own(pager, severity):
    channel = pagerduty.make(COMMON, routing_key="R" * 32, url=pager.url)
    channel.send(alert(severity=severity), LATER_NS)
    severities = {"critical", "error", "warning", "info"}
    assert pager.got[0].json["payload"]["severity"] in severities


def test_pagerduty_limits(pager):
    channel = pagerduty.make(COMMON, routing_key="R" * 32, url=pager.url)
    long = alert(summary="wörse\n" * 400, id="x" * 300, text="t" * 10**6, labels={})
    channel.send(long, LATER_NS)
    body = pager.got[0].json
    assert len(body["payload"]["summary"]) == 1024
    assert body["payload"]["summary"].endswith("…")
    assert "\n" not in body["payload"]["summary"]
    assert len(body["dedup_key"]) == 255
    assert body["payload"]["source"], "required"
    assert len(pager.got[0].body) < 512 * 1024
    channel.send(replace(long, id="x" * 299 + "y"), LATER_NS)
    assert pager.got[1].json["dedup_key"] != body["dedup_key"]


def test_pagerduty_another_success_is_not_its_own(receiver):
    channel = pagerduty.make(COMMON, routing_key="R" * 32, url=receiver.url)
    with pytest.raises(DeliveryError, match="answered 200 OK"):
        channel.send(alert(), LATER_NS)


# --- Slack and its like ---------------------------------------------------------------------------


def test_slack_message(receiver):
    slack.make(COMMON, url=receiver.url + "/services/T0/B0/secretsecret").send(alert(), LATER_NS)
    [got] = receiver.got
    assert got.path == "/services/T0/B0/secretsecret"
    assert set(got.json) == {"text"}
    text = got.json["text"]
    assert text.splitlines()[0] == (
        ":rotating_light: *[FIRING] critical: digits 3 is worse than 2*"
    )
    assert "• id: d-17" in text
    assert "• log_e: 7.25" in text
    assert "<https://grafana.example/d/1|dashboard> · <https://wiki.example/r|runbook>" in text
    over = slack.message(resolved())
    assert over.startswith(":white_check_mark: *[RESOLVED] digits 3")
    assert "• id: d-17" in over


def test_slack_nobody_is_woken_by_a_models_name():
    text = slack.message(
        alert(labels={"model": "<!channel> @here & <https://x|y>"}, summary="@all <!here>")
    )
    assert "<!" not in text
    assert not re.search(r"@(here|all|channel)", text)
    assert "&lt;!channel&gt; @\u200bhere &amp; &lt;https://x|y&gt;" in text


def test_slack_long_stories_fit_and_keep_the_id():
    long = alert(text="<" * 5000, values={f"v{n}": "&" * 400 for n in range(100)})
    text = slack.message(long)
    assert "• id: d-17" in text
    assert not re.search(r"&(?!amp;|lt;|gt;)", text), "no escape is cut in two"
    assert len(text) <= 3900


# --- CloudEvents ----------------------------------------------------------------------------------


def test_cloudevents_has_what_the_specification_demands(receiver):
    channel = cloudevents.make(
        COMMON, url=receiver.url + "/hook", headers={"authorization": "Bearer t"},
        source="model-sidecar",
    )  # fmt: skip
    for one in (alert(), alert(), resolved()):
        channel.send(one, LATER_NS)
    first, again, over = receiver.got
    assert first.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert first.headers["authorization"] == "Bearer t"
    event = first.json
    for required in ("id", "source", "specversion", "type"):
        assert isinstance(event[required], str)
        assert event[required]
    assert event["specversion"] == "1.0"
    assert all(re.fullmatch(r"[a-z0-9]+", name) for name in event), "names of attributes"
    assert at(event["time"]) == NOON_NS / 1e9
    assert event["datacontenttype"] == "application/json"
    assert (event["type"], event["subject"]) == ("model_sidecar.alert.firing", "digits")
    assert event["data"]["values"] == alert().values
    assert event["data"]["ended"] is None
    assert uuid.UUID(event["id"]).version == 5
    assert again.json == event, "the same id, whenever it is told again"
    assert over.json["id"] != event["id"]
    assert over.json["type"] == "model_sidecar.alert.resolved"
    assert at(over.json["time"]) == NOON_NS / 1e9 + 60
    assert event_id(alert()) == event["id"]


def test_what_json_cannot_say_is_said_in_words(receiver):
    channel = cloudevents.make(COMMON, url=receiver.url, headers={}, source="s")
    odd = {"e": math.inf, "n": math.nan, "list": [1.5, -math.inf], "map": {1: math.inf}}
    channel.send(alert(values=odd), LATER_NS)
    found = json.loads(receiver.got[0].body, parse_constant=pytest.fail)
    assert found["data"]["values"] == {
        "e": "inf", "n": "nan", "list": [1.5, "-inf"], "map": {"1": "inf"},
    }  # fmt: skip


# --- all of them ----------------------------------------------------------------------------------


def test_an_unknown_kind_lists_those_there_are():
    with pytest.raises(ChannelError, match="'pager' is no channel; there is log, alertmanager"):
        build("pager", COMMON, {})


def test_a_new_channel_is_a_file_and_a_line():
    for kind, module in BUILTIN.items():
        assert module == f"exporters.alerts.{kind}"
