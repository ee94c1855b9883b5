"""Thresholds from one number that a user understands: windows between two false alarms.

The reference is drawn from again and again as if it were traffic: a reference of the same size and
windows of the real size, in blocks where rows are correlated, all judged as live ones are. The
error of the reference itself is thus in the thresholds, and two windows in a row are counted as
they will be, with what they share. The idea of calibrating for an expected run time is that of
Cobb et al., Sequential multivariate change detection with calibrated and memoryless false
detection rates, AISTATS 2022.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from validators.drift.bins import INFINITE, MISSING
from validators.drift.distances import distance
from validators.drift.measures import least_measures, measure, methods_of, units_of
from validators.drift.multivariate import correlation_change
from validators.drift.reference import Reference, Window
from validators.drift.resample import REFERENCES, block_length, draw_measures

Array = npt.NDArray[Any]

#: Units that are judged beside the columns.
CORRELATION, KERNEL = "(correlation)", "(joint)"
#: Fewer rows than these get no verdict.
MIN_ROWS = 500
EXPECTED_WINDOWS = 2000
#: Orders in which the windows of one drawn reference are taken as a sequence.
_ORDERS = 32
#: A score of 1 is what a unit alone exceeds once in 50 windows.
_QUANTILE = 0.98
#: Alarms seen among the draws; with fewer, the threshold is extrapolated.
_ALARMS_MIN = 50
#: Columns that are all constant have nothing to be joint with: any change is large.
_SCALE_MIN = 0.01
#: Share of the threshold under which an alarm clears.
CLEAR_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class UnitScore:
    """One column, or the columns together, in one window.

    ``value``, ``threshold``: of the method, in its own unit and for this window's rows. ``score``:
    what the alarm rule sees, comparable between units. ``detail``: where it changed most.
    """

    unit: str
    method: str
    value: float
    threshold: float
    score: float
    detail: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """What makes scores of measures. Arrays float64 [measures].

    Measures: each column's distance, each column's missing values, correlation, kernel. ``middle``
    and ``scale``: their median and the way from there to what they exceed once in 50 windows.
    ``threshold``, ``clear``: of the score. ``extrapolated``: the rate asked for is too rare to be
    seen among the draws.
    """

    window_rows: int
    block_rows: int
    min_rows: int
    expected_windows: float
    methods: tuple[str, ...]
    middle: Array
    scale: Array
    threshold: float
    clear: float
    extrapolated: bool

    def judge(self, reference: Reference, window: Window) -> tuple[UnitScore, ...] | None:
        """Columns in their order, then what they are together; None: under ``min_rows`` rows."""
        if window.rows < self.min_rows:
            return None
        measured = measure(self.methods, reference, window.counts, window.joint, reference.counted)
        width = len(reference.columns)
        size = window.rows * reference.rows / (window.rows + reference.rows)

        def scored(unit: str, at: int, method: str, power: float, detail: str) -> UnitScore:
            score = float((measured[at] - self.middle[at]) / self.scale[at])
            limit = float(self.middle[at] + self.threshold * self.scale[at])
            value, factor = float(measured[at]), size**power
            return UnitScore(unit, method, value / factor, limit / factor, score, detail)

        changed, gone = _most_changed(reference, window), _missing(reference, window)
        found = []
        for at, column in enumerate(reference.columns):
            method = self.methods[at]
            power = distance(method, column.type).power
            sides = (
                scored(column.name, at, method, power, changed[at]),
                scored(column.name, width + at, "missing", 0.0, gone[at]),
            )
            found.append(max(sides, key=lambda side: side.score))
        if width > 1:
            known = reference.correlations
            flat = int(correlation_change(window.joint, reference.counted.joint, known)[1])
            pair = " and ".join(reference.columns[index].name for index in divmod(flat, width))
            at = 2 * width
            found.append(scored(CORRELATION, at, "fisher_z", 0.5, pair))
            found.append(scored(KERNEL, at + 1, "mmd", 1.0, ""))
        return tuple(found)

    def units(self, reference: Reference) -> tuple[str, ...]:
        """Names of what ``judge`` scores, in its order."""
        names = tuple(column.name for column in reference.columns)
        return (*names, CORRELATION, KERNEL) if len(names) > 1 else names

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "window_rows": self.window_rows,
            "block_rows": self.block_rows,
            "min_rows": self.min_rows,
            "expected_windows_between_false_alarms": self.expected_windows,
            "methods": list(self.methods),
            "middle": self.middle.tolist(),
            "scale": self.scale.tolist(),
            "threshold": self.threshold,
            "clear": self.clear,
            "extrapolated": self.extrapolated,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when `plain` is not what `to_plain` wrote."""
        try:
            made = cls(
                int(plain["window_rows"]),
                int(plain["block_rows"]),
                int(plain["min_rows"]),
                float(plain["expected_windows_between_false_alarms"]),
                tuple(plain["methods"]),
                np.array(plain["middle"], dtype=np.float64),
                np.array(plain["scale"], dtype=np.float64),
                float(plain["threshold"]),
                float(plain["clear"]),
                bool(plain["extrapolated"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a stored calibration: {error!r}") from error
        width = len(made.methods)
        measures = 2 * width + (2 if width > 1 else 0)
        if made.middle.shape != (measures,) or made.scale.shape != (measures,):
            raise ValueError(f"not a stored calibration: of {width} columns, {measures} measures")
        if not (made.scale > 0).all() or not math.isfinite(made.threshold):
            raise ValueError("not a stored calibration: its scales or threshold make no sense")
        return made


def calibrate(
    reference: Reference,
    codes: Array,
    *,
    window_rows: int,
    expected_windows: float = EXPECTED_WINDOWS,
    block_rows: int | None = None,
    methods: Mapping[str, str] | None = None,
    min_rows: int = MIN_ROWS,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Calibration:
    """Thresholds for windows of ``window_rows`` rows.

    ``codes``: of the reference's own rows (`Reference.codes`), uint8 [rows, columns], in the order
    in which they came. ``expected_windows``: between two false alarms, of all units together and
    with the rule of two in a row (`state.py`). ``block_rows``: rows that belong together (those
    of a request), the first block at the first row; None: found from the autocorrelation.
    ``methods``: column name → distance, where not the default. ``on_progress``: is told (done, of)
    after each drawn reference, which is what takes the time.

    ValueError for a window under ``min_rows``, fewer rows in the reference than in two windows, an
    unknown method or column, and an expectation outside 5 … 1e6 windows.
    """
    if codes.shape != (reference.rows, len(reference.columns)):
        raise ValueError(f"codes {codes.shape} are not those of the reference's rows")
    if window_rows < min_rows:
        raise ValueError(
            f"windows of {window_rows} rows would never be judged: {min_rows} are needed"
        )
    if len(codes) < 2 * window_rows:
        raise ValueError(
            f"a reference of {len(codes)} rows is too small for windows of {window_rows}: register "
            f"{2 * window_rows} at least, better {10 * window_rows}"
        )
    if not 5 <= expected_windows <= 1e6:
        raise ValueError(f"false alarms once in 5 to 1,000,000 windows, not {expected_windows}")
    chosen = methods_of(reference.columns, methods or {})
    block = block_length(codes, window_rows) if block_rows is None else block_rows
    if not 1 <= block <= window_rows:
        raise ValueError(f"blocks of {block} rows do not fit into windows of {window_rows}")
    rng = np.random.default_rng(seed)
    aligned = block_rows is not None
    parts = []
    for part in draw_measures(reference, codes, chosen, window_rows, block, rng, aligned=aligned):
        parts.append(part)
        if on_progress is not None:
            on_progress(len(parts), REFERENCES)
    draws = np.stack(parts)
    middle, high = np.quantile(draws, [0.5, _QUANTILE], axis=(0, 1))
    least = least_measures(reference, chosen, window_rows) - middle
    scale = np.maximum(np.maximum(high - middle, least), _SCALE_MIN)
    scores = units_of((draws - middle) / scale, len(chosen))
    threshold, extrapolated = _threshold(scores, expected_windows, rng)
    return Calibration(
        window_rows, block, min_rows, float(expected_windows), chosen, middle, scale,
        threshold, CLEAR_SHARE * threshold, extrapolated,
    )  # fmt: skip


def _threshold(scores: Array, expected: float, rng: np.random.Generator) -> tuple[float, bool]:
    """(threshold, whether extrapolated) of scores [references, windows, units].

    A unit alarms when two windows in a row are over it, so that a sequence of windows is judged by
    m = max over units of min(this, the next). Alarms are its upcrossings; the mean time between,
    of a stationary sequence, is P(m ≤ t) / P(m crosses t upwards).
    """
    crossings = []
    for windows in scores:
        for _ in range(_ORDERS):
            order = windows[rng.permutation(len(windows))]
            both = np.minimum(order, np.roll(order, -1, axis=0)).max(axis=1)
            crossings.append((np.roll(both, 1), both))
    before, after = (np.concatenate(side) for side in zip(*crossings, strict=True))
    total, levels = after.size, np.sort(after)

    def gap(level: float) -> tuple[float, int]:
        ups = int(np.count_nonzero((after > level) & (before <= level)))
        return np.searchsorted(levels, level, side="right") / max(ups, 1), ups

    # Only the upper half: below, everything alarms all the time.
    low, high = float(levels[total // 2]), float(levels[-1])
    start = low
    for _ in range(50):
        middle = (low + high) / 2
        if gap(middle)[0] < expected:
            low = middle
        else:
            high = middle
    if gap(high)[1] >= _ALARMS_MIN:
        return high, False
    return _extrapolate(gap, start, high, expected), True


def _extrapolate(
    gap: Callable[[float], tuple[float, int]], start: float, high: float, expected: float
) -> float:
    """A line through the logarithm of the gaps, where alarms are many enough to be counted.

    Scores fall off as fast as exponentials or faster, so that the line errs towards fewer alarms.
    """
    levels = np.linspace(start, high, 200)
    found = [(level, *gap(float(level))) for level in levels]
    kept = [(level, mean) for level, mean, ups in found if ups >= _ALARMS_MIN][-60:]
    if len(kept) < 3 or kept[0][0] == kept[-1][0]:
        return max(1.0, high)  # constant columns: what `least_measures` says is odd
    at, logs = np.array([level for level, _ in kept]), np.log([mean for _, mean in kept])
    slope, offset = np.polyfit(at, logs, 1)
    if slope <= 0:
        return max(1.0, high)
    return float(max((math.log(expected) - offset) / slope, at[-1]))


def _shares(reference: Reference, window: Window) -> tuple[Array, Array]:
    """Before and now, float64 [columns, 36] each."""
    before, now = (
        counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        for counts in (reference.counted.counts, window.counts)
    )
    return before, now


def _most_changed(reference: Reference, window: Window) -> list[str]:
    """For each column the code whose share changed most, with both shares."""
    before, now = _shares(reference, window)
    codes = np.abs(now - before).argmax(axis=1)
    return [
        f"{item.label(code)}: {before[at, code]:.1%} → {now[at, code]:.1%}"
        for at, (item, code) in enumerate(zip(reference.bins, codes.tolist(), strict=True))
    ]


def _missing(reference: Reference, window: Window) -> list[str]:
    """For each column the share of NaN and infinite values, before and now."""
    before, now = (
        (side[:, MISSING] + side[:, INFINITE]).tolist() for side in _shares(reference, window)
    )
    return [
        f"NaN and infinite: {old:.1%} → {new:.1%}" for old, new in zip(before, now, strict=True)
    ]
