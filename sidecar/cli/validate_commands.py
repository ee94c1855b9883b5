"""``validate``, ``rejudge`` and ``replay``: their arguments and help, for ``app.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Limits = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", "--limits", metavar="OUTPUT.METRIC='>= 40'",
        help="Another limit for one metric (=off: none); may be repeated.",
    ),
]  # fmt: skip

Variants = Annotated[
    list[str] | None,
    typer.Option("--variant", metavar="VERSION/NAME", help="Only this; may be repeated."),
]
Inputs = Annotated[
    list[Path] | None,
    typer.Option(
        "--input", "-i", metavar="PATH",
        help="Rows to run: npz, safetensors, Parquet, a folder, stored cases; may be repeated. "
        "Default: made from the model's metadata.",
    ),
]  # fmt: skip
Arbiter = Annotated[
    bool,
    typer.Option(
        "--arbiter",
        help="Also run the PyTorch reference in float64: default limits are then no tighter "
        "than what it shows against itself.",
    ),
]

FlipBudget = Annotated[
    str | None,
    typer.Option(
        "--flip-budget", metavar="measured|SHARE",
        help="Compare versions instead, and record how many rows the new one may change, for the "
        "monitor's checks: the upper bound of what is measured, or a share.",
    ),
]  # fmt: skip


def register(app: typer.Typer) -> None:
    """Add the three commands to ``app``."""
    app.command("validate")(_validate)
    app.command("rejudge")(_rejudge)
    app.command("replay")(_replay)


def _validate(
    config: Config,
    *,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Default: every model.")
    ] = None,
    inputs: Inputs = None,
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
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of generated rows.")] = 0,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", min=1, help="Rows of one call (default: 32).")
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", metavar="VERSION/NAME", help="Default: as the roles say."),
    ] = None,
    variants: Variants = None,
    limits: Limits = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="Write HTML, JSON, JUnit and worst cases."),
    ] = None,
    localize: Annotated[
        bool, typer.Option("--localize", help="Name the first value that differs; shrink a case.")
    ] = False,
    arbiter: Arbiter = False,
    one_at_a_time: Annotated[
        bool,
        typer.Option("--one-at-a-time", help="Load one candidate at a time: slower, less memory."),
    ] = False,
    in_process: Annotated[
        bool,
        typer.Option(
            "--in-process",
            help="Load variants into this process, for a debugger: one that crashes ends it.",
        ),
    ] = False,
    flip_budget: FlipBudget = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Compare every variant with the reference, and judge.

    Exits with 0 PASS, 1 FAIL, 3 INCONCLUSIVE, 4 INVALID; 2 when it could not be judged.
    """
    from sidecar.cli import validate

    request = validate.Request(
        config, model=model, inputs=tuple(inputs or ()), labels=labels, label_output=label_output,
        rows=rows, seed=seed, batch_size=batch_size, reference=reference,
        variants=tuple(variants or ()), limits=tuple(limits or ()), report=report,
        localize=localize, arbiter=arbiter, one_at_a_time=one_at_a_time,
        in_process=in_process, flip_budget=flip_budget, as_json=as_json,
    )  # fmt: skip
    raise typer.Exit(validate.run(request))


def _rejudge(
    report: Annotated[
        Path, typer.Argument(metavar="REPORT", help="The folder that validate --report wrote.")
    ],
    limits: Limits = None,
    target: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write the new report here.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a stored run again, under other limits; nothing is run.

    Exits as validate does.
    """
    from sidecar.cli import rejudge

    raise typer.Exit(rejudge.run(report, limits or [], target=target, as_json=as_json))


def _replay(
    case: Annotated[str, typer.Argument(metavar="CASE", help="A case's file, or FOLDER#ID.")],
    config: Annotated[
        Path | None, typer.Option("--config", metavar="CONFIG", help="Where the variants are.")
    ] = None,
    variants: Variants = None,
    as_json: AsJson = False,
) -> None:
    """Run a stored case again, on any variants."""
    from sidecar.cli import replay

    raise typer.Exit(replay.run(case, config, tuple(variants or ()), as_json))
