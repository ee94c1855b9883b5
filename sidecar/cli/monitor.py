"""``sidecar monitor``: the monitor alone, for a container of its own."""

from __future__ import annotations

from pathlib import Path


def run(config: Path) -> int:
    """Watch until told to stop; return the exit code."""
    from sidecar.monitor.main import run as watch_alone

    return watch_alone(config)
