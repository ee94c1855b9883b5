"""From pairs to states and decisions, tick by tick."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sidecar.monitor.rollback.states import Standing
from tests.monitor.rollback.bench import NEW, PREVIOUS, Bench, Clock


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def harm(bench: Bench, metric: str) -> Any:
    return next(one for one in bench.view.metrics if one.metric == metric)


def test_too_few_pairs_are_insufficient_and_never_ok(bench: Bench):
    bench.check()
    assert bench.state == "insufficient"
    assert bench.view.text == "0 of 100 pairs"
    bench.pairs(99)
    bench.check()
    assert (bench.state, bench.view.text) == ("insufficient", "99 of 100 pairs")
    bench.pairs(1)
    bench.check()
    assert bench.state == "ok"
    assert bench.told == []
    assert bench.alerts() == []


def test_harm_of_few_pairs_waits_for_more(bench: Bench):
    bench.pairs(99, new_only=99)
    bench.check()
    assert bench.state == "insufficient"
    bench.pairs(300, new_only=300)
    bench.check()
    assert bench.state == "regressed"


def test_equal_versions_stay_ok(bench: Bench):
    for _ in range(50):
        bench.pairs(100, new_only=2, previous_only=2)
        bench.check()
    assert bench.state == "ok"
    assert harm(bench, "error").log_e < 1
    assert bench.alerts() == []


def test_a_worse_version_is_suspect_then_regressed_and_stays_so(bench: Bench):
    states = []
    for _ in range(40):
        bench.pairs(100, new_only=3, previous_only=1)
        bench.check()
        states.append(bench.state)
    assert states[0] == "ok"
    assert states == sorted(states, key=["ok", "suspect", "regressed"].index)
    assert set(states) == {"ok", "suspect", "regressed"}
    kinds = [one.kind for one in bench.told]
    assert kinds == ["ModelRegressionSuspected", "ModelRollback"]
    # Its present evidence sinks; the best that was ever seen counts.
    bench.pairs(3000, previous_only=150)
    bench.check()
    assert harm(bench, "error").log_e < harm(bench, "error").threshold
    assert bench.state == "regressed"
    # The suspicion became more: one alert for the trouble, not two.
    assert bench.firing() == ["ModelRollback"]


def test_the_decision_explains_itself(bench: Bench):
    bench.pairs(2000, new_only=60)
    bench.check()
    decision = bench.decision()
    assert decision.text.startswith(
        f"{NEW} is worse than {PREVIOUS} at errors: of 2000 pairs only the new version failed in "
        "60, only the previous one in 0"
    )
    assert "to 1, over the 300 to 1 at which it is rolled back" in decision.text
    assert (decision.metric, decision.pairs) == ("error", 2000)
    assert decision.log_e > decision.threshold > 0
    assert bench.view.decision is not None
    assert bench.view.text == decision.text


def test_what_was_reached_is_kept_over_a_restart(bench: Bench, tmp_path: Path):
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.close()
    again = Bench(tmp_path, bench.clock)
    assert again.state == "regressed"
    again.check()
    assert again.state == "regressed"
    assert again.told == []
    assert len(again.book.decisions()) == 1
    again.close()


def test_the_best_evidence_is_kept_over_a_restart(bench: Bench, tmp_path: Path):
    bench.pairs(400, new_only=5)
    bench.check()
    best = bench.book.standing(bench.id).best["error"].log_e
    assert best > 1
    bench.pairs(600, previous_only=30)
    bench.check()
    bench.close()
    again = Bench(tmp_path, bench.clock)
    again.check()
    assert again.book.standing(again.id).best["error"].log_e == best
    again.close()


def test_another_artifact_is_another_pair(bench: Bench):
    bench.pairs(2000, new_only=60)
    bench.check()
    assert bench.firing() == ["ModelRollback"]
    bench.pair.identity = "fedcba"  # the file was replaced: a plan of a later life has another
    bench.check()
    assert bench.state == "insufficient"
    assert bench.firing() == []
    assert "compared no more" in bench.decision().action_text


def test_versions_that_cannot_be_compared_are_blocked_with_the_reason(bench: Bench):
    bench.pair.blocked = "class 3 of output 'scores' is cat for m:2/new, dog for m:1/old"
    bench.check()
    bench.check()
    assert bench.state == "blocked"
    assert "class 3 of output 'scores' is cat" in bench.view.text
    assert bench.firing() == ["RollbackBlocked"]
    bench.pair.blocked = ""
    bench.check()
    assert bench.state == "insufficient"
    assert bench.firing() == []


# --- what holds a harm back -----------------------------------------------------------------------


def test_flips_only_alert_without_a_budget(bench: Bench):
    bench.pairs(1000)
    bench.flips(1000, 400)
    bench.check()
    assert bench.state == "suspect"
    assert "meant to differ" in harm(bench, "flip").held
    assert "It may not act" in bench.view.text
    assert bench.view.text.startswith(f"{NEW} looks worse than {PREVIOUS} at changed answers")
    assert bench.view.decision.action_state == "none"


def test_flips_act_against_a_recorded_budget(bench: Bench):
    bench.budget = 0.001
    bench.pairs(1000)
    bench.flips(1000, 100)
    bench.check()
    assert bench.state == "regressed"
    assert harm(bench, "flip").may_act


def test_latency_acts_only_after_a_clean_calibration(bench: Bench):
    bench.pairs(1000)
    bench.slow(20_000)
    bench.check()
    assert bench.state == "suspect"
    assert "0 of 300 pairs of the previous version beside itself" in harm(bench, "latency").held
    bench.equal(400)
    bench.calibrated(400, 20)
    bench.check()
    assert bench.view.calibration.ok
    assert bench.state == "regressed"


def test_latency_never_acts_where_the_previous_version_looks_slower_than_itself(bench: Bench):
    bench.pairs(1000)
    bench.slow(20_000)
    bench.slow(1000, sides=(PREVIOUS, PREVIOUS))
    bench.calibrated(1000, 20)
    bench.check()
    assert bench.state == "suspect"
    assert "looks slower than itself" in bench.view.calibration.text


def test_latency_never_acts_where_noise_hangs_together_for_too_long(bench: Bench):
    bench.pairs(1000)
    bench.slow(20_000)
    bench.equal(400)
    bench.calibrated(400, 0)
    bench.check()
    assert bench.state == "suspect"
    assert "longer than blocks of 500" in harm(bench, "latency").held


def test_a_harm_that_may_not_act_gives_its_share_of_alpha_to_the_others(tmp_path: Path):
    only = Bench(tmp_path, latency={"act": False}, flip={"act": False})
    only.check()
    assert harm(only, "error").threshold_act == pytest.approx(4.605, abs=1e-3)
    assert harm(only, "latency").held == "rollback.latency.act is off"
    only.close()


def test_a_candidate_that_answers_nobody_is_not_rolled_back(tmp_path: Path):
    bench = Bench(tmp_path, candidate=True)
    bench.pairs(2000, new_only=60)
    bench.check()
    assert bench.state == "regressed"
    assert bench.decision().action_state == "none"
    assert "should not be promoted" in bench.decision().action_text
    bench.act(3)
    assert bench.lever.calls == []
    bench.close()


# --- what has no pair -----------------------------------------------------------------------------


def test_no_pairs_while_requests_come_is_stale_and_said(bench: Bench):
    bench.pairs(500)
    bench.traffic = {NEW: (500, 0)}
    bench.check()
    assert bench.state == "ok"
    for minute in range(16):
        bench.traffic = {NEW: (500 + 100 * minute, 0)}
        bench.check(60)
    assert (bench.state, bench.view.stale) == ("insufficient", True)
    assert bench.firing() == ["RollbackCheckStale"]
    bench.pairs(10)
    bench.check()
    assert (bench.state, bench.view.stale) == ("ok", False)
    assert bench.firing() == []


def test_no_requests_are_no_reason_to_call_it_stale(bench: Bench):
    bench.pairs(500)
    bench.traffic = {NEW: (500, 0)}
    for _ in range(30):
        bench.check(60)
    assert (bench.state, bench.view.stale) == ("ok", False)
    assert bench.alerts() == []


def test_errors_while_serving_alert_and_do_nothing(bench: Bench):
    bench.pairs(500)
    bench.traffic = {NEW: (500, 2)}
    bench.check()
    assert bench.firing() == []
    bench.traffic = {NEW: (1000, 60)}
    bench.check()
    bench.check()
    assert bench.firing() == ["ModelServingErrors"]
    decision = bench.decision("ModelServingErrors")
    assert "60 of 1,000 requests" in decision.text
    assert bench.state == "ok"
    bench.act(3)
    assert bench.lever.calls == []
    # Closed by an operator, it is counted from there on.
    bench.operators.undo(decision.id, by="ann", reason="known")
    bench.traffic = {NEW: (2000, 62)}
    bench.check()
    assert bench.firing() == []
    bench.traffic = {NEW: (4000, 300)}
    bench.check()
    assert bench.firing() == ["ModelServingErrors"]


def test_errors_while_serving_that_come_late_are_seen(bench: Bench):
    bench.pairs(500)
    for thousand in range(1, 201):
        bench.traffic = {NEW: (1000 * thousand, 0)}
        bench.desk.check()
    bench.traffic = {NEW: (200_500, 40)}
    bench.check()
    assert bench.firing() == ["ModelServingErrors"]


def test_an_alert_resolves_when_the_version_gets_no_more_requests(tmp_path: Path):
    bench = Bench(tmp_path, action={"kind": "observe"})
    bench.pairs(2000, new_only=60)
    bench.traffic = {NEW: (2000, 0), PREVIOUS: (0, 0)}
    bench.check()
    bench.traffic = {NEW: (2100, 0), PREVIOUS: (0, 0)}
    bench.check()
    assert bench.firing() == ["ModelRollback"]
    for more in range(1, 9):  # somebody has changed the route
        bench.traffic = {NEW: (2100, 0), PREVIOUS: (100 * more, 0)}
        bench.check()
    assert bench.firing() == []
    assert "gets no requests any more" in bench.decision().action_text
    assert bench.state == "regressed"  # which it stays
    bench.close()


def test_standings_are_plain_data(bench: Bench):
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.operators.undo(bench.decision().id, by="ann", reason="")
    standing = bench.book.standing(bench.id)
    assert standing.rounds == 1
    assert standing.reset.of
    assert Standing.from_plain(standing.to_plain()) == standing


def test_set_back_by_an_operator_it_is_judged_from_then_on(bench: Bench):
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.operators.undo(bench.decision().id, by="ann", reason="the input was broken")
    bench.check()
    assert (bench.state, bench.view.text) == ("insufficient", "0 of 100 pairs")
    assert bench.firing() == []
    bench.pairs(500)
    bench.check()
    assert bench.state == "ok"
    bench.pairs(2000, new_only=60)
    bench.check()
    assert bench.state == "regressed"
    assert len([one for one in bench.told if one.kind == "ModelRollback"]) == 2


def test_joined_blocks_do_not_bring_back_what_was_set_back(bench: Bench):
    for _ in range(40):
        bench.pairs(1000, new_only=30)
    bench.check()
    bench.operators.undo(bench.decision().id, by="ann", reason="")
    for _ in range(40):
        bench.pairs(1000)
    bench.evidence.flush(bench.store)  # which joins old blocks
    bench.check()
    assert bench.state == "ok"
    assert harm(bench, "error").pairs == 40_000
    assert harm(bench, "error").new_only == 0


def test_nothing_is_said_to_be_ok_before_the_copies_are_there(tmp_path: Path):
    bench = Bench(tmp_path, Clock())
    bench.plans.clear()
    bench.check()
    assert bench.state == "insufficient"
    assert "cannot be compared yet" in bench.view.text
    bench.close()
