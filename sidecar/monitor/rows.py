"""What the store keeps, as plain data: known to whoever counts, without the database behind it."""

from __future__ import annotations

from dataclasses import dataclass
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
class CertificateRow:
    """What a certificate has reached; kept over restarts, never lowered."""

    model: str
    candidate: str
    baseline: str
    output: str
    policy: str
    best_log_e: float
    certified_ns: int | None = None
