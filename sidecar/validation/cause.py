"""Why a variant differs: the value where it parts from the reference, and the input made small."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar import runtimes
from sidecar.clock import Clock, SystemClock
from sidecar.errors import RequestError, SidecarError
from sidecar.validation import isolated
from sidecar.validation.compare_sets import compare_rows
from sidecar.validation.layout import Caller, Layout, RaggedError, Rows
from sidecar.validation.localize import localize
from sidecar.validation.options import Outcome
from sidecar.validation.plan import Plan
from sidecar.validation.shrink import shrink
from sidecar.validation.tally import KeptRow
from validators.verdict import Verdict

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Runtime
    from sidecar.validation.divergence import Divergence
    from validators.policy import OutputPolicy

SHRUNK = "failure:shrunk"

#: Executions of both variants that shrinking may take.
BUDGET = 200


def explain(
    outcome: Outcome,
    plan: Plan,
    *,
    clock: Clock | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> None:
    """Localize every candidate that did not pass, on its worst row, and shrink that row.

    What is found goes into ``VariantResult.divergence`` and ``Outcome.rows``; what cannot be found
    becomes a note, never a verdict. A candidate that ended its process is not localized: that runs
    its graph in this one.
    """
    tell, clock = on_progress or (lambda _what: None), clock or SystemClock()
    if outcome.layout is None:
        return
    for variant in plan.candidates:
        result = outcome.result.variant(variant.key)
        if result is None or result.verdict is Verdict.PASS:
            continue
        if crash := outcome.crashes.get(variant.key):
            text = f"{variant.key} was not localized, which runs it in this process: {crash}"
            outcome.result.notes.append(text)
            continue
        row = _worst(outcome, variant.key)
        if row is None:
            text = f"{variant.key}: nothing to localize: no row was compared that disagrees"
            outcome.result.notes.append(text)
            continue
        tell(f"localizing {variant.key}")
        try:
            result.divergence = _located(outcome, plan, variant, row, clock).to_plain()
        # What a library makes of a broken graph must not cost the verdict that there is.
        except Exception as error:  # noqa: BLE001
            outcome.result.notes.append(f"{variant.key} was not localized: {_said(error)}")
        tell(f"shrinking an input of {variant.key}")
        try:
            smaller = _shrunk(outcome, plan.reference, variant, row, clock)
        except Exception as error:  # noqa: BLE001
            outcome.result.notes.append(f"{variant.key}: no input was shrunk: {_said(error)}")
            continue
        if smaller is not None:
            outcome.rows.append(smaller)


def _located(
    outcome: Outcome, plan: Plan, variant: VariantConfig, row: KeptRow, clock: Clock
) -> Divergence:
    assert outcome.layout is not None
    inputs = as_request(row.inputs, outcome.layout)
    if not variant.runtime.kind.startswith("tensorrt"):
        return localize(plan.reference, variant, inputs, clock=clock)
    from sidecar.validation.trt_cause import explain_engine

    expected = as_request(row.outputs[plan.reference.key], outcome.layout)
    return explain_engine(
        plan, variant, inputs, expected, load=lambda one: _load(outcome, one, clock), clock=clock
    )


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SidecarError) else f"{type(error).__name__}: {error}"


def as_request(rows: Rows, layout: Layout) -> Rows:
    """One row as a client would send it: without the axis that was added, if one was."""
    return rows if layout.batched else {name: array[0] for name, array in rows.items()}


def _worst(outcome: Outcome, key: str) -> KeptRow | None:
    found = [
        row for row in outcome.rows
        if row.variant == key and row.outputs and row.reason.startswith("failure:")
    ]  # fmt: skip
    return max(found, key=lambda row: (row.decides, row.score), default=None)


def _shrunk(
    outcome: Outcome, reference: VariantConfig, variant: VariantConfig, row: KeptRow, clock: Clock
) -> KeptRow | None:
    layout, policies = outcome.layout, outcome.policies.get(variant.key, {})
    assert layout is not None
    truth = Caller(reference.key, _load(outcome, reference, clock), layout, clock)
    sides = [truth]
    try:
        other = Caller(variant.key, _load(outcome, variant, clock), layout, clock)
        sides.append(other)

        def fails(rows: Rows) -> bool:
            return _fails(truth, other, rows, row.output, policies)

        if not fails(row.inputs):
            text = f"{variant.key}: row {row.row} of {row.input_set} agrees when it is run alone: "
            outcome.result.notes.append(text + "what it answers depends on the rows beside it")
            return None
        found = shrink(row.inputs, fails, BUDGET, batched=False)
        outputs = {side.key: side.run(found.inputs, 1) for side in sides}
    finally:
        for side in sides:
            side.runtime.close()
    before, after = found.values_before, found.values_left
    text = f"{variant.key}: of {before} values in row {row.row} of {row.input_set}, {after} "
    outcome.result.notes.append(text + ("is" if after == 1 else "are") + " enough to show it")
    return KeptRow(
        row.variant, row.input_set, row.row, row.output, SHRUNK, found.inputs, outputs,
        decides=row.decides, score=row.score,
    )  # fmt: skip


def _load(outcome: Outcome, variant: VariantConfig, clock: Clock) -> Runtime:
    return isolated.build(variant, clock) if outcome.isolated else runtimes.build(variant)


def _fails(
    truth: Caller, other: Caller, rows: Rows, output: str, policies: dict[str, OutputPolicy]
) -> bool:
    """Whether one output still disagrees; an input that one side refuses does not count."""
    try:
        expected = truth.run(rows, 1)
        found = other.run({name: rows[name] for name in rows.keys() & other.takes}, 1)
    except (RequestError, RaggedError):
        return False
    item = compare_rows(expected, found, policies).get(output)
    if item is None or item.problems:
        return False
    return bool(item.disagrees(policies[output].limits).any())
