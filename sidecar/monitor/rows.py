"""What the store keeps, as plain data: known to whoever counts, without the database behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sidecar.errors import SidecarError


class StoreError(SidecarError):
    """The store cannot be opened or written; says why and what to do. Counting goes on without."""


@dataclass(frozen=True, slots=True, order=True)
class EvidenceKey:
    """What a count is of.

    Attributes:
        model: a model's name.
        candidate: a variant key, ``model:version/name``; ``baseline`` likewise.
        output: empty for the answer as a whole.
        metric: ``disagrees``, ``noise``, ``error``, ``slow``, …; of a sketch, its name.
        policy: hash of the limits that it was judged by; empty where none apply.
        block: a stretch of the pair's life: pair index // 1000; 0 where that does not matter.
    """

    model: str
    candidate: str
    baseline: str
    output: str = ""
    metric: str = ""
    policy: str = ""
    block: int = 0


@dataclass(slots=True)
class EvidenceRow:
    """Counts of one key in one incarnation, from its beginning.

    Attributes:
        cells: name → count (``n``, ``k``, ``rows``, … or ``n11``, ``n10``, ``n01``, ``n00``);
            finite.
        updated_ns: wall clock.
    """

    key: EvidenceKey
    incarnation: str
    cells: dict[str, float]
    updated_ns: int = 0


@dataclass(slots=True)
class SketchRow:
    """A sketch of one key in one incarnation, as its ``to_plain`` gave it."""

    key: EvidenceKey
    incarnation: str
    plain: dict[str, Any]
    updated_ns: int = 0


@dataclass(slots=True)
class Remark:
    """What is worth remembering of one output beside its counts; grows, over all lives.

    Attributes:
        highest: metric → its worst value, of metrics that are worse when higher; ``lowest``: of the
            others.
        problem: the first structural problem, as people read it; empty when there was none.
    """

    highest: dict[str, float] = field(default_factory=dict)
    lowest: dict[str, float] = field(default_factory=dict)
    problem: str = ""

    def merge(self, other: Remark) -> bool:
        """Take in another one of the same output; returns whether anything became another."""
        before = (dict(self.highest), dict(self.lowest), self.problem)
        for name, value in other.highest.items():
            self.highest[name] = max(self.highest.get(name, value), value)
        for name, value in other.lowest.items():
            self.lowest[name] = min(self.lowest.get(name, value), value)
        self.problem = self.problem or other.problem
        return before != (self.highest, self.lowest, self.problem)

    @property
    def worst(self) -> dict[str, float]:
        """Metric → its worst value."""
        return {**self.highest, **self.lowest}

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {"highest": self.highest, "lowest": self.lowest, "problem": self.problem}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Remark:
        """The inverse of ``to_plain``."""
        return cls(
            dict(plain.get("highest", {})), dict(plain.get("lowest", {})),
            str(plain.get("problem", "")),
        )  # fmt: skip


@dataclass(slots=True)
class CertificateRow:
    """What a certificate has reached; kept over restarts, never lowered."""

    model: str
    candidate: str
    baseline: str
    output: str
    policy: str
    best_log_e: float
    certified_ns: int | None = None
