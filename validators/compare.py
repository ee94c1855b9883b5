"""Comparing the outputs of two variants: structure → non-finite masks → numbers.

Nothing is skipped silently. What cannot be compared is a problem with its sentence, and an output
with a problem is INVALID, never a pass. Nothing is guessed either: an output that only seems to
have another name on the other side is missing, with a hint.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.comparators import build
from validators.comparators.base import Comparator, Comparison
from validators.dtypes import dtype_class
from validators.limits import Limit
from validators.moments import SEGMENT
from validators.policy import OutputPolicy
from validators.sketches import LogHistogram

__all__ = ["OutputComparison", "OutputPolicy", "compare_outputs"]

Array = npt.NDArray[Any]


@dataclass(slots=True)
class OutputComparison:
    """One output of two variants.

    problems: why nothing could be compared: the output is INVALID and the rest is empty.
    invalid: bool [rows]: a value is NaN or infinite on one side only, or infinite with another
        sign; such a row disagrees, and its metrics are NaN.
    nonfinite_equal: values that are NaN, or the same infinity, on both sides: they agree, and
        the arithmetic leaves them out.
    metrics: name → float64 [rows]; NaN where a metric does not apply.
    """

    output: str
    kind: str
    rows: int = 0
    problems: tuple[str, ...] = ()
    invalid: Array = field(default_factory=lambda: np.zeros(0, dtype=np.bool_))
    nonfinite_equal: int = 0
    metrics: dict[str, Array] = field(default_factory=dict)
    sketches: dict[str, LogHistogram] = field(default_factory=dict)

    def violations(self, limits: Iterable[Limit]) -> dict[str, Array]:
        """Metric → bool [rows]; raises ValueError for a limit on a metric that was not measured."""
        found: dict[str, Array] = {}
        for limit in limits:
            if self.problems:
                found[limit.metric] = np.zeros(0, dtype=np.bool_)
                continue
            if limit.metric not in self.metrics:
                known = ", ".join(self.metrics)
                raise ValueError(
                    f"output {self.output!r} has no metric {limit.metric!r}; measured: {known}"
                )
            violated = limit.violated(self.metrics[limit.metric])
            found[limit.metric] = found.get(limit.metric, False) | violated
        return found

    def disagrees(self, limits: Iterable[Limit]) -> Array:
        """bool [rows]: an invalid row, or a limit violated."""
        result = self.invalid.copy()
        for violated in self.violations(limits).values():
            result |= violated
        return result


def compare_outputs(
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    policies: Mapping[str, OutputPolicy],
) -> dict[str, OutputComparison]:
    """Compare every output of two answers to the same request.

    Arrays are [rows, ...]; where the model has no batch dimension, the caller adds an axis.
    The result has an entry for every output that either side or `policies` names, except those
    that another output's comparator packs in (`Comparator.covers`) and that are on both sides.

    Raises ValueError when a policy itself is wrong (unknown kind, bad option): that is a mistake
    in the config, not in an answer.
    """
    built = {name: build(policy.kind, policy.options) for name, policy in policies.items()}
    covered = frozenset().union(*(comparator.covers() for comparator in built.values()))
    results: dict[str, OutputComparison] = {}
    for name in dict.fromkeys((*reference, *candidate, *policies)):
        both = name in reference and name in candidate
        if both and name in covered and name not in policies:
            continue
        kind = policies[name].kind if name in policies else ""
        problem = _structure(name, reference, candidate, built.get(name))
        if problem:
            results[name] = OutputComparison(name, kind, problems=(problem,))
        else:
            results[name] = _numbers(name, reference, candidate, built[name])
    return results


def _structure(
    name: str,
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    comparator: Comparator | None,
) -> str:
    """Why the output cannot be compared; empty when it can."""
    if name not in reference and name not in candidate:
        return "neither side has this output, but a policy names it"
    if name not in candidate:
        return f"the candidate lacks it{_renamed(reference[name], candidate, reference)}"
    if name not in reference:
        return f"the reference has no such output{_renamed(candidate[name], reference, candidate)}"
    if comparator is None:
        return "no policy says how to compare it"
    absent = sorted(comparator.covers() - (reference.keys() & candidate.keys()))
    if absent:
        return f"{comparator.kind} also needs output {absent[0]!r}, which is not on both sides"
    left, right = reference[name], candidate[name]
    try:
        classes = dtype_class(left.dtype), dtype_class(right.dtype)
    except ValueError as error:
        return str(error)
    if classes[0] != classes[1]:
        return (
            f"the reference is {classes[0]} ({left.dtype}), the candidate {classes[1]} "
            f"({right.dtype})"
        )
    if classes[0] not in comparator.accepts:
        return (
            f"{comparator.kind} compares {' and '.join(sorted(comparator.accepts))}, this is "
            f"{classes[0]} ({left.dtype}); give the output another kind"
        )
    return _shapes(left, right, comparator)


def _shapes(left: Array, right: Array, comparator: Comparator) -> str:
    if left.ndim != right.ndim:
        return f"the reference has {left.ndim} axes, the candidate {right.ndim}"
    if left.ndim == 0:
        return "a scalar has no rows; the caller gives it a first axis"
    if left.shape[0] != right.shape[0]:
        hint = (
            ": are the axes in another order?" if sorted(left.shape) == sorted(right.shape) else ""
        )
        return f"the reference has {left.shape[0]} rows, the candidate {right.shape[0]}{hint}"
    if left.shape[0] == 0:
        return "no rows, so nothing was compared"
    if not comparator.variable_length and left.shape != right.shape:
        return f"the reference has shape {left.shape}, the candidate {right.shape}"
    if not comparator.variable_length and left.size == 0:
        return f"rows of shape {left.shape[1:]} hold no values, so nothing was compared"
    return ""


def _renamed(lost: Array, there: Mapping[str, Array], here: Mapping[str, Array]) -> str:
    """A hint when an output that only one side has looks just like the one that is missing."""
    alike = [
        name
        for name, array in there.items()
        if name not in here and array.shape == lost.shape and array.dtype == lost.dtype
    ]
    if not alike:
        return ""
    return f"; {' or '.join(map(repr, alike))} has the same shape and type there: renamed?"


def _numbers(
    name: str,
    reference: Mapping[str, Array],
    candidate: Mapping[str, Array],
    comparator: Comparator,
) -> OutputComparison:
    try:
        left = comparator.gather(name, reference)
        right = comparator.gather(name, candidate)
        if comparator.looks_for_nonfinite:
            found = _checked(comparator.compare(left, right), left.shape[0])
            if found.all_finite:
                invalid = np.zeros(left.shape[0], dtype=np.bool_)
                return _result(name, comparator, found, invalid)
        return _masked(name, left, right, comparator)
    except Exception as error:  # noqa: BLE001 - whatever a comparator does wrong is a verdict
        problem = f"the {comparator.kind} comparator failed: {type(error).__name__}: {error}"
        return OutputComparison(name, comparator.kind, problems=(problem,))


def _masked(name: str, left: Array, right: Array, comparator: Comparator) -> OutputComparison:
    """Compare the rows whose values are finite at the same places."""
    rows = left.shape[0]
    invalid, equal = _nonfinite(left, right)
    if equal and equal == left.size:
        problem = "no finite value on either side, so nothing was compared"
        return OutputComparison(name, comparator.kind, problems=(problem,))
    valid = ~invalid
    count = int(np.count_nonzero(valid))
    if count == 0:
        nothing = {spec.name: np.zeros(0) for spec in comparator.metrics}
        found = Comparison(0, nothing)
    elif count < rows:
        found = _checked(comparator.compare(left[valid], right[valid]), count)
    else:
        found = _checked(comparator.compare(left, right), count)
    return _result(name, comparator, found, invalid, equal)


def _checked(found: Comparison, rows: int) -> Comparison:
    """Raise ValueError when a comparator says something about other rows than it was given."""
    if found.rows != rows or any(each.shape != (rows,) for each in found.metrics.values()):
        raise ValueError(f"it was given {rows} rows and told of others")
    return found


def _result(
    name: str, comparator: Comparator, found: Comparison, invalid: Array, equal: int = 0
) -> OutputComparison:
    metrics = found.metrics if found.rows == invalid.size else _scatter(found.metrics, invalid)
    return OutputComparison(
        name, comparator.kind, invalid.size, (), invalid, equal, metrics, found.sketches
    )


def _scatter(metrics: Mapping[str, Array], invalid: Array) -> dict[str, Array]:
    """Metrics of the valid rows at their places; NaN at the invalid ones."""
    spread = {}
    for name, values in metrics.items():
        spread[name] = np.full(invalid.shape, np.nan)
        spread[name][~invalid] = values
    return spread


def _nonfinite(left: Array, right: Array) -> tuple[Array, int]:
    """(bool [rows]: finite on one side only, count of values not finite but equal)."""
    rows = left.shape[0]
    if dtype_class(left.dtype) != "float" or dtype_class(right.dtype) != "float":
        return np.zeros(rows, dtype=np.bool_), 0
    if _surely_finite(left) and _surely_finite(right):
        return np.zeros(rows, dtype=np.bool_), 0
    finite_left, finite_right = np.isfinite(left), np.isfinite(right)
    if left.shape != right.shape:  # other lengths: there are no places to hold side by side
        whole = [np.all(each.reshape(rows, -1), axis=1) for each in (finite_left, finite_right)]
        return np.logical_not(np.logical_and(*whole)), 0
    same = (np.isnan(left) & np.isnan(right)) | (~finite_left & (left == right))
    bad = np.logical_not((finite_left & finite_right) | same)
    return np.any(bad.reshape(rows, -1), axis=1), int(np.count_nonzero(same))


def _surely_finite(values: Array) -> bool:
    """A quick look: the sum of squares is finite. False decides nothing (it may overflow)."""
    if values.size <= SEGMENT or values.dtype.itemsize < 4 or not values.flags.c_contiguous:
        return bool(np.isfinite(values).all())
    flat = values.reshape(-1)
    whole = flat.size - flat.size % SEGMENT
    body, rest = flat[:whole].reshape(-1, SEGMENT), flat[whole:]
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.vecdot(body, body).sum() + np.vecdot(rest, rest)))
