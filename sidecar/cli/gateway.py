"""``sidecar gateway``: the workers without a monitor, for a container of their own."""

from __future__ import annotations

from pathlib import Path


def run(config: Path) -> int:
    """Serve until told to stop; return the exit code.

    One worker is this process; several stand under a supervisor.
    """
    from sidecar import config as configuration

    loaded, tree = configuration.load_with_tree(config, reader="gateway")
    if loaded.gateway.workers == 1:
        from sidecar.gateway.main import run as serve_alone

        serve_alone(loaded, config)
    from sidecar.supervisor import Supervisor

    return Supervisor(tree, loaded, config, alone=True).run()
