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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from validators.drift.bins import ABOVE, MISSING, UNSEEN, WIDTH
from validators.drift.descriptors import Column, ColumnType
from validators.drift.distances import DEFAULT, Distance, distance, missing
from validators.drift.multivariate import JointSums, correlation_change, kernel_distance
from validators.drift.reference import Reference, Window

Array = npt.NDArray[Any]

#: Units that are judged beside the columns.
CORRELATION, KERNEL = "(correlation)", "(joint)"
#: Fewer rows than these get no verdict.
MIN_ROWS = 500
EXPECTED_WINDOWS = 2000
#: References drawn, and windows drawn for each.
_REFERENCES = 64
_WINDOWS = 64
#: Orders in which the windows of one drawn reference are taken as a sequence.
_ORDERS = 32
#: A score of 1 is what a unit alone exceeds once in 50 windows.
_QUANTILE = 0.98
#: However constant a column was: a score of 1 needs so many rows that are elsewhere.
_LEAST_ROWS = 3
#: Alarms seen among the draws; with fewer, the threshold is extrapolated.
_ALARMS_MIN = 50
#: Share of the threshold under which an alarm clears.
CLEAR_SHARE = 0.75
#: Cells of one pass over windows.
_CELLS = 1 << 22


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
        measured = _measure(self.methods, reference, window.counts, window.joint, reference.counted)
        scores = (measured - self.middle) / self.scale
        width = len(reference.columns)
        size = window.rows * reference.rows / (window.rows + reference.rows)
        limits = self.middle + self.threshold * self.scale
        found = []
        for at, column in enumerate(reference.columns):
            unit = column.name
            if scores[width + at] > scores[at]:
                values = (measured[width + at], limits[width + at], scores[width + at])
                found.append(UnitScore(unit, "missing", *map(float, values), "NaN and infinite"))
                continue
            factor = size ** distance(self.methods[at], column.type).power
            values = (measured[at] / factor, limits[at] / factor, scores[at])
            detail = _most_changed(reference, window, at)
            found.append(UnitScore(unit, self.methods[at], *map(float, values), detail))
        if width > 1:
            _, flat = correlation_change(window.joint, reference.counted.joint)
            pair = " and ".join(reference.columns[i].name for i in divmod(int(flat), width))
            for at, unit, method, factor, detail in (
                (-2, CORRELATION, "fisher_z", math.sqrt(size), pair),
                (-1, KERNEL, "mmd", size, ""),
            ):
                values = (measured[at] / factor, limits[at] / factor, scores[at])
                found.append(UnitScore(unit, method, *map(float, values), detail))
        return tuple(found)

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
) -> Calibration:
    """Thresholds for windows of ``window_rows`` rows.

    ``codes``: of the reference's own rows (`Reference.codes`), uint8 [rows, columns], in the order
    in which they came. ``expected_windows``: between two false alarms, of all units together and
    with the rule of two in a row (`state.py`). ``block_rows``: rows that belong together; None:
    found from the autocorrelation. ``methods``: column name → distance, where not the default.

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
    chosen = _methods(reference.columns, methods or {})
    block = block_length(codes, window_rows) if block_rows is None else block_rows
    if not 1 <= block <= window_rows:
        raise ValueError(f"blocks of {block} rows do not fit into windows of {window_rows}")
    rng = np.random.default_rng(seed)
    draws = np.stack(list(_draws(reference, codes, chosen, window_rows, block, rng)))
    middle, high = np.quantile(draws, [0.5, _QUANTILE], axis=(0, 1))
    scale = np.maximum(high - middle, _least_scale(reference, chosen, window_rows) - middle)
    scores = _units((draws - middle) / scale, len(chosen))
    threshold, extrapolated = _threshold(scores, expected_windows, rng)
    return Calibration(
        window_rows, block, min_rows, float(expected_windows), chosen, middle, scale,
        threshold, CLEAR_SHARE * threshold, extrapolated,
    )  # fmt: skip


def block_length(codes: Array, window_rows: int) -> int:
    """Rows after which rows no longer resemble each other, times five; 1: they never did.

    From the autocorrelation of the ranks, of the column in which it lasts longest: the first lag
    from which it stays inside ±4 / √rows for as long again. Five times, because a block of the
    length itself loses a third of the variance of sums at its ends. At most a tenth of a window.
    """
    rows = len(codes)
    wide = codes.astype(np.float64)
    wide -= wide.mean(axis=0)
    power = np.square(wide).sum(axis=0)
    varies = power > 0
    most = max(1, min(window_rows, rows // 4))
    padded = 1 << (rows + most).bit_length()
    last = 0
    for column in wide.T[varies] / np.sqrt(power[varies])[:, None]:
        spectrum = np.fft.rfft(column, padded)
        lags = np.fft.irfft(np.square(np.abs(spectrum)), padded)[1 : most + 1]
        inside = np.abs(lags) <= 4 / math.sqrt(rows)
        last = max(last, int(inside.argmax()) if inside.any() else most)
    return 1 if last == 0 else max(1, min(5 * (last + 1), window_rows // 10))


def _methods(columns: tuple[Column, ...], asked: Mapping[str, str]) -> tuple[str, ...]:
    if unknown := sorted(set(asked) - {column.name for column in columns}):
        raise ValueError(f"no column {unknown[0]!r} to have a method")
    names = tuple(asked.get(column.name, DEFAULT[column.type]) for column in columns)
    for name, column in zip(names, columns, strict=True):
        distance(name, column.type)
    return names


def _by_method(
    methods: tuple[str, ...], columns: tuple[Column, ...]
) -> Iterator[tuple[Distance, Array]]:
    """(distance, the numbers of its columns)."""
    for name in sorted(set(methods)):
        at = [index for index, method in enumerate(methods) if method == name]
        yield distance(name, columns[at[0]].type), np.array(at)


def _measure(
    methods: tuple[str, ...], reference: Reference, counts: Array, joint: JointSums, against: Window
) -> Array:
    """float64 [..., measures] of windows: counts [..., columns, 36] and joint sums alike."""
    width, positions = len(methods), reference.positions
    found = np.empty((*counts.shape[:-2], 2 * width + (2 if width > 1 else 0)))
    for item, at in _by_method(methods, reference.columns):
        found[..., at] = item.scaled(counts[..., at, :], against.counts[at], positions[at])
    found[..., width : 2 * width] = missing(counts, against.counts)
    if width > 1:
        found[..., -2] = correlation_change(joint, against.joint)[0]
        found[..., -1] = kernel_distance(joint, against.joint)
    return np.nan_to_num(found, nan=0.0)


def _draws(
    reference: Reference,
    codes: Array,
    methods: tuple[str, ...],
    window_rows: int,
    block: int,
    rng: np.random.Generator,
) -> Iterator[Array]:
    """For each drawn reference: float64 [windows, measures]."""
    scores = reference.scores(codes)
    features = reference.features(scores)
    rows = len(codes)
    cells = max(1, _CELLS // (window_rows * codes.shape[1]))
    for _ in range(_REFERENCES):
        base = _count(codes, scores, features, _draw(rows, rows, block, 1, rng))
        against = Window(base[0][0], _first(base[1]))
        parts = []
        for start in range(0, _WINDOWS, cells):
            many = min(cells, _WINDOWS - start)
            counts, joint = _count(
                codes, scores, features, _draw(rows, window_rows, block, many, rng)
            )
            parts.append(_measure(methods, reference, counts, joint, against))
        yield np.concatenate(parts)


def _draw(rows: int, size: int, block: int, many: int, rng: np.random.Generator) -> Array:
    """Numbers of rows [many, size], in blocks that wrap around (circular block bootstrap).

    Politis, Romano, A circular block-resampling procedure for stationary data, 1992.
    """
    starts = rng.integers(0, rows, (many, math.ceil(size / block)))
    drawn = (starts[..., None] + np.arange(block)) % rows
    return np.asarray(drawn.reshape(many, -1)[:, :size])


def _count(codes: Array, scores: Array, features: Array, drawn: Array) -> tuple[Array, JointSums]:
    """(counts [many, columns, 36], sums of as many windows) of rows drawn [many, size]."""
    many, size = drawn.shape
    rows, columns = codes.shape
    keys = codes[drawn] + np.arange(0, columns * WIDTH, WIDTH, dtype=np.intp)
    keys += np.arange(0, many * columns * WIDTH, columns * WIDTH)[:, None, None]
    counts = np.bincount(keys.ravel(), minlength=many * columns * WIDTH)
    times = np.bincount(
        (drawn + np.arange(0, many * rows, rows)[:, None]).ravel(), minlength=many * rows
    )
    weights = times.reshape(many, rows).astype(np.float32)
    taken = scores[drawn]
    return counts.reshape(many, columns, WIDTH), JointSums(
        size,
        (weights @ scores).astype(np.float64),
        (taken.transpose(0, 2, 1) @ taken).astype(np.float64),
        (weights @ features).astype(np.float64),
    )


def _first(joint: JointSums) -> JointSums:
    return JointSums(joint.rows, joint.scores[0], joint.products[0], joint.features[0])


def _least_scale(reference: Reference, methods: tuple[str, ...], rows: int) -> Array:
    """Measures of a window like the reference but for a few rows; 0 for the joint ones."""
    counts = reference.counted.counts
    odd = min(_LEAST_ROWS / rows, 1.0)
    shares = counts / reference.rows * rows * (1 - odd)
    elsewhere = [
        ABOVE if column.type is ColumnType.NUMERIC else UNSEEN for column in reference.columns
    ]
    width = len(methods)
    moved, gone = shares.copy(), shares.copy()
    moved[np.arange(width), elsewhere] += odd * rows
    gone[:, MISSING] += odd * rows
    found = np.zeros(2 * width + (2 if width > 1 else 0))
    for item, at in _by_method(methods, reference.columns):
        found[at] = item.scaled(moved[at], counts[at], reference.positions[at])
    found[width : 2 * width] = missing(gone, counts)
    if width > 1:  # constant columns only: nothing to correlate, any change is one
        found[-2:] = 1.0
    return found


def _units(scores: Array, width: int) -> Array:
    """[..., measures] → [..., units]: of a column the worse of its two measures."""
    columns = np.maximum(scores[..., :width], scores[..., width : 2 * width])
    return np.concatenate([columns, scores[..., 2 * width :]], axis=-1)


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


def _extrapolate(gap: Any, start: float, high: float, expected: float) -> float:
    """A line through the logarithm of the gaps, where alarms are many enough to be counted.

    Scores fall off as fast as exponentials or faster, so that the line errs towards fewer alarms.
    """
    levels = np.linspace(start, high, 200)
    found = [(level, *gap(float(level))) for level in levels]
    kept = [(level, mean) for level, mean, ups in found if ups >= _ALARMS_MIN][-60:]
    at, logs = np.array([level for level, _ in kept]), np.log([mean for _, mean in kept])
    slope, offset = np.polyfit(at, logs, 1)
    return float(max((math.log(expected) - offset) / slope, at[-1]))


def _most_changed(reference: Reference, window: Window, column: int) -> str:
    """The code whose share changed most, with both shares."""
    sides = [counted.counts[column] for counted in (window, reference.counted)]
    now, before = (side / max(1, side.sum()) for side in sides)
    code = int(np.abs(now - before).argmax())
    return f"{reference.bins[column].label(code)}: {before[code]:.1%} → {now[code]:.1%}"
