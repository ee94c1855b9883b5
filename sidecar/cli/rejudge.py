"""``sidecar rejudge``: other limits on what was measured; nothing is run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from sidecar.cli.verdicts import console_for, exit_code, guarded, print_json, show
from validators.results import RunResult


def run(
    report: Path, limits: Sequence[str], *, target: Path | None = None, as_json: bool = False
) -> int:
    """Judge a stored run again; exit codes are those of ``validate``.

    Args:
        report: the folder that ``validate --report`` wrote, or its ``report.json``.
        limits: ``OUTPUT.METRIC=">= 40"``; others stay as they were.
        target: a folder to write the new report to.
        as_json: print JSON.
    """
    return guarded(lambda: _run(report, limits, target, as_json=as_json))


def _run(report: Path, limits: Sequence[str], target: Path | None, *, as_json: bool) -> int:
    from sidecar.validation.files import ValidationInputError
    from sidecar.validation.policies import limits_from, parse_limits
    from sidecar.validation.store import check_extras, read_run
    from validators.rejudge import rejudge

    if target is not None:
        check_extras()
    before, metrics = read_run(report)
    texts = parse_limits(limits)
    given = limits_from(texts, _kinds(before))
    try:
        after = rejudge(before, metrics, given)
    except ValueError as error:
        message = f"{report}: {error}"
        raise ValidationInputError(message) from None
    for output, metrics_texts in texts.items():
        for metric, text in metrics_texts.items():
            after.settings.limits[f"{output}.{metric}"] = text
    _check_some_left(after)
    changed = changes(before, after)
    after.notes.append(f"judged again under other limits ({', '.join(limits) or 'the same ones'})")
    if target is not None:
        _write(after, report, target)
    if as_json:
        print_json([after], changed)
    else:
        console = console_for()
        show(console, after)
        for text in changed or ["nothing changed"]:
            console.print(f"changed: {text}" if changed else text, markup=False)
    return exit_code([after])


def _kinds(result: RunResult) -> dict[str, str]:
    return {
        output.output: output.kind
        for variant in result.variants
        for group in variant.groups
        for output in group.outputs
        if output.kind
    }


def _check_some_left(result: RunResult) -> None:
    from sidecar.validation.files import ValidationInputError

    masks = {item.name for item in result.inputs if item.kind == "nonfinite"}
    for variant in result.variants:
        for group in variant.groups:
            for output in group.outputs:
                if not output.limits and not output.problems and group.input_set not in masks:
                    message = f"--limit: output {output.output!r} would have no limit left, so "
                    raise ValidationInputError(message + "that nothing is judged")


def changes(before: RunResult, after: RunResult) -> list[str]:
    """What another judgement changed, a sentence each."""
    found = []
    if before.verdict is not after.verdict:
        found.append(f"{after.model}: {before.verdict} → {after.verdict}")
    for old, new in zip(before.variants, after.variants, strict=True):
        if old.verdict is not new.verdict:
            found.append(f"{new.key}: {old.verdict} → {new.verdict}")
        for one, other in zip(old.groups, new.groups, strict=True):
            for was, now in zip(one.outputs, other.outputs, strict=True):
                if (was.verdict, was.held) != (now.verdict, now.held):
                    found.append(
                        f"{new.key}, {other.input_set}, {now.output!r}: {was.verdict} with "
                        f"{was.held} rows → {now.verdict} with {now.held}"
                    )
    return found


def _write(result: RunResult, report: Path, target: Path) -> None:
    """Write the new report with the metrics and cases of the old one."""
    from exporters.reports import ReportError, write_report
    from sidecar.cases import iter_cases
    from sidecar.validation.files import is_case_folder
    from sidecar.validation.store import CASES, METRICS, StoreError

    source = report if report.is_dir() else report.parent
    if target.resolve() == source.resolve():
        message = f"{target} is the report that is judged again; write the new one elsewhere"
        raise StoreError(message)
    try:
        target.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / METRICS, target / METRICS)
        cases = {}
        if is_case_folder(source / CASES):
            shutil.copytree(source / CASES, target / CASES, dirs_exist_ok=True)
            cases = {case.id: case for case in iter_cases(target / CASES)}
        page = write_report(result, target, cases)
    except OSError as error:
        message = f"the report cannot be written to {target}: {error.strerror or error}"
        raise StoreError(message) from None
    except ReportError as error:
        raise StoreError(str(error)) from None
    print(f"report: {page}", file=sys.stderr)
