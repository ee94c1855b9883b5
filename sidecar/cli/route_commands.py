"""``route`` and ``compare``: their arguments and help, for ``app.py``."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typing_extensions import override


class _ShowsByDefault(TyperGroup):
    """A group whose first command needs no name: ``sidecar route ADDRESS`` shows."""

    @override
    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["show", *args]
        return super().parse_args(ctx, args)


Address = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="The monitor's: host:port, or unix:path.")
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, max=86400, metavar="SECONDS")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept and shown.")]
Token = Annotated[
    str,
    typer.Option(
        "--token", envvar="SIDECAR_ADMIN_TOKEN", help="Where gateway.admin has one.",
        show_envvar=True,
    ),
]  # fmt: skip
Expect = Annotated[
    int | None,
    typer.Option(
        "--expect", min=0, metavar="REVISION", help="Refuse when it is at another one by now."
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    route = typer.Typer(
        cls=_ShowsByDefault,
        help="Show which version answers requests that name none, or change it.",
        rich_markup_mode=None,
    )
    route.command("show")(_show)
    route.command("set")(_set)
    route.command("promote")(_promote)
    app.add_typer(route, name="route")
    app.command("compare")(_compare)


def _end(code: int) -> Any:
    raise typer.Exit(code)


def _show(
    address: Annotated[
        str, typer.Argument(metavar="[ADDRESS]", help="The monitor's: host:port, or unix:path.")
    ] = "127.0.0.1:9002",
    model: Annotated[str, typer.Argument(metavar="[MODEL]", help="Default: every model.")] = "",
    timeout_s: Timeout = 5,
    as_json: AsJson = False,
) -> None:
    """Show the routes. (`sidecar route ADDRESS` is the same.)"""
    from sidecar.cli import route

    _end(route.show(address, model, timeout_s=timeout_s, as_json=as_json))


def _set(
    address: Address,
    model: Model,
    shares: Annotated[
        list[str],
        typer.Argument(metavar="VERSION=WEIGHT...", help="Versions not named get nothing."),
    ],
    reason: Reason = "",
    expect: Expect = None,
    token: Token = "",
    timeout_s: Timeout = 5,
    as_json: AsJson = False,
) -> None:
    """Give each version a share of the requests that name none.

    It is kept over restarts, and followed by every gateway worker within half a second.
    """
    from sidecar.cli import route

    change = route.Change(address, model, reason, expect, token, timeout_s, as_json)
    _end(route.set_shares(change, shares))


def _promote(
    address: Address,
    model: Model,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="It answers everybody then.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also against what its checks say.")
    ] = False,
    reason: Reason = "",
    expect: Expect = None,
    token: Token = "",
    timeout_s: Timeout = 5,
    as_json: AsJson = False,
) -> None:
    """Route everything to one version: a candidate, or any other.

    Shows what was found beside the version that served. Refused (exit code 1) while that is
    regressed, suspect, blocked or not enough yet, unless --force is given.
    """
    from sidecar.cli import route

    change = route.Change(address, model, reason, expect, token, timeout_s, as_json)
    _end(route.promote(change, version, force=force))


def _compare(
    address: Address,
    model: Model,
    first: Annotated[
        str, typer.Argument(metavar="[A]", help="A version; default: the two that have shares.")
    ] = "",
    second: Annotated[str, typer.Argument(metavar="[B]", help="Another one.")] = "",
    alpha: Annotated[
        float, typer.Option("--alpha", min=1e-9, max=0.5, help="The risk of a wrong bound.")
    ] = 0.05,
    timeout_s: Timeout = 5,
    as_json: AsJson = False,
) -> None:
    """Compare two versions that share the traffic: errors, latency, accuracy where labels come.

    The bounds hold at every look, so that it may be asked as often as one likes.
    """
    from sidecar.cli import route

    _end(
        route.compare(
            address, model, first, second, alpha=alpha, timeout_s=timeout_s, as_json=as_json
        )
    )
