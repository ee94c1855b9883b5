"""``python -m tests.benchmarks [NAME …] [--rounds N] [--json]``: run, print the table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from tests.benchmarks import (
    behaviour,
    certificates,
    compare,
    drift_alarms,
    drift_deep,
    drift_digits,
    drift_memory,
    localize,
    mirror,
    observed,
    peers,
    rollback_check,
    rollback_service,
    rollback_simulation,
    rolling_restarts,
    throughput,
)
from tests.benchmarks.tools import Row

BENCHMARKS: dict[str, Callable[[int], list[Row]]] = {
    "tiny": throughput.tiny_model,
    "workers": throughput.workers,
    "large": throughput.large,
    "batching": throughput.batching,
    "health": behaviour.health,
    "start": behaviour.start_up,
    "compare": compare.comparing,
    "certificates": certificates.certificates,
    "drift-alarms": drift_alarms.drift_alarms,
    "drift-deep": drift_deep.drift_deep,
    "drift-digits": drift_digits.drift_digits,
    "drift-memory": drift_memory.drift_memory,
    "mirror": mirror.mirroring,
    "observe": observed.observing,
    "peers": peers.peers,
    "localize": localize.localization,
    "rollback-check": rollback_check.rollback_check,
    "rollback-service": rollback_service.rollback_service,
    "rollback-simulation": rollback_simulation.rollback_simulation,
    "rolling-restarts": rolling_restarts.rolling_restarts,
    "restarts": lambda rounds: behaviour.restarts(4 * rounds),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("names", nargs="*", choices=[[], *BENCHMARKS], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    console = Console(stderr=True)
    rows = []
    for name in arguments.names or BENCHMARKS:
        with console.status(f"measuring {name}"):
            rows += BENCHMARKS[name](arguments.rounds)
    if arguments.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=2, default=bool)  # numpy's
        return 0
    table = Table("what", "target", "measured", "met", "detail")
    for row in rows:
        table.add_row(row.what, row.target, row.measured, "yes" if row.met else "NO", row.detail)
    Console(width=180).print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
