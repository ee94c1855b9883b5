"""A bounded sample of live rows: of each window a uniform one, of the latest windows together."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from validators.drift.columns import Column, ColumnType, Rows

Array = np.ndarray[Any, Any]


class WindowSample:
    """A seeded reservoir for the open window, and those of the windows before it.

    For one thread at a time; the caller holds a lock.

    Args:
        columns: what is kept of a row; memory is ``rows`` × columns × 8 bytes, twice.
        rows: the most that ``rows`` gives; the oldest windows go first.
    """

    def __init__(self, columns: tuple[Column, ...], rows: int, seed: int = 0) -> None:
        self._columns = columns
        self._most = rows
        self._rng = np.random.default_rng(seed)
        self._closed: deque[tuple[int, Rows]] = deque()
        self._begin()

    def _begin(self) -> None:
        self._open: dict[str, Array] = {}
        self._seen = 0

    @property
    def _kept(self) -> int:
        return min(self._seen, self._most)

    def add(self, rows: Rows) -> None:
        """Offer rows of the open window. Vitter, Random sampling with a reservoir, 1985 (R)."""
        size = len(rows[self._columns[0].name])
        if not self._open:
            self._open = {
                c.name: np.empty(
                    self._most, dtype=np.float64 if c.type is ColumnType.NUMERIC else object
                )
                for c in self._columns
            }
        free = min(size, self._most - self._kept)
        at = np.empty(size, dtype=np.int64)
        at[:free] = np.arange(self._kept, self._kept + free)
        if free < size:
            seen = np.arange(self._seen + free + 1, self._seen + size + 1)
            at[free:] = self._rng.integers(0, seen)
        taken = at < self._most
        for column in self._columns:
            self._open[column.name][at[taken]] = rows[column.name][taken]
        self._seen += size

    def close(self) -> None:
        """The window is over: keep its rows while they are among the latest."""
        if self._kept:
            # A copy of what there is: the buffer is as large as the largest window.
            part = {name: column[: self._kept].copy() for name, column in self._open.items()}
            self._closed.append((self._kept, part))
        self._seen = 0
        total = sum(size for size, _ in self._closed)
        while self._closed and total - self._closed[0][0] >= self._most:
            total -= self._closed.popleft()[0]

    def rows(self) -> Rows:
        """At most so many rows, the latest windows', the oldest first."""
        parts = [part for _, part in self._closed]
        if self._kept:
            parts.append({name: column[: self._kept] for name, column in self._open.items()})
        if not parts:
            return {column.name: _typed(np.empty(0, object), column) for column in self._columns}
        return {
            column.name: _typed(
                np.concatenate([part[column.name] for part in parts])[-self._most :], column
            )
            for column in self._columns
        }


def _typed(values: Array, column: Column) -> Array:
    if column.type is ColumnType.NUMERIC:
        return values.astype(np.float64)
    return np.array([str(value) for value in values.tolist()], dtype=str)
