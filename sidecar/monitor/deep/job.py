"""What one deep run is about: two samples as arrays, and how each column is tested.

``from_samples`` makes it of a reference and of live rows; ``to_frame`` and ``from_frame`` carry it
to the child. Nothing is pickled: numbers travel as float64, categories as codes with their labels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from sidecar.frames import Bytes, pack_arrays, unpack_arrays
from validators.drift.accuracy import CORRECT
from validators.drift.columns import Column, ColumnType, Rows
from validators.drift.reference import Reference

Array = npt.NDArray[Any]
Page = Literal["never", "on_drift", "always"]

#: Values of one side: 160 MB. More rows than fit are left out, the oldest first.
CELLS_MAX = 20_000_000
#: Categories that are told apart, the most frequent ones; all others together are one more.
CATEGORIES_MAX = 200
OTHERS = "(others)"
#: Fewer rows of a reference's sample tell nothing about what is usual.
REFERENCE_ROWS_MIN = 100

#: Our distances by Evidently's names, of the types that its tests take. It gives no
#: Anderson-Darling p-value under 0.001, which is too coarse for many columns: its own default then.
METHODS: Mapping[ColumnType, Mapping[str, str]] = {
    ColumnType.NUMERIC: {
        "ks": "ks", "wasserstein": "wasserstein", "psi": "psi", "jensen_shannon": "jensenshannon",
    },
    ColumnType.CATEGORICAL: {
        "psi": "psi", "jensen_shannon": "jensenshannon", "chi_square": "chisquare",
    },
}  # fmt: skip
DEFAULT: Mapping[ColumnType, str] = {
    ColumnType.NUMERIC: "wasserstein",
    ColumnType.CATEGORICAL: "jensenshannon",
}


class UnfitSampleError(ValueError):
    """The samples cannot be compared; says why, for people."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one column is tested.

    Attributes:
        method: by Evidently's name; empty: as it chooses by itself.
        threshold: ``None``: calibrated, or where that is not wanted as Evidently chooses.
    """

    name: str
    type: ColumnType
    method: str = ""
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """What else the child is told.

    Attributes:
        expected: runs between two false alarms of all columns together.
        block_rows: rows of the reference that belong together; ``aligned``: the first of them is
            its first row, as with requests of so many rows.
        calibrate_rows: of a window that thresholds are found for; 0: as many as there are.
        calibrate_s: seconds that finding thresholds may take; 0: none are looked for.
        page: when Evidently's page is made.
        heading: lines over the page.
    """

    model: str = ""
    expected: float = 2000.0
    block_rows: int = 1
    aligned: bool = False
    calibrate_rows: int = 0
    calibrate_s: float = 0.0
    page: Page = "never"
    heading: tuple[str, ...] = ()
    memory_max_bytes: int = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Side:
    """One sample. ``numbers``: float64 [numeric columns, rows]; ``codes``: int32 [others, rows]."""

    numbers: Array
    codes: Array

    @property
    def rows(self) -> int:
        """How many."""
        return int(self.numbers.shape[1])


@dataclass(frozen=True, slots=True)
class Job:
    """A run's columns in their order, and the samples; ``labels``: of codes, by column."""

    plans: tuple[Plan, ...]
    reference: Side
    current: Side
    labels: Mapping[str, list[str]] = field(default_factory=dict)
    options: Options = field(default_factory=Options)

    def column(self, side: Side, name: str) -> Array:
        """Values [rows] of one column: float64, or int32 codes."""
        plan = next(plan for plan in self.plans if plan.name == name)
        alike = [other.name for other in self.plans if other.type is plan.type]
        array = side.numbers if plan.type is ColumnType.NUMERIC else side.codes
        return np.asarray(array[alike.index(name)])

    def to_frame(self) -> tuple[dict[str, Any], list[Bytes]]:
        """Fields and parts of a frame."""
        specs, parts = pack_arrays(
            {
                "reference.numbers": self.reference.numbers,
                "reference.codes": self.reference.codes,
                "current.numbers": self.current.numbers,
                "current.codes": self.current.codes,
            }
        )
        # As a part, because fields have a limit that thousands of columns exceed.
        described = {
            "plans": [[p.name, p.type.value, p.method, p.threshold] for p in self.plans],
            "labels": dict(self.labels),
            "options": asdict(self.options),
        }
        return {"arrays": specs}, [*parts, json.dumps(described).encode()]

    @classmethod
    def from_frame(cls, fields: Mapping[str, Any], parts: list[Bytes]) -> Self:
        """The inverse of ``to_frame``."""
        arrays = unpack_arrays(fields["arrays"], parts[:-1])
        described = json.loads(bytes(parts[-1]))
        options = described["options"]
        plans = [Plan(name, ColumnType(kind), *rest) for name, kind, *rest in described["plans"]]
        return cls(
            tuple(plans),
            Side(arrays["reference.numbers"], arrays["reference.codes"]),
            Side(arrays["current.numbers"], arrays["current.codes"]),
            described["labels"],
            Options(**{**options, "heading": tuple(options["heading"])}),
        )  # fmt: skip


