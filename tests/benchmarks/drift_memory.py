"""An hour's worth of traffic through the watch for drift: memory, and what a row costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil

from sidecar.config import ModelConfig
from sidecar.launching import worker_environment
from sidecar.monitor import drift_calibrate, drift_reference
from sidecar.monitor.drift_collect import Collector
from sidecar.monitor.drift_columns import columns_of
from sidecar.monitor.drift_model import sample_rows
from sidecar.monitor.drift_reference import RegisteredReference
from sidecar.monitor.drift_watch import DriftWatch
from sidecar.monitor.events import EventLog
from sidecar.monitor.store import Store
from tests.monitor.making import Clock, model

if TYPE_CHECKING:  # what it imports is not the monitor's memory
    from tests.benchmarks.tools import Row

COLUMNS = 200
#: Five rounds are the hour's 10 million rows.
ROWS_PER_ROUND = 2_000_000
ROWS_PER_S = 10_000_000 / 3600
#: Rows of one exchange, exchanges of one micro-batch.
EXCHANGE, BATCH = 32, 32
FLUSH_S = 10.0
MARKS = 10
MEMORY_MAX_MB = 300


def drift_memory(rounds: int) -> list[Row]:
    """In a process of its own, which holds the watch, the store, and nothing else."""
    from tests.benchmarks.tools import Row

    rows = ROWS_PER_ROUND * rounds
    command = [sys.executable, "-m", "tests.benchmarks.drift_memory", str(rows)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=worker_environment(os.environ)
    )
    told = json.loads(done.stdout)
    first, last, most = told["rss_mb"][0], told["rss_mb"][-1], max(told["rss_mb"])
    return [
        Row(
            "monitor memory with drift watched", f"≤ {MEMORY_MAX_MB} MB", f"{most:.0f} MB",
            most <= MEMORY_MAX_MB,
            f"{rows:,} rows, {COLUMNS} columns; {told['us_a_row']:.1f} µs CPU a row",
        ),
        Row(
            f"the same after a {MARKS}th, and at the end", "flat (≤ 1.05×)",
            f"{first:.0f} → {last:.0f} MB", last <= 1.05 * first,
            f"{told['windows']:,} windows judged, {told['flushes']} times written to the store",
        ),
    ]  # fmt: skip


def configured(folder: Path, **drift: Any) -> ModelConfig:
    """The model ``m``, whose reference will lie in ``folder``."""
    reference = str(folder / "m.reference.json.gz")
    return model(("1", "v", ["serving"]), drift={"reference": reference, **drift})


def watched(
    config: ModelConfig, inputs: dict[str, Any], outputs: dict[str, Any], clock: Clock
) -> DriftWatch:
    """A watch with these rows as its reference, in a file."""
    columns = columns_of(config, inputs, outputs, batched=True)
    collector = Collector(columns, len(next(iter(inputs.values()))))
    collector.add(columns.arrays(inputs, outputs))
    found, rows, _ = collector.finish()
    drift = config.drift
    settings = {
        "window_rows": drift.window_rows, "min_rows": drift.min_rows,
        "expected_windows": drift.expected_windows_between_false_alarms,
        "block_rows": 1, "methods": {}, "sample_rows": sample_rows(config, len(found)), "seed": 0,
    }  # fmt: skip
    # In a child, as the monitor does: what calibrating takes would not be given back.
    reference, calibration = drift_calibrate.CalibrationChild().run(found, rows, settings)
    assert drift.reference is not None
    facts = {"settings": drift_reference.settings_of(drift)}
    drift_reference.write(
        RegisteredReference("m", "", "", "file", "", columns, reference, calibration, facts),
        Path(drift.reference),
    )
    watch = DriftWatch([config], EventLog(clock), clock)
    watch.start()
    assert watch.views()[0].state == "insufficient_data", watch.views()[0].message
    return watch


def hour(rows: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        config = configured(folder, inputs={"x": {"kind": "features"}}, outputs={})
        reference = rng.normal(size=(5000, COLUMNS)).astype(np.float32)
        watch = watched(config, {"x": reference}, {}, clock)
        store = Store.open(folder / "state", clock)
        watch.load(store)
        pool = rng.normal(size=(8 * EXCHANGE * BATCH, COLUMNS)).astype(np.float32)
        process, rss, flushes, flush_at_s = psutil.Process(), [], 0, 0.0
        started_s, done = time.process_time(), 0
        for batch in _batches(pool, rows):
            for at in range(0, len(batch), EXCHANGE):
                watch.take("m", {"x": batch[at : at + EXCHANGE]}, {}, True)
            watch.settle()
            clock.advance(len(batch) / ROWS_PER_S)
            watch.tick()
            done += len(batch)
            if done / ROWS_PER_S >= flush_at_s:
                watch.flush(store)
                flushes, flush_at_s = flushes + 1, flush_at_s + FLUSH_S
            if done >= rows * (len(rss) + 1) / MARKS:
                watch.sample("m")
                rss.append(process.memory_info().rss / 1e6)
        used_s = time.process_time() - started_s
        [view] = watch.views()
        watch.close()
        store.close()
    return {
        "rss_mb": rss, "us_a_row": used_s / done * 1e6, "windows": view.windows,
        "flushes": flushes,
    }  # fmt: skip


def _batches(pool: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    size, done = EXCHANGE * BATCH, 0
    while done < rows:
        at = done % len(pool)
        yield pool[at : at + size]
        done += size


if __name__ == "__main__":
    json.dump(hour(int(sys.argv[1])), sys.stdout)
