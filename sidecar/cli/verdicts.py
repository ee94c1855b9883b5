"""What ``validate`` and ``rejudge`` show, and the exit codes that are a contract with CI."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from sidecar.errors import SidecarError
from validators.results import RunResult
from validators.verdict import Verdict, worst

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from validators.results import OutputResult, VariantResult

#: 2 is bad use, as in every command; 1 means FAIL and nothing else.
EXIT_CODES = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 3, Verdict.INVALID: 4}
BAD_USE = 2

_COLORS = {
    Verdict.PASS: "green", Verdict.FAIL: "red", Verdict.INCONCLUSIVE: "yellow",
    Verdict.INVALID: "magenta",
}  # fmt: skip


def guarded(command: Callable[[], int]) -> int:
    """Run a command; whatever stops it from judging ends with 2.

    Elsewhere an error ends with 1. Here 1 is a verdict, and a crash must not be taken for one, nor
    the other way round.
    """
    shown = "--debug" not in sys.argv
    try:
        code = command()
        _flush()  # here, where what it raises is no verdict either
        return code
    except SidecarError as error:
        said = str(error)
    except OSError as error:  # a full disk behind standard output
        said = error.strerror or str(error)
    except Exception as error:  # noqa: BLE001 - see above
        said = f"{type(error).__name__}: {error} (a mistake of this program: run it with --debug)"
    if not shown:
        traceback.print_exc()
    print(f"error: {said}", file=sys.stderr)
    return BAD_USE


def _flush() -> None:
    try:
        if sys.stdout is not None:  # it is where it was closed before the start
            sys.stdout.flush()
    except BrokenPipeError:
        _silence()


def _silence() -> None:
    """Nobody reads any more (``| head``): the exit code stays that of the verdict."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def exit_code(results: Sequence[RunResult]) -> int:
    """The exit code of the worst verdict."""
    return EXIT_CODES[worst(result.verdict for result in results)]


def print_json(results: Sequence[RunResult], notes: Sequence[str] = ()) -> None:
    """Print everything for programs."""
    document = {
        "verdict": str(worst(result.verdict for result in results)),
        "exit_code": exit_code(results),
        "notes": list(notes),
        "runs": [result.to_plain() for result in results],
    }
    try:
        print(json.dumps(document, indent=2, allow_nan=False))
    except BrokenPipeError:
        _silence()


def show(console: Console, result: RunResult) -> None:
    """Print a run for people: a table, then the reasons, then the verdict."""
    from rich.markup import escape

    note = f"  [dim]({escape(result.reference_note)})[/]" if result.reference_note else ""
    console.print(f"[bold]{escape(result.model)}[/]  against {escape(result.reference)}{note}")
    rows = [
        (variant.key, group.input_set, group.decides, output)
        for variant in result.variants
        for group in variant.groups
        for output in group.outputs
    ]
    if rows:
        console.print(_table(rows))
    for text in _batches(result):
        console.print(f"[dim]{escape(text)}[/]")
    for variant in result.variants:
        if variant.errors or not variant.is_reference:
            _show_variant(console, variant)
    for text in _inferred(result):
        console.print(f"[dim]{escape(text)}[/]")
    for text in result.notes:
        console.print(f"[dim]note: {escape(text)}[/]")
    console.print(f"{_colored(result.verdict)}  {escape(result.model)}")
    for reason in result.reasons if result.verdict is Verdict.PASS else ():
        console.print(f"    {escape(reason)}")


