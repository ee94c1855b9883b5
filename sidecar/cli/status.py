"""``sidecar status``: what a running monitor knows, once, for people or for programs.

Exits with 0 when it answers. With ``--check``, which is for scripts: 0 when everything is
certified, 1 when a verdict is FAIL or INVALID or something cannot be compared, 3 when anything is
not certified yet. A monitor that does not answer: 1.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.text import Text

    from sidecar.monitor.client import MonitorClient
    from sidecar.monitor.view import MonitorStatus, PairStatus

FINE, BAD, NOT_YET = 0, 1, 3
_PLAIN_COLUMNS = 120


def run(address: str, *, as_json: bool, timeout_s: float, check: bool = False) -> int:
    """Show the status of the monitor at ``address``; return the exit code.

    Args:
        address: ``host:port`` or ``unix:path`` of ``monitor.grpc``.
        as_json: one object, with the fields of ``proto/monitor.proto``.
        timeout_s: how long to wait for the answer.
        check: let the exit code say what the verdicts are.

    Raises:
        SidecarError: nobody answers there, or it is no monitor.
    """
    from sidecar.monitor.client import MonitorClient

    with MonitorClient(address, timeout_s=timeout_s) as client:
        status = client.status()
        lines = {} if as_json else model_lines(client)
    if as_json:
        from sidecar.monitor.view_messages import to_json

        print(json.dumps(to_json(status), indent=2))
    else:
        from rich.console import Console

        from sidecar.cli.monitor_screen import status_group
        from sidecar.clock import SystemClock

        console = Console(highlight=False)
        if not console.is_terminal:  # a file or a pipe has no edge to fold at
            console.width = max(console.width, _PLAIN_COLUMNS)
        console.print(status_group(status, SystemClock().now_ns(), lines))
    return exit_code(status) if check else FINE


def model_lines(client: MonitorClient) -> dict[str, Text]:
    """Model → a line about its drift, and one for each pair of its versions; what a monitor of an
    earlier release does not know is left out."""
    from contextlib import suppress

    from sidecar.cli.drift_screen import drift_line
    from sidecar.cli.rollback_screen import rollback_line
    from sidecar.monitor.client import MonitorCallError

    found: dict[str, Text] = {}
    with suppress(MonitorCallError):
        found = {view.model: drift_line(view) for view in client.drift()}
    with suppress(MonitorCallError):
        for view in client.rollback():
            line = rollback_line(view)
            if view.model in found:
                found[view.model].append("\n  ").append_text(line)
            else:
                found[view.model] = line
    return found


def exit_code(status: MonitorStatus) -> int:
    """Return what ``--check`` exits with."""
    pairs = [
        pair
        for model in status.models
        for pair in model.pairs
        if pair.purpose == "certificate" or pair.verdict is not None
    ]
    if any(_is_bad(pair) for pair in pairs):
        return BAD
    if not pairs or any(pair.verdict != "PASS" for pair in pairs):
        return NOT_YET
    return FINE


def _is_bad(pair: PairStatus) -> bool:
    if pair.blocked:
        return pair.purpose == "certificate"
    if pair.verdict == "INVALID":
        # Comparing nothing is INVALID as well; a monitor that has just started is not at fault.
        return any(output.requests for output in pair.outputs)
    return pair.verdict == "FAIL"
