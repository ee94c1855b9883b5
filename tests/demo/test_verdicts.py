"""What the monitor said, as the demo repeats it."""

from __future__ import annotations

from dataclasses import replace

from sidecar.demo.verdicts import Finding, _finding, in_words
from sidecar.monitor.view import OutputStatus
from tests.monitor.views import INT8, certificate, status
from validators.verdict import Verdict


def seen(verdict: Verdict, requests: int, bad: int, bound: float) -> OutputStatus:
    output = status().models[0].pairs[0].outputs[0]
    shown = replace(certificate(verdict), n=requests, k=bad, bound=bound)
    return replace(output, requests=requests, rate=bad / requests, certificate=shown)


def test_a_verdict_keeps_the_figures_it_was_given_on():
    """What disagrees later does not take a certificate back, and must not seem to."""
    finding = Finding(INT8, "PASS")
    finding = _finding(finding, seen(Verdict.INCONCLUSIVE, 200, 0, 0.02), 4.0)
    assert not finding.decided
    assert "no verdict yet: 0.00% of 200" in in_words(finding)
    finding = _finding(finding, seen(Verdict.PASS, 350, 0, 0.0098), 7.0)
    finding = _finding(finding, seen(Verdict.PASS, 492, 2, 0.017), 8.5)
    assert in_words(finding) == (
        "digits:2/int8: certified after 7.0 s: at most 1% of requests disagree, 95% sure "
        "(0.00% of 350 mirrored requests disagree with the reference; bound 0.98%)"
    )


def test_a_failure_outweighs_what_was_certified_before():
    finding = _finding(Finding(INT8, "PASS"), seen(Verdict.PASS, 350, 0, 0.0098), 7.0)
    finding = _finding(finding, seen(Verdict.FAIL, 900, 60, 0.09), 20.0)
    assert not finding.is_right
    assert "found broken after 20.0 s: 6.67% of 900" in in_words(finding)


def test_nothing_compared_is_said():
    assert in_words(Finding(INT8, "PASS")) == f"{INT8}: nothing was compared"
