"""``sidecar alerts test``: a test alert through each channel, and what each said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.monitor.view_rollback import Delivery

#: All channels are tried at once; the slowest may take its own time-out, 300 s at most.
WAIT_S = 60.0


def run_test(
    address: str,
    config: Path | None,
    *,
    channel: str,
    token: str,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Try the channels of a running monitor, or of a configuration; return the exit code.

    Raises:
        SidecarError: no monitor answers, there is no such channel, the configuration is wrong.
    """
    if config is not None:
        tried = _from_here(config, channel)
    else:
        from sidecar.monitor.client import MonitorClient

        with MonitorClient(address, timeout_s=timeout_s) as client:
            tried = client.test_alerts(channel, token=token, timeout_s=timeout_s)
    if as_json:
        from sidecar.monitor.view_messages import to_json

        print(json.dumps([to_json(one) for one in tried], indent=2))
    else:
        _show(tried)
    return int(any(one.state != "sent" for one in tried))


def _from_here(path: Path, channel: str) -> list[Delivery]:
    from sidecar import logs
    from sidecar.alert_channels import make_channels
    from sidecar.clock import SystemClock
    from sidecar.config import load
    from sidecar.monitor.outbox import Outbox

    config = load(path)
    logs.configure(config.log)
    settings = config.alerts
    outbox = Outbox(lambda: None, make_channels(settings), settings, SystemClock())
    try:
        return outbox.test(channel)
    finally:
        outbox.close()


def _show(tried: list[Delivery]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    for one in tried:
        sent = one.state == "sent"
        state = "[green]sent" if sent else f"[red]{escape(one.state)}"
        table.add_row(escape(one.channel), state, escape(one.error))
    if not tried:
        table.add_row("no channel is configured (alerts.channels is empty)")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 200)  # an error is one line, for grep
    console.print(table)
