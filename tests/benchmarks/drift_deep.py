"""Evidently's statistical tests called themselves, against its preset."""

from __future__ import annotations

import time
from importlib import import_module
from statistics import median
from typing import Any

import numpy as np

from tests.benchmarks.tools import Row

ROWS = 5_000
COLUMNS = 200


def drift_deep(rounds: int, rows: int = ROWS, columns: int = COLUMNS) -> list[Row]:
    """The two take turns; the first goes first in every other round."""
    direct, preset, same, whole = [], [], 0, True
    for seed in range(rounds):
        before, now = _frames(seed, rows, columns)
        if seed % 2:
            theirs, their_s, count = by_preset(before, now)
            ours, our_s = by_tests(before, now)
        else:
            ours, our_s = by_tests(before, now)
            theirs, their_s, count = by_preset(before, now)
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
    ]


def by_tests(before: Any, now: Any) -> tuple[dict[str, tuple[str, float, float, bool]], float]:
    """Method, threshold, value and verdict of each column; seconds."""
    choose = import_module("evidently.legacy.calculations.stattests").get_stattest
    started = time.perf_counter()
    found = {}
    for name in before.columns:
        test = choose(before[name], now[name], "num", None)
        got = test(before[name], now[name], "num", None)
        value = round(float(got.drift_score), 9)
        found[name] = (test.display_name, got.actual_threshold, value, bool(got.drifted))
    return found, time.perf_counter() - started


def by_preset(
    before: Any, now: Any
) -> tuple[dict[str, tuple[str, float, float, bool]], float, int]:
    """The same from the preset's report, and how many columns it calls drifted."""
    report = import_module("evidently").Report
    preset = import_module("evidently.presets").DataDriftPreset
    started = time.perf_counter()
    metrics = report([preset()]).run(now, before).dict()["metrics"]
    seconds = time.perf_counter() - started
    found, count = {}, -1
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


def _frames(seed: int, rows: int, columns: int) -> tuple[Any, Any]:
    """Every tenth column is shifted by 0.25 σ."""
    rng = np.random.default_rng(seed)
    names = [f"c{index}" for index in range(columns)]
    frame = import_module("pandas").DataFrame
    shift = np.where(np.arange(columns) % 10 == 0, 0.25, 0.0)
    before = rng.normal(size=(rows, columns))
    now = rng.normal(size=(rows, columns)) + shift
    return frame(before, columns=names), frame(now, columns=names)
