"""``alerts``: its commands, their arguments and help, for ``app.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sidecar.cli.alerts import WAIT_S


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    alerts = typer.Typer(
        no_args_is_help=True,
        help="Try out who is told when something is decided.",
        rich_markup_mode=None,
    )
    alerts.command("test")(_test)
    app.add_typer(alerts, name="alerts")


def _test(
    address: Annotated[
        str, typer.Argument(metavar="[ADDRESS]", help="The monitor's: host:port, or unix:path.")
    ] = "127.0.0.1:9002",
    channel: Annotated[
        str, typer.Option("--channel", metavar="NAME", help="Default: every channel.")
    ] = "",
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="CONFIG", help="Send from here, as CONFIG says, with no monitor."
        ),
    ] = None,
    token: Annotated[
        str,
        typer.Option(
            "--token", envvar="SIDECAR_ADMIN_TOKEN", help="Where gateway.admin has one.",
            show_envvar=True,
        ),
    ] = "",
    timeout_s: Annotated[
        float, typer.Option("--timeout", min=0.001, max=86400, metavar="SECONDS")
    ] = WAIT_S,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
) -> None:  # fmt: skip
    """Send a test alert through each channel, and show what each said.

    It is sent once, by the running monitor and from its machine: what arrives here arrives when it
    matters. Exits with 1 when a channel did not take it.
    """
    from sidecar.cli import alerts

    raise typer.Exit(
        alerts.run_test(
            address, config, channel=channel, token=token, timeout_s=timeout_s, as_json=as_json
        )
    )
