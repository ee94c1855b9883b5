"""From what a run measured to its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from sidecar import __version__
from sidecar.config_validation import RETENTION_LIMITS
from sidecar.validation import facts
from sidecar.validation.labels import judge_labels
from sidecar.validation.options import Options, Outcome
from sidecar.validation.precision import coarser
from sidecar.validation.sets import input_set
from validators.calibrate import calibrate
from validators.comparators import metric_specs
from validators.judge import Measured, Terms, judge_output, judge_run, judge_sets, judge_variant
from validators.results import (
    INVALID_ROWS,
    InputSet,
    LatencySummary,
    OutputResult,
    RunResult,
    RunSettings,
    metric_key,
)
from validators.verdict import Verdict

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array
    from sidecar.validation.compare_sets import Policies, SetRunner, Side
    from sidecar.validation.inputs import InputData
    from sidecar.validation.layout import Layout
    from sidecar.validation.plan import Plan
    from sidecar.validation.tally import Tally
    from validators.limits import Limit


@dataclass(slots=True)
class Ran:
    """A run that has ended: who took part, on which rows, what was measured."""

    plan: Plan
    options: Options
    reference: Side
    sides: Sequence[Side]
    sets: Sequence[InputData]
    notes: list[str]
    runner: SetRunner | None
    layout: Layout | None


def judge(ran: Ran, now_ns: int) -> Outcome:
    """Judge what was measured.

    Args:
        ran: the run.
        now_ns: wall-clock time, nanoseconds since the epoch.
    """
    validation = ran.plan.model.validation
    terms = Terms(RETENTION_LIMITS[validation.retention_class], validation.alpha)
    sets = {data.name: input_set(data) for data in ran.sets}
    everyone = [ran.reference, *ran.sides]
    written = ran.options.limits.items()
    texts = {f"{name}.{metric}": text for name, texts in written for metric, text in texts.items()}
    result = RunResult(
        model=ran.plan.model.name,
        created_at=datetime.fromtimestamp(now_ns // 10**9, UTC).isoformat(),
        tool_version=__version__,
        command=ran.options.command,
        settings=RunSettings(
            validation.retention_class, terms.limit, terms.alpha, ran.options.seed,
            ran.options.rows, texts,
        ),
        reference=ran.plan.reference.key,
        environment=facts.environment_of(side.config for side in everyone),
        reference_note=ran.plan.note,
        inputs=list(sets.values()),
        variants=[side.result for side in everyone],
        notes=ran.notes,
    )  # fmt: skip
    outcome = Outcome(result, layout=ran.layout)
    for side in everyone:
        side.result.latency = _latency(side)
    for side in ran.sides:
        side.policies = _calibrated(ran, side)
        outcome.policies[side.config.key] = side.policies
        _judge_groups(outcome, side, sets, terms)
        _judge_labels(ran, side, terms)
        judge_variant(side.result)
    result.noise = _noise(ran, terms)
    errors = ran.reference.result.errors
    ran.reference.result.verdict = Verdict.INVALID if errors else Verdict.PASS
    ran.reference.result.reasons = list(errors) or ["the others are compared with it"]
    judge_run(result)
    return outcome


def _judge_groups(outcome: Outcome, side: Side, sets: Mapping[str, InputSet], terms: Terms) -> None:
    measured: dict[str, list[tuple[Measured, Sequence[Limit]]]] = {}
    for name, tally in side.tallies.items():
        items = measured.setdefault(name, [])
        for found in tally.measured():
            policy = side.policies.get(found.output)
            items.append((found, policy.limits if policy else ()))
            if found.problems:
                continue
            key = (side.config.key, name, found.output)
            outcome.metrics[metric_key(*key, INVALID_ROWS)] = found.invalid
            for metric, values in found.metrics.items():
                outcome.metrics[metric_key(*key, metric)] = values
    side.result.groups = judge_sets(measured, sets, terms)
    outcome.rows += side.worst.rows()


def _calibrated(ran: Ran, side: Side) -> Policies:
    """A side's policies, whose default limits are no tighter than the reference's own noise.

    Never wider for what the candidate shows against itself: see ``validators.calibrate``.
    """
    runner = ran.runner
    if runner is None:
        return side.policies
    precision = coarser(ran.reference.result.precision, side.result.precision)
    noise = _metrics(runner.noise)
    # The error of fp32 against float64 says nothing about how far fp16 may be off.
    own = ran.reference.result.precision == precision
    exact = _metrics(runner.arbiter if own else None)
    found = {}
    for name, policy in side.policies.items():
        limits = calibrate(
            policy.limits, metric_specs(policy.kind), precision,
            against_float64=exact.get(name), reference_noise=noise.get(name),
        )  # fmt: skip
        for old, new in zip(policy.limits, limits, strict=True):
            if new.value != old.value:
                ran.notes.append(
                    f"{side.config.key}, {name!r}: the limit {old} became {new.value:.4g}: "
                    f"{new.source}"
                )
        found[name] = replace(policy, limits=limits)
    return found


def _metrics(tally: Tally | None) -> dict[str, dict[str, Array]]:
    if tally is None or not tally.rows:
        return {}
    return {found.output: found.metrics for found in tally.measured() if not found.problems}


def _judge_labels(ran: Ran, side: Side, terms: Terms) -> None:
    output = ran.runner.label_output if ran.runner is not None else ""
    if not output:
        return
    labelled = [
        data for data in ran.sets
        if data.labels is not None and _answered(side, data) and _answered(ran.reference, data)
        and not side.tallies[data.name].has_problem(output)
    ]  # fmt: skip
    if not labelled:
        return
    side.result.labels = judge_labels(
        output,
        [data.labels for data in labelled],
        [np.concatenate(ran.reference.predicted[data.name]) for data in labelled],
        [np.concatenate(side.predicted[data.name]) for data in labelled],
        terms,
    )


def _answered(side: Side, data: InputData) -> bool:
    """Whether every row has an answer in the output that labels are about."""
    return sum(map(len, side.predicted.get(data.name, ()))) == data.rows


def _noise(ran: Ran, terms: Terms) -> list[OutputResult]:
    noise = ran.runner.noise if ran.runner is not None else None
    if noise is None or not noise.rows:
        return []
    shown = InputSet("noise", "batch", "the reference again, row by row", noise.rows)
    policies = ran.reference.policies
    found = []
    for measured in noise.measured():
        policy = policies.get(measured.output)
        found.append(judge_output(measured, policy.limits if policy else (), terms, shown))
    return found


def _latency(side: Side) -> list[LatencySummary]:
    found = []
    for size, times in sorted(side.caller.times_ns.items()) if side.caller else ():
        p50, p99 = np.quantile(np.array(times) / 1e6, [0.5, 0.99])
        found.append(LatencySummary(size, len(times), float(p50), float(p99)))
    return found
