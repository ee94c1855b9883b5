"""A model's drift as it is shown (``view.py``)."""

from __future__ import annotations

from sidecar.monitor.drift_model import ModelDrift
from sidecar.monitor.view_drift import DriftUnit, DriftView
from validators.drift.state import State

#: Scores of the past that are shown of a unit.
SHOWN = 20


def view_of(model: ModelDrift, reference: str) -> DriftView:
    """All of one model. ``reference``: the name of its file, where it has one."""
    with model.lock:
        registered, windows = model.registered, model.windows
        source = registered.source if registered is not None else "collecting"
        collected = model.collector.rows if model.collector is not None else 0
        judged = model.last_judged
        columns = model.columns
        return DriftView(
            model=model.model.name,
            reference="" if registered is None else reference or "live",
            reference_source=source if model.phase != "failed" or registered else "",
            state=model.state,
            windows=windows.state.windows if windows is not None else 0,
            rows_in_window=windows.window.rows if windows is not None else 0,
            window_rows=model.model.drift.window_rows,
            last_window_wall_ns=judged.wall_ns if judged is not None else None,
            alarm_since_wall_ns=model.alarm_since_ns,
            units=_units(model),
            message=model.message,
            last_window_rows=judged.rows if judged is not None else 0,
            reference_rows=registered.reference.rows if registered is not None else collected,
            reference_rows_wanted=0 if registered is not None else model.model.drift.reference_rows,
            skipped=dict(sorted(model.skipped.items())),
            inferred=list(columns.inferred) if columns is not None else [],
        )


def _units(model: ModelDrift) -> list[DriftUnit]:
    judged, windows = model.last_judged, model.windows
    if judged is None or windows is None:
        return []
    past = [one for one in model.history if one.units is not None][-SHOWN:]
    scores: dict[str, list[float]] = {}
    for one in past:
        for unit in one.units or ():
            scores.setdefault(unit.unit, []).append(round(unit.score, 4))
    states = windows.state.units
    return [
        DriftUnit(
            unit=unit.unit,
            method=unit.method,
            value=unit.value,
            threshold=unit.threshold,
            score=unit.score,
            score_threshold=windows.state.threshold,
            state=str(states[unit.unit].state if unit.unit in states else State.INSUFFICIENT_DATA),
            detail=unit.detail,
            scores=scores.get(unit.unit, []),
        )
        for unit in judged.units or ()
    ]
