"""What is said of drift, in sentences: which columns moved, and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sidecar.monitor.drift_model import Closed
from validators.drift.calibrate import UnitScore
from validators.drift.state import State
from validators.verdict import Verdict

#: Columns that a sentence names.
_NAMED = 5


def event(closed: Closed) -> tuple[Verdict, str] | None:
    """The verdict and the sentence of a window that changed something; ``None``: it did not."""
    units = {unit.unit: unit for unit in closed.judged.scores or ()}
    new = [name for name in closed.alarms if name not in closed.alarms_before]
    if closed.after is State.ALARM and new:
        moved = [units[name] for name in closed.alarms if name in units]
        begun = "" if closed.before is not State.ALARM else "also "
        shown = [unit for unit in moved if unit.unit in new] if begun else moved
        count = f"{len(closed.alarms)} of {len(units)}" if units else f"{len(closed.alarms)}"
        return Verdict.FAIL, f"drift: {begun}{moved_text(shown)} ({count} in alarm)"
    if closed.before is State.ALARM and closed.after is not State.ALARM:
        names = _listed(closed.alarms_before)
        return Verdict.PASS, f"drift: over; {names}: like the reference again"
    if closed.after is State.INSUFFICIENT_DATA and closed.before in {State.OK, State.SUSPECT}:
        return (
            Verdict.INCONCLUSIVE,
            f"drift: not enough data: {closed.judged.rows} rows in the window",
        )
    return None


def moved_text(units: Sequence[UnitScore]) -> str:
    """``image.brightness moved (…), scores.top moved (…)``, the highest score first."""
    ordered = sorted(units, key=lambda unit: -unit.score)
    parts = []
    for unit in ordered[:_NAMED]:
        detail = f"; {unit.detail}" if unit.detail else ""
        numbers = f"{unit.method} {unit.value:.3g}, threshold {unit.threshold:.3g}"
        parts.append(f"{unit.unit} moved ({numbers}{detail})")
    more = len(ordered) - _NAMED
    return ", ".join(parts) + (f" and {more} more" if more > 0 else "")


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    more = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {more} more" if more > 0 else "")