def _show_variant(console: Console, variant: VariantResult) -> None:
    from rich.markup import escape

    role = ", the reference" if variant.is_reference else ""
    console.print(f"{_colored(variant.verdict)}  [bold]{escape(variant.key)}[/]{role}")
    if (labels := variant.labels) is not None:
        console.print(
            f"    accuracy {labels.accuracy:.2%} (reference {labels.reference_accuracy:.2%}), "
            f"{labels.negative_flips} right answers lost, {labels.positive_flips} won, of "
            f"{labels.rows}"
        )
    for reason in variant.reasons:
        console.print(f"    {escape(reason.rstrip())}")
    for warning in variant.warnings:
        console.print(f"    [yellow]warning[/] {escape(warning)}")
    if variant.divergence is not None:
        console.print(f"    [cyan]cause[/] {escape(str(variant.divergence.get('text', '')))}")
    # A row that agrees is nothing to run again: the report has those that come closest.
    for case in [case for case in variant.worst if case.reason.startswith("failure:")][:3]:
        console.print(f"    [dim]{escape(case.reason)}[/] {escape(case.replay)}")


def _batches(result: RunResult) -> list[str]:
    """What the count of a ``batch`` set means, where rows disagree that did so before."""
    origins = {item.name: item.origin for item in result.inputs}
    known = {
        group.input_set
        for variant in result.variants
        for group in variant.groups
        for output in group.outputs
        if output.known
    }
    return [
        f"{name}: counted are the rows that only another batch changed; those that disagree in "
        f"{origins[name]} as well are held against the variant there"
        for name in sorted(known)
    ]


def _table(rows: Sequence[tuple[str, str, bool, OutputResult]]) -> RenderableType:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True)
    for column in ("variant", "inputs", "output", "rows", "disagree", "worst", "verdict"):
        right = column in {"rows", "disagree"}
        # Names are as long as they like: they are what gives way.
        wraps = column in {"variant", "inputs", "output", "worst"}
        table.add_column(
            column, justify="right" if right else "left", no_wrap=not wraps, overflow="fold"
        )
    before = ("", "")
    for key, name, decides, output in rows:
        warned = not decides and not output.problems and output.verdict is not Verdict.PASS
        verdict = "[yellow]warning[/]" if warned else _colored(output.verdict)
        # The table's own cells are text of files and models: never markup.
        table.add_row(
            "" if key == before[0] else escape(key),
            "" if (key, name) == before else escape(name), escape(output.output),
            str(output.rows), str(output.held), escape(_worst(output)), verdict,
        )  # fmt: skip
        before = (key, name)
    return table


def _worst(output: OutputResult) -> str:
    """The worst value of a metric beside its limit, the first that is violated.

    One metric, for a terminal of 80 columns; the others are in the report, and what is wrong with
    an output that could not be compared is told below the table.
    """
    if output.problems:
        return "see below"
    said = ""
    for limit in output.limits:
        summary = output.metrics.get(limit.metric)
        if summary is not None and summary.count:
            value = summary.max if limit.op == "<=" else summary.min
            # In two parts, so that a narrow column is broken before the limit and not within it.
            text = f"{limit.metric} {value:.4g} ({limit.op}{limit.value:g})"
            if summary.violations:
                return text
            said = said or text
    return said


def _inferred(result: RunResult) -> list[str]:
    found = [
        output.inferred
        for variant in result.variants
        for group in variant.groups
        for output in group.outputs
        if output.inferred
    ]
    notes = [
        f"{variant.key}: precision {variant.precision_note}"
        for variant in result.variants
        if variant.precision_note
    ]
    return [*dict.fromkeys(found), *notes]


def _colored(verdict: Verdict) -> str:
    return f"[bold {_COLORS[verdict]}]{verdict}[/]"


def console_for(**options: Any) -> Console:
    """A console that breaks no paths and marks nothing up by itself.

    In a file or a CI log lines are as long as they need to be: there is no width to fit into.
    """
    from rich.console import Console

    class _Console(Console):
        @override
        def on_broken_pipe(self) -> None:
            self.quiet = True
            _silence()  # rich would end the process with 1, which is FAIL

    console = _Console(highlight=False, soft_wrap=True, **options)
    if console.is_terminal:
        return console
    return _Console(highlight=False, soft_wrap=True, width=10_000, **options)
