"""What goes over the channel about routes (the other frames: ``channel_frames.py``)::

    worker → monitor   ROUTED {page, problem, models: {name: {revision, shares, there, note,
                       counts: {version: [failed, fallen back, then answered by time, …]}}}}
                       PROBED {id, ok, text, ms}
    monitor → worker   PROBE {id, model, version, timeout_s}

Counts are absolute, since the worker's page was made, whose id ``page`` is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.gateway.pages import BUCKETS_NS

#: Of a version: failures, fallbacks, and a histogram of what was answered.
WIDTH = 2 + len(BUCKETS_NS) + 1
_COUNT_MAX = 2**63
_TEXT_MAX = 4000
#: No probe takes longer, or holds a thread of a worker for longer, where it has a say.
PROBE_S_MAX = 300.0


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """Requests that one version got.

    Attributes:
        failed: by a fault of the server; requests that were wrong, or cancelled, are left out.
        fell_back: another variant answered them in its stead.
        times: answered, by time: for each bucket of ``BUCKETS_NS``, and one above.
    """

    failed: int
    fell_back: int
    times: tuple[int, ...]

    @property
    def answered(self) -> int:
        """Requests that it answered."""
        return sum(self.times)

    def packed(self) -> list[int]:
        """As it is sent and kept."""
        return [self.failed, self.fell_back, *self.times]


def counts_of(packed: Any) -> VersionCounts | None:
    """What ``VersionCounts.packed`` gave; ``None``: it is none."""
    if not isinstance(packed, list) or len(packed) != WIDTH:
        return None
    if not all(type(each) is int and 0 <= each < _COUNT_MAX for each in packed):
        return None
    return VersionCounts(packed[0], packed[1], tuple(packed[2:]))


def total(counts: Sequence[VersionCounts], less: Sequence[VersionCounts] = ()) -> VersionCounts:
    """A sum, less what had been counted before."""
    sums = [
        max(0, sum(more) - sum(fewer))
        for more, fewer in zip(_columns(counts), _columns(less), strict=True)
    ]
    return VersionCounts(sums[0], sums[1], tuple(sums[2:]))


def _columns(counts: Sequence[VersionCounts]) -> list[list[int]]:
    rows = [each.packed() for each in counts]
    return [[row[at] for row in rows] for at in range(WIDTH)]


@dataclass(frozen=True, slots=True)
class ModelRouted:
    """How one worker routes one model.

    Attributes:
        revision, shares: that it follows; ``note``: how that differs from what was set.
        there: versions of which it holds a copy.
    """

    revision: int
    shares: Mapping[str, float]
    there: Sequence[str]
    note: str
    counts: Mapping[str, VersionCounts]

    def packed(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "revision": self.revision, "shares": dict(self.shares), "there": list(self.there),
            "note": self.note, "counts": {v: each.packed() for v, each in self.counts.items()},
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Routed:
    """How one worker routes. ``problem``: it cannot follow the table; why."""

    page: int
    problem: str
    models: Mapping[str, ModelRouted]

    def packed(self) -> dict[str, Any]:
        """As it is sent."""
        models = {name: one.packed() for name, one in self.models.items()}
        return {"page": self.page, "problem": self.problem, "models": models}


def unpack_routed(fields: Mapping[str, Any]) -> Routed:
    """What a frame says.

    Raises:
        ValueError: it is no such frame.
    """
    page, problem, models = (fields.get(name) for name in ("page", "problem", "models"))
    if type(page) is not int or not isinstance(problem, str) or not isinstance(models, dict):
        message = "a frame that should say how a worker routes does not"
        raise ValueError(message)
    return Routed(page, problem[:_TEXT_MAX], {name: _model(one) for name, one in models.items()})


def _model(fields: Any) -> ModelRouted:
    if isinstance(fields, dict):
        revision, shares, there, note, packed = (
            fields.get(name) for name in ("revision", "shares", "there", "note", "counts")
        )
        if (
            type(revision) is int
            and isinstance(note, str)
            and isinstance(shares, dict)
            and all(type(each) in {int, float} for each in shares.values())
            and isinstance(there, list)
            and all(isinstance(each, str) for each in there)
            and isinstance(packed, dict)
        ):
            counts = {version: counts_of(each) for version, each in packed.items()}
            known = {version: each for version, each in counts.items() if each is not None}
            if len(known) == len(counts):
                return ModelRouted(revision, shares, there, note[:_TEXT_MAX], known)
    message = "a frame that should say how a worker routes a model does not"
    raise ValueError(message)


@dataclass(frozen=True, slots=True)
class ProbeAsked:
    """A version is to be tried. ``timeout_s``: nobody waits for longer."""

    id: int
    model: str
    version: str
    timeout_s: float

    def packed(self) -> dict[str, Any]:
        """As it is sent."""
        return {
            "id": self.id, "model": self.model, "version": self.version,
            "timeout_s": self.timeout_s,
        }  # fmt: skip


def unpack_probe(fields: Mapping[str, Any]) -> ProbeAsked:
    """What a frame says; ``ValueError``: it is no such frame."""
    number, limit = fields.get("id"), fields.get("timeout_s")
    model, version = fields.get("model"), fields.get("version")
    if (
        type(number) is int
        and isinstance(model, str)
        and isinstance(version, str)
        and isinstance(limit, int | float)
        and math.isfinite(limit)
        and limit > 0
    ):
        return ProbeAsked(number, model, version, min(float(limit), PROBE_S_MAX))
    message = "a frame that should ask for a probe does not"
    raise ValueError(message)


@dataclass(frozen=True, slots=True)
class Probed:
    """What came of it; ``ms``: how long it took."""

    id: int
    ok: bool
    text: str
    ms: float

    def packed(self) -> dict[str, Any]:
        """As it is sent."""
        return {"id": self.id, "ok": self.ok, "text": self.text, "ms": self.ms}


def unpack_probed(fields: Mapping[str, Any]) -> Probed:
    """What a frame says; ``ValueError``: it is no such frame."""
    number, ok, text, ms = (fields.get(name) for name in ("id", "ok", "text", "ms"))
    if (
        type(number) is int
        and type(ok) is bool
        and isinstance(text, str)
        and isinstance(ms, int | float)
    ):
        return Probed(number, ok, text[:_TEXT_MAX], float(ms))
    message = "a frame that should say what came of a probe does not"
    raise ValueError(message)
