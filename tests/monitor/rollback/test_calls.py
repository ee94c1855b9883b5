"""The calls over real gRPC, what is drawn of their answers, the metrics, and the schedule."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from exporters import instruments
from sidecar.cli.rollback import exit_code
from sidecar.cli.rollback_screen import decisions_group, rollback_group, rollback_line
from sidecar.monitor import calls_rollback
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.measured_rollback import MeasuredRollback
from sidecar.monitor.rollback.schedule import Schedule
from sidecar.monitor.service import MonitorServer
from sidecar.monitor.view_messages import to_json
from tests.monitor.rollback.bench import Bench
from tests.monitor.views import FakeView

WITHIN_S = 60.0
TOKEN = "let-me-in"


class Side:
    """What the calls go to: a bench."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.views = bench.views.pairs
        self.decisions = bench.views.decisions
        self.freeze = bench.operators.freeze

    def models(self) -> tuple[str, ...]:
        return ("m",)

    def approve(self, name: str, *, by: str, reason: str):
        return self.bench.views.decision(self.bench.operators.approve(name, by=by, reason=reason))

    def undo(self, name: str, *, by: str, reason: str):
        return self.bench.views.decision(self.bench.operators.undo(name, by=by, reason=reason))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path, approve=True)
    yield made
    made.close()


@pytest.fixture
def client(bench: Bench) -> Iterator[MonitorClient]:
    methods = calls_rollback.methods(Side(bench))
    server = MonitorServer(FakeView(), methods=methods, admin_token=TOKEN)
    with MonitorClient(server.start("127.0.0.1:0"), timeout_s=WITHIN_S) as made:
        yield made
    server.stop(0)


def regress(bench: Bench) -> None:
    bench.pairs(2000, new_only=60)
    bench.check()
    bench.act()


def test_what_is_shown_goes_over_the_wire_whole(bench: Bench, client: MonitorClient):
    regress(bench)
    assert client.rollback() == [bench.view]
    assert client.rollback("m") == [bench.view]
    assert client.decisions() == bench.views.decisions(None, 20)
    [decision] = client.decisions("m", 1)
    assert [one.name for one in decision.deliveries] == ["ModelRollback"]
    assert to_json(bench.view)["metrics"][-1]["metric"] == "output"


def test_what_changes_something_needs_the_token(bench: Bench, client: MonitorClient):
    regress(bench)
    name = bench.decision().id
    for call in (
        lambda token: client.freeze("m", frozen=True, by="ann", token=token),
        lambda token: client.approve(name, by="ann", token=token),
        lambda token: client.undo(name, by="ann", token=token),
    ):
        with pytest.raises(MonitorCallError, match="Bearer") as none:
            call("")
        assert none.value.code == "UNAUTHENTICATED"
        with pytest.raises(MonitorCallError) as other:
            call("guessed")
        assert other.value.code == "PERMISSION_DENIED"
    assert bench.book.frozen("m") is None
    assert bench.decision().action_state == "waiting"
    assert client.freeze("m", frozen=True, by="ann", token=TOKEN)[0].frozen
    approved = client.approve(name, by="ann", reason="go", token=TOKEN)
    assert approved.action_text == "Approved by ann: go."
    closed = client.undo(name, by="ann", token=TOKEN)
    assert closed.resolved_wall_ns is not None


def test_wrong_calls_say_what_is_right(bench: Bench, client: MonitorClient):
    bench.check()
    with pytest.raises(MonitorCallError, match="no model 'x' is checked; there is m"):
        client.rollback("x")
    with pytest.raises(MonitorCallError, match="between 1 and 1000"):
        client.decisions("m", -1)
    with pytest.raises(MonitorCallError, match="no decision 'x'"):
        client.approve("x", by="ann", token=TOKEN)
    with pytest.raises(MonitorCallError, match="say who it is"):
        client.freeze("m", frozen=True, by="", token=TOKEN)


# --- what is drawn --------------------------------------------------------------------------------


def drawn(thing: object) -> str:
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_picture_has_the_evidence_and_the_story(bench: Bench):
    for _ in range(5):
        bench.pairs(100)
        bench.check()
    regress(bench)
    text = drawn(rollback_group([bench.view], bench.clock.now_ns()))
    assert "m  regressed since" in text
    assert "2/new beside 1/old; looked at" in text
    assert "m:2/new is worse than m:1/old at errors" in text
    assert "waiting" in text
    assert "evidence over what alerts, look by look" in text
    [row] = [line for line in text.splitlines() if line.strip().startswith("error")]
    assert "2,500" in row
    assert "█" in row
    assert "80 : 1" in row
    assert "300 : 1" in row
    [output] = [line for line in text.splitlines() if line.strip().startswith("output")]
    assert "never" in output
    assert "output drift only alerts" in output
    history = drawn(decisions_group(bench.views.decisions("m", 5)))
    assert bench.decision().id in history
    assert "ModelRollback to none: waiting" in history


