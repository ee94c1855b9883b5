"""``rollback``: its commands, their arguments and help, for ``app.py``."""

from __future__ import annotations

from getpass import getuser
from typing import Annotated

import typer

Address = Annotated[
    str, typer.Argument(metavar="[ADDRESS]", help="The monitor's: host:port, or unix:path.")
]
Model = Annotated[str, typer.Option("--model", metavar="NAME", help="Default: every model.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, max=86400, metavar="SECONDS")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
By = Annotated[str, typer.Option("--by", metavar="WHO", help="Default: your name here.")]
Reason = Annotated[str, typer.Option("--reason", metavar="WHY", help="Kept with it.")]
Token = Annotated[
    str,
    typer.Option(
        "--token", envvar="SIDECAR_ADMIN_TOKEN", help="Where gateway.admin has one.",
        show_envvar=True,
    ),
]  # fmt: skip
Id = Annotated[str, typer.Argument(metavar="DECISION", help="As status and history show it.")]
_ADDRESS = "127.0.0.1:9002"
_TIMEOUT_S = 10.0
#: Undoing asks a cluster, perhaps.
_LONG_S = 60.0


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    rollback = typer.Typer(
        no_args_is_help=True,
        help="See how new versions stand beside the previous ones, and what was done about them.",
        rich_markup_mode=None,
    )
    for name, command in (
        ("status", _status), ("history", _history), ("freeze", _freeze), ("unfreeze", _unfreeze),
        ("approve", _approve), ("undo", _undo),
    ):  # fmt: skip
        rollback.command(name)(command)
    app.add_typer(rollback, name="rollback")


def _status(
    address: Address = _ADDRESS,
    model: Model = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Exit with 1 when a version is worse or cannot be judged, 3 without enough data.",
        ),
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Draw it anew each second, until Ctrl-C.")
    ] = False,
    timeout_s: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Show how each new version stands: its evidence, beside what alerts and what acts.

    Exits with 0 when the monitor answers, unless --check is given.
    """
    from sidecar.cli import rollback

    code = rollback.status(
        address, model=model, as_json=as_json, timeout_s=timeout_s, check=check,
        watch_s=1.0 if watch else None,
    )  # fmt: skip
    raise typer.Exit(code)


def _history(
    address: Address = _ADDRESS,
    model: Model = "",
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1000, help="The latest so many.")
    ] = 20,
    timeout_s: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Show what was decided, why, what was done about it, and who was told."""
    from sidecar.cli import rollback

    code = rollback.history(address, model=model, limit=limit, as_json=as_json, timeout_s=timeout_s)
    raise typer.Exit(code)


def _freeze(
    address: Address = _ADDRESS,
    model: Model = "",
    by: By = "",
    reason: Reason = "",
    token: Token = "",
    timeout_s: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Let nobody but operators act, on one model or on all. Looking and telling go on."""
    from sidecar.cli import rollback

    code = rollback.freeze(
        address, model=model, frozen=True, by=by or _name(), reason=reason, token=token,
        as_json=as_json, timeout_s=timeout_s,
    )  # fmt: skip
    raise typer.Exit(code)


def _unfreeze(
    address: Address = _ADDRESS,
    model: Model = "",
    by: By = "",
    reason: Reason = "",
    token: Token = "",
    timeout_s: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """End a freeze; without --model every one. What waited for it is gone on with."""
    from sidecar.cli import rollback

    code = rollback.freeze(
        address, model=model, frozen=False, by=by or _name(), reason=reason, token=token,
        as_json=as_json, timeout_s=timeout_s,
    )  # fmt: skip
    raise typer.Exit(code)


def _approve(
    decision: Id,
    address: Address = _ADDRESS,
    by: By = "",
    reason: Reason = "",
    token: Token = "",
    timeout_s: Timeout = _TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Have an action done that waits, or tried again that was blocked."""
    from sidecar.cli import rollback

    code = rollback.decide(
        address, decision, what="approve", by=by or _name(), reason=reason, token=token,
        as_json=as_json, timeout_s=timeout_s,
    )  # fmt: skip
    raise typer.Exit(code)


def _undo(
    decision: Id,
    address: Address = _ADDRESS,
    by: By = "",
    reason: Reason = "",
    token: Token = "",
    timeout_s: Timeout = _LONG_S,
    as_json: AsJson = False,
) -> None:
    """Take a rollback back, or close what was decided. The version is judged anew from then on."""
    from sidecar.cli import rollback

    code = rollback.decide(
        address, decision, what="undo", by=by or _name(), reason=reason, token=token,
        as_json=as_json, timeout_s=timeout_s,
    )  # fmt: skip
    raise typer.Exit(code)


def _name() -> str:
    """Of whoever types; decisions are kept with a name."""
    try:
        return getuser()
    except (OSError, KeyError):  # a container's user has none
        return "operator"
