"""The route goes to the previous version: once, checked before, and looked at after."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sidecar.monitor.actions import build
from sidecar.monitor.actions.base import Action, Outcome
from sidecar.monitor.routing import RouteView
from tests.monitor.actions.clusters import config, request
from tests.monitor.making import Clock
from tests.support.routes import RouteTable


def switch(table: RouteTable, clock: Clock | None = None) -> Action:
    return build(config(kind="switch"), table, "digits", clock or Clock())


def verified(rollback: Action, table: RouteTable, clock: Clock, **changes: Any) -> Any:
    """The first look begins, the second tells."""
    assert rollback.verify(request(**changes)).outcome is Outcome.RETRY
    table.serve(100)
    clock.advance(1)
    return rollback.verify(request(**changes))


def test_everything_of_the_new_version_goes_to_the_previous_one():
    table, clock = RouteTable(v1=0.25, v2=0.25, v3=0.5), Clock()
    rollback = switch(table, clock)
    checked = rollback.check(request())
    assert checked.outcome is Outcome.DONE
    assert table.asked == ["2"], "the copy that is to serve is asked, just now"
    assert table.changes == 0

    done = rollback.perform(request())
    assert done.outcome is Outcome.DONE, done.text
    route = table.route("digits")
    assert route.shares == {"1": 0.25, "2": 0.75}
    assert route.by == "rollback"
    assert route.reason.startswith("version 3 errs more often")
    assert json.loads(done.details["before"]) == {"1": 0.25, "2": 0.25, "3": 0.5}

    seen = verified(rollback, table, clock)
    assert seen.outcome is Outcome.DONE
    assert "75 requests since: all to version 2, none to 3" in seen.text
    assert "2 of 2 workers apply revision 1" in seen.text


def test_requests_that_name_the_new_version_do_not_hold_it_up():
    table, clock = RouteTable(), Clock()
    rollback = switch(table, clock)
    assert rollback.perform(request()).outcome is Outcome.DONE
    rollback.verify(request())
    for _ in range(2):
        table.counts["3"] += 4
        table.counts["2"] += 90
        clock.advance(1)
        seen = rollback.verify(request())
        assert seen.outcome is Outcome.RETRY
    assert "8 requests went to version 3 since, 180 to 2" in seen.text
    clock.advance(1)
    table.counts["3"] += 4
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.DONE
    assert "name their version" in seen.text
    assert seen.details["requests_new"] == "12"


def test_where_everything_still_goes_to_the_new_version_nothing_is_verified():
    table, clock = RouteTable(), Clock()
    rollback = switch(table, clock)
    assert rollback.perform(request()).outcome is Outcome.DONE
    for _ in range(20):
        table.counts["3"] += 10
        clock.advance(1)
        assert rollback.verify(request()).outcome is Outcome.RETRY


def test_a_route_that_workers_cannot_follow_is_not_verified():
    table, clock = RouteTable(), Clock()
    rollback = switch(table, clock)
    assert rollback.perform(request()).outcome is Outcome.DONE
    table.problem = "version 2 is not loaded"
    for _ in range(3):
        table.serve(5)
        clock.advance(10)
        seen = rollback.verify(request())
        assert (seen.outcome, "not loaded" in seen.text) == (Outcome.RETRY, True)
    table.problem = ""
    assert verified(rollback, table, clock).outcome is Outcome.DONE


def test_a_worker_that_has_not_heard_of_it_is_waited_for():
    table, clock = RouteTable(), Clock()
    rollback = switch(table, clock)
    assert rollback.perform(request()).outcome is Outcome.DONE
    table.behind = 1
    for _ in range(3):
        table.serve(5)
        clock.advance(10)
        seen = rollback.verify(request())
        assert (seen.outcome, seen.text) == (Outcome.RETRY, "1 of 2 workers apply revision 1")
    table.behind = 0
    assert verified(rollback, table, clock).outcome is Outcome.DONE


def test_without_requests_the_workers_word_is_enough_and_said():
    table, clock = RouteTable(), Clock()
    rollback = switch(table, clock)
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert rollback.verify(request()).outcome is Outcome.RETRY
    clock.advance(1)  # the counts are a second old: too soon
    assert rollback.verify(request()).outcome is Outcome.RETRY
    clock.advance(3)
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.DONE
    assert "no request has come since; all workers apply the route" in seen.text


def test_without_any_worker_nothing_is_known():
    table = RouteTable()
    table.view = RouteView("digits", 0, {"3": 1.0}, versions=["2", "3"])
    rollback = switch(table)
    assert rollback.check(request()).outcome is Outcome.RETRY
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert rollback.verify(request()).outcome is Outcome.RETRY


def test_counts_that_begin_anew_are_not_taken_for_requests():
    table, clock = RouteTable(), Clock()
    rollback = switch(table, clock)
    assert rollback.perform(request()).outcome is Outcome.DONE
    rollback.verify(request())
    table.counts = {"1": 0, "2": 7, "3": 0}  # a worker was started again
    assert rollback.verify(request()).outcome is Outcome.RETRY
    table.serve(5)
    assert rollback.verify(request()).outcome is Outcome.DONE


def test_a_previous_version_that_does_not_answer_is_no_way_back():
    table = RouteTable()
    table.down["2"] = "worker 1: DEADLINE_EXCEEDED"
    checked = switch(table).check(request())
    assert checked.outcome is Outcome.BLOCKED
    assert "DEADLINE_EXCEEDED" in checked.text
    assert table.changes == 0


def test_a_previous_version_that_is_not_held_is_said():
    table = RouteTable()
    table.view = RouteView("digits", 0, {"3": 1.0}, workers=1, applied=1, versions=["3"])
    for result in (switch(table).check(request()), switch(table).perform(request())):
        assert result.outcome is Outcome.BLOCKED
        assert "version 2 is not held here; there is 3" in result.text


def test_a_model_that_is_gone_is_said():
    for call in ("check", "perform", "verify", "undo"):
        result = getattr(switch(RouteTable()), call)(request(model="letters"))
        assert result.outcome is Outcome.BLOCKED
        assert "there is digits" in result.text


def test_a_new_version_without_a_share_needs_nothing():
    table = RouteTable(v1=0.5, v2=0.5)
    result = switch(table).perform(request())
    assert (result.outcome, table.changes) == (Outcome.NOTHING, 0)


# --- once -----------------------------------------------------------------------------------------


def test_repeating_a_decision_changes_the_route_once():
    table = RouteTable()
    assert switch(table).perform(request()).outcome is Outcome.DONE
    again = switch(table).perform(request())  # by another process, after a restart
    assert again.outcome is Outcome.DONE
    assert "before" in again.text
    assert table.changes == 1


def test_an_owner_that_was_replaced_does_nothing():
    table = RouteTable()
    assert switch(table).perform(request(fence=5)).outcome is Outcome.DONE
    stale = switch(table).perform(request(fence=2))
    assert stale.outcome is Outcome.BLOCKED
    assert "fence 5" in stale.text
    assert table.changes == 1


def test_a_route_that_somebody_changed_since_the_check_is_looked_at_again():
    table = RouteTable()
    rollback = switch(table)
    assert rollback.check(request()).outcome is Outcome.DONE
    table.set("digits", {"1": 0.5, "3": 0.5}, by="operator", reason="half of it")
    result = rollback.perform(request())
    assert result.outcome is Outcome.RETRY
    assert table.route("digits").shares == {"1": 0.5, "3": 0.5}
    # The next attempt is about the route as it is now, and keeps the operator's other half.
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert table.route("digits").shares == {"1": 0.5, "2": 0.5}


def test_a_route_that_somebody_changed_after_is_told():
    table = RouteTable()
    rollback = switch(table)
    assert rollback.perform(request()).outcome is Outcome.DONE
    table.set("digits", {"3": 1.0}, by="operator", reason="I know better")
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.BLOCKED
    assert "by operator: I know better" in seen.text


# --- undo -----------------------------------------------------------------------------------------


def test_an_operator_gets_the_shares_from_before():
    table = RouteTable(v1=0.25, v2=0.25, v3=0.5)
    assert switch(table).perform(request()).outcome is Outcome.DONE
    rollback = switch(table)  # another process: what it was is in the route's own reason
    assert rollback.undo(request()).outcome is Outcome.DONE
    route = table.route("digits")
    assert (route.shares, route.by) == ({"1": 0.25, "2": 0.25, "3": 0.5}, "operator")
    assert rollback.undo(request()).outcome is Outcome.DONE
    assert table.changes == 2
    again = rollback.perform(request())
    assert again.outcome is Outcome.BLOCKED
    assert "an operator undid it" in again.text


def test_a_route_that_was_set_since_is_not_undone():
    table = RouteTable()
    rollback = switch(table)
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert rollback.undo(request("another")).outcome is Outcome.BLOCKED
    table.set("digits", {"1": 1.0}, by="operator", reason="to be sure")
    result = rollback.undo(request())
    assert result.outcome is Outcome.BLOCKED
    assert "sidecar route" in result.text
    assert table.route("digits").shares == {"1": 1.0}


def test_a_long_reason_does_not_cost_the_record():
    table = RouteTable(v2=0.5, v3=0.5)
    rollback = switch(table)
    assert rollback.perform(request(reason="because " * 300)).outcome is Outcome.DONE
    assert len(table.route("digits").reason) <= 1000
    assert switch(table).perform(request(reason="because " * 300)).outcome is Outcome.DONE
    assert table.changes == 1
    assert switch(table).undo(request(reason="because " * 300)).outcome is Outcome.DONE
    assert rollback.perform(request()).outcome is Outcome.BLOCKED
    assert table.route("digits").shares == {"2": 0.5, "3": 0.5}


@pytest.mark.parametrize("reason", ["odd [decision", "ends in } ]", "ümläut [x] {y}"])
def test_any_reason_can_be_undone(reason):
    table = RouteTable(v2=0.5, v3=0.5)
    rollback = switch(table)
    assert rollback.perform(request(reason=reason)).outcome is Outcome.DONE
    assert rollback.undo(request()).outcome is Outcome.DONE
    assert table.route("digits").shares == {"2": 0.5, "3": 0.5}
