"""What is measured of a window: each column's distance and missing values, and all together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.drift.bins import ABOVE, MISSING, UNSEEN
from validators.drift.columns import Column, ColumnType
from validators.drift.distances import DEFAULT, Distance, distance, missing
from validators.drift.multivariate import JointSums, correlation_change, kernel_distance
from validators.drift.reference import Reference, Window

Array = npt.NDArray[Any]

#: However constant a column was: a score of 1 needs so many rows that are elsewhere.
_LEAST_ROWS = 3


def methods_of(columns: tuple[Column, ...], asked: Mapping[str, str]) -> tuple[str, ...]:
    """A distance for each column: the one asked for by the column's name, or the default.

    ValueError for an unknown column or distance, and one that a column of its type has not.
    """
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


def measure(
    methods: tuple[str, ...], reference: Reference, counts: Array, joint: JointSums, against: Window
) -> Array:
    """float64 [..., measures] of windows: counts [..., columns, 36] and joint sums alike.

    ``against``: what the reference counted, or a draw of it.
    """
    width, positions = len(methods), reference.positions
    found = np.empty((*counts.shape[:-2], 2 * width + (2 if width > 1 else 0)))
    for item, at in _by_method(methods, reference.columns):
        found[..., at] = item.scaled(counts[..., at, :], against.counts[at], positions[at])
    found[..., width : 2 * width] = missing(counts, against.counts)
    if width > 1:
        known = reference.correlations if against is reference.counted else None
        found[..., -2] = correlation_change(joint, against.joint, known)[0]
        found[..., -1] = kernel_distance(joint, against.joint)
    return np.nan_to_num(found, nan=0.0)


def least_measures(reference: Reference, methods: tuple[str, ...], rows: int) -> Array:
    """Measures of a window like the reference but for a few rows; 0 for the joint ones.

    float64 [measures]; ``rows``: of the window.
    """
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
    return found


def units_of(scores: Array, width: int) -> Array:
    """[..., measures] → [..., units]: of a column the worse of its two measures."""
    columns = np.maximum(scores[..., :width], scores[..., width : 2 * width])
    return np.concatenate([columns, scores[..., 2 * width :]], axis=-1)
