"""What ``serve`` prints when it is ready: what is served, on what, and where."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def _size(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"


def announce(
    addresses: dict[str, str],
    copies: list[dict[str, Any]],
    *,
    workers: int,
    pids: list[int],
    exchanges: Path | None = None,
) -> None:
    """Print every copy with its place and memory, every address, and ``ready``.

    ``exchanges`` is the socket on which a monitor takes samples, if there is to be one. (Beside the
    workers of ``serve`` it starts after this, and says its own address when it is ready.)

    Plain text on standard error, aligned: rich would cost the supervisor 40 ms of start-up and
    8 MB for one table.
    """
    rows = [("model", "variant", "roles", "runtime", "device", "memory")]
    for copy in copies:
        mark = " (default)" if copy["default"] else ""
        memory = _size(copy["memory_bytes"]) if copy["memory_bytes"] else "-"
        if workers > 1 and copy["memory_bytes"]:
            memory += f" x {workers}"
        roles = ", ".join(copy["roles"])
        rows.append(
            (copy["model"], copy["variant"] + mark, roles, copy["kind"], copy["device"], memory)
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    labels = {
        "grpc": "gRPC",
        "http": "HTTP",
        "health": "health (gRPC, plaintext)",
        "admin": "admin (gRPC)",
        "hooks": "hooks (HTTP)",
    }
    lines.append("")
    lines += [f"{labels.get(name, name)}: {address}" for name, address in addresses.items()]
    if exchanges is not None:
        lines.append(f"samples for the monitor: {exchanges}")
    noun = "worker" if workers == 1 else "workers"
    lines.append(f"ready: {workers} {noun}, pid {', '.join(map(str, pids))}")
    print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201 - this is the output
