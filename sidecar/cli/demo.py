"""``sidecar demo``: handwritten digits, from training to live figures."""

from __future__ import annotations

from pathlib import Path


def run(output: Path, *, stay: bool, seconds: float, as_json: bool) -> int:
    """Run the demo (see ``sidecar.demo.story``); return the exit code."""
    from sidecar.demo.story import run_demo

    return run_demo(output, stay=stay, seconds=seconds, as_json=as_json)
