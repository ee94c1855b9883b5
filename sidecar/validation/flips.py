"""Versions beside each other, on the rows of a validation: how many answers the new one changes.

A version that was trained anew is meant to change some. How many is measured here, or stated by
somebody who knows, and recorded for the monitor's checks (``sidecar/monitor/flip_budgets.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sidecar.monitor.flip_budgets import FlipBudget
from sidecar.monitor.plan import pair_identity
from sidecar.validation.files import ValidationInputError
from sidecar.validation.plan import Plan
from validators.statistics import clopper_pearson
from validators.verdict import Verdict

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, SidecarConfig
    from sidecar.validation.options import Outcome

#: What is typed to have the measured bound recorded.
MEASURED = "measured"


def parse_budget(text: str) -> float | None:
    """A stated share, or ``None`` for ``measured``.

    Raises:
        ValidationInputError: it is neither.
    """
    if text == MEASURED:
        return None
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        message = f"--flip-budget {text}: it is `{MEASURED}`, or a share between 0 and 1"
        raise ValidationInputError(message)
    return share


def version_plans(config: SidecarConfig, model: str | None = None) -> list[Plan]:
    """The runs that compare versions, as the monitor pairs them: the newest serving variant with
    the previous one, and each candidate with the newest.

    Raises:
        ValidationInputError: no such model, or none has two versions to compare.
    """
    models = [item for item in config.models if model in {None, item.name}]
    found = [plan for item in models for plan in _plans_of(item)]
    if not found:
        names = ", ".join(item.name for item in models) or repr(model)
        message = f"--flip-budget: {names} has no variant with the role previous or candidate to "
        raise ValidationInputError(message + "compare the serving one with")
    return found


def _plans_of(model: ModelConfig) -> list[Plan]:
    newest = [variant for variant in model.variants if "serving" in variant.roles][-1]
    previous = [variant for variant in model.variants if "previous" in variant.roles][:1]
    candidates = tuple(variant for variant in model.variants if "candidate" in variant.roles)
    plans = [Plan(model, old, (newest,), "the previous version") for old in previous]
    if candidates:
        plans.append(Plan(model, newest, candidates, "the version that serves"))
    return plans


def measure(plan: Plan, outcome: Outcome, stated: float | None, now_ns: int) -> list[FlipBudget]:
    """The budget of each candidate beside the plan's reference.

    Args:
        outcome: of running the plan on given rows.
        stated: what somebody states; ``None``: the measured bound.
        now_ns: wall clock.

    Raises:
        ValidationInputError: nothing was compared, more changes than was stated, …: nothing is to
            be recorded.
    """
    given = {data.name for data in outcome.result.inputs if data.kind == "data"}
    if not given:
        message = "--flip-budget needs rows as they are in production: give them with --input"
        raise ValidationInputError(message)
    created = datetime.fromtimestamp(now_ns // 10**9, UTC).isoformat()
    alpha = outcome.result.settings.alpha
    found = []
    for variant in plan.candidates:
        result = next(one for one in outcome.result.variants if one.key == variant.key)
        counts: dict[str, tuple[int, int]] = {}
        for group in result.groups:
            for output in group.outputs if group.input_set in given else ():
                flips, rows = counts.get(output.output, (0, 0))
                counts[output.output] = flips + output.disagreements, rows + output.rows
        what = f"{variant.key} beside {plan.reference.key}"
        has_rows = counts and all(rows for _, rows in counts.values())
        if result.errors or result.verdict is Verdict.INVALID or not has_rows:
            why = "; ".join((result.errors or result.reasons)[:1]) or "no rows were compared"
            raise ValidationInputError(f"--flip-budget: {what} cannot be compared: {why}")
        flips, rows, upper, lower = _worst(list(counts.values()), alpha)
        if stated is not None and stated < lower:
            message = f"--flip-budget {stated:g}: {what} changes {flips} of {rows} rows already, "
            message += f"{100 * lower:.3g} % at least: alarms would be sure"
            raise ValidationInputError(message)
        if stated is None and not 0 < upper < 1:
            message = f"--flip-budget: {what} changes every row: there is no share under that"
            raise ValidationInputError(message)
        model = plan.model.name
        found.append(
            FlipBudget(
                pair_identity(variant, plan.reference), f"{model}:{variant.key}",
                f"{model}:{plan.reference.key}", upper if stated is None else stated, flips, rows,
                upper, alpha, stated is not None, created,
            )
        )  # fmt: skip
    return found


def _worst(counts: Sequence[tuple[int, int]], alpha: float) -> tuple[int, int, float, float]:
    """Of the output that changes most: flips, rows, and what its share is at most and at least.

    Clopper-Pearson, each bound of each output at alpha over the number of outputs, so that all
    hold together.
    """
    bounds = [(flips, rows, *clopper_pearson(flips, rows, alpha / len(counts)))
              for flips, rows in counts]  # fmt: skip
    flips, rows, lower, upper = max(bounds, key=lambda one: one[3])
    return flips, rows, upper, lower
