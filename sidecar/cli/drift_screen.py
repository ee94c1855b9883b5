"""What is shown of drift: a table a model, and the line of ``status`` and ``watch``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sidecar.cli.monitor_screen import clock_time, duration
from sidecar.monitor.view_drift import DriftUnit, DriftView

STYLES: Mapping[str, str] = {
    "ok": "green",
    "suspect": "yellow",
    "alarm": "bold red",
    "insufficient_data": "yellow",
    "not_watched": "bold red",
}
_NS = 1_000_000_000
_BARS = "▁▂▃▄▅▆▇█"
#: The top of a sparkline, in thresholds; the highest bar may be more.
_TOP = 2.0
#: Columns that a line names.
_NAMED = 3
#: Units that are shown of a model in order: those that are not ok, then the highest scores.
_SHOWN = 40


def drift_group(views: Sequence[DriftView], now_wall_ns: int) -> Group:
    """Draw every model."""
    if not views:
        return Group(Text("no model is watched for drift: set drift.enabled: true", "yellow"))
    parts: list[RenderableType] = []
    for view in views:
        parts += [*([Text()] if parts else []), *_model(view, now_wall_ns)]
    return Group(*parts)


def drift_line(view: DriftView) -> Text:
    """Of one model: its state, and what moved or how far it is."""
    line = Text("drift ", "bold")
    line.append(words(view.state), STYLES.get(view.state, "default"))
    line.append(f"  {_facts(view)}", "default")
    return line


def words(state: str) -> str:
    """A state for people."""
    return state.replace("_", " ")


def _facts(view: DriftView) -> str:
    if view.message and view.state == "not_watched":
        return view.message
    if view.reference_source == "collecting":
        if view.reference_rows >= view.reference_rows_wanted:
            return "calibrating on its first rows"
        return (
            f"collecting its reference: {view.reference_rows:,} of "
            f"{view.reference_rows_wanted:,} rows"
        )
    open_window = f"{view.rows_in_window:,} of {view.window_rows:,} rows in the open window"
    moved = [unit for unit in _ordered(view.units) if unit.state in {"alarm", "suspect"}]
    if moved:
        named = ", ".join(unit.unit for unit in moved[:_NAMED])
        more = f" and {len(moved) - _NAMED} more" if len(moved) > _NAMED else ""
        return f"{named}{more} ({view.windows:,} windows; {open_window})"
    return f"{view.windows:,} windows; {open_window}"


def _model(view: DriftView, now_wall_ns: int) -> Iterable[RenderableType]:
    title = Text(view.model, "bold")
    title.append("  ")
    title.append(words(view.state), STYLES.get(view.state, "default"))
    if view.alarm_since_wall_ns is not None:
        title.append(f" since {clock_time(view.alarm_since_wall_ns)}", "bold red")
    yield title
    yield Text(f"  {_reference(view)}")
    last = ""
    if view.last_window_wall_ns is not None:
        age = duration((now_wall_ns - view.last_window_wall_ns) / _NS)
        last = f"; the latest, {view.last_window_rows:,} rows, {age} ago"
    yield Text(
        f"  {view.windows:,} windows judged{last}; {view.rows_in_window:,} of "
        f"{view.window_rows:,} rows in the open one"
    )
    counted = ", ".join(f"{reason} {count:,}" for reason, count in view.skipped.items() if count)
    if counted:
        yield Text(f"  exchanges not counted: {counted}", "yellow")
    if view.message:
        yield Text(f"  {view.message}", "yellow")
    if view.units:
        yield _table(view.units)
    if view.report_html or view.report_json:
        yield Text(f"  latest deep report: {view.report_html or view.report_json}")
    for text in view.inferred:
        yield Text(f"  {text}", "dim")


def _reference(view: DriftView) -> str:
    if view.reference_source == "collecting":
        return _facts(view)
    if not view.reference:
        return "no reference"
    where = "its first rows" if view.reference_source == "live" else view.reference
    return f"against {where}, {view.reference_rows:,} rows"


def _ordered(units: Sequence[DriftUnit]) -> list[DriftUnit]:
    worst = {"alarm": 0, "suspect": 1}
    return sorted(units, key=lambda unit: (worst.get(unit.state, 2), -unit.score))


def _table(units: Sequence[DriftUnit]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("column", overflow="fold")
    table.add_column("method")
    table.add_column("value", justify="right")
    table.add_column("threshold", justify="right")
    table.add_column("state")
    table.add_column("windows", no_wrap=True)
    table.add_column("changed most", overflow="fold")
    shown = _ordered(units)
    for unit in shown[:_SHOWN]:
        table.add_row(
            Text(unit.unit), Text(unit.method), f"{unit.value:.3g}", f"{unit.threshold:.3g}",
            Text(words(unit.state), STYLES.get(unit.state, "default")),
            sparkline(unit.scores, unit.score_threshold), Text(unit.detail),
        )  # fmt: skip
    if len(shown) > _SHOWN:
        table.add_row(Text(f"… {len(shown) - _SHOWN} more, all under these", "dim"))
    return table


def sparkline(scores: Sequence[float], threshold: float) -> Text:
    """A bar a window; those over the threshold in red. Half the height is the threshold."""
    line = Text()
    top = _TOP * threshold if threshold > 0 else 1.0
    for score in scores:
        step = int(min(max(score / top, 0.0), 1.0) * (len(_BARS) - 1) + 0.5)
        line.append(_BARS[step], "red" if score > threshold else "green")
    return line
