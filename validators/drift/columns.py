"""What a descriptor is: from the rows of one tensor to named, typed columns."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from validators.dtypes import dtype_class

Array = npt.NDArray[Any]
#: Column name → its values: float64 [rows], or of a category int64, bool or str [rows].
Rows = dict[str, Array]

#: Values of a row that are looked at; of a larger one, every n-th.
LOOK_AT = 16384
#: Values of one pass, so that the float64 copies stay small whatever the batch.
_CHUNK = 1 << 18


class ColumnType(StrEnum):
    """Declared, never guessed: few distinct integers are not a category by themselves."""

    NUMERIC = "numeric"
    CATEGORICAL = "categorical"


@dataclass(frozen=True, slots=True)
class Column:
    """One thing that is watched."""

    name: str
    type: ColumnType


class Descriptor(ABC):
    """From [rows, ...] of one tensor to columns named ``PREFIX.what``; rows are independent.

    ``describe`` raises ValueError for a shape or dtype that the kind cannot have, and for a
    descriptor that must be fitted first.
    """

    kind: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    def __init__(self, prefix: str, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        if unknown := sorted(set(options) - set(self.options)):
            known = ", ".join(self.options) or "none"
            raise ValueError(f"{self.kind} has no option {unknown[0]!r}; known: {known}")
        self.prefix = prefix
        self.settings = {**self.options, **options}

    def fit(self, values: Array) -> Self:
        """Learn from the reference [rows, ...] what ``describe`` needs; most need nothing."""
        self._rows(values)
        return self

    def describe(self, values: Array) -> Rows:
        """Columns of values [rows, ...], of any numeric dtype; in the order of ``columns``."""
        found = self._describe(self._rows(values))
        return {f"{self.prefix}.{name}": column for name, column in found.items()}

    def columns(self, values: Array) -> tuple[Column, ...]:
        """What ``describe`` gives for a tensor of this shape and dtype; values [≥ 1 row, ...]."""
        return tuple(
            Column(
                name,
                ColumnType.NUMERIC if column.dtype == np.float64 else ColumnType.CATEGORICAL,
            )
            for name, column in self.describe(values[:1]).items()
        )

    def learnt(self) -> dict[str, Any]:
        """What ``fit`` found, as JSON values."""
        return {}

    def recall(self, learnt: Mapping[str, Any]) -> Self:
        """The inverse of ``learnt``; ValueError when it is not that."""
        if learnt:
            raise ValueError(f"{self.kind} learns nothing, and here is {sorted(learnt)}")
        return self

    def to_plain(self) -> dict[str, Any]:
        """JSON values; ``from_plain`` describes alike."""
        return {
            "kind": self.kind,
            "prefix": self.prefix,
            "options": dict(self.settings),
            "learnt": self.learnt(),
        }

    def _rows(self, values: Array) -> Array:
        if values.ndim == 0:
            raise ValueError(f"{self.prefix}: a tensor has its rows on the first axis")
        return values

    @abstractmethod
    def _describe(self, values: Array) -> Rows: ...


def look(values: Array) -> Array:
    """[rows, ...] → [rows, ≤ `LOOK_AT`]; the step shares no factor with the size of a row.

    A step that divides a width would look at a few columns of an image only.
    """
    size = math.prod(values.shape[1:])
    flat = values.reshape(len(values), size)
    step = math.ceil(size / LOOK_AT)
    if step <= 1:
        return flat
    while math.gcd(step, size) != 1:
        step += 1
    return flat[:, ::step]


def pieces(values: Array, where: str) -> Iterator[tuple[slice, Array]]:
    """(which rows, they as float64 [rows, values]), a bounded number of values at a time."""
    size = max(1, math.prod(values.shape[1:]))
    step = max(1, _CHUNK // size)
    for start in range(0, len(values), step):
        part = values[start : start + step]
        yield slice(start, start + len(part)), as_float64(part, where).reshape(len(part), -1)


def as_float64(values: Array, where: str) -> Array:
    found = dtype_class(values.dtype)
    if found not in {"float", "int", "bool"}:
        raise ValueError(f"{where}: values of {found} have no moments; describe them as exact")
    return values.astype(np.float64)
