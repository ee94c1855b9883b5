"""One run: load the variants, run rows through them, compare, judge.

What is printed, stored or shown is made elsewhere from the ``Outcome``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from sidecar import runtimes
from sidecar.clock import Clock, SystemClock
from sidecar.errors import RequestError, SidecarError
from sidecar.validation import facts, isolated
from sidecar.validation.compare_sets import Policies, ReferenceFailedError, SetRunner, Side
from sidecar.validation.judging import Ran, judge
from sidecar.validation.labels import check_range, label_output
from sidecar.validation.layout import Caller, Layout, layout_of, pick
from sidecar.validation.options import Options, Outcome, Progress
from sidecar.validation.plan import Plan
from sidecar.validation.policies import policies_for
from sidecar.validation.precision import coarser, infer_precision
from sidecar.validation.sets import make_sets
from validators.results import VariantResult

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.runtimes.base import Array, Runtime


def validate(
    plan: Plan, options: Options, *, clock: Clock | None = None, on_progress: Progress | None = None
) -> Outcome:
    """Run a plan.

    Variants that cannot be loaded, or fail, are INVALID with the reason; the others go on.

    Raises:
        ValidationInputError: what was given does not fit: nothing was judged.
        MissingExtraError: an input file's kind needs an extra.
    """
    clock = clock or SystemClock()
    run = _Run(plan, options, clock, on_progress or (lambda *_: None))
    try:
        run.execute()
    finally:
        run.close()
    outcome = judge(run.ran, clock.now_ns())
    outcome.isolated, outcome.crashes = options.isolated, run.crashes
    return outcome


class _Run:
    def __init__(self, plan: Plan, options: Options, clock: Clock, on_progress: Progress) -> None:
        self.options, self.clock, self.on_progress = options, clock, on_progress
        self.reference = _side(plan.reference)
        self.reference.result.is_reference = True
        self.sides = [_side(variant) for variant in plan.candidates]
        self.ran = Ran(plan, options, self.reference, self.sides, [], [], None, None)
        self.crashes: dict[str, str] = {}
        self._starting: dict[str, isolated.Starting] = {}
        self._done = 0
        self._total = 0

    def execute(self) -> None:
        """Load, run and compare everything."""
        alone = self.options.one_at_a_time
        for side in [self.reference] if alone else [self.reference, *self.sides]:
            self._start(side)
        runtime = self._load(self.reference)
        if runtime is None:
            return
        loaded = {} if alone else {side.config.key: self._load(side) for side in self.sides}
        signatures = [found.signature for found in loaded.values() if found is not None]
        layout = self.ran.layout = layout_of(runtime.signature, signatures)
        self._attach(self.reference, runtime, layout)
        assert self.reference.caller is not None
        for side in self.sides:
            self._attach(side, loaded.get(side.config.key), layout)
        runner = self.ran.runner = SetRunner(
            self.reference, self._policies, batch_size=self.options.batch_size,
            advance=self._advance,
        )  # fmt: skip
        self.ran.sets, notes = make_sets(self.options, self.reference.caller, layout)
        self.ran.notes += notes
        passes = [[side] for side in self.sides] if alone else [self.sides]
        self._total = sum(data.rows for data in self.ran.sets) * len(passes)
        # What screening and probing took is not what the model takes.
        self.reference.caller.times_ns.clear()
        try:
            runner.label_output = self._label_output()
            for number, sides in enumerate(passes):
                if alone:
                    self._attach(sides[0], self._load(sides[0]), layout)
                for data in self.ran.sets:
                    runner.run(data, sides, first_pass=number == 0)
                if number == 0 and self.options.arbiter:
                    self._ask_arbiter(runner)
                if alone:
                    self._close(sides[0])
        except ReferenceFailedError as error:
            self.reference.result.errors.append(f"the reference did not answer {error}")

    def _start(self, side: Side) -> None:
        if self.options.isolated:
            self._starting[side.config.key] = isolated.start(side.config, self.clock)

    def _load(self, side: Side) -> Runtime | None:
        key = side.config.key
        self.on_progress(self._done, self._total, f"loading {key}")
        if key not in self._starting:
            self._start(side)
        starting = self._starting.pop(key, None)
        try:
            runtime = runtimes.build(side.config) if starting is None else starting.finish()
        except SidecarError as error:
            side.result.errors.append(f"it cannot be loaded: {error}")
            return None
        except Exception as error:  # noqa: BLE001 - a broken variant must not end the others' run
            side.result.errors.append(f"it cannot be loaded: {type(error).__name__}: {error}")
            return None
        side.result.device = runtime.placement.device
        return runtime

    def _attach(self, side: Side, runtime: Runtime | None, layout: Layout) -> None:
        if runtime is None:
            return
        side.caller = Caller(side.config.key, runtime, layout, self.clock)
        side.result.errors += side.caller.problems
        self.ran.notes += [f"{side.config.key}: {note}" for note in side.caller.notes]

    def _advance(self, rows: int, what: str) -> None:
        self._done += rows
        self.on_progress(self._done, self._total, what)

    def _policies(self, side: Side, sample: Mapping[str, Array]) -> Policies:
        assert self.reference.caller is not None
        precision = coarser(self.reference.result.precision, side.result.precision)
        return policies_for(
            self.ran.plan.model.validation, self.reference.caller.runtime.signature, sample,
            precision, self.options.limits,
        )  # fmt: skip

    def _ask_arbiter(self, runner: SetRunner) -> None:
        from sidecar.validation import arbiter

        rows = self.ran.sets[0].blocks[0]
        self.on_progress(self._done, self._total, "running the reference in float64")
        if not self.reference.policies:
            sample = runner.caller.run(pick(rows, 0, 1), 1)
            self.reference.policies = self._policies(self.reference, sample)
        runner.arbiter, said = arbiter.measure(
            self.reference.config, runner.caller, rows, self.reference.policies
        )
        self.ran.notes += [said] if said else []

    def _label_output(self) -> str:
        labelled = [data for data in self.ran.sets if data.labels is not None]
        if not labelled:
            return ""
        assert self.reference.caller is not None
        try:
            sample = self.reference.caller.run(pick(labelled[0].blocks[0], 0, 1), 1)
        except RequestError as error:
            raise ReferenceFailedError(f"row 0 of {labelled[0].name}", error) from None
        policies = self._policies(self.reference, sample)
        name = label_output(policies, sample, self.options.label_output)
        for data in labelled:
            assert data.labels is not None
            check_range(data.labels, sample[name], name, data.name)
        return name

    def close(self) -> None:
        """Free every copy."""
        for starting in self._starting.values():
            starting.close()
        for side in (self.reference, *self.sides):
            self._close(side)

    def _close(self, side: Side) -> None:
        if side.caller is None:
            return
        runtime = side.caller.runtime
        runtime.close()
        if isinstance(runtime, isolated.IsolatedRuntime) and runtime.crash:
            self.crashes[side.config.key] = runtime.crash


def _side(variant: VariantConfig) -> Side:
    result = VariantResult(variant.key, variant.runtime.kind)
    result.artifacts = facts.artifacts_of(variant)
    try:
        result.precision, result.precision_note = infer_precision(variant)
    except SidecarError as error:
        result.precision_note = f"not known: {error}"  # loading it will say the same
    return Side(variant, result)
