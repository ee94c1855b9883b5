"""``sidecar replay``: a stored case, run again on any variants.

PASS: no row disagrees; FAIL: one does (a case is looked at because of its worst row, so that no
share of rows may be over a limit); INVALID: a variant failed, or its outputs cannot be compared.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from sidecar.cli.verdicts import console_for, exit_code, guarded, print_json, show
from sidecar.errors import RequestError, SidecarError
from validators.results import GroupResult, InputSet, OutputResult, RunResult, VariantResult
from validators.verdict import Verdict, worst

if TYPE_CHECKING:
    from sidecar.cases import Case
    from sidecar.clock import Clock
    from sidecar.config import ModelConfig, SidecarConfig, VariantConfig
    from sidecar.runtimes.base import Array, Runtime
    from sidecar.validation.layout import Caller, Layout, Rows
    from validators.policy import OutputPolicy

#: The name of the set of inputs that is the case.
INPUT_SET = "case"


class ReplayError(SidecarError):
    """A case cannot be run again: says why, and what to do."""


def run(case: str, config: Path | None, variants: Sequence[str] = (), as_json: bool = False) -> int:
    """Run a case again; return 0 PASS, 1 FAIL, 4 INVALID, 2 bad use.

    Args:
        case: a case's file, or ``FOLDER#ID``.
        config: where the variants are.
        variants: keys (``version/name``) to compare with the case's baseline; default: the case's
            own candidate.
        as_json: print JSON.
    """
    return guarded(lambda: _run(case, config, variants, as_json=as_json))


def _run(where: str, path: Path | None, variants: Sequence[str], *, as_json: bool) -> int:
    from sidecar.cases import load_case
    from sidecar.clock import SystemClock
    from sidecar.config import load

    case = load_case(where)
    _check_inputs(case)
    if path is None:
        message = f"say where the variants are: --config CONFIG (the case is of {case.model}, "
        message += f"{case.baseline} and {case.candidate})"
        raise ReplayError(message)
    result = replay(case, load(path), variants, SystemClock(), isolate=True)
    if as_json:
        print_json([result])
    else:
        show(console_for(), result)
    return exit_code([result])


def replay(
    case: Case,
    config: SidecarConfig,
    variants: Sequence[str],
    clock: Clock,
    *,
    isolate: bool = False,
) -> RunResult:
    """Run a case and compare.

    Args:
        case: with all of its inputs.
        config: where the variants are.
        variants: as ``run`` takes them.
        clock: for the report's time, and for timing.
        isolate: each variant in a process of its own: the case may be of one that crashed.

    Raises:
        ReplayError: the model or a variant is not in the config.
        ValidationInputError: a policy of the config does not fit the model's outputs.
    """
    model = _model(case, config)
    reference, candidates, note = _chosen(case, model, variants)
    with _Replay(case, model, reference, clock, isolate) as one:
        one.load([reference, *candidates])
        one.compare(candidates)
        return one.result(note)


def _check_inputs(case: Case) -> None:
    if case.can_be_replayed and case.inputs is not None:
        return
    lost = sorted(
        name.removeprefix("input:")
        for name, use in case.field_uses.items()
        if name.startswith("input:") and use != "keep"
    )
    which = f"input {', '.join(map(repr, lost))} was" if len(lost) == 1 else "its inputs were"
    message = f"case {case.id} cannot be run again: {which} not kept. Inputs may be personal, so "
    message += "that none is kept unless the config says so (monitor.cases.inputs: keep, or "
    message += "monitor.cases.fields: {NAME: keep}); cases that are stored from then on can be"
    raise ReplayError(message)


def _model(case: Case, config: SidecarConfig) -> ModelConfig:
    for model in config.models:
        if model.name == case.model:
            return model
    known = ", ".join(model.name for model in config.models)
    message = f"the case is of model {case.model!r}, which the config does not have: {known}"
    raise ReplayError(message)


def _chosen(
    case: Case, model: ModelConfig, keys: Sequence[str]
) -> tuple[VariantConfig, list[VariantConfig], str]:
    """The reference, what is compared with it, and how the reference was chosen."""
    known = {variant.key: variant for variant in model.variants}
    prefix = f"{case.model}:"
    baseline, candidate = (name.removeprefix(prefix) for name in case.variants)
    wanted = list(dict.fromkeys(keys)) or [candidate]
    for key in wanted:
        if key not in known:
            message = f"{model.name} has no variant {key!r} in this config; it has: "
            message += f"{', '.join(known)} (choose with --variant)"
            raise ReplayError(message)
    if baseline in known:
        note = "the case's baseline"
    else:
        baseline, note = wanted[0], f"the case's baseline, {baseline}, is not in this config"
    others = [known[key] for key in wanted if key != baseline]
    if not others:
        message = f"there is nothing to compare {baseline} with; name another with --variant: "
        raise ReplayError(message + ", ".join(key for key in known if key != baseline))
    return known[baseline], others, note


@dataclass(slots=True)
class _Replay:
    case: Case
    model: ModelConfig
    reference: VariantConfig
    clock: Clock
    isolate: bool
    results: dict[str, VariantResult] = field(default_factory=dict)
    loaded: dict[str, Runtime] = field(default_factory=dict)
    callers: dict[str, Caller] = field(default_factory=dict)
    answers: dict[str, Rows] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rows: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for runtime in self.loaded.values():
            runtime.close()

    # --- running ----------------------------------------------------------------------------------

    def load(self, variants: Sequence[VariantConfig]) -> None:
        """Load and run each; what fails is an error of that variant."""
        from sidecar import runtimes
        from sidecar.validation import isolated
        from sidecar.validation.layout import Caller, layout_of, rows_in

        for variant in variants:
            self.results[variant.key] = _described(variant)
            try:
                runtime = (
                    isolated.build(variant, self.clock) if self.isolate else runtimes.build(variant)
                )
            except Exception as error:  # noqa: BLE001 - a broken variant is a finding
                self.results[variant.key].errors.append(f"it cannot be loaded: {_said(error)}")
                continue
            self.loaded[variant.key] = runtime
            self.results[variant.key].device = runtime.placement.device
        reference = self.loaded.get(self.reference.key)
        if reference is None:
            return
        others = [r.signature for key, r in self.loaded.items() if key != self.reference.key]
        layout = layout_of(reference.signature, others)
        rows = self._rows(layout)
        self.rows = rows_in(rows)
        for key, runtime in self.loaded.items():
            caller = self.callers[key] = Caller(key, runtime, layout, self.clock)
            self.results[key].errors += caller.problems
            self.notes += [f"{key}: {note}" for note in caller.notes]
            if not caller.problems:
                self._call(key, rows)

    def _rows(self, layout: Layout) -> Rows:
        assert self.case.inputs is not None
        needed = [spec.name for spec in layout.specs if not spec.optional]
        absent = [name for name in needed if name not in self.case.inputs]
        if absent:
            message = f"the reference needs input {absent[0]!r}, which the case does not have; it "
            raise ReplayError(message + f"has: {', '.join(self.case.inputs)}")
        known = {spec.name for spec in layout.specs}
        kept = {name: array for name, array in self.case.inputs.items() if name in known}
        return kept if layout.batched else {n: array[np.newaxis] for n, array in kept.items()}

    def _call(self, key: str, rows: Rows) -> None:
        from sidecar.validation.layout import RaggedError

        caller = self.callers[key]
        feed = {name: rows[name] for name in rows.keys() & caller.takes}
        try:
            # In one call, as it was sent, if the variant takes so many rows.
            self.answers[key] = caller.run(feed, max(self.rows, 1))
        except RaggedError as error:
            self.results[key].errors.append(f"the rows of output {error} differ in shape")
        except RequestError as error:
            self.results[key].errors.append(f"it failed: {error}")

    # --- comparing --------------------------------------------------------------------------------

    def compare(self, candidates: Sequence[VariantConfig]) -> None:
        """Compare each with the reference, and with what was stored."""
        truth = self.answers.get(self.reference.key)
        self._compare_stored()
        for variant in candidates:
            result = self.results[variant.key]
            found = self.answers.get(variant.key)
            if truth is not None and found is not None:
                result.groups.append(self._group(variant.key, truth, found))
            _judge(result, self.results[self.reference.key].errors)

    def _group(self, key: str, truth: Rows, found: Rows) -> GroupResult:
        from sidecar.validation.compare_sets import compare_rows
        from sidecar.validation.policies import policies_for
        from sidecar.validation.precision import coarser
        from sidecar.validation.tally import Tally
        from validators.judge import Terms, judge_output

        precision = coarser(self.results[self.reference.key].precision, self.results[key].precision)
        policies: Mapping[str, OutputPolicy] = policies_for(
            self.model.validation, self.loaded[self.reference.key].signature, truth, precision, {}
        )
        tally = Tally(policies)
        tally.add(compare_rows(truth, found, dict(policies)), self.rows)
        group = GroupResult(INPUT_SET)
        for measured in tally.measured():
            policy = policies.get(measured.output)
            limits = policy.limits if policy is not None else ()
            judged = judge_output(measured, limits, Terms(0.5, 0.05), self._input_set())
            group.outputs.append(_strictly(judged))
        group.verdict = worst(output.verdict for output in group.outputs)
        return group

    def _compare_stored(self) -> None:
        """Say where a variant does not answer as it did: then it is not the one of the case."""
        prefix = f"{self.case.model}:"
        for name, outputs in self.case.outputs.items():
            key = name.removeprefix(prefix)
            for output, array in outputs.items():
                now = self.answers.get(key, {}).get(output)
                if now is not None:
                    batched = self.callers[key].layout.batched
                    stored = array if batched else array[np.newaxis]
                    self.notes.append(f"{key} {output}: {_against_stored(stored, now)}")

    # --- telling ----------------------------------------------------------------------------------

    def _input_set(self) -> InputSet:
        return InputSet(INPUT_SET, "case", self.case.id, self.rows)

    def result(self, note: str) -> RunResult:
        """Everything, as a run."""
        from sidecar import __version__
        from sidecar.config_validation import RETENTION_LIMITS
        from validators.results import RunSettings

        validation = self.model.validation
        reference = self.results[self.reference.key]
        reference.is_reference = True
        reference.verdict = Verdict.INVALID if reference.errors else Verdict.PASS
        reference.reasons = list(reference.errors)
        others = [item for item in self.results.values() if not item.is_reference]
        verdict = worst(item.verdict for item in others)
        settings = RunSettings(
            validation.retention_class, RETENTION_LIMITS[validation.retention_class],
            validation.alpha, seed=0,
        )  # fmt: skip
        return RunResult(
            model=self.model.name,
            created_at=datetime.fromtimestamp(self.clock.now_ns() // 10**9, UTC).isoformat(),
            tool_version=__version__,
            command=shlex.join(["sidecar", *sys.argv[1:]]),
            settings=settings,
            reference=self.reference.key,
            reference_note=note,
            inputs=[self._input_set()],
            variants=[reference, *others],
            verdict=Verdict.INVALID if reference.errors else verdict,
            reasons=[f"{item.key}: {text}" for item in others for text in item.reasons[:3]],
            notes=[f"case {self.case.id}: {', '.join(self.case.reasons)}", *self.notes],
        )


def _described(variant: VariantConfig) -> VariantResult:
    from sidecar.validation.precision import infer_precision

    result = VariantResult(variant.key, variant.runtime.kind)
    try:
        result.precision, result.precision_note = infer_precision(variant)
    except SidecarError as error:
        result.precision_note = f"not known: {error}"  # loading it will say the same
    return result


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, SidecarError) else f"{type(error).__name__}: {error}"


def _strictly(output: OutputResult) -> OutputResult:
    """Judge an output of one case: no row may disagree."""
    if output.problems or not output.rows:
        return output
    output.verdict = Verdict.FAIL if output.disagreements else Verdict.PASS
    if output.invalid_rows:
        output.verdict = Verdict.INVALID
    said = [reason for reason in output.reasons if " is not " in reason]
    agree = f"{output.disagreements} of {output.rows} rows disagree"
    output.reasons = [agree if output.disagreements else "every row agrees", *said]
    if output.invalid_rows:
        output.reasons.insert(1, f"{output.invalid_rows} not finite on one side only")
    return output


def _judge(result: VariantResult, errors_of_reference: Sequence[str]) -> None:
    result.reasons = list(result.errors)
    found = [Verdict.INVALID] if result.errors else []
    for group in result.groups:
        for output in group.outputs:
            found.append(output.verdict)
            if output.verdict is not Verdict.PASS:
                result.reasons += [f"{output.output!r}: {reason}" for reason in output.reasons]
    result.verdict = worst(found)
    if not found:
        said = "; ".join(errors_of_reference)
        result.reasons.append(f"nothing was compared: the reference did not answer ({said})")


def _against_stored(stored: Array, now: Array) -> str:
    if stored.shape != now.shape or stored.dtype != now.dtype:
        return (
            f"not as it was stored: {now.dtype} {list(now.shape)} now, {stored.dtype} "
            f"{list(stored.shape)} then"
        )
    if stored.dtype.kind == "O":
        same = stored.ravel().tolist() == now.ravel().tolist()
        return "as it was stored" if same else "not as it was stored"
    if stored.tobytes() == now.tobytes():
        return "as it was stored"
    with np.errstate(all="ignore"):
        delta = np.abs(now.astype(np.float64) - stored.astype(np.float64))
    finite = delta[np.isfinite(delta)]
    largest = f"{float(finite.max()):.3g}" if finite.size else "not finite"
    return f"not exactly as it was stored: largest difference {largest}"
