"""Models watched for drift, in this process, with real references; time stands still."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.monitor import drift_calibrate, drift_reference
from sidecar.monitor.drift_collect import Collector
from sidecar.monitor.drift_columns import columns_of
from sidecar.monitor.drift_reference import RegisteredReference
from sidecar.monitor.drift_watch import DriftWatch
from sidecar.monitor.events import EventLog
from tests.monitor.making import Clock, model

WINDOW = 200
SETTINGS: dict[str, Any] = {"window_rows": WINDOW, "min_rows": 100, "block_rows": 1}


def config(**drift: Any):
    return model(("1", "v", ["serving"]), drift={**SETTINGS, **drift})


def tensors(rng: np.random.Generator, rows: int, shift: float = 0.0) -> tuple[dict, dict]:
    """x FP32 [rows, 3] → scores FP32 [rows, 4], which follow from x."""
    x = rng.normal(shift, 1.0, (rows, 3)).astype(np.float32)
    scores = np.stack([x[:, 0], x[:, 1], x[:, 2], x.sum(axis=1)], axis=1)
    return {"x": x}, {"scores": scores}


@cache
def registered() -> bytes:
    """The file of a reference of 2,000 rows."""
    made = config()
    inputs, outputs = tensors(np.random.default_rng(0), 2000)
    columns = columns_of(made, inputs, outputs, batched=True)
    collector = Collector(columns, 2000)
    collector.add(columns.arrays(inputs, outputs))
    found, rows, _ = collector.finish()
    settings = {
        "window_rows": WINDOW, "min_rows": 100, "expected_windows": 2000, "block_rows": 1,
        "methods": {}, "sample_rows": 500, "seed": 0,
    }  # fmt: skip
    reference, calibration = drift_calibrate.make(found, rows, settings)
    facts = {"settings": drift_reference.settings_of(made.drift)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reference"
        drift_reference.write(
            RegisteredReference(
                "m", "1/v", "", "file", "2026-01-01", columns, reference, calibration, facts
            ),
            path,
        )
        return path.read_bytes()


class Bench:
    """A watch over ``m``; windows are told to ``told``."""

    def __init__(self, clock: Clock | None = None, **drift: Any) -> None:
        self.clock = clock or Clock()
        self.events = EventLog(self.clock)
        self.told: list[tuple] = []
        self.watch = DriftWatch(
            [config(**drift)], self.events, self.clock, lambda *window: self.told.append(window)
        )
        self.watch.start()
        self.rng = np.random.default_rng(1)

    @classmethod
    def with_reference(cls, folder: Path, **changes: Any) -> Bench:
        path = folder / "m.reference.json.gz"
        path.write_bytes(registered())
        return cls(**{"reference": str(path), **changes})

    def send(self, rows: int, shift: float = 0.0, *, each: int = 10) -> None:
        for _ in range(0, rows, each):
            self.watch.take("m", *tensors(self.rng, each, shift), True)
        self.watch.settle()

    @property
    def view(self):
        [found] = self.watch.views()
        return found

    def texts(self) -> list[tuple[str, str]]:
        return [(str(one.verdict), one.text) for one in self.events.wait(0, 0)]
