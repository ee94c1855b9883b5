"""Judging a stored run again, under other limits: nothing is run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.judge import Measured, Terms, judge_run, judge_sets, judge_variant
from validators.limits import Limit
from validators.results import INVALID_ROWS, OutputResult, RunResult

Array = npt.NDArray[Any]


def rejudge(
    result: RunResult,
    metrics: Mapping[tuple[str, str, str], Mapping[str, Array]],
    limits: Mapping[str, Sequence[Limit]],
    terms: Terms | None = None,
) -> RunResult:
    """Judge a stored run again.

    Args:
        result: as it was stored; it is not changed.
        metrics: (variant, input set, output) → metric → float64 [rows], and ``"invalid"`` → bool.
        limits: output → the limits that replace those of the same metrics; others stay.
        terms: of the certificate; default: those of the run.

    Raises:
        ValueError: an output's metrics are not stored, or do not fit the report.
    """
    again = RunResult.from_plain(result.to_plain())
    terms = terms or Terms(again.settings.retention_limit, again.settings.alpha)
    again.settings.retention_limit, again.settings.alpha = terms.limit, terms.alpha
    sets = {item.name: item for item in again.inputs}
    for variant in again.variants:
        if variant.is_reference:
            continue
        measured: dict[str, list[tuple[Measured, Sequence[Limit]]]] = {}
        for group in variant.groups:
            items = measured.setdefault(group.input_set, [])
            for output in group.outputs:
                found = metrics.get((variant.key, group.input_set, output.output))
                new = replaced(output.limits, limits.get(output.output, ()))
                items.append((_stored(output, found), new))
        variant.groups = judge_sets(measured, sets, terms)
        judge_variant(variant)
    judge_run(again)
    return again


def replaced(limits: Sequence[Limit], by: Sequence[Limit]) -> list[Limit]:
    """``limits`` with those of the same metrics replaced, and the others added.

    Those that were asked for come first, as they do in tables. A limit whose value is not finite
    takes the metric's limit away.
    """
    metrics = {limit.metric for limit in by}
    kept = [limit for limit in limits if limit.metric not in metrics]
    return [*(limit for limit in by if math.isfinite(limit.value)), *kept]


def _stored(output: OutputResult, found: Mapping[str, Array] | None) -> Measured:
    if output.problems:
        return Measured(output.output, output.kind, output.inferred, problems=list(output.problems))
    where = f"the stored metrics of output {output.output!r}"
    if found is None or INVALID_ROWS not in found:
        message = f"{where} are missing: the report is not whole"
        raise ValueError(message)
    metrics = {name: values for name, values in found.items() if name != INVALID_ROWS}
    if set(metrics) != set(output.metrics) or any(len(v) != output.rows for v in found.values()):
        message = f"{where} do not fit the report: they are of another run"
        raise ValueError(message)
    return Measured(
        output.output, output.kind, output.inferred, found[INVALID_ROWS].astype(np.bool_), metrics,
        output.sketches,
    )  # fmt: skip
