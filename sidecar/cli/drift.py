"""``sidecar drift``: what each column of a model's traffic scored, beside its threshold.

Exits with 0 when the monitor answers. With ``--check``, for scripts: 0 when all is like the
reference, 1 when there is an alarm or a model is not watched as configured, 3 when there is not
enough data yet, or nothing is watched.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.monitor.view_drift import DriftView

FINE, BAD, NOT_YET = 0, 1, 3
_PLAIN_COLUMNS = 120


def run(
    address: str, *, model: str, as_json: bool, timeout_s: float, check: bool = False
) -> int:  # fmt: skip
    """Show the drift of a model, or (empty) of all; return the exit code.

    Raises:
        SidecarError: nobody answers there, or the model is not watched.
    """
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        views = client.drift(model)
    if as_json:
        from sidecar.monitor.view_messages import to_json

        print(json.dumps([to_json(view) for view in views], indent=2))
    else:
        from rich.console import Console

        from sidecar.cli.drift_screen import drift_group
        from sidecar.clock import SystemClock

        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = max(console.width, _PLAIN_COLUMNS)
        console.print(drift_group(views, SystemClock().now_ns()))
    return exit_code(views) if check else FINE


def run_report(address: str, *, model: str, browser: bool) -> int:
    """Have the deep tests run now, and open their page; return the exit code.

    Raises:
        SidecarError: nobody answers there, or the model has no deep runs.
    """
    from sidecar.cli.drift_report import WAIT_S, open_report
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=WAIT_S) as client:
        return open_report(client, model, browser=browser)


def exit_code(views: list[DriftView]) -> int:
    """Return what ``--check`` exits with."""
    states = {view.state for view in views}
    if states & {"alarm", "not_watched"}:
        return BAD
    return NOT_YET if not states or "insufficient_data" in states else FINE
