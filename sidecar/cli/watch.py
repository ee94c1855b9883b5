"""``sidecar watch``: a monitor's verdicts as they come, until Ctrl-C.

On a terminal a table that is drawn again and again, with the latest verdicts below it; elsewhere a
line a verdict; with ``--json`` a JSON object a line. It goes on over restarts of the monitor, from
the verdict that it saw last.
"""

from __future__ import annotations

import os
import sys

#: Verdicts that had come before, shown first.
EARLIER = 20
#: How often a table is drawn again.
_REFRESH_S = 1.0


def run(address: str, *, as_json: bool, timeout_s: float) -> int:
    """Watch the monitor at ``address`` until Ctrl-C; return the exit code.

    Args:
        address: ``host:port`` or ``unix:path`` of ``monitor.grpc``.
        as_json: a JSON object a line; ``type`` is ``connected``, ``verdict``, ``missed``, ``lost``.
        timeout_s: how long to wait for an answer.

    Raises:
        SidecarError: nobody answers there when it begins, or it is no monitor.
        KeyboardInterrupt: Ctrl-C.
    """
    # Before gRPC is imported: its own notes of connections that end are not for this screen.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")

    from rich.console import Console

    from sidecar.cli.monitor_follow import Follower
    from sidecar.cli.monitor_news import JsonLines, Lines, LiveTable, Screen
    from sidecar.monitor.client import MonitorClient

    console = Console(highlight=False)
    with MonitorClient(address, timeout_s=timeout_s) as client:
        status = client.status()  # a wrong address is an error; a lost one is not
        screen: Screen
        if as_json:
            screen = JsonLines()
        elif console.is_terminal and not console.is_dumb_terminal:
            screen = LiveTable(console, client, status)
        else:
            screen = Lines(address)
        follower = Follower(client, after_seq=max(status.last_seq - EARLIER, 0))
        follower.start()
        try:
            with screen:
                while True:
                    screen.show(follower.next(_REFRESH_S))
        except BrokenPipeError:  # whoever read has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        finally:
            follower.stop()
