"""``sidecar reference``: what a model's traffic looks like when nothing is wrong, in a file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.cli.verdicts import console_for, guarded

if TYPE_CHECKING:
    from rich.console import Console

    from sidecar.config import ModelConfig, SidecarConfig
    from sidecar.monitor.drift_reference import RegisteredReference

_NUMERIC = "numeric"


@dataclass(frozen=True, slots=True)
class Request:
    """What was typed; ``sidecar reference --help`` says what each is."""

    config: Path
    inputs: tuple[Path, ...]
    model: str | None = None
    variant: str | None = None
    output: Path | None = None
    labels: str | None = None
    label_output: str | None = None
    rows: int | None = None
    batch_size: int = 32
    shuffle: bool = False
    as_json: bool = False


def run(request: Request) -> int:
    """Register; return 0, or 2 for bad use and what cannot be made a reference of."""
    return guarded(lambda: _run(request))


def _run(request: Request) -> int:
    from sidecar.clock import SystemClock
    from sidecar.config import load
    from sidecar.monitor import drift_reference
    from sidecar.monitor.drift_register import Options, register

    # The reference that this is to make need not be there yet.
    model = _model(load(request.config), request.model)
    target = request.output or model.drift.reference
    if target is None:
        target = request.config.parent / f"{model.name}.reference.json.gz"
    options = Options(
        request.inputs, variant=request.variant, labels=request.labels,
        label_output=request.label_output, rows=request.rows, batch_size=request.batch_size,
        shuffle=request.shuffle,
    )  # fmt: skip
    with _progress(model.name) as on_progress:
        registered = register(model, options, SystemClock(), on_progress)
    size = drift_reference.write(registered, target)
    if request.as_json:
        print(json.dumps(_document(registered, target, size), indent=2))
        return 0
    _show(console_for(), registered, target, size)
    if model.drift.reference is None:
        print(f"use it: set drift.reference: {target} of the model {model.name}")
    return 0


def _model(config: SidecarConfig, name: str | None) -> ModelConfig:
    from sidecar.validation.files import ValidationInputError

    names = [model.name for model in config.models]
    if name is None and len(names) > 1:
        message = f"say which model the rows are for: --model {' or --model '.join(names)}"
        raise ValidationInputError(message)
    for model in config.models:
        if name in {None, model.name}:
            return model
    message = f"the config has no model {name!r}; its models: {', '.join(names)}"
    raise ValidationInputError(message)


def _document(registered: RegisteredReference, target: Path, size: int) -> dict[str, Any]:
    calibration = registered.calibration
    return {
        "path": str(target),
        "bytes": size,
        "model": registered.model,
        "variant": registered.variant,
        "artifact": registered.artifact,
        "created": registered.created,
        "rows": registered.reference.rows,
        "columns": [
            {"name": column.name, "type": str(column.type), "method": method}
            for column, method in zip(
                registered.reference.columns, calibration.methods, strict=True
            )
        ],
        "window_rows": calibration.window_rows,
        "block_rows": calibration.block_rows,
        "expected_windows_between_false_alarms": calibration.expected_windows,
        "threshold": calibration.threshold,
        "extrapolated": calibration.extrapolated,
        "inferred": list(registered.columns.inferred),
        **{
            name: registered.facts[name]
            for name in ("accuracy", "labelled_rows", "label_output", "warnings")
            if name in registered.facts
        },
    }


def _show(console: Console, registered: RegisteredReference, target: Path, size: int) -> None:
    from rich import box
    from rich.table import Table

    from sidecar.cli.monitor_screen import size as in_words

    reference, calibration = registered.reference, registered.calibration
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in ("column", "type", "method", "usual values"):
        table.add_column(title, overflow="fold")
    for at, column in enumerate(reference.columns):
        bins, counts = reference.bins[at], reference.counted.counts[at]
        if column.type == _NUMERIC:
            edges = bins.edges  # type: ignore[union-attr]
            usual = f"{edges[0]:.4g} … {edges[-1]:.4g}"
        else:
            usual = ", ".join(
                f"{name} {counts[code] / reference.rows:.1%}"
                for code, name in enumerate(bins.frequent[:3])  # type: ignore[union-attr]
            )
        table.add_row(column.name, str(column.type), calibration.methods[at], usual)
    console.print(table, markup=False)
    for text in registered.columns.inferred:
        console.print(text, style="dim", markup=False)
    facts = registered.facts
    if "accuracy" in facts:
        console.print(
            f"accuracy {facts['accuracy']:.2%} on {facts['labelled_rows']} labelled rows "
            f"({facts['label_output']})",
            markup=False,
        )
    for warning in facts.get("warnings", []):
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(
        f"{target}: {reference.rows} rows of {registered.model}:{registered.variant}, "
        f"{len(reference.columns)} columns, {in_words(size)}; alarms without drift: once in "
        f"{calibration.expected_windows:g} windows of {calibration.window_rows} rows",
        markup=False,
    )


@contextmanager
def _progress(model: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on standard error, where somebody looks at it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = console_for(stderr=True)
    columns = (TextColumn(model), BarColumn(), MofNCompleteColumn(),
               TextColumn("{task.description}"))  # fmt: skip
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("", total=None)

        def on_progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total or None, description=what)

        yield on_progress
