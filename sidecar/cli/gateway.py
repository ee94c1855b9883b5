"""``sidecar gateway``: one worker alone, for a container of its own."""

from __future__ import annotations

from pathlib import Path


def run(config: Path) -> int:
    """Serve until told to stop; return the exit code."""
    from sidecar.gateway.main import run as serve_alone

    return serve_alone(config)
