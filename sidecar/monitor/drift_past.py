"""A closed window, as it is kept: its scores, for people who want to see where it began."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from validators.drift.calibrate import UnitScore

#: Windows that are kept of each model.
HISTORY = 50


@dataclass(frozen=True, slots=True)
class Past:
    """``seq`` counts a model's windows; ``units``: ``None``: it had too few rows."""

    seq: int
    wall_ns: int
    rows: int
    units: tuple[UnitScore, ...] | None

    def score(self, unit: str) -> float | None:
        """Of a unit, if it was judged."""
        return next((one.score for one in self.units or () if one.unit == unit), None)

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        units = None
        if self.units is not None:
            units = [
                [u.unit, u.method, u.value, u.threshold, u.score, u.detail] for u in self.units
            ]
        return {"seq": self.seq, "wall_ns": self.wall_ns, "rows": self.rows, "units": units}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when ``plain`` is not what ``to_plain`` wrote."""
        try:
            units = plain["units"]
            made = None if units is None else tuple(_unit(*one) for one in units)
            return cls(int(plain["seq"]), int(plain["wall_ns"]), int(plain["rows"]), made)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a stored window of the past: {error!r}") from error


def _unit(
    unit: str, method: str, value: float, threshold: float, score: float, detail: str
) -> UnitScore:
    numbers = float(value), float(threshold), float(score)
    return UnitScore(str(unit), str(method), *numbers, str(detail))
