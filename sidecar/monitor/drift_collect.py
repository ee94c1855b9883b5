"""Rows for a reference: described as they come, for the first rows of traffic or given files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from sidecar.monitor.drift_columns import Columns, MisfitError, describe_one
from sidecar.runtimes.base import Array
from validators.drift.columns import Column, ColumnType, Rows

#: Embeddings are held as they are until there are enough to fit on: so many rows, or bytes.
FIT_ROWS = 1024
FIT_BYTES = 32 * 2**20


class Collector:
    """Takes tensors, gives columns.

    Args:
        columns: how; the descriptors that must be fitted are fitted here.
        rows: how many are wanted; more are not kept.
        fit_rows, fit_bytes: on how much embeddings are fitted. Live traffic cannot be kept whole.
    """

    def __init__(
        self, columns: Columns, rows: int, *, fit_rows: int = FIT_ROWS, fit_bytes: int = FIT_BYTES
    ) -> None:
        self.columns = columns
        self.wanted = rows
        self._fit_rows, self._fit_bytes = fit_rows, fit_bytes
        self._parts: list[dict[int, Rows]] = []  # number of a source → its columns
        self._sizes: list[int] = []
        self._raw: dict[int, list[Array]] = {
            at: [] for at, one in enumerate(columns.sources) if one.must_be_fitted
        }
        self._raw_bytes = 0
        self._kinds: dict[int, dict[str, ColumnType]] = {}
        self.rows = 0

    @property
    def is_full(self) -> bool:
        """Whether all rows that are wanted are there."""
        return self.rows >= self.wanted

    def add(self, arrays: Mapping[int, Array]) -> None:
        """Take the tensors of some rows (``Columns.arrays``).

        Raises:
            MisfitError: they do not go with those that came before; none of them is taken.
        """
        size = min(len(next(iter(arrays.values()))), self.wanted - self.rows)
        if size <= 0:
            return
        part: dict[int, Rows] = {}
        for at, array in arrays.items():
            if at not in self._raw:
                part[at] = describe_one(self.columns.sources[at], array[:size])
            elif (held := self._raw[at]) and held[0].shape[1:] != array.shape[1:]:
                shapes = f"{list(array.shape[1:])} a row, before {list(held[0].shape[1:])}"
                raise MisfitError(f"{self.columns.sources[at].tensor!r} is {shapes}")
        self._append(part, size)
        for at, held in self._raw.items():
            held.append(np.array(arrays[at][:size]))  # the exchange's bytes must not be held
            self._raw_bytes += held[-1].nbytes
        if self._raw and (self.rows >= self._fit_rows or self._raw_bytes >= self._fit_bytes):
            self._fit()

    def _append(self, part: dict[int, Rows], size: int) -> None:
        kinds = {at: {name: _type(v) for name, v in rows.items()} for at, rows in part.items()}
        for at, found in kinds.items():
            if self._kinds.setdefault(at, found) != found:
                raise MisfitError(
                    f"{self.columns.sources[at].tensor!r} gives other columns than before: "
                    f"{', '.join(sorted(found)[:5])}"
                )
        self._parts.append(part)
        self._sizes.append(size)
        self.rows += size

    def _fit(self) -> None:
        """Fit on what is held, describe it, and let it go."""
        for at, held in list(self._raw.items()):
            source = self.columns.sources[at]
            try:
                source.descriptor.fit(np.concatenate(held))
            except ValueError as error:
                raise MisfitError(str(error)) from None
            for part, array in zip(self._parts, held, strict=True):
                part[at] = describe_one(source, array)
            self._kinds[at] = {name: _type(v) for name, v in self._parts[0][at].items()}
            del self._raw[at]

    def parts(self, after: int = 0) -> list[Rows]:
        """What was described, from this part on; nothing before all that must be fitted is."""
        return [] if self._raw else [self._flat(part) for part in self._parts[after:]]

    def restore(self, parts: Iterable[Rows]) -> None:
        """Take back what ``parts`` gave in another life; descriptors must be fitted as there.

        Raises:
            MisfitError: they are of other columns; some may have been taken.
        """
        prefixes = [f"{one.descriptor.prefix}." for one in self.columns.sources]
        for rows in parts:
            part: dict[int, Rows] = {at: {} for at in range(len(prefixes))}
            for name, column in rows.items():
                fitting = [at for at, prefix in enumerate(prefixes) if name.startswith(prefix)]
                if not fitting:
                    raise MisfitError(f"no tensor has a column {name!r}")
                part[max(fitting, key=lambda at: len(prefixes[at]))][name] = column
            self._append(part, len(next(iter(rows.values()))))

    def _flat(self, part: Mapping[int, Rows]) -> Rows:
        return {name: v for at in range(len(self.columns.sources)) for name, v in part[at].items()}

    def finish(self) -> tuple[tuple[Column, ...], Rows, list[str]]:
        """(columns, rows, what is to be said). Those without a finite value are left out.

        Raises:
            MisfitError: nothing is left, or nothing can be fitted.
        """
        self._fit()
        flat = self.parts()
        if not flat:
            raise MisfitError("there are no rows")
        rows = {name: np.concatenate([part[name] for part in flat]) for name in flat[0]}
        columns, notes = [], []
        for name, column in list(rows.items()):
            kind = _type(column)
            if kind is ColumnType.NUMERIC and not np.isfinite(column).any():
                del rows[name]
                notes.append(f"column {name!r} has no finite value, and is not watched")
            else:
                columns.append(Column(name, kind))
        if not rows:
            raise MisfitError("no column has a finite value")
        return tuple(columns), rows, notes


def _type(column: Array) -> ColumnType:
    return ColumnType.NUMERIC if column.dtype == np.float64 else ColumnType.CATEGORICAL
