"""``labels``: its arguments and help, for ``app.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("labels")(_labels)


def _labels(
    address: Annotated[
        str, typer.Argument(metavar="ADDRESS", help="The monitor's: host:port, or unix:path.")
    ],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="Parquet, .csv or .jsonl, with request_id, label and perhaps row.",
        ),
    ],
    *,
    model: Annotated[str, typer.Option("--model", metavar="NAME", help="Whose labels they are.")],
    token: Annotated[
        str,
        typer.Option(
            "--token", envvar="SIDECAR_ADMIN_TOKEN", help="Where gateway.admin has one.",
            show_envvar=True,
        ),
    ] = "",
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, max=86400, metavar="SECONDS")
    ] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:  # fmt: skip
    """Tell a monitor what the right answers were.

    Exits with 1 when a label was refused. The same file may be sent again: what has counted does
    not count twice.
    """
    from sidecar.cli import labels

    raise typer.Exit(
        labels.run(address, file, model=model, token=token, timeout_s=timeout_s, as_json=as_json)
    )
