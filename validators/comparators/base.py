"""What a comparator is: two arrays in, named metrics per row and mergeable sketches out.

Nothing here knows limits: `disagrees` is limits over metrics, applied afterwards.

A new kind is one file with a subclass of `Comparator` and one line in `BUILTIN`
(`validators/comparators/__init__.py`); the contract suite (`tests/contract/test_comparators.py`)
then tests it through `Comparator.example`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from validators.sketches import LogHistogram

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: its name in limits and reports, its unit, and which direction is worse."""

    name: str
    unit: str
    worse: Literal["higher", "lower"]
    help: str


@dataclass(slots=True)
class Comparison:
    """What a comparator gives; nothing about limits.

    metrics: name → float64 [rows]; NaN where the metric does not apply to the row.
    sketches: name ("abs_error", "rel_error", "margin", …) → histogram over all rows.
    """

    rows: int
    metrics: dict[str, Array]
    sketches: dict[str, LogHistogram] = field(default_factory=dict)
    #: Every value was seen to be finite on both sides. False: nobody looked, or some was not.
    all_finite: bool = False


class Comparator(ABC):
    """Compares one output of two variants."""

    kind: ClassVar[str]
    metrics: ClassVar[tuple[MetricSpec, ...]]
    #: Option → default.
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    #: Metric → its default limit (text or number, as in the config), or precision → limit where
    #: it depends on the precision of the candidate (every one of `limits.PRECISIONS`).
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]]
    #: Classes of values that it takes (`validators.dtypes.dtype_class`).
    accepts: ClassVar[frozenset[str]] = frozenset({"float", "int"})
    #: Whether it bears values that are finite on one side only and says `all_finite`: then nobody
    #: else needs to read large arrays to look for them first.
    looks_for_nonfinite: ClassVar[bool] = False
    #: Whether axes after the first may differ in length (detections, generated tokens), and a row
    #: may be empty. Else other shapes, and rows without values, are refused.
    variable_length: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Raises ValueError for an unknown option (naming the known ones) or a bad value."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            known = ", ".join(self.options) or "none"
            raise ValueError(f"{self.kind} has no option {unknown[0]!r}; known: {known}")
        self.settings: dict[str, Any] = {**self.options, **options}
        self.check_options()

    def check_options(self) -> None:  # noqa: B027 - most kinds have nothing to check
        """Raise ValueError when a value in `self.settings` makes no sense."""

    def gather(self, output: str, arrays: Mapping[str, Array]) -> Array:
        """What to compare, [rows, ...], of all outputs of one side; by default the output itself.

        A kind whose meaning is spread over several outputs (boxes, scores, classes) packs them
        here, and says in `covers` which ones.
        """
        return arrays[output]

    def covers(self) -> frozenset[str]:
        """Other outputs that `gather` packs in: they need no policy of their own."""
        return frozenset()

    def compare(self, reference: Array, candidate: Array) -> Comparison:
        """Metrics of each row.

        Both [rows, ...] with rows ≥ 1, of the same shape (unless `variable_length`). Values that
        are not finite stand at the same places on both sides (NaN with NaN, +inf with +inf);
        they are equal, and a comparator leaves them out of its arithmetic.

        Raises ValueError when the arrays do not fit this kind: what was wrong, what to do.
        """
        reference, candidate = np.asarray(reference), np.asarray(candidate)
        same = reference.ndim == candidate.ndim and reference.shape[:1] == candidate.shape[:1]
        if not same or (not self.variable_length and reference.shape != candidate.shape):
            raise ValueError(
                f"{self.kind}: shapes differ, {reference.shape} and {candidate.shape}; shapes are "
                "never broadcast"
            )
        if reference.ndim == 0:
            raise ValueError(f"{self.kind}: a scalar has no rows; give it a first axis")
        if reference.shape[0] == 0:
            raise ValueError(f"{self.kind}: no rows to compare")
        if not self.variable_length and reference.size == 0:
            raise ValueError(f"{self.kind}: rows of shape {reference.shape[1:]} hold no values")
        return self.compare_rows(reference, candidate)

    @abstractmethod
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        """The arithmetic behind `compare`, which has checked the shapes."""

    @classmethod
    @abstractmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """(reference, equal, worse), several rows each, for the contract suite.

        With default options and the default limits of fp32, every row of `equal` agrees with
        `reference` (it differs by rounding where the kind allows it) and every row of `worse`
        disagrees.
        """
