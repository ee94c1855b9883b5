"""``sidecar serve``: the supervisor and its workers."""

from __future__ import annotations

from pathlib import Path


def run(config: Path) -> int:
    """Serve until told to stop; return the exit code."""
    from sidecar.supervisor import serve

    return serve(config)
