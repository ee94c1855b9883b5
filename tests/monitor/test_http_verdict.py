"""The verdict over HTTP: a pass is earned, and what is missing is none."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from tests.monitor.verdicts import INTERVAL_S, Shown, decision, harm, pair, showing


@pytest.fixture
def shown() -> Iterator[Shown]:
    with showing() as made:
        yield made


def test_the_document_says_what_it_is_made_from(shown):
    shown.pairs = [pair(metrics=[harm(log_e=2.0), harm("latency", 4000, 1.0)])]
    document = shown.get().json()
    assert document == {
        "model": "digits", "new": "3/onnx", "previous": "2/onnx", "verdict": "pass",
        "passed": True, "failed": False, "state": "ok", "text": "it is ok", "pairs": 5000,
        "evidence": 0.5, "stale": False, "frozen": False, "decision": "",
        "metrics": {
            "error": {
                "pairs": 5000, "new_only": 3.0, "previous_only": 2.0, "evidence": 0.5,
                "evidence_act": 0.3333, "may_act": True,
                "text": "errors: 3 by the new version alone, 2 by the previous one alone",
            },
            "latency": {
                "pairs": 4000, "new_only": 3.0, "previous_only": 2.0, "evidence": 0.25,
                "evidence_act": 0.1667, "may_act": True,
                "text": "errors: 3 by the new version alone, 2 by the previous one alone",
            },
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("insufficient", "inconclusive"), ("ok", "pass"), ("suspect", "inconclusive"),
        ("regressed", "fail"), ("rolled_back", "fail"), ("blocked", "inconclusive"),
        ("a state of tomorrow", "inconclusive"),
    ],
)  # fmt: skip
def test_each_state_has_its_verdict(shown, state, verdict):
    shown.pairs = [pair(state)]
    assert shown.verdict() == verdict


def test_what_is_only_suspected_can_be_made_to_fail(shown):
    shown.pairs = [pair("suspect")]
    assert shown.verdict("?suspect=fail") == "fail"


def test_a_rollback_that_could_not_be_done_is_a_failure_still(shown):
    shown.pairs = [pair("blocked", decision=decision())]
    assert shown.verdict() == "fail"
    shown.pairs = [pair("blocked", decision=decision(metric=""))]  # another signature
    assert shown.verdict() == "inconclusive"


def test_nothing_to_show_is_no_pass(shown):
    assert shown.verdict() == "inconclusive"
    assert shown.get().json()["pairs"] == 0


@pytest.mark.parametrize("age_s", [-90, 90])
def test_a_check_that_is_old_or_yet_to_come_is_no_pass(shown, age_s):
    shown.clock.ns = 10**12
    now_ns = shown.clock.now_ns()
    shown.pairs = [pair(checked_wall_ns=now_ns - int(age_s * 1e9))]
    assert shown.verdict() == "inconclusive"
    shown.pairs = [pair(checked_wall_ns=now_ns - int(INTERVAL_S * 1e9))]
    assert shown.verdict() == "pass"


def test_a_failure_does_not_grow_old(shown):
    shown.pairs = [pair("regressed")]
    shown.clock.advance(86400)
    assert shown.verdict() == "fail"


def test_one_that_was_never_checked_or_stands_still_is_no_pass(shown):
    shown.pairs = [pair(checked_wall_ns=None)]
    assert shown.verdict() == "inconclusive"
    shown.pairs = [pair(stale=True)]
    assert shown.verdict() == "inconclusive"


def test_more_pairs_can_be_asked_for(shown):
    shown.pairs = [pair(metrics=[harm(pairs=800), harm("accuracy", pairs=0)])]
    assert shown.verdict("?min_pairs=800") == "pass"
    assert shown.verdict("?min_pairs=801") == "inconclusive"


def test_of_several_pairs_the_worst_is_told_and_one_can_be_asked_for(shown):
    shown.pairs = [pair(), pair("regressed", new="3/trt"), pair("insufficient", new="4/onnx")]
    assert shown.get().json()["new"] == "3/trt"
    assert shown.verdict("?new=3/onnx") == "pass"
    assert shown.verdict("?new=3") == "fail"
    assert shown.verdict("?new=3/onnx&previous=2") == "pass"
    assert shown.verdict("?new=3/onnx&previous=1") == "inconclusive"
    assert shown.verdict("?new=5") == "inconclusive", "not there yet"


@pytest.mark.parametrize("log_e", [math.inf, -math.inf, math.nan])
def test_no_evidence_breaks_the_json(shown, log_e):
    shown.pairs = [pair("regressed", metrics=[harm(log_e=log_e)])]
    assert shown.get().json()["verdict"] == "fail"


@pytest.mark.parametrize(
    ("path", "code", "text"),
    [
        ("/v1/rollback/letters", 404, "no model 'letters'; there is digits"),
        ("/v1/rollback/digits?min_pairs=many", 400, "must be a whole number"),
        ("/v1/rollback/digits?verison=3", 400, "no field 'verison'"),
        ("/v1/rollback/digits?suspect=maybe", 400, "must be fail or inconclusive"),
    ],
)
def test_a_question_that_makes_no_sense_is_no_verdict(shown, path, code, text):
    shown.pairs = [pair()]
    response = shown.get(path)
    assert response.status_code == code
    assert text in response.json()["error"]
    assert "verdict" not in response.json()


# --- Flagger --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "yes"),
    [
        ("ok", {"rollout", "confirm-traffic-increase", "confirm-promotion"}),
        ("insufficient", set()),
        ("suspect", set()),
        # Of this hook a success means the opposite of all others: roll back.
        ("regressed", {"rollback"}),
    ],
)
def test_hooks_are_answered_as_flagger_reads_them(shown, state, yes):
    shown.pairs = [pair(state)]
    for hook in ("rollout", "confirm-traffic-increase", "confirm-promotion", "rollback"):
        assert (shown.hook(hook) == 200) == (hook in yes), hook


def test_an_analysis_may_go_on_without_a_verdict_but_never_promote(shown):
    shown.pairs = [pair("insufficient")]
    assert shown.hook("rollout", inconclusive="continue") == 200
    assert shown.hook("confirm-traffic-increase", inconclusive="continue") == 200
    assert shown.hook("confirm-promotion", inconclusive="continue") == 409
    assert shown.hook("rollback", inconclusive="continue") == 409
    shown.pairs = [pair("regressed")]
    assert shown.hook("rollout", inconclusive="continue") == 409


def test_hooks_ask_for_one_pair_too(shown):
    shown.pairs = [pair(), pair("regressed", new="4/onnx")]
    assert shown.hook("confirm-promotion", new="3") == 200
    assert shown.hook("confirm-promotion", new="3", min_pairs="9999") == 409
    assert shown.hook("confirm-promotion", new="4") == 409


@pytest.mark.parametrize(
    ("hook", "body", "code"),
    [
        ("confirm-rollout", b'{"metadata": {"model": "digits"}}', 404),
        ("rollout", b'{"metadata": {}}', 400),
        ("rollout", b'{"metadata": {"model": 3}}', 400),
        ("rollout", b'{"metadata": {"model": "letters"}}', 404),
        ("rollout", b'{"metadata": {"model": "digits", "verison": "3"}}', 400),
        ("rollout", b'{"metadata": {"model": "digits", "inconclusive": "promote"}}', 400),
        ("rollout", b"[]", 400),
        ("rollout", b"\xff", 400),
        ("rollout", b"[" * 60_000, 400),
        ("rollout", b"x" * 70_000, 413),
    ],
)
def test_a_hook_that_makes_no_sense_is_never_a_yes(shown, hook, body, code):
    shown.pairs = [pair()]
    response = shown.client.post(f"/v1/flagger/{hook}", content=body)
    assert (response.status_code, "error" in response.json()) == (code, True)
