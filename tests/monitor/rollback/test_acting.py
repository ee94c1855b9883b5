"""From a decision to its effect: guards, approval, verification, and operators."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.errors import ConflictError, InvalidRequestError, NotFoundError
from sidecar.monitor.actions.base import Outcome, Result
from tests.monitor.rollback.bench import HOUR, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def regress(bench: Bench) -> None:
    bench.pairs(2000, new_only=60)
    bench.check()
    assert bench.state == "regressed"


def test_a_regressed_version_is_rolled_back_and_its_alert_resolves(bench: Bench):
    regress(bench)
    assert bench.firing() == ["ModelRollback"]
    bench.act(2)
    assert bench.state == "rolled_back"
    assert bench.lever.at == "previous"
    assert [step for step, _, _ in bench.lever.calls] == ["check", "perform", "verify"]
    decision = bench.decision()
    assert (decision.state, decision.action_state) == ("rolled_back", "done")
    assert decision.action_text == "all requests go to 1. It is never undone by itself."
    assert decision.resolved_ns is not None
    assert bench.firing() == []
    bench.check()
    bench.act(3)
    assert bench.lever.count("perform") == 1


def test_observing_touches_nothing(tmp_path: Path):
    bench = Bench(tmp_path, action={"kind": "observe"})
    regress(bench)
    bench.act(3)
    assert bench.lever.calls == []
    assert bench.decision().action_state == "none"
    assert bench.firing() == ["ModelRollback"]
    bench.close()


def test_an_unhealthy_previous_version_blocks_and_says_so(bench: Bench):
    bench.lever.target = Result(Outcome.BLOCKED, "version 1 does not answer: refused")
    regress(bench)
    bench.act(5)
    assert bench.state == "blocked"
    assert bench.lever.count("perform") == 0
    assert sorted(bench.firing()) == ["ModelRollback", "RollbackBlocked"]
    text = bench.decision().action_text
    assert "version 1 does not answer: refused" in text
    assert f"sidecar rollback approve {bench.decision().id}" in text
    # An operator has repaired it.
    bench.lever.target = Result(Outcome.DONE, "version 1 answers")
    bench.operators.approve(bench.decision().id, by="ann", reason="restarted it")
    assert bench.state == "regressed"
    assert bench.firing() == ["ModelRollback"]
    bench.act(2)
    assert bench.state == "rolled_back"
    assert bench.firing() == []


def test_a_target_that_hiccups_is_asked_again_for_a_while(bench: Bench):
    bench.lever.target = Result(Outcome.RETRY, "no gateway worker is connected")
    regress(bench)
    bench.act(3)
    assert bench.decision().action_state == "pending"
    assert "no gateway worker is connected" in bench.decision().action_text
    bench.lever.target = Result(Outcome.DONE, "it answers")
    bench.act(2)
    assert bench.state == "rolled_back"


def test_a_target_that_never_answers_blocks_in_the_end(bench: Bench):
    bench.lever.target = Result(Outcome.RETRY, "no gateway worker is connected")
    regress(bench)
    bench.act(121)
    assert bench.state == "blocked"
    assert bench.lever.count("perform") == 0


def test_an_effect_that_does_not_show_is_blocked_and_said_so(bench: Bench):
    bench.lever.shows = False
    regress(bench)
    bench.act(1)
    assert bench.decision().action_state == "verifying"
    bench.act(125)
    assert bench.state == "blocked"
    assert "does not show in the traffic: requests still go to 2" in bench.decision().action_text
    assert "RollbackBlocked" in bench.firing()
    assert bench.lever.count("perform") == 1


def test_an_action_that_is_refused_for_good_fails(bench: Bench):
    bench.lever.refuses = Result(Outcome.BLOCKED, "403: may not patch deployments")
    regress(bench)
    bench.act(2)
    assert (bench.state, bench.decision().action_state) == ("blocked", "blocked")
    assert "403" in bench.decision().action_text


def test_an_action_that_raises_is_tried_again_then_failed(bench: Bench):
    def fault(step: str) -> None:
        if step == "perform":
            raise RuntimeError("boom")

    bench.lever.dies = fault
    regress(bench)
    bench.act(2)
    assert bench.decision().action_state == "acting"
    bench.act(125)
    assert bench.decision().action_state == "failed"
    assert "boom" in bench.decision().action_text


def test_what_is_so_already_is_done(bench: Bench):
    bench.lever.target = Result(Outcome.NOTHING, "version 2 has no share of the requests")
    regress(bench)
    bench.act(1)
    assert bench.state == "rolled_back"
    assert bench.lever.count("perform") == 0


# --- guards ---------------------------------------------------------------------------------------


def test_frozen_nobody_acts_until_it_ends(bench: Bench):
    bench.operators.freeze("m", frozen=True, by="ann", reason="release day")
    regress(bench)
    bench.act(5)
    assert bench.lever.calls == []
    assert bench.decision().action_state == "waiting"
    assert bench.decision().action_text == "Frozen by ann: release day."
    assert (bench.view.frozen, bench.view.frozen_text) == (True, "by ann: release day")
    assert bench.firing() == ["ModelRollback"]  # people are told all the same
    bench.operators.freeze("m", frozen=False, by="ann", reason="")
    bench.act(2)
    assert bench.state == "rolled_back"


def test_a_freeze_is_kept_over_restarts_and_of_all_is_of_each(bench: Bench, tmp_path: Path):
    bench.operators.freeze("", frozen=True, by="ann", reason="")
    regress(bench)
    bench.close()
    again = Bench(tmp_path, bench.clock)
    again.check()
    again.act(5)
    assert again.lever.calls == []
    with pytest.raises(ConflictError, match="unfreeze them all"):
        again.operators.freeze("m", frozen=False, by="bob", reason="")
    again.operators.freeze("", frozen=False, by="bob", reason="")
    again.pairs(1)
    again.check()
    again.act(2)
    assert again.state == "rolled_back"
    again.close()


def test_a_freeze_that_comes_while_the_target_is_asked_holds(bench: Bench):
    regress(bench)

    def freeze(step: str) -> None:
        if step == "check":
            bench.operators.freeze("m", frozen=True, by="ann", reason="")

    bench.lever.dies = freeze
    bench.act(5)
    assert bench.lever.count("perform") == 0
    assert bench.decision().action_state == "waiting"


def test_with_approval_it_waits_for_an_operator(tmp_path: Path):
    bench = Bench(tmp_path, approve=True)
    regress(bench)
    bench.act(5)
    decision = bench.decision()
    assert decision.action_state == "waiting"
    assert f"sidecar rollback approve {decision.id}" in decision.action_text
    assert bench.lever.calls == []
    bench.operators.approve(decision.id, by="ann", reason="go")
    bench.act(2)
    assert bench.state == "rolled_back"
    with pytest.raises(ConflictError, match="no action that waits"):
        bench.operators.approve(decision.id, by="ann", reason="again")
    bench.close()


def test_one_action_in_an_hour(bench: Bench):
    regress(bench)
    bench.act(2)
    bench.operators.undo(bench.decision().id, by="ann", reason="")
    assert bench.lever.at == "new"
    first = bench.decision().id
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.act(3)
    [second] = [d for d in bench.book.decisions() if d.id != first]
    assert second.action_state == "waiting"
    assert "rollback.cooldown_s" in second.action_text
    bench.pairs(1)
    bench.check(HOUR)
    bench.act(2)
    assert bench.lever.count("perform") == 2
    assert bench.state == "rolled_back"


@pytest.mark.parametrize("jump_s", [-86_400.0, 86_400.0])
def test_the_cool_down_does_not_follow_a_clock_that_jumps(bench: Bench, jump_s: float):
    regress(bench)
    bench.act(2)
    bench.operators.undo(bench.decision().id, by="ann", reason="")
    bench.clock.jump(jump_s)
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.act(3)
    assert bench.lever.count("perform") == 1
    bench.pairs(1)
    bench.check(HOUR)
    bench.act(2)
    assert bench.lever.count("perform") == 2


def test_a_clock_that_jumps_over_a_restart_does_not_end_it_early(bench: Bench, tmp_path: Path):
    regress(bench)
    bench.act(2)
    bench.operators.undo(bench.decision().id, by="ann", reason="")
    bench.close()
    bench.clock.jump(10 * HOUR)
    again = Bench(tmp_path, bench.clock, bench.lever)
    again.pairs(2000, new_only=60)
    again.check()
    again.act(3)
    assert again.lever.count("perform") == 1
    again.close()


def test_old_pairs_are_not_acted_on(bench: Bench):
    bench.operators.freeze("m", frozen=True, by="ann", reason="")
    regress(bench)
    bench.clock.advance(2 * HOUR)
    bench.operators.freeze("m", frozen=False, by="ann", reason="")
    bench.act(3)
    assert bench.lever.calls == []
    assert "fresh pair" in bench.decision().action_text
    bench.pairs(1)
    bench.check()
    bench.act(2)
    assert bench.state == "rolled_back"


# --- operators ------------------------------------------------------------------------------------


def test_undoing_takes_it_back_and_judges_anew(bench: Bench):
    regress(bench)
    bench.act(2)
    decision = bench.operators.undo(bench.decision().id, by="ann", reason="the labels were wrong")
    assert decision.action_state == "undone"
    assert "Undone by ann: the labels were wrong." in decision.action_text
    assert bench.lever.at == "new"
    assert bench.state == "insufficient"
    with pytest.raises(ConflictError, match="closed already"):
        bench.operators.undo(decision.id, by="ann", reason="")


def test_closing_a_decision_that_waits_stops_its_action(bench: Bench):
    bench.operators.freeze("m", frozen=True, by="ann", reason="")
    regress(bench)
    bench.act(1)
    closed = bench.operators.undo(bench.decision().id, by="ann", reason="known")
    assert (closed.action_state, closed.resolved_ns is None) == ("none", False)
    bench.operators.freeze("m", frozen=False, by="ann", reason="")
    bench.act(5)
    assert bench.lever.calls == []
    assert bench.firing() == []


def test_what_is_being_done_cannot_be_closed(bench: Bench):
    bench.lever.shows = False
    regress(bench)
    bench.act(1)
    with pytest.raises(ConflictError, match="being acted on right now"):
        bench.operators.undo(bench.decision().id, by="ann", reason="")


def test_operators_have_names_and_decisions_exist(bench: Bench):
    with pytest.raises(InvalidRequestError, match="say who it is"):
        bench.operators.freeze("m", frozen=True, by=" ", reason="")
    with pytest.raises(NotFoundError, match="sidecar rollback history"):
        bench.operators.approve("nothing", by="ann", reason="")
    with pytest.raises(NotFoundError, match="no model 'x' is checked; there is m"):
        bench.operators.freeze("x", frozen=True, by="ann", reason="")
