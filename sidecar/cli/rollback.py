"""``sidecar rollback …``: how new versions stand, what was decided, and what operators may do.

``status`` exits with 0 when the monitor answers. With ``--check``, for scripts: 0 when every new
version is as good as its previous one, 1 when one is not (or cannot be judged), 3 when there is not
enough data yet, or nothing is checked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from sidecar.monitor.client import MonitorClient
    from sidecar.monitor.view_rollback import RollbackView

FINE, BAD, NOT_YET = 0, 1, 3
_PLAIN_COLUMNS = 160


def status(
    address: str, *, model: str, as_json: bool, timeout_s: float, check: bool, watch_s: float | None
) -> int:
    """Show how every pair stands, once or (``watch_s``) until Ctrl-C; return the exit code.

    Raises:
        SidecarError: nobody answers there, or the model is not checked.
    """
    from sidecar.cli.monitor_screen import fleet_text
    from sidecar.cli.rollback_screen import rollback_group
    from sidecar.clock import SystemClock
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        if watch_s is not None:
            return _follow(client, model, watch_s)
        views = client.rollback(model)
        fleet = None if as_json else fleet_text(client.status(), SystemClock().now_ns())
    if as_json:
        _print_json(views)
    else:
        console = _console()
        if fleet is not None:
            console.print(fleet)
        console.print(rollback_group(views, SystemClock().now_ns()))
    return exit_code(views) if check else FINE


def _follow(client: MonitorClient, model: str, every_s: float) -> int:
    """Draw it anew until Ctrl-C."""
    from rich.live import Live

    from sidecar.cli.rollback_screen import rollback_group
    from sidecar.clock import SystemClock

    clock = SystemClock()

    def drawn() -> RenderableType:
        return rollback_group(client.rollback(model), clock.now_ns())

    try:
        with Live(drawn(), console=_console(), auto_refresh=False, screen=False) as live:
            while True:
                time.sleep(every_s)
                live.update(drawn(), refresh=True)
    except KeyboardInterrupt:
        return FINE


def history(address: str, *, model: str, limit: int, as_json: bool, timeout_s: float) -> int:
    """Show what was decided, the newest first; return the exit code."""
    from sidecar.cli.rollback_screen import decisions_group
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        decisions = client.decisions(model, limit)
    if as_json:
        _print_json(decisions)
    else:
        _console().print(decisions_group(decisions))
    return FINE


def freeze(
    address: str, *, model: str, frozen: bool, by: str, reason: str, token: str, as_json: bool,
    timeout_s: float,
) -> int:  # fmt: skip
    """Begin or end a freeze; return the exit code."""
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        views = client.freeze(model, frozen=frozen, by=by, reason=reason, token=token)
    if as_json:
        _print_json(views)
        return FINE
    whom = model or "every model"
    said = (
        f"{whom} is frozen: the monitor goes on looking and telling, and acts on nothing"
        if frozen
        else f"{whom} is no longer frozen: what waited is gone on with"
    )
    _console().print(said)
    return FINE


def decide(
    address: str, name: str, *, what: str, by: str, reason: str, token: str, as_json: bool,
    timeout_s: float,
) -> int:  # fmt: skip
    """Approve or undo (``what``) a decision; return the exit code."""
    from rich.console import Group

    from sidecar.cli.rollback_screen import decision_lines
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        call: Callable[..., Any] = client.approve if what == "approve" else client.undo
        decision = call(name, by=by, reason=reason, token=token)
    if as_json:
        _print_json(decision)
    else:
        _console().print(Group(*decision_lines(decision)))
    return FINE


def exit_code(views: Sequence[RollbackView]) -> int:
    """Return what ``--check`` exits with."""
    states = {view.state for view in views}
    if states & {"suspect", "regressed", "rolled_back", "blocked"}:
        return BAD
    return NOT_YET if not states or "insufficient" in states else FINE


def _print_json(value: Any) -> None:
    from sidecar.monitor.view_messages import to_json

    plain = [to_json(one) for one in value] if isinstance(value, list) else to_json(value)
    print(json.dumps(plain, indent=2))


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_COLUMNS)
    return console
