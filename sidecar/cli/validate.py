"""``sidecar validate``: do the variants give the same answers?"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.cli.verdicts import console_for, exit_code, guarded, print_json, show

if TYPE_CHECKING:
    from sidecar.config import SidecarConfig
    from sidecar.validation.options import Options, Outcome, Progress
    from sidecar.validation.plan import Plan


@dataclass(frozen=True, slots=True)
class Request:
    """What was typed; ``sidecar validate --help`` says what each is."""

    config: Path
    model: str | None = None
    inputs: tuple[Path, ...] = ()
    labels: str | None = None
    label_output: str | None = None
    rows: int | None = None
    seed: int = 0
    batch_size: int | None = None
    reference: str | None = None
    variants: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()
    report: Path | None = None
    localize: bool = False
    arbiter: bool = False
    one_at_a_time: bool = False
    in_process: bool = False
    flip_budget: str | None = None
    as_json: bool = False


def run(request: Request) -> int:
    """Validate; return 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 4 INVALID, 2 bad use.

    Nothing is raised but KeyboardInterrupt: an error is printed, and is never taken for a FAIL.
    """
    return guarded(lambda: _run(request))


def _run(request: Request) -> int:
    from sidecar.config import load
    from sidecar.validation.options import Options
    from sidecar.validation.plan import plans
    from sidecar.validation.policies import parse_limits
    from sidecar.validation.store import StoreError, check_extras, check_folder, write_run

    config = load(request.config)
    options = Options(
        inputs=request.inputs,
        labels=request.labels,
        label_output=request.label_output,
        rows=request.rows,
        seed=request.seed,
        batch_size=request.batch_size,
        limits=parse_limits(request.limits),
        arbiter=request.arbiter,
        one_at_a_time=request.one_at_a_time,
        isolated=not request.in_process,
        command=shlex.join(["sidecar", *sys.argv[1:]]),
    )
    if request.flip_budget is not None:
        return _record_flips(request, config, options)
    found, notes = plans(
        config, model=request.model, reference=request.reference, variants=request.variants
    )
    if request.report is not None:
        check_extras()
        check_folder(request.report)
    if len(found) > 1:
        _check_shared(found, options)
    outcomes, unwritten = [], None
    for plan in found:
        outcome = _execute(plan, options, request)
        outcomes.append(outcome)
        if request.report is not None:
            folder = request.report if len(found) == 1 else request.report / _folder(plan)
            try:
                page = write_run(outcome, folder, config=request.config)
            except StoreError as error:
                unwritten = error  # the run itself is whole, and is shown
                continue
            print(f"report: {page}", file=sys.stderr)
    _print(outcomes, notes, as_json=request.as_json)
    if unwritten is not None:
        raise unwritten
    return exit_code([outcome.result for outcome in outcomes])


def _record_flips(request: Request, config: SidecarConfig, options: Options) -> int:
    """Compare versions, and record how many answers the new one may change; 0: it is recorded.

    The verdicts are shown, and are none on it: a version that was trained anew is meant to differ.
    """
    from sidecar.clock import SystemClock
    from sidecar.monitor.flip_budgets import FlipBudgets
    from sidecar.monitor.places import state_dir
    from sidecar.validation import flips
    from sidecar.validation.plan import plans

    assert request.flip_budget is not None
    stated = flips.parse_budget(request.flip_budget)
    if request.reference is None and not request.variants:
        found = flips.version_plans(config, request.model)
    else:
        found, _ = plans(
            config, model=request.model, reference=request.reference, variants=request.variants
        )
    if len(found) > 1:
        _check_shared(found, options)
    outcomes, budgets = [], []
    for plan in found:
        outcomes.append(_execute(plan, options, request))
        budgets += flips.measure(plan, outcomes[-1], stated, SystemClock().now_ns())
    _print(outcomes, [], as_json=request.as_json)
    budgets_of = FlipBudgets(state_dir(config, request.config.parent))
    budgets_of.record(budgets)
    for one in budgets:
        said = "stated" if one.stated else f"the upper bound at {100 * (1 - one.alpha):g} %"
        text = f"recorded: {one.new} may change {100 * one.budget:.3g} % of rows beside "
        text += f"{one.previous} ({said}; measured: {one.flips} of {one.rows})"
        print(text, file=sys.stderr)
    return 0


def _execute(plan: Plan, options: Options, request: Request) -> Outcome:
    from sidecar.validation.run import validate

    with _progress(plan) as on_progress:
        outcome = validate(plan, options, on_progress=on_progress)
        if request.localize:
            from sidecar.validation.cause import explain

            explain(outcome, plan, on_progress=lambda what: on_progress(0, 0, what))
    return outcome


def _check_shared(found: Sequence[Plan], options: Options) -> None:
    from sidecar.validation.files import ValidationInputError

    names = dict.fromkeys(plan.model.name for plan in found)
    if options.inputs and len(names) > 1:
        message = f"--input belongs to one model; say which: --model {' or --model '.join(names)}"
        raise ValidationInputError(message)


def _folder(plan: Plan) -> str:
    # Names hold letters, digits, '.', '_' and '-' only: see the config.
    return f"{plan.model.name}-{plan.reference.version}"


def _print(outcomes: Sequence[Outcome], notes: Sequence[str], *, as_json: bool) -> None:
    results = [outcome.result for outcome in outcomes]
    if as_json:
        print_json(results, notes)
        return
    console = console_for()
    for result in results:
        show(console, result)
    for note in notes:
        console.print(f"left out: {note}", markup=False)


@contextmanager
def _progress(plan: Plan) -> Iterator[Progress]:
    """A bar on standard error, where somebody looks at it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = console_for(stderr=True)
    columns = (TextColumn("{task.fields[model]}"), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.description}"))  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None, model=plan.model.name)

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)

        yield on_progress
