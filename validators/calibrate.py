"""Limits that fit the model at hand: never tighter than its own arithmetic allows.

A limit is the loosest of three: the table's; 2 or 3 times the error that the same precision shows
in the original framework against float64; twice the p99.9 of the reference's disagreement with
itself (same request, another batch composition). What the *candidate* shows against itself never
widens a limit: a candidate noisier than its limit fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.comparators.base import MetricSpec
from validators.dtypes import widen
from validators.limits import PRECISIONS, Limit
from validators.sketches import LogHistogram

Array = npt.NDArray[Any]
#: Metric → its values over rows, or for a metric of which more is worse, a histogram of them.
Measured = Mapping[str, Array | LogHistogram]

#: What stands for the worst of many rows.
_QUANTILE = 0.999
_NOISE_FACTOR = 2.0
#: Units of a metric in which less is worse, and 1 is perfect.
_SHARES = frozenset({"1", "share"})


def precision_factor(precision: str) -> float:
    """Times the error of the same precision against float64: 2, or 3 below fp32.

    As in PyTorch's own benchmark checks (``torch._dynamo.utils.same``). ValueError for an unknown
    precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"no precision {precision!r}; known: {', '.join(PRECISIONS)}")
    return 2.0 if precision in {"fp64", "fp32", "tf32"} else 3.0


def calibrate(
    limits: Sequence[Limit],
    specs: Mapping[str, MetricSpec],
    precision: str,
    *,
    against_float64: Measured | None = None,
    reference_noise: Measured | None = None,
) -> tuple[Limit, ...]:
    """The same limits, wider where the arithmetic needs it; ``source`` says where each came from.

    ``limits``: of one output; those whose source is not "default" were declared, and stay.
    ``specs``: of the kind (``comparators.metric_specs``). ``against_float64``: metrics of the same
    model in ``precision``, in its original framework, against float64. ``reference_noise``:
    metrics of the reference against itself.

    A limit of 0 (no flips, nothing unequal) stays: its noise is a rate, and shown as one
    (``noise.py``). So does one that would be so wide as to allow anything.

    ValueError for a limit on an unknown metric, and for a histogram of a metric of which less is
    worse.
    """
    factor = precision_factor(precision)
    sources = (
        (factor, against_float64, f"{factor:g} × {precision} against float64"),
        (_NOISE_FACTOR, reference_noise, f"{_NOISE_FACTOR:g} × the reference against itself"),
    )
    return tuple(_widest(limit, specs, sources) for limit in limits)


def _widest(
    limit: Limit,
    specs: Mapping[str, MetricSpec],
    sources: Sequence[tuple[float, Measured | None, str]],
) -> Limit:
    if limit.metric not in specs:
        raise ValueError(f"no metric {limit.metric!r}; known: {', '.join(specs)}")
    spec, chosen = specs[limit.metric], limit
    if limit.source != "default" or (limit.op == "<=" and limit.value == 0):
        return limit
    for factor, measured, text in sources:
        if measured is None or limit.metric not in measured:
            continue
        worst, rows = worst_of(measured[limit.metric], limit)
        value = _scaled(worst, factor, spec)
        if not math.isfinite(value) or not limit.violated(value):
            continue  # nothing measured, or the table is wider
        source = f"{text} (p99.9 of {rows} rows: {worst:.3g})"
        if spec.worse == "lower" and spec.unit in _SHARES and value <= 0:
            return replace(limit, source=f"default; {source} would allow anything")
        if chosen is limit or chosen.violated(value):
            chosen = Limit(limit.metric, limit.op, value, source)
    return chosen


def _scaled(worst: float, factor: float, spec: MetricSpec) -> float:
    """A metric's value for ``factor`` times the error of ``worst``; NaN if it is no error."""
    if spec.worse == "higher":
        return factor * worst
    if spec.unit == "dB":
        return worst - 20 * math.log10(factor)
    return 1 - factor * (1 - worst) if spec.unit in _SHARES else math.nan


def worst_of(values: Array | LogHistogram, limit: Limit) -> tuple[float, int]:
    """(p99.9 on the bad side of ``limit``, number of rows it applies to); NaN of none.

    ValueError for a histogram where less is worse: it holds no signed values.
    """
    if isinstance(values, LogHistogram):
        if limit.op == ">=":
            raise ValueError(f"{limit.metric}: less is worse, which needs the values themselves")
        return values.quantile(_QUANTILE), values.count
    known = np.sort(values[~np.isnan(values)])
    if not known.size:
        return math.nan, 0
    at = math.ceil(_QUANTILE * known.size) - 1  # a value that was seen
    return float(known[at] if limit.op == "<=" else known[known.size - 1 - at]), known.size


def too_noisy(limits: Sequence[Limit], candidate_noise: Measured) -> tuple[str, ...]:
    """Why a candidate fails by itself: its own reruns (p99.9) are beyond a limit. Empty: it is not.

    ``candidate_noise``: metrics of the candidate against itself, in another batch composition.
    """
    found = []
    for limit in limits:
        if limit.metric not in candidate_noise:
            continue
        worst, rows = worst_of(candidate_noise[limit.metric], limit)
        if bool(limit.violated(worst)):
            found.append(
                f"it disagrees with itself: {limit.metric} is {worst:.3g} at p99.9 of {rows} rows "
                f"run again in another batch, and the limit is {limit.op} {limit.value:g}"
            )
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Arbitration:
    """Which of two is nearer to the truth, float64."""

    candidate_rmse: float
    reference_rmse: float
    allowed: float

    @property
    def passed(self) -> bool:
        """Whether the candidate is about as near as the reference."""
        return self.candidate_rmse <= self.allowed

    @property
    def sentence(self) -> str:
        """With the numbers."""
        return (
            f"against float64 the candidate is off by {self.candidate_rmse:.3g} (root mean "
            f"square), the reference by {self.reference_rmse:.3g}; allowed: {self.allowed:.3g}"
        )


def arbitrate(
    candidate: Array, reference: Array, float64: Array, precision: str, tolerance: float
) -> Arbitration:
    """RMSE(candidate, f64) ≤ m·RMSE(reference, f64) + tolerance/10, m = ``precision_factor``.

    Arrays of one shape, any float type; values that are not finite must be so in all three, and
    are left out. ``tolerance``: absolute, in the output's unit. ValueError for other shapes, values
    finite on some sides only, and nothing finite at all.

    Source: ``torch._dynamo.utils.same``.
    """
    if not candidate.shape == reference.shape == float64.shape:
        raise ValueError(
            f"shapes differ: candidate {candidate.shape}, reference {reference.shape}, float64 "
            f"{float64.shape}"
        )
    sides = [widen(side).astype(np.float64) for side in (candidate, reference, float64)]
    finite = [np.isfinite(side) for side in sides]
    if not (np.array_equal(finite[0], finite[2]) and np.array_equal(finite[1], finite[2])):
        raise ValueError("some values are finite on one side only: nothing to arbitrate")
    if not finite[2].any():
        raise ValueError("no finite values: nothing to arbitrate")
    mine, theirs, truth = (side[finite[2]] for side in sides)
    errors = [float(np.sqrt(np.mean(np.square(side - truth)))) for side in (mine, theirs)]
    allowed = precision_factor(precision) * errors[1] + tolerance / 10
    return Arbitration(errors[0], errors[1], allowed)