def from_samples(
    reference: Reference,
    rows: Rows,
    options: Options,
    *,
    rows_max: int,
    methods: Mapping[str, str] | None = None,
    thresholds: Mapping[str, float] | None = None,
) -> Job:
    """Make a job of a reference's own sample and of live rows, in the order in which they came.

    Args:
        rows_max: of the live rows the latest so many are looked at.
        methods: column → our name of a distance, where not the default.
        thresholds: column → threshold that is known already.

    Raises:
        UnfitSampleError: one side has too few rows, or no such column.
    """
    chosen, known = methods or {}, thresholds or {}
    # Accuracy is compared by itself, and not as if it were a category.
    columns = [column for column in reference.columns if column.name != CORRECT]
    if not columns:
        raise UnfitSampleError("its reference has no columns")
    most = max(1, min(rows_max, CELLS_MAX // len(columns)))
    before = _table("reference", reference.sample, columns, CELLS_MAX // len(columns))
    if (found := len(next(iter(before.values())))) < REFERENCE_ROWS_MIN:
        raise UnfitSampleError(
            f"its reference carries a sample of {found} rows; {REFERENCE_ROWS_MIN} are needed"
        )
    now = _table("live rows", rows, columns, most)
    numeric = [column.name for column in columns if column.type is ColumnType.NUMERIC]
    others = [column.name for column in columns if column.type is not ColumnType.NUMERIC]
    coded = {name: _coded(before[name], now[name]) for name in others}

    def side(table: Mapping[str, Array], codes: list[Array]) -> Side:
        numbers = [np.asarray(table[name], dtype=np.float64) for name in numeric]
        return Side(_stacked(numbers, table), _stacked(codes, table).astype(np.int32))

    plans = tuple(
        Plan(
            column.name, column.type,
            METHODS[column.type].get(chosen.get(column.name, ""), DEFAULT[column.type]),
            known.get(column.name),
        )
        for column in columns
    )  # fmt: skip
    return Job(
        plans,
        side(before, [codes for _, codes, _ in coded.values()]),
        side(now, [codes for _, _, codes in coded.values()]),
        {name: labels for name, (labels, _, _) in coded.items()},
        options,
    )


def _table(what: str, rows: Rows, columns: list[Column], most: int) -> dict[str, Array]:
    if absent := [column.name for column in columns if column.name not in rows]:
        raise UnfitSampleError(f"its {what} have no column {absent[0]!r}")
    table = {column.name: np.asarray(rows[column.name])[-most:] for column in columns}
    if len(lengths := {len(values) for values in table.values()}) != 1:
        raise UnfitSampleError(f"the columns of its {what} differ in length: {sorted(lengths)}")
    return table


def _stacked(values: list[Array], table: Mapping[str, Array]) -> Array:
    rows = len(next(iter(table.values())))
    return np.ascontiguousarray(np.stack(values)) if values else np.empty((0, rows))


def _coded(before: Array, now: Array) -> tuple[list[str], Array, Array]:
    """Labels, and both sides' codes; the rarest categories share the last one."""
    texts = np.concatenate([before.astype(str), now.astype(str)])
    labels, codes, counts = np.unique(texts, return_inverse=True, return_counts=True)
    if len(labels) > CATEGORIES_MAX:
        kept = np.sort(np.argsort(-counts, kind="stable")[:CATEGORIES_MAX])
        place = np.full(len(labels), CATEGORIES_MAX)
        place[kept] = np.arange(CATEGORIES_MAX)
        codes, labels = place[codes], np.append(labels[kept].astype(object), OTHERS)
    return [str(label) for label in labels], codes[: len(before)], codes[len(before) :]
