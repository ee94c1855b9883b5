"""Digits that are turned a little, as they come into the watch: images, and a model's answers."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from sidecar.monitor.drift_watch import DriftWatch
from tests.benchmarks.drift_memory import EXCHANGE, configured, watched
from tests.benchmarks.tools import Row
from tests.monitor.making import Clock
from tests.support import digits

TURNS = 20
DEGREES = 15


def drift_digits(rounds: int) -> list[Row]:
    """Windows of clean digits, then of turned ones, again and again."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config, clock = configured(folder), Clock()
        reader = digits.Reader(folder)
        clean = digits.traffic(5000, 0)
        watch = watched(config, {"image": clean}, reader(clean), clock)
        window = config.drift.window_rows
        delays, false = [], 0
        for turn in range(TURNS * rounds):
            for number in range(3):  # which clears what was before
                _send(watch, reader, digits.traffic(window, (turn, number)))
            false += watch.views()[0].state == "alarm"
            before = watch.views()[0].windows
            for number in range(6):
                _send(watch, reader, digits.traffic(window, (turn, 10 + number), degrees=DEGREES))
                if watch.views()[0].state == "alarm":
                    break
            delays.append(watch.views()[0].windows - before)
        named = ", ".join(unit.unit for unit in watch.views()[0].units if unit.state == "alarm")
        watch.close()
    middle, most = float(np.median(delays)), max(delays)
    return [
        Row(
            f"windows to alarm: digits turned by {DEGREES}°", "≤ 2", f"{middle:g}", middle <= 2,
            f"{len(delays)} times, at most {most}; in alarm before: {false}; moved: {named}",
        )
    ]  # fmt: skip


def _send(watch: DriftWatch, reader: digits.Reader, images: np.ndarray) -> None:
    for at in range(0, len(images), EXCHANGE):
        part = images[at : at + EXCHANGE]
        watch.take("m", {"image": part}, reader(part), True)
    watch.settle()
