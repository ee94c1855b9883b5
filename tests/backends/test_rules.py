"""Rules: checked and tried by promtool, each with a runbook, each about metrics that are told."""

from __future__ import annotations

import re

import pytest
import yaml

from sidecar import errors
from sidecar.protocol.status import TABLE
from tests.backends.processes import NO_PROMETHEUS, ROOT, promtool
from tests.backends.rule_files import FILES, TESTS, alerts, exprs
from tests.support import promql

needs_prometheus = pytest.mark.skipif(bool(NO_PROMETHEUS), reason=NO_PROMETHEUS)
RUNBOOKS = ROOT / "docs" / "runbooks.md"


@needs_prometheus
def test_promtool_finds_nothing_wrong():
    status, output = promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, FILES))
    assert status == 0, output


@needs_prometheus
@pytest.mark.parametrize("name", [path.name for path in FILES])
def test_they_fire_when_they_should_and_only_then(name):
    status, output = promtool("test", "rules", str(TESTS / name))
    assert status == 0, output


def test_every_alert_is_tried_both_ways():
    """promtool is content with an alert that no test names."""
    fired, silent = set(), set()
    for path in FILES:
        tests = yaml.safe_load((TESTS / path.name).read_text(encoding="utf-8"))
        for test in tests["tests"]:
            for case in test["alert_rule_test"]:
                (fired if case["exp_alerts"] else silent).add(case["alertname"])
    assert fired == silent == {rule.alert for rule in alerts()}


def test_every_name_is_one_that_is_told_or_recorded():
    recorded = {rule.record for rule in exprs() if rule.record}
    for rule in exprs():
        assert list(promql.undeclared(rule.expr)) == []
        for name in promql.metrics(rule.expr):
            assert name in promql.series() or name in recorded
    used = {name for rule in alerts() for name in promql.metrics(rule.expr)}
    assert recorded <= used, "recorded for nobody"


def test_annotations_use_labels_that_the_alert_has():
    for rule in alerts():
        for text in rule.annotations.values():
            for label in re.findall(r"\$labels\.(\w+)", text):
                grouped = re.search(r"by \(([^)]*)\)", rule.expr)
                known = {"job", "instance"} if grouped is None else set(
                    re.split(r",\s*", grouped[1])
                )  # fmt: skip
                if "model_sidecar:request_errors:" in rule.expr:
                    known |= {"namespace", "job", "model_name"}
                assert label in known, f"{rule.alert}: {label}"


def test_only_what_hurts_requests_or_blinds_the_rest_wakes_somebody():
    assert {rule.labels["severity"] for rule in alerts()} == {"page", "ticket"}
    pages = {rule.alert for rule in alerts() if rule.labels["severity"] == "page"}
    assert pages == {
        "ModelSidecarErrorBudgetBurnsFast", "ModelSidecarErrorBudgetBurnsSlowly",
        "ModelSidecarRefusesRequests", "ModelSidecarUnobserved",
    }  # fmt: skip


def test_what_burns_no_budget_is_the_callers_fault():
    callers = {
        kind.__name__
        for kind, status in TABLE.items()
        if (400 <= status.http < 500 or status.http == 501)
        and kind not in {errors.OverloadedError, errors.CancelledError}
    }
    for rule in exprs():
        if rule.record.startswith("model_sidecar:request_errors"):
            [listed] = re.findall(r'reason!~"([^"]*)"', rule.expr)
            assert set(listed.split("|")) == callers
            # Cancelled calls are an outcome of their own, and in neither part.
            assert 'outcome=~"success|fail"' in rule.expr


def test_windows_and_factors_are_those_of_the_design():
    burns = {rule.alert: rule.expr for rule in alerts() if "ratio_rate" in rule.expr}
    for alert, factor, windows in (
        ("ModelSidecarErrorBudgetBurnsFast", "14.4", {"1h", "5m"}),
        ("ModelSidecarErrorBudgetBurnsSlowly", "6", {"6h", "30m"}),
        ("ModelSidecarRefusesRequests", "14.4", {"1h", "5m"}),
    ):
        assert set(re.findall(r"ratio_rate(\w+)", burns[alert])) == windows
        assert re.findall(r"> \(([\d.]+) \* 0\.001\)", burns[alert]) == [factor, factor]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert():
    text = RUNBOOKS.read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert sorted(headings) == sorted(rule.alert for rule in alerts())
    for rule in alerts():
        assert rule.annotations["runbook_url"] == f"docs/runbooks.md#{rule.alert.lower()}"
        section = text.partition(f"\n## {rule.alert}\n")[2].partition("\n## ")[0]
        for question in ("**What it means.**", "**Look at.**", "**Do.**"):
            assert question in section, f"{rule.alert}: {question}"
