"""``reference`` and ``drift``: their arguments and help, for ``app.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("reference")(_reference)
    app.command("drift")(_drift)


def _reference(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    inputs: Annotated[
        list[Path],
        typer.Option(
            "--inputs", "--input", "-i", metavar="PATH",
            help="Rows as they come when all is well: npz, safetensors, Parquet, a folder, stored "
            "cases; may be repeated.",
        ),
    ],
    *,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Where the config has several.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE",
            help="Default: drift.reference of the model, else MODEL.reference.json.gz beside the "
            "config.",
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option("--variant", metavar="VERSION/NAME", help="Default: the newest that serves."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="NAME", help="The labels' key in the file, or FILE.npy."),
    ] = None,
    label_output: Annotated[
        str | None,
        typer.Option("--label-output", metavar="OUTPUT", help="Default: the one of class scores."),
    ] = None,
    rows: Annotated[
        int | None, typer.Option("--rows", min=1, help="Use only the first rows (default: all).")
    ] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, help="Rows of one call.")
    ] = 32,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="The order of the rows in the files means nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Register what a model's traffic is like when nothing is wrong.

    Runs the rows through the variant that serves, describes inputs and outputs, sets the alarm
    thresholds from drift.expected_windows_between_false_alarms, and writes one file, for
    drift.reference. Exits with 2 when that cannot be done.
    """
    from sidecar.cli import reference

    request = reference.Request(
        config, tuple(inputs), model=model, variant=variant, output=output, labels=labels,
        label_output=label_output, rows=rows, batch_size=batch_size, shuffle=shuffle,
        as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(reference.run(request))


def _drift(
    address: Annotated[
        str, typer.Argument(metavar="[ADDRESS]", help="The monitor's: host:port, or unix:path.")
    ] = "127.0.0.1:9002",
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Default: every model.")
    ] = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Exit with 1 on an alarm or what is not watched, 3 without enough data."
        ),
    ] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, max=86400, metavar="SECONDS")
    ] = 5,
    as_json: AsJson = False,
    open_page: Annotated[
        bool,
        typer.Option(
            "--open", help="Have the deep tests run now, and open Evidently's page of them."
        ),
    ] = False,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="With --open: only say where it lies.")
    ] = True,
) -> None:
    """Show whether traffic is still like its reference, and which columns moved.

    Exits with 0 when the monitor answers, unless --check is given.
    """
    from sidecar.cli import drift

    if open_page:
        raise typer.Exit(drift.run_report(address, model=model, browser=browser))

    raise typer.Exit(
        drift.run(address, model=model, as_json=as_json, timeout_s=timeout_s, check=check)
    )
