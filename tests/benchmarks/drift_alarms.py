"""Drift alarms on simulated traffic: how often without drift, and how soon with it."""

from __future__ import annotations

import time

import numpy as np

from tests.benchmarks.drift_evidently import evidently_alarms
from tests.benchmarks.tools import Row
from tests.validators.drift.simulate import Traffic, Watch, alarms, delay
from validators.drift.calibrate import CORRELATION

#: Five rounds make 20,000 windows.
WINDOWS_PER_ROUND = 4000
EXPECTED = 50
ROWS = 500
REFERENCE_ROWS = 10_000
REQUEST = 10
DRIFTS_PER_ROUND = 40


def drift_alarms(rounds: int) -> list[Row]:
    """Each round registers a reference of its own: what one has by chance is in the mean."""
    return [
        false_alarms("independent rows", 1, 1, rounds),
        false_alarms(f"requests of {REQUEST} rows, told", REQUEST, REQUEST, rounds),
        false_alarms(f"requests of {REQUEST} rows, not told", REQUEST, None, rounds),
        *evidently_alarms(rounds),
        *delays(rounds, EXPECTED),
        *delays(rounds, 2000),
        *costs(),
    ]


def registered(block: int, block_rows: int | None, expected: float, seed: int) -> Watch:
    rows = Traffic(np.random.default_rng(seed), block).rows(REFERENCE_ROWS)
    return Watch.over(
        rows, window_rows=ROWS, expected_windows=expected, block_rows=block_rows, seed=seed
    )


def false_alarms(what: str, block: int, block_rows: int | None, rounds: int) -> Row:
    """Mean over references of the rate; its inverse is the interval."""
    counts = []
    for seed in range(rounds):
        watch = registered(block, block_rows, EXPECTED, seed)
        traffic = Traffic(np.random.default_rng(1000 + seed), block)
        counts.append(alarms(watch, (traffic.rows(ROWS) for _ in range(WINDOWS_PER_ROUND))))
    windows = rounds * WINDOWS_PER_ROUND
    interval = windows / max(1, sum(counts))
    each = ", ".join(f"{WINDOWS_PER_ROUND / max(1, count):.0f}" for count in counts)
    return Row(
        f"windows between false alarms, {what}",
        f"{EXPECTED} within 2×",
        f"{interval:.0f}",
        EXPECTED / 2 <= interval <= EXPECTED * 2,
        f"{windows} windows of {ROWS} rows, 20 columns; by reference: {each}",
    )


def delays(rounds: int, expected: float) -> list[Row]:
    """From the first window with drift to the alarm, both counted."""
    found: dict[str, list[float]] = {"c7": [], CORRELATION: []}
    for seed in range(rounds):
        watch = registered(1, 1, expected, seed)
        for drift in range(DRIFTS_PER_ROUND):
            rng = np.random.default_rng((2000 + seed, drift))
            for unit, traffic in (
                ("c7", Traffic(rng, shift=0.25)),
                (CORRELATION, Traffic(rng, correlation=-0.8)),
            ):
                windows = (traffic.rows(ROWS) for _ in range(8))
                found[unit].append(delay(watch, windows, unit))
    rows = []
    for unit, what, limit in (
        ("c7", "mean of one of 20 columns shifted by 0.25 σ", 2),
        (CORRELATION, "correlation flipped, marginals unchanged", 3),
    ):
        in_time = float(np.mean(np.array(found[unit]) <= limit))
        middle = float(np.median(found[unit]))
        rows.append(
            Row(
                f"windows to alarm: {what}",
                f"≤ {limit}",
                f"{middle:g}",
                middle <= limit,
                f"one false alarm in {expected:g} windows; {in_time:.0%} of "
                f"{len(found[unit])} in time",
            )
        )
    return rows


def costs() -> list[Row]:
    """CPU time of what runs for each registration, row and window; no target."""
    started = time.process_time()
    watch = registered(1, 1, EXPECTED, 0)
    register_s = time.process_time() - started
    rows = Traffic(np.random.default_rng(9)).rows(ROWS)

    def once() -> float:
        window = watch.reference.window()
        begun = time.process_time()
        watch.reference.add(window, rows)
        counted = time.process_time()
        watch.calibration.judge(watch.reference, window)
        counts.append(counted - begun)
        return time.process_time() - counted

    counts: list[float] = []
    judged = [once() for _ in range(50)]
    count_us = float(np.median(counts)) / ROWS * 1e6
    judge_ms = float(np.median(judged)) * 1e3
    detail = f"CPU time; reference of {REFERENCE_ROWS} rows, 20 columns"
    return [
        Row("registering and calibrating", "—", f"{register_s:.1f} s", True, detail),
        Row("counting one row", "—", f"{count_us:.1f} µs", True, "CPU time"),
        Row("judging one window", "—", f"{judge_ms:.1f} ms", True, "CPU time"),
    ]
