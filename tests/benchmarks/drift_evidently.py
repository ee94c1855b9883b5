"""How often Evidently's defaults tell of drift in traffic that has none."""

from __future__ import annotations

import os
import time
from importlib import import_module

import numpy as np

from sidecar.monitor.deep.job import DEFAULT, Job, Options, Plan, Side
from tests.benchmarks.tools import Row
from tests.validators.drift.simulate import COLUMNS, Traffic
from validators.drift.columns import Rows

#: Its tests take long, so fewer windows are judged than of ours: 200 in five rounds.
WINDOWS_PER_ROUND = 40
ROWS = 500
#: Up to 1,000 rows of reference Evidently tests by Kolmogorov-Smirnov, above by Wasserstein.
REFERENCE_ROWS = (1_000, 10_000)
REQUEST = 10
#: Evidently's DataDriftPreset calls a data set drifted from this share of columns on.
SHARE = 0.5
#: A deep run looks at a reference's sample, and alarms so rarely (one run in so many).
SAMPLE_ROWS = 5_000
ASKED = 50


def evidently_alarms(rounds: int, windows: int = WINDOWS_PER_ROUND) -> list[Row]:
    """Each window judged alone, as Evidently does; no target: they stand beside ours.

    Then its tests with the thresholds of a deep run.
    """
    os.environ["DO_NOT_TRACK"] = "1"
    kinds = (("independent rows", 1), (f"requests of {REQUEST} rows", REQUEST))
    return [
        *(
            evidently_rate(what, block, rows, rounds, windows)
            for what, block in kinds
            for rows in REFERENCE_ROWS
        ),
        *(deep_rate(what, block, rounds, windows) for what, block in kinds),
    ]


def evidently_rate(what: str, block: int, reference_rows: int, rounds: int, windows: int) -> Row:
    """Its statistical tests are called themselves, without rendering."""
    drifted = [
        verdicts
        for seed in range(rounds)
        for verdicts in _round(block, reference_rows, seed, windows)
    ]
    columns = np.array(drifted)
    some = int(columns.any(axis=1).sum())
    whole = int((columns.mean(axis=1) >= SHARE).sum())
    return Row(
        f"Evidently's defaults, windows with a drifted column, {what}",
        "—",
        f"{some} of {len(columns)}",
        True,
        f"reference of {reference_rows} rows; {columns.mean():.1%} of columns; "
        f"{whole} windows with half the columns",
    )


def deep_rate(what: str, block: int, rounds: int, windows: int) -> Row:
    """The same windows judged as a deep run does."""
    stattests = import_module("sidecar.monitor.deep.stattests")
    rows = SAMPLE_ROWS
    false = 0
    for seed in range(rounds):
        base = Traffic(np.random.default_rng(seed), block).rows(rows)
        traffic = Traffic(np.random.default_rng(1000 + seed), block)
        options = Options("m", ASKED, block, block > 1, ROWS, calibrate_s=600.0)
        thresholds = None
        for _ in range(windows):
            job = _job(base, traffic.rows(ROWS), options)
            if thresholds is None:
                thresholds = stattests.calibrate(job, time.perf_counter).thresholds
            false += any(one.drifted for one in stattests.judge(job, thresholds))
    return Row(
        f"Evidently's tests with the thresholds of a deep run, likewise, {what}",
        "—",
        f"{false} of {rounds * windows}",
        True,
        f"reference of {rows} rows; asked for: one run in {ASKED}",
    )


def _job(base: Rows, now: Rows, options: Options) -> Job:
    plans = tuple(Plan(c.name, c.type, DEFAULT[c.type]) for c in COLUMNS)
    sides = []
    for rows in (base, now):
        numbers = np.ascontiguousarray(np.stack([rows[column.name] for column in COLUMNS]))
        sides.append(Side(numbers, np.empty((0, numbers.shape[1]), dtype=np.int32)))
    return Job(plans, *sides, options=options)


def _round(block: int, reference_rows: int, seed: int, windows: int) -> list[list[bool]]:
    # Neither has types; imported late, because they take seconds.
    series = import_module("pandas").Series
    get_stattest = import_module("evidently.legacy.calculations.stattests").get_stattest
    base = Traffic(np.random.default_rng(seed), block).rows(reference_rows)
    reference = {column.name: series(base[column.name]) for column in COLUMNS}
    traffic = Traffic(np.random.default_rng(1000 + seed), block)
    found = []
    for _ in range(windows):
        rows = traffic.rows(ROWS)
        verdicts = []
        for name, before in reference.items():
            now = series(rows[name])
            test = get_stattest(before, now, "num", None)
            verdicts.append(bool(test(before, now, "num", None).drifted))
        found.append(verdicts)
    return found
