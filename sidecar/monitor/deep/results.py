"""What a deep run found: as the child tells it, as the monitor believes it, and in words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sidecar.monitor.deep.job import Job, Side
from validators.drift.accuracy import AccuracyChange
from validators.drift.columns import ColumnType

if TYPE_CHECKING:
    from sidecar.monitor.deep.stattests import Calibrated, Tested

Array = npt.NDArray[Any]

#: Columns that a sentence names.
_NAMED_MAX = 5
#: A share of missing values that changed by less is not worth a word.
_MISSING_CHANGE = 0.01


class GarbageError(ValueError):
    """What came back is no result of the job."""


def evidently_version() -> str:
    """Of what is installed; empty: nothing is. Nothing is imported."""
    try:
        return version("evidently")
    except PackageNotFoundError:
        return ""


def to_plain(job: Job, tested: Sequence[Tested], found: Calibrated) -> dict[str, Any]:
    """What the child sends, JSON values."""
    return {
        "columns": [
            {
                "column": one.name,
                "type": one.type.value,
                "method": one.method,
                "method_name": one.display,
                "value": one.value if one.value is None or math.isfinite(one.value) else None,
                "threshold": one.threshold,
                "drifted_when": "at most" if one.is_p_value else "at least",
                "drifted": one.drifted,
                "missing": _shares(job, one.name, one.type, np.isnan),
                "infinite": _shares(job, one.name, one.type, np.isinf),
                "note": one.note,
            }
            for one in tested
        ],
        "calibrated": found.thresholds,
        "calibration_draws": found.draws,
        "calibration_note": found.note,
    }


def _shares(job: Job, name: str, kind: ColumnType, odd: Any) -> dict[str, float]:
    def share(side: Side) -> float:
        if kind is not ColumnType.NUMERIC or not side.rows:
            return 0.0
        return float(odd(job.column(side, name)).mean())

    return {"reference": share(job.reference), "current": share(job.current)}


def checked(job: Job, plain: Any) -> dict[str, Any]:
    """The same, believed: of this job's columns, with values of the types they must have.

    Raises:
        GarbageError: it is not.
    """
    try:
        columns = [_checked_column(plan.name, one) for plan, one in zip(
            job.plans, plain["columns"], strict=True
        )]  # fmt: skip
        levels = {str(name): _number(level) for name, level in plain["calibrated"].items()}
        return {
            "columns": columns,
            "calibrated": levels,
            "calibration_draws": int(plain["calibration_draws"]),
            "calibration_note": str(plain["calibration_note"]),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise GarbageError(f"what the child sent is no result of this run: {error!r}") from None


def _checked_column(name: str, one: Any) -> dict[str, Any]:
    if one["column"] != name or type(one["drifted"]) is not bool:
        raise ValueError(f"not about column {name!r}")
    texts = {
        key: str(one[key]) for key in ("type", "method", "method_name", "drifted_when", "note")
    }
    numbers = {
        key: None if one[key] is None else _number(one[key]) for key in ("value", "threshold")
    }
    shares = {
        key: {side: _number(one[key][side]) for side in ("reference", "current")}
        for key in ("missing", "infinite")
    }
    return {"column": name, **texts, **numbers, "drifted": one["drifted"], **shares}


def _number(value: Any) -> float:
    if type(value) not in {int, float} or not math.isfinite(value):
        raise ValueError(f"no number: {value!r}")
    return float(value)


def report(
    job: Job,
    plain: Mapping[str, Any],
    accuracy: AccuracyChange | None,
    *,
    reference_rows: int,
    made_wall_ns: int,
    made: str,
    seconds: float,
) -> dict[str, Any]:
    """The JSON that is kept: everything above, and what it comes to."""
    columns = plain["columns"]
    drifted = [one["column"] for one in columns if one["drifted"]]
    return {
        "version": 1,
        "model": job.options.model,
        "made": made,
        "made_wall_ns": made_wall_ns,
        "seconds": round(seconds, 3),
        "evidently": evidently_version(),
        "reference": {"rows": reference_rows, "rows_tested": job.reference.rows},
        "rows": job.current.rows,
        "summary": " ".join(sentences(job, plain)[:1] + accuracy_sentences(accuracy)),
        "drifted": bool(drifted) or (accuracy is not None and accuracy.verdict == "lower"),
        "columns_drifted": drifted,
        "share_drifted": len(drifted) / len(columns),
        "accuracy": None if accuracy is None else asdict(accuracy),
        "calibration": {
            "expected_runs_between_false_alarms": job.options.expected,
            "block_rows": job.options.block_rows,
            "draws": plain["calibration_draws"],
            "note": plain["calibration_note"],
        },
        "columns": columns,
    }


def sentences(job: Job, plain: Mapping[str, Any]) -> list[str]:
    """The run in words: what drifted, then what else is to be known."""
    columns = plain["columns"]
    drifted = [one["column"] for one in columns if one["drifted"]]
    where = f"{job.current.rows} live rows against {job.reference.rows} of the reference"
    if drifted:
        said = [f"{len(drifted)} of {len(columns)} columns drifted: {_names(drifted)} ({where})."]
    else:
        said = [f"None of {len(columns)} columns drifted ({where})."]
    changed = [
        f"{one['column']} {one[kind]['reference']:.1%} → {one[kind]['current']:.1%}"
        for one in columns
        for kind in ("missing", "infinite")
        if abs(one[kind]["current"] - one[kind]["reference"]) >= _MISSING_CHANGE
    ]
    if changed:
        said.append(f"Missing or infinite values, which no test sees, changed: {_names(changed)}.")
    notes = [f"{one['column']}: {one['note']}" for one in columns if one["note"]]
    if notes:
        said.append(f"Not tested: {_names(notes)}.")
    if plain["calibration_note"]:
        said.append(f"{plain['calibration_note']}.")
    return said


def accuracy_sentences(change: AccuracyChange | None) -> list[str]:
    """In words; none where no label is known."""
    if change is None:
        return []
    before, now = change.reference, change.current
    verdict = {"lower": "it fell", "higher": "it rose", "alike": "no change is shown"}
    return [
        f"Accuracy {now.rate:.1%} of {now.rows} labelled rows "
        f"({now.lower:.1%} to {now.upper:.1%}), "
        f"reference {before.rate:.1%} of {before.rows} ({before.lower:.1%} to {before.upper:.1%}): "
        f"{verdict[change.verdict]}."
    ]  # fmt: skip


def page_heading(job: Job, plain: Mapping[str, Any]) -> list[str]:
    """Title and lines over Evidently's page."""
    said = sentences(job, plain)
    return [f"Drift of {job.options.model}", *said, *job.options.heading]


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMED_MAX
    return ", ".join(names[:_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
