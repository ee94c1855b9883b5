"""Evidently's statistical tests, called themselves: nothing is rendered, and no default decides.

For the child alone: importing this imports Evidently. Thresholds come from the reference: two
samples are drawn from it at the real sizes, again and again, in blocks of rows that belong
together, and tested by the same function (``validators/drift/tail.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from evidently.legacy.calculations.stattests import get_stattest
from evidently.legacy.core import ColumnType as TheirType

from sidecar.monitor.deep.job import Job, Plan, Side
from validators.drift.columns import ColumnType
from validators.drift.resample import draw_blocks
from validators.drift.tail import DRAWS_MIN, thresholds

Array = npt.NDArray[Any]

_TYPES = {
    ColumnType.NUMERIC: TheirType.Numerical,
    ColumnType.CATEGORICAL: TheirType.Categorical,
}
#: More draws change a threshold by less than it is uncertain anyhow.
DRAWS_MAX = 100
#: A p-value that is 0 in float64 is one that is smaller than this.
_P_MIN = 1e-300
#: Differences of a distance, or of −log₁₀ p, that mean nothing.
_LEAST_DISTANCE, _LEAST_LOG_P = 0.01, 0.3


@dataclass(frozen=True, slots=True)
class Tested:
    """One column. ``value``: ``None`` where there is nothing to test (``note`` says why).

    ``drifted``: as Evidently's test says for this threshold: p-values at most, distances at least.
    """

    name: str
    type: ColumnType
    method: str
    display: str
    value: float | None
    threshold: float | None
    drifted: bool
    is_p_value: bool
    note: str = ""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Thresholds by column, and the draws they rest on; empty with too few (``note`` says why)."""

    thresholds: dict[str, float]
    draws: int
    note: str = ""


def judge(job: Job, found: dict[str, float] | None = None) -> list[Tested]:
    """Test every column, in order; ``found``: thresholds of those that have none of their own."""
    known = found or {}
    before, now = _columns(job, job.reference), _columns(job, job.current)
    return [
        _judge_one(plan, before[plan.name], now[plan.name], known.get(plan.name))
        for plan in job.plans
    ]


def _judge_one(plan: Plan, before: Array, now: Array, found: float | None) -> Tested:
    threshold = found if plan.threshold is None else plan.threshold

    def untested(note: str, *, drifted: bool = False) -> Tested:
        method = plan.method
        return Tested(plan.name, plan.type, method, method, None, threshold, drifted, False, note)

    left, right = _finite(before), _finite(now)
    if not left.size:
        return untested("the reference has no finite value: nothing to compare with")
    if not right.size:
        return untested("no finite value is left", drifted=True)
    try:
        test, score = _test(plan, left, right, threshold)
    except (ValueError, ZeroDivisionError, FloatingPointError) as error:
        return untested(f"the test fails: {error}")
    value = float(score.drift_score)
    if math.isnan(value):
        return untested("the test gives no number")
    return Tested(
        plan.name, plan.type, test.name, test.display_name, value, float(score.actual_threshold),
        bool(score.drifted), _is_p_value(test),
    )  # fmt: skip


def _test(plan: Plan, left: Array, right: Array, threshold: float | None) -> tuple[Any, Any]:
    sides, kind = (pd.Series(left), pd.Series(right)), _TYPES[plan.type]
    test = get_stattest(*sides, kind, plan.method or None)
    return test, test(*sides, kind, threshold)


def calibrate(job: Job, now_s: Callable[[], float]) -> Calibrated:
    """Thresholds of the columns that have none; stops when ``calibrate_s`` is over."""
    plans = [plan for plan in job.plans if plan.threshold is None]
    if not plans or job.options.calibrate_s <= 0:
        return Calibrated({}, 0)
    sample = _columns(job, job.reference)
    rows = job.reference.rows
    block = min(job.options.block_rows, rows)
    size = job.options.calibrate_rows or job.current.rows
    rng = np.random.default_rng(0)
    ends_s = now_s() + job.options.calibrate_s
    draws: list[list[float]] = []
    while len(draws) < DRAWS_MAX and now_s() < ends_s:
        against, window = (
            draw_blocks(rows, many, block, 1, rng, aligned=job.options.aligned)[0]
            for many in (rows, size)
        )
        row = []
        for plan in plans:
            if now_s() >= ends_s:
                break
            row.append(_statistic(plan, sample[plan.name][against], sample[plan.name][window]))
        if len(row) == len(plans):  # else: out of time in the middle of a draw
            draws.append(row)
    if len(draws) < DRAWS_MIN:
        note = "Evidently's own thresholds are used, which tell of drift where there is none: "
        note += f"{len(draws)} draws of the reference in {job.options.calibrate_s:g} s are too few "
        return Calibrated({}, len(draws), note + "to find better ones; raise drift.deep.timeout_s")
    logs = np.array([_is_p_value(_choice(plan, sample[plan.name])) for plan in plans])
    least = np.where(logs, _LEAST_LOG_P, _LEAST_DISTANCE)
    levels = thresholds(np.array(draws), job.options.expected, least)
    # A p-value that is 0 everywhere has to stay one that can be reached.
    levels = np.where(logs, np.maximum(10.0 ** -np.maximum(levels, 0.0), _P_MIN), levels)
    named = zip(plans, levels.tolist(), strict=True)
    return Calibrated({p.name: level for p, level in named if math.isfinite(level)}, len(draws))


def _statistic(plan: Plan, before: Array, now: Array) -> float:
    """Larger for more drift: a distance, or −log₁₀ of a p-value; NaN where there is none."""
    left, right = _finite(before), _finite(now)
    if not left.size or not right.size:
        return math.nan
    try:
        test, score = _test(plan, left, right, None)
    except (ValueError, ZeroDivisionError, FloatingPointError):
        return math.nan
    value = float(score.drift_score)
    return -math.log10(max(value, _P_MIN)) if _is_p_value(test) else value


def _choice(plan: Plan, values: Array) -> Any:
    series = pd.Series(_finite(values))
    return get_stattest(series, series, _TYPES[plan.type], plan.method or None)


def _is_p_value(test: Any) -> bool:
    return str(test.display_name).endswith("p_value")


def _columns(job: Job, side: Side) -> dict[str, Array]:
    """By name, without looking for each anew."""
    numbers, codes = iter(side.numbers), iter(side.codes)
    return {
        plan.name: next(numbers if plan.type is ColumnType.NUMERIC else codes)
        for plan in job.plans
    }  # fmt: skip


def _finite(values: Array) -> Array:
    """What Evidently leaves of a column before it tests it."""
    return values if values.dtype.kind == "i" else values[np.isfinite(values)]
