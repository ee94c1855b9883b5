"""From measurements to the verdicts of an offline run; limits come in here and nowhere before.

So that a stored run can be judged again: ``Measured`` is what was measured of one output, and both
the runner and ``rejudge`` give it to the same functions. Why the rules are what they are is in
docs/decisions/0006-offline-verdicts.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.comparators import metric_specs
from validators.limits import Limit
from validators.results import (
    GroupResult,
    InputSet,
    LabelResult,
    MetricSummary,
    OutputResult,
    RunResult,
    VariantResult,
    to_plain,
)
from validators.sequential.certificate import certify_offline, percent
from validators.statistics import requests_needed
from validators.verdict import Verdict, worst

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Terms:
    """What is promised: at most ``limit`` of the rows disagree, with a risk of ``alpha``."""

    limit: float
    alpha: float


@dataclass(slots=True)
class Measured:
    """One output of one variant on one input set, before any limit.

    Attributes:
        output, kind, inferred: as in ``OutputResult``.
        invalid: bool [rows], non-finite on one side only.
        metrics: metric → float64 [rows]; NaN where it does not apply.
        sketches: name → ``LogHistogram`` in plain form.
        problems: wrong in structure; then nothing was measured.
    """

    output: str
    kind: str = ""
    inferred: str = ""
    invalid: Array = field(default_factory=lambda: np.zeros(0, np.bool_))
    metrics: dict[str, Array] = field(default_factory=dict)
    sketches: dict[str, dict[str, Any]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many were compared."""
        return len(self.invalid)


def violations(measured: Measured, limits: Sequence[Limit]) -> dict[str, Array]:
    """Metric → bool [rows], over its limit."""
    return {
        limit.metric: limit.violated(measured.metrics[limit.metric])
        for limit in limits
        if limit.metric in measured.metrics
    }


def disagrees(measured: Measured, limits: Sequence[Limit]) -> Array:
    """bool [rows]: over any limit, or non-finite on one side only."""
    found = measured.invalid.copy()
    for over in violations(measured, limits).values():
        found |= over
    return found


def summarize(values: Array, *, over: int = 0, unit: str = "", worse: str = "") -> MetricSummary:
    """Summarize a metric over rows; quantiles are values that were seen (inverse of the CDF)."""
    values = np.sort(values[~np.isnan(values)])
    count = len(values)
    if not count:
        values = np.array([math.nan])

    def quantile(share: float) -> float:
        return float(values[max(0, math.ceil(share * len(values)) - 1)])

    # Infinite decibels are equal rows: the mean is infinite then, or NaN with both infinities.
    with np.errstate(invalid="ignore"):
        mean = float(np.mean(values))
    return MetricSummary(
        count=count, mean=mean, min=float(values[0]), p50=quantile(0.5), p90=quantile(0.9),
        p99=quantile(0.99), p999=quantile(0.999), max=float(values[-1]), violations=over, unit=unit,
        worse=worse,
    )  # fmt: skip


# --- one output -----------------------------------------------------------------------------------