def test_one_line_says_how_a_pair_stands(bench: Bench):
    bench.check()
    assert "rollback insufficient  2/new beside 1/old  0 of 100 pairs" in (
        rollback_line(bench.view).plain
    )
    regress(bench)
    bench.operators.freeze("m", frozen=True, by="ann", reason="")
    line = rollback_line(bench.view).plain
    assert "rollback regressed  2/new beside 1/old  frozen" in line
    assert "webhook waiting" in line


def test_nothing_to_show_says_what_to_do():
    assert "give a variant the role previous or candidate" in drawn(rollback_group([], 0))
    assert "nothing was decided yet" in drawn(decisions_group([]))


@pytest.mark.parametrize(
    ("states", "code"),
    [
        ([], 3), (["ok"], 0), (["ok", "insufficient"], 3), (["suspect"], 1), (["regressed"], 1),
        (["rolled_back", "ok"], 1), (["blocked"], 1),
    ],
)  # fmt: skip
def test_scripts_are_told_by_the_exit_code(bench: Bench, states: list[str], code: int):
    bench.check()
    assert exit_code([replace(bench.view, state=state) for state in states]) == code


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_say_what_the_view_says(bench: Bench):
    measured = MeasuredRollback(bench.views.pairs, lambda: {("m", "regressed", "error"): 1}, 7)
    bench.pairs(500)
    bench.check()
    list(measured.points())
    regress(bench)
    points = list(measured.points())

    def value(instrument: instruments.Instrument, **of: str) -> float:
        [found] = [
            point
            for point in points
            if point.instrument is instrument and of.items() <= dict(point.attributes).items()
        ]
        return found.value

    view = bench.view
    error = next(one for one in view.metrics if one.metric == "error")
    assert value(instruments.ROLLBACK_EVIDENCE, metric="error") == error.log_e
    assert value(instruments.ROLLBACK_THRESHOLD, metric="error") == error.threshold
    assert value(instruments.ROLLBACK_THRESHOLD_ACT, metric="error") == error.threshold_act
    assert value(instruments.ROLLBACK_STATE, state="regressed") == 1
    assert value(instruments.ROLLBACK_STATE, state="ok") == 0
    assert value(instruments.ROLLBACK_STALE) == 0
    assert value(instruments.ROLLBACK_FROZEN) == 0
    assert value(instruments.ROLLBACK_ACTION) == 1
    assert value(instruments.ROLLBACK_DECISIONS, state="regressed") == 1
    assert value(instruments.ROLLBACK_LAST_CHECK) == pytest.approx(view.checked_wall_ns / 1e9)
    assert value(instruments.ROLLBACK_PAIRS, metric="error") == 2000, "those since it is told"
    told = {point.attributes.get("metric") for point in points}
    assert "memory" not in told


# --- the schedule ---------------------------------------------------------------------------------


def until(check, what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not check():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.01)


def test_checks_come_at_intervals_one_at_a_time_whatever_they_raise():
    running, most, calls = [], [], []

    def check(model: str) -> None:
        running.append(1)
        most.append(len(running))
        calls.append(model)
        running.pop()
        raise RuntimeError("a fault")

    schedule = Schedule({"m": 0.05, "n": 3600}, check)
    schedule.start()
    until(lambda: calls.count("m") >= 4, "checks go on after one that raised")
    schedule.close()
    assert max(most) == 1
    assert calls.count("n") == 1, "at once, and then at its own interval"


def test_a_check_that_is_due_when_the_monitor_stops_is_skipped_and_said(caplog):
    entered, leave = threading.Event(), threading.Event()
    calls = []

    def check(model: str) -> None:
        calls.append(model)
        entered.set()
        leave.wait(WITHIN_S)

    schedule = Schedule({"m": 0.05}, check)
    schedule.start()
    assert entered.wait(WITHIN_S)
    schedule.close()
    leave.set()
    with caplog.at_level("INFO"):
        schedule._run("m")  # what was due meanwhile
    assert (len(calls), schedule.skipped) == (1, 1)
    assert "skipped: the monitor stops" in caplog.text
