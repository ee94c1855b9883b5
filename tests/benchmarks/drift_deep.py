"""A deep run's tests against Evidently's preset, and what a whole run in its child takes."""

from __future__ import annotations

import os
import time
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np

from sidecar.clock import SystemClock
from sidecar.monitor.deep.job import Job, Options, Plan, Side
from sidecar.monitor.deep.process import DeepProcess, Limits
from tests.benchmarks.tools import Row
from validators.drift.columns import ColumnType

ROWS = 5_000
COLUMNS = 200
LIMITS = Limits(timeout_s=1800, memory_max_bytes=2**31)

#: Method, threshold, value and verdict.
Verdict = tuple[str, float, float, bool]


def drift_deep(
    rounds: int, rows: int = ROWS, columns: int = COLUMNS, *, in_child: bool = True
) -> list[Row]:
    """The two take turns; the first goes first in every other round."""
    os.environ["DO_NOT_TRACK"] = "1"
    direct, preset, same, whole = [], [], 0, True
    for seed in range(rounds):
        made = job(seed, rows, columns)
        if seed % 2:
            theirs, their_s, count = by_preset(made)
            ours, our_s = by_tests(made)
        else:
            ours, our_s = by_tests(made)
            theirs, their_s, count = by_preset(made)
        direct.append(our_s)
        preset.append(their_s)
        same += sum(ours[name] == theirs[name] for name in ours)
        whole &= count == sum(verdict for *_, verdict in ours.values())
    ratio = median(preset) / median(direct)
    every = same == rounds * columns and whole
    return [
        Row(
            "deep run, against Evidently's DataDriftPreset",
            "≥ 3× faster",
            f"{ratio:.1f}×",
            ratio >= 3,
            f"{rows} rows, {columns} columns; {median(direct):.2f} s against "
            f"{median(preset):.2f} s, medians of {rounds}",
        ),
        Row(
            "deep run, columns with the same value, method, threshold and verdict",
            "all",
            f"{same} of {rounds * columns}",
            every,
            "" if whole else "the preset counts another number of drifted columns",
        ),
        *([_whole(rounds, rows, columns)] if in_child else []),
    ]


def _whole(rounds: int, rows: int, columns: int) -> Row:
    """From the spawn to the end, at its low priority: with Evidently's import, and calibrated."""
    seconds: dict[str, list[float]] = {"known": [], "found": []}
    peak, columns_drifted = 0, []
    for seed in range(rounds):
        for what, spent in seconds.items():
            calibrate_s = 600.0 if what == "found" else 0.0
            ran = DeepProcess(job(seed, rows, columns, calibrate_s), LIMITS, SystemClock()).run()
            if ran.result is None:
                raise AssertionError(ran.message)
            spent.append(ran.seconds)
            peak = max(peak, ran.peak_bytes)
        columns_drifted.append(sum(one["drifted"] for one in ran.result["columns"]))
    return Row(
        "deep run in its child, spawn and import included",
        "—",
        f"{median(seconds['known']):.1f} s",
        True,
        f"{median(seconds['found']):.1f} s when thresholds are found as well (once for a "
        f"reference); at most {peak >> 20} MiB; columns called drifted by thresholds of the "
        f"reference: {median(columns_drifted):.0f} of {columns}, where {-(-columns // 10)} are",
    )


def by_tests(made: Job) -> tuple[dict[str, Verdict], float]:
    """What the child does, in this process: each column's verdict; seconds."""
    judge = import_module("sidecar.monitor.deep.stattests").judge
    started = time.perf_counter()
    tested = judge(made)
    seconds = time.perf_counter() - started
    found = {
        one.name: (one.display, one.threshold, round(one.value, 9), one.drifted) for one in tested
    }
    return found, seconds


def by_preset(made: Job) -> tuple[dict[str, Verdict], float, int]:
    """The same from the preset's report, and how many columns it calls drifted."""
    report = import_module("evidently").Report
    preset = import_module("evidently.presets").DataDriftPreset
    frame = import_module("pandas").DataFrame
    names = [plan.name for plan in made.plans]
    now, before = (frame(side.numbers.T, columns=names) for side in (made.current, made.reference))
    started = time.perf_counter()
    metrics = report([preset()]).run(now, before).dict()["metrics"]
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {}
    count = -1
    for metric in metrics:
        config = metric["config"]
        if "column" not in config:
            count = int(metric["value"]["count"])
            continue
        value, threshold = round(float(metric["value"]), 9), config["threshold"]
        p_value = config["method"].endswith("p_value")
        drifted = value < threshold if p_value else value >= threshold
        found[config["column"]] = (config["method"], threshold, value, drifted)
    return found, seconds, count


def job(seed: int, rows: int, columns: int, calibrate_s: float = 0.0) -> Job:
    """Every tenth column is shifted by 0.25 σ; method and threshold are left to Evidently."""
    rng = np.random.default_rng(seed)
    shift = np.where(np.arange(columns) % 10 == 0, 0.25, 0.0)
    before = rng.normal(size=(rows, columns))
    now = rng.normal(size=(rows, columns)) + shift
    plans = tuple(Plan(f"c{index}", ColumnType.NUMERIC) for index in range(columns))
    none = np.empty((0, rows), dtype=np.int32)
    sides = [Side(np.ascontiguousarray(values.T), none) for values in (before, now)]
    return Job(plans, *sides, options=Options("benchmark", calibrate_s=calibrate_s))