def judge_output(
    measured: Measured,
    limits: Sequence[Limit],
    terms: Terms,
    input_set: InputSet,
    origin: Measured | None = None,
) -> OutputResult:
    """Judge one output on one input set.

    INVALID: structure, no rows, or a row that is not finite on one side only. On given data:
    a certificate (Clopper-Pearson) that at most ``terms.limit`` of the rows disagree. On generated
    rows, which are a sample of nothing: FAIL when a larger share than that disagrees, else PASS.
    Of a ``batch`` set only rows that agree in their set of origin are held against the variant:
    FAIL when a larger share than that, or half of the rows of one batch size, agree there alone.

    Args:
        measured: on this input set.
        limits: of the output's metrics.
        terms: of the promise.
        input_set: where the rows come from.
        origin: of a ``batch`` set: what was measured on the set of its origin.
    """
    result = OutputResult(measured.output, measured.kind, measured.inferred)
    if measured.problems:
        result.problems = list(measured.problems)
        result.reasons = list(measured.problems)
        return result
    only_masks = input_set.kind == "nonfinite"
    result.limits = [] if only_masks else list(limits)
    result.rows = measured.rows
    result.sketches = dict(measured.sketches)
    if not measured.rows:
        result.reasons = ["no rows were compared"]
        return result
    over = violations(measured, result.limits)
    specs = metric_specs(measured.kind)
    for name, values in measured.metrics.items():
        spec = specs.get(name)
        unit, worse = (spec.unit, spec.worse) if spec else ("", "higher")
        count = int(over[name].sum()) if name in over else 0
        result.metrics[name] = summarize(values, over=count, unit=unit, worse=worse)
    result.invalid_rows = int(measured.invalid.sum())
    if not only_masks and not result.invalid_rows and not any(
        summary.count for summary in result.metrics.values()
    ):  # fmt: skip
        result.reasons = ["no row has a finite value on either side, so nothing was compared"]
        return result
    result.disagreements = int(disagrees(measured, result.limits).sum())
    invalid = measured.invalid
    if origin is not None and not origin.problems and input_set.origin_rows:
        _decide_batches(result, measured, origin, terms, input_set)
        invalid = invalid & ~origin.invalid[np.array(input_set.origin_rows)]
    else:
        _decide(result, terms, input_set)
    result.reasons += [text for limit in result.limits if (text := _said(result, limit))]
    if count := int(invalid.sum()):
        rows = "row is" if count == 1 else "rows are"
        first = int(np.argmax(invalid))
        said = f"{count} {rows} not finite on one side only (the first: row {first})"
        result.verdict = Verdict.INVALID
        result.reasons.insert(0, said)
    return result


def _decide(result: OutputResult, terms: Terms, input_set: InputSet) -> None:
    k, n = result.disagreements, result.rows
    if input_set.kind == "data":
        certificate = certify_offline(k, n, terms.limit, terms.alpha)
        result.certificate = {**to_plain(certificate), "sentence": certificate.sentence}
        result.verdict = certificate.verdict
        result.reasons = [certificate.sentence]
        if certificate.verdict is Verdict.INCONCLUSIVE:
            missing = requests_needed(terms.limit, k, terms.alpha) - n
            result.reasons.append(f"{missing} more rows without a disagreement would certify it")
    else:
        failed = k > terms.limit * n
        result.verdict = Verdict.FAIL if failed else Verdict.PASS
        if k:
            said = f"{k} of {n} rows disagree, {'over' if failed else 'within'} "
            result.reasons = [said + percent(terms.limit)]
        else:
            result.reasons = [f"all {n} rows agree"]


def _decide_batches(
    result: OutputResult, measured: Measured, origin: Measured, terms: Terms, input_set: InputSet
) -> None:
    """Hold against the variant what another batch composition changed, and nothing else."""
    before = disagrees(origin, result.limits)[np.array(input_set.origin_rows)]
    changed = disagrees(measured, result.limits) & ~before
    k, n, start = int(changed.sum()), result.rows, 0
    result.known = result.disagreements - k
    known = f" ({result.known} more disagree there too)" if result.known else ""
    result.reasons = [
        f"{k} of {n} rows agree in {input_set.origin} and not in these batches{known}"
    ]
    bad = []
    for size in input_set.batch_sizes:
        if 2 * int(changed[start : start + size].sum()) >= size:
            bad.append(size)
        start += size
    if bad:
        sizes = ", ".join(map(str, bad))
        result.reasons.append(f"in batches of {sizes} rows, half of the rows or more do so")
    result.verdict = Verdict.FAIL if bad or k > terms.limit * n else Verdict.PASS


def _said(result: OutputResult, limit: Limit) -> str:
    """What went over a limit, or ``""``."""
    summary = result.metrics.get(limit.metric)
    if summary is None or not summary.violations:
        return ""
    found = summary.max if limit.op == "<=" else summary.min
    unit = "" if summary.unit in {"", "1", "share"} else f" {summary.unit}"
    count = summary.violations
    rows = "1 row" if count == 1 else f"{count} rows"
    return f"{limit.metric} is not {limit.op} {limit.value:g}{unit} on {rows}; worst: {found:.4g}"


