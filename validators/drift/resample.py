"""A reference drawn from again and again as if it were traffic, in blocks of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.drift.bins import WIDTH
from validators.drift.measures import measure
from validators.drift.multivariate import JointSums
from validators.drift.reference import Reference, Window

Array = npt.NDArray[Any]

#: References drawn, and windows drawn for each.
REFERENCES = 64
_WINDOWS = 64
#: Cells of one pass over windows.
_CELLS = 1 << 22


def block_length(codes: Array, window_rows: int) -> int:
    """Rows after which rows no longer resemble each other, times ten; 1: they never did.

    From the autocorrelation of the codes, of the column in which it lasts longest: the first lag
    that is inside ±4 / √rows. Ten times, because sums over blocks lose what rows share across the
    ends of blocks: a third of the variance for blocks of that length itself, a thirtieth so. At
    most a fifth of a window.
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
    return 1 if last == 0 else max(1, min(10 * (last + 1), window_rows // 5))


def draw_measures(
    reference: Reference,
    codes: Array,
    methods: tuple[str, ...],
    window_rows: int,
    block: int,
    rng: np.random.Generator,
    *,
    aligned: bool,
) -> Iterator[Array]:
    """For each drawn reference: float64 [windows, measures].

    ``aligned``: blocks begin at multiples of ``block`` only, as requests of so many rows do.
    """
    scores = reference.scores(codes)
    features = reference.features(scores)
    rows, columns = codes.shape
    # Where each code is counted, once and not for each draw.
    keys = codes + np.arange(0, columns * WIDTH, WIDTH, dtype=np.int32)
    most = max(1, _CELLS // columns)  # rows of one pass

    def drawn(size: int, many: int) -> Array:
        return draw_blocks(rows, size, block, many, rng, aligned=aligned)

    for _ in range(REFERENCES):
        against = Window.empty(columns)
        base = drawn(rows, 1)
        for start in range(0, rows, most):
            counts, joint = _count(keys, scores, features, base[:, start : start + most])
            against.merge(Window(counts[0], _first(joint)))
        parts = []
        at_once = max(1, most // window_rows)
        for start in range(0, _WINDOWS, at_once):
            many = min(at_once, _WINDOWS - start)
            counts, joint = _count(keys, scores, features, drawn(window_rows, many))
            parts.append(measure(methods, reference, counts, joint, against))
        yield np.concatenate(parts)


def draw_blocks(
    rows: int, size: int, block: int, many: int, rng: np.random.Generator, *, aligned: bool
) -> Array:
    """Numbers of rows [many, size], in blocks.

    Blocks that begin anywhere wrap around: Politis, Romano, A circular block-resampling procedure
    for stationary data, 1992. A last block that is not whole is left out of aligned ones.
    """
    starts = rng.integers(0, rows // block if aligned else rows, (many, math.ceil(size / block)))
    if aligned:
        starts *= block
    drawn = (starts[..., None] + np.arange(block)) % rows
    return np.asarray(drawn.reshape(many, -1)[:, :size])


def _count(keys: Array, scores: Array, features: Array, drawn: Array) -> tuple[Array, JointSums]:
    """(counts [many, columns, 36], sums of as many windows) of rows drawn [many, size]."""
    many, size = drawn.shape
    rows, columns = keys.shape
    width = columns * WIDTH
    found = keys[drawn]
    found += np.arange(0, many * width, width, dtype=np.int32)[:, None, None]
    counts = np.bincount(found.ravel(), minlength=many * width)
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
