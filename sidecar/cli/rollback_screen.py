"""What is shown of rollback: the evidence of each pair as a picture, a decision as a story, and the
line of ``status`` and ``watch``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.cli.drift_screen import sparkline
from sidecar.cli.monitor_screen import clock_time, duration
from sidecar.monitor.view_rollback import DecisionView, Delivery, HarmView, RollbackView

STYLES: Mapping[str, str] = {
    "insufficient": "yellow",
    "ok": "green",
    "suspect": "yellow",
    "regressed": "bold red",
    "rolled_back": "bold magenta",
    "blocked": "bold red",
}
_ACTIONS: Mapping[str, str] = {
    "waiting": "yellow", "pending": "yellow", "acting": "yellow", "verifying": "yellow",
    "done": "green", "blocked": "bold red", "failed": "bold red", "undone": "magenta",
}  # fmt: skip
_DELIVERED: Mapping[str, str] = {"sent": "green", "waiting": "yellow", "failed": "bold red"}
_NS = 1_000_000_000
#: Characters of a bar; the mark is where it alerts.
_BAR, _BAR_TO = 24, 1.5


def rollback_group(views: Sequence[RollbackView], now_wall_ns: int) -> Group:
    """Draw every pair."""
    if not views:
        text = "no versions are checked: give a variant the role previous or candidate"
        return Group(Text(text, "yellow"))
    parts: list[RenderableType] = []
    for view in views:
        parts += [*([Text()] if parts else []), *_pair(view, now_wall_ns)]
    return Group(*parts)


def rollback_line(view: RollbackView) -> Text:
    """Of one pair: its state, and how far its evidence is."""
    line = Text("rollback ", "bold")
    line.append(words(view.state), STYLES.get(view.state, "default"))
    if view.previous:
        line.append(f"  {view.new} beside {view.previous}")
    if view.frozen:
        line.append("  frozen", "cyan")
    if view.stale:
        line.append("  stale", "bold yellow")
    if view.state in {"insufficient", "blocked"}:
        line.append(f"  {view.text}")
    elif view.log_es:
        line.append("  ")
        line.append(sparkline(view.log_es, 1.0))
        line.append(f" {_share(view.log_es[-1])} of the evidence that alerts")
    if view.decision is not None and view.decision.action_state != "none":
        line.append(f"  {view.decision.action} {view.decision.action_state}")
    return line


def words(state: str) -> str:
    """A state for people."""
    return state.replace("_", " ")


def _share(value: float) -> str:
    return f"{100 * max(value, 0.0):.0f} %"


def _pair(view: RollbackView, now_wall_ns: int) -> Iterable[RenderableType]:
    title = Text(f"{view.model}  ", "bold")
    title.append(words(view.state), STYLES.get(view.state, "default"))
    if view.since_wall_ns:
        title.append(f" since {clock_time(view.since_wall_ns)}")
    if view.frozen:
        title.append(f"  frozen {view.frozen_text}", "cyan")
    if view.stale:
        title.append("  stale: no new pair comes", "bold yellow")
    yield title
    if view.previous:
        checked = "not looked at yet"
        if view.checked_wall_ns is not None:
            checked = f"looked at {duration((now_wall_ns - view.checked_wall_ns) / _NS)} ago"
        yield Text(f"  {view.new} beside {view.previous}; {checked}; action: {view.action}")
    yield Text(f"  {view.text}")
    if view.decision is not None:
        yield _action(view.decision)
    if view.log_es:
        chart = Text("  evidence over what alerts, look by look  ", "dim")
        chart.append(sparkline(view.log_es, 1.0))
        yield chart
    if view.metrics:
        yield _table(view.metrics)
    if view.calibration is not None:
        style = "default" if view.calibration.ok else "yellow"
        yield Text(f"  calibration of times: {view.calibration.text}", style)


def _action(decision: DecisionView) -> Text:
    line = Text("  ")
    if decision.action_state != "none":
        line.append(decision.action_state, _ACTIONS.get(decision.action_state, "default"))
        line.append("  ")
    line.append(decision.action_text or f"decision {decision.id}")
    if decision.id not in line.plain:
        line.append(f"  (decision {decision.id})", "dim")
    return line


def _table(metrics: Sequence[HarmView]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("harm", no_wrap=True)
    table.add_column("pairs", justify="right")
    table.add_column("only new", justify="right")
    table.add_column("only previous", justify="right")
    table.add_column("evidence", no_wrap=True)
    table.add_column("odds", justify="right", no_wrap=True)
    table.add_column("alerts at", justify="right", no_wrap=True)
    table.add_column("acts at", justify="right", no_wrap=True)
    table.add_column("held back because", overflow="fold")
    for harm in metrics:
        if not _tested(harm):
            table.add_row(harm.metric, "", "", "", Text(harm.text, "dim"), "", "", "", "")
            continue
        table.add_row(
            harm.metric, f"{harm.pairs:,}", f"{harm.new_only:,.6g}", f"{harm.previous_only:,.6g}",
            _bar(harm), odds(harm.log_e), odds(harm.threshold),
            odds(harm.threshold_act) if math.isfinite(harm.threshold_act) else "never",
            Text(harm.held, "yellow"),
        )  # fmt: skip
    return table


def _tested(harm: HarmView) -> bool:
    return math.isfinite(harm.threshold) and harm.threshold > 0


def _bar(harm: HarmView) -> Text:
    """As long as the evidence is; the mark is where it alerts, and beyond it all is red."""
    mark = round(_BAR / _BAR_TO)
    filled = round(min(max(harm.log_e / harm.threshold, 0.0), _BAR_TO) * mark)
    style = "red" if harm.log_e >= harm.threshold else "green"
    bar = Text()
    for at in range(_BAR):
        if at < filled:
            bar.append("█", style)
        elif at == mark:
            bar.append("│", "bold")
        else:
            bar.append("·", "dim")
    return bar


def odds(log_e: float) -> str:
    """Evidence as odds against chance."""
    if log_e >= math.log(1e6):
        return f"10^{log_e / math.log(10):.0f} : 1"
    value = math.exp(log_e)
    return f"{value:,.0f} : 1" if value >= 10 else f"{value:.2g} : 1"


def decisions_group(decisions: Sequence[DecisionView]) -> Group:
    """Draw decisions, each as a story: what, why, and what came of it."""
    if not decisions:
        return Group(Text("nothing was decided yet"))
    parts: list[RenderableType] = []
    for decision in decisions:
        parts += [*([Text()] if parts else []), *decision_lines(decision)]
    return Group(*parts)


def decision_lines(decision: DecisionView) -> Iterable[RenderableType]:
    """One decision."""
    title = Text(f"{decision.id}  ", "bold")
    title.append(f"{decision.model}  ")
    title.append(words(decision.state), STYLES.get(decision.state, "default"))
    title.append(f"  {clock_time(decision.wall_ns)}")
    if decision.resolved_wall_ns is not None:
        title.append(f"  closed {clock_time(decision.resolved_wall_ns)}", "dim")
    yield title
    yield Text(f"  {decision.text}")
    if decision.action_state != "none" or decision.action_text:
        line = Text(f"  {decision.action}: ")
        if decision.action_state != "none":
            line.append(decision.action_state, _ACTIONS.get(decision.action_state, "default"))
            line.append("  ")
        line.append(decision.action_text)
        yield line
    for delivery in decision.deliveries:
        yield _delivery(delivery)


def _delivery(delivery: Delivery) -> Text:
    line = Text(f"  {delivery.name} to {delivery.channel}: ")
    line.append(delivery.state, _DELIVERED.get(delivery.state, "default"))
    if delivery.sent_wall_ns is not None:
        line.append(f" {clock_time(delivery.sent_wall_ns)}")
    if delivery.error:
        line.append(f"  after {delivery.attempts} attempts: {delivery.error}", "yellow")
    return line