def judge_sets(
    measured: Mapping[str, Sequence[tuple[Measured, Sequence[Limit]]]],
    sets: Mapping[str, InputSet],
    terms: Terms,
) -> list[GroupResult]:
    """Judge every output on every input set.

    Args:
        measured: input set → what was measured of each output, and its limits.
        sets: by name.
        terms: of the promise.
    """
    by_output = {(name, m.output): m for name, items in measured.items() for m, _ in items}
    groups = []
    for name, items in measured.items():
        own = sets[name]
        group = GroupResult(name, decides=own.decides)
        for one, limits in items:
            origin = by_output.get((own.origin, one.output))
            # A variant that failed on the way has answered fewer rows than there are.
            if origin is not None and (origin.rows, one.rows) != (sets[own.origin].rows, own.rows):
                origin = None
            group.outputs.append(judge_output(one, limits, terms, own, origin))
        judge_group(group)
        groups.append(group)
    return groups


# --- a variant ------------------------------------------------------------------------------------


def judge_group(group: GroupResult) -> None:
    """Set a group's verdict: the worst of its outputs'."""
    group.verdict = worst(output.verdict for output in group.outputs)


def judge_variant(variant: VariantResult) -> None:
    """Set a variant's verdict, reasons and warnings from its groups, labels and errors.

    A group that does not decide counts only where structure is wrong; its differences become
    warnings. Labels that certify the retention by themselves settle what the disagreements of
    their output left open (never what they failed).
    """
    variant.reasons = list(variant.errors)
    variant.warnings = []
    found = [Verdict.INVALID] if variant.errors else []
    for group in variant.groups:
        judge_group(group)
        for output in group.outputs:
            where = f"{group.input_set}, {output.output!r}: "
            settled = _settled_by_labels(output, variant.labels)
            verdict = Verdict.PASS if settled else output.verdict
            if group.decides or output.problems:
                found.append(verdict)
                if verdict is not Verdict.PASS:
                    variant.reasons += [where + reason for reason in output.reasons]
            elif verdict is not Verdict.PASS:
                # What differs; that it "is over the limit" says nothing on rows that do not decide.
                variant.warnings += [where + reason for reason in output.reasons]
    if variant.labels is not None:
        found.append(variant.labels.verdict)
        if variant.labels.verdict is not Verdict.PASS:
            variant.reasons += [f"labels: {reason}" for reason in variant.labels.reasons]
    variant.verdict = worst(found)
    if not found:
        variant.reasons.append("nothing was compared")
    if variant.verdict is Verdict.PASS:
        variant.reasons = [
            f"{group.input_set}, {output.output!r}: {output.reasons[0]}"
            for group in variant.groups
            for output in group.outputs
            if output.certificate is not None and output.reasons
        ]


def _settled_by_labels(output: OutputResult, labels: LabelResult | None) -> bool:
    return (
        labels is not None
        and labels.output == output.output
        and labels.verdict is Verdict.PASS
        and output.certificate is not None
        and output.verdict is Verdict.INCONCLUSIVE
    )


# --- a run ----------------------------------------------------------------------------------------

NOT_CERTIFIED = (
    "no data was given: the limits hold on generated inputs, and nothing is certified about what "
    "users send (give recorded inputs with --input)"
)


def judge_run(result: RunResult) -> None:
    """Set the verdict of the whole: the worst of all variants but the reference."""
    candidates = [variant for variant in result.variants if not variant.is_reference]
    reference = next((variant for variant in result.variants if variant.is_reference), None)
    result.reasons = []
    if reference is not None and reference.errors:
        result.reasons += [f"reference {reference.key}: {text}" for text in reference.errors]
    result.verdict = worst(variant.verdict for variant in candidates)
    if reference is not None and reference.errors:
        result.verdict = Verdict.INVALID
    for variant in candidates:
        if variant.verdict is not Verdict.PASS:
            result.reasons += [f"{variant.key}: {reason}" for reason in variant.reasons[:3]]
    if not candidates:
        result.reasons.append("no variant was compared")
    if not any(item.kind == "data" for item in result.inputs):
        result.reasons.append(NOT_CERTIFIED)
