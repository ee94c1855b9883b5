"""How far two whole values are apart, and whether that is out of limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sidecar.validation.divergence import LocalizeError, ValueRow
from validators.comparators import build, metric_specs
from validators.dtypes import dtype_class, widen
from validators.limits import Limit

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array

_NOT_EQUAL, _NON_FINITE = "not_equal", "non_finite"


class ValueJudge:
    """Limits over whole values: each is one row of the comparator ``tensor``, whatever its axes.

    Floats are held to the limits; a value that is infinite or NaN on one side only is out of any.
    Integers and bools must be equal.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        """Take limits over the metrics of ``tensor``.

        Raises:
            LocalizeError: there are none, or one is over another kind's metric.
        """
        self._specs = metric_specs("tensor")
        for limit in limits:
            if limit.metric not in self._specs:
                message = "limits of a localization are over metrics of tensors: no "
                message += f"{limit.metric!r}; known: {', '.join(self._specs)}"
                raise LocalizeError(message)
        if not limits:
            message = "no limits: nothing would be judged; leave them out for the defaults"
            raise LocalizeError(message)
        self.limits = tuple(limits)
        self._tensor = build("tensor")

    def fill(self, row: ValueRow, expected: Array, local: Array, free: Array) -> None:
        """Measure a value's errors into its row.

        Args:
            row: gets the errors.
            expected: the reference's value.
            local: what the candidate's nodes make of the reference's values before it.
            free: what they make of the candidate's own. All of one shape and class of dtype.
        """
        row.dtype, row.shape = free.dtype.name, list(free.shape)
        of_local, of_total = self.errors(expected, local), self.errors(expected, free)
        local_metric, total_metric = self.violated(of_local), self.violated(of_total)
        row.local_out, row.total_out = bool(local_metric), bool(total_metric)
        row.metric = local_metric or total_metric or next(iter(of_local))
        row.local_error = self._in_metric(of_local, row.metric)
        row.total_error = self._in_metric(of_total, row.metric)
        row.inherited_error = self._in_metric(self.errors(local, free), row.metric)

    def differ(self, one: Array, other: Array) -> bool:
        """Whether two values of one shape and class differ beyond a limit."""
        return bool(self.violated(self.errors(one, other)))

    def errors(self, one: Array, other: Array) -> dict[str, float]:
        """The limited metrics of two values; the number of odd ones, where there are any.

        NaN where a metric does not apply.
        """
        if dtype_class(one.dtype) != "float":
            return {_NOT_EQUAL: float((one != other).sum())}
        one, other = widen(one), widen(other)
        odd = _one_sided(one, other)
        if odd:
            return {_NON_FINITE: float(odd)}
        found = self._tensor.compare(one[None], other[None]).metrics
        return {limit.metric: float(found[limit.metric][0]) for limit in self.limits}

    def violated(self, errors: dict[str, float]) -> str:
        """The first metric that is out of limits; ``""`` when none is."""
        for name in (_NON_FINITE, _NOT_EQUAL):
            if errors.get(name):
                return name
        for limit in self.limits:
            if limit.metric in errors and limit.violated(errors[limit.metric]):
                return limit.metric
        return ""

    def _in_metric(self, errors: dict[str, float], metric: str) -> float:
        if metric in errors:
            return errors[metric]
        if metric == _NON_FINITE:
            return 0.0  # none that is finite on one side only
        # Infinite on one side only: as far apart as the metric can say.
        return np.inf if self._specs[metric].worse == "higher" else -np.inf


def _one_sided(one: Array, other: Array) -> int:
    """Values infinite or NaN on one side only, or infinite of another sign."""
    odd = ~np.isfinite(one) | ~np.isfinite(other)
    if not odd.any():
        return 0
    left, right = one[odd], other[odd]
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    return int((~same).sum())
