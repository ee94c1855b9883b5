"""A delivery system is asked to roll back, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.clock import SystemClock
from sidecar.monitor.actions import build
from sidecar.monitor.actions.base import Action, Outcome
from tests.monitor.actions.clusters import config, request
from tests.support.otlp_receiver import dripping, garbage, refusing
from tests.support.routes import RouteTable
from tests.support.webhook_receiver import WebhookReceiver

SECRET = "of-the-receiver"


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as made:
        yield made


def webhook(url: str, table: RouteTable | None = None, *, timeout_s: float = 60) -> Action:
    values = {"url": url, "headers": {"authorization": SECRET}, "timeout_s": timeout_s}
    made = config(kind="webhook", **values)
    return build(made, table or RouteTable(), "digits", SystemClock())


def test_it_is_asked_with_everything_that_it_needs(receiver):
    done = webhook(receiver.url).perform(request(fence=4))
    assert (done.outcome, done.text) == (Outcome.DONE, "the webhook answers 200: rolled back")
    (hook,) = receiver.received
    assert hook.body == {
        "action": "rollback", "decision_id": "d-1", "fence": 4, "model": "digits",
        "new": "3/onnx", "previous": "2/onnx", "new_version": "3", "previous_version": "2",
        "reason": "version 3 errs more often than version 2",
    }  # fmt: skip
    assert hook.headers["idempotency-key"] == "d-1"
    assert hook.headers["authorization"] == SECRET
    assert hook.headers["content-type"] == "application/json"


def test_asking_again_carries_the_same_key(receiver):
    for owner in (1, 2):
        webhook(receiver.url).perform(request(fence=owner))
    keys = [hook.headers["idempotency-key"] for hook in receiver.received]
    assert keys == ["d-1", "d-1"]
    webhook(receiver.url).undo(request())
    undo = receiver.received[-1]
    assert (undo.body["action"], undo.headers["idempotency-key"]) == ("undo", "d-1-undo")


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (200, Outcome.DONE), (202, Outcome.DONE), (204, Outcome.DONE), (409, Outcome.RETRY),
        (410, Outcome.BLOCKED), (429, Outcome.RETRY), (500, Outcome.RETRY), (503, Outcome.RETRY),
        (400, Outcome.BLOCKED), (401, Outcome.BLOCKED), (404, Outcome.BLOCKED),
    ],
)  # fmt: skip
def test_what_its_answers_mean(receiver, code, outcome):
    receiver.says(code, "" if code == 204 else "said so")
    done = webhook(receiver.url).perform(request())
    assert done.outcome is outcome
    assert str(code) in done.text
    assert code == 204 or "said so" in done.text


def test_a_redirect_is_not_followed_with_our_secrets(receiver):
    with WebhookReceiver() as other:
        receiver.says(307, Location=other.url)
        assert webhook(receiver.url).perform(request()).outcome is Outcome.BLOCKED
        assert other.received == []


def test_one_that_never_answers_is_asked_again(receiver):
    receiver.answer = lambda _: None
    done = webhook(receiver.url, timeout_s=0.3).perform(request())
    assert done.outcome is Outcome.RETRY
    assert "same Idempotency-Key" in done.text


@pytest.mark.parametrize("server", [refusing, garbage, dripping])
def test_what_is_no_receiver_is_asked_again_in_bounded_time(server):
    with server() as port:
        done = webhook(f"http://127.0.0.1:{port}/", timeout_s=0.5).perform(request())
    assert done.outcome is Outcome.RETRY
    assert SECRET not in done.text


def test_a_long_answer_is_cut_for_people(receiver):
    receiver.says(200, "x" * 300_000)
    assert len(webhook(receiver.url).perform(request()).text) < 300


def test_its_word_is_not_believed_but_looked_for(receiver):
    table = RouteTable(v2=0.0, v3=1.0)
    rollback = webhook(receiver.url, table)
    assert rollback.perform(request()).outcome is Outcome.DONE
    rollback.verify(request())
    table.serve(10)
    seen: Any = rollback.verify(request())
    assert (seen.outcome, "10 requests went to version 3" in seen.text) == (Outcome.RETRY, True)
    table.set("digits", {"2": 1.0}, by="operator", reason="the delivery system did it")
    assert rollback.verify(request()).outcome is Outcome.RETRY, "without requests: not known"
    table.serve(10)
    assert rollback.verify(request()).outcome is Outcome.DONE


def test_a_model_that_is_gone_is_said(receiver):
    seen = webhook(receiver.url).verify(request(model="letters"))
    assert (seen.outcome, "there is digits" in seen.text) == (Outcome.BLOCKED, True)
