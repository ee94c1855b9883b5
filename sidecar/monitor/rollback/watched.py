"""What the checks look at: the pairs of versions, and where what is known of them comes from."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from sidecar.config import ModelConfig
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.plan import ModelPlan, Pair
from sidecar.monitor.rollback.checks import Look
from sidecar.monitor.rollback.counts import Reset
from sidecar.monitor.rollback.decisions import PairId
from sidecar.monitor.rollback.traffic import Traffic

#: Looks that are shown.
LOOKS_SHOWN = 60


@dataclass(slots=True)
class Watched:
    """One pair, as it was last looked at.

    Attributes:
        log_es: the best metric's evidence over its threshold, look by look.
    """

    config: ModelConfig
    pair: Pair
    id: PairId
    look: Look | None = None
    seen: tuple[int, int, float | None, Reset] | None = None
    stale: bool = False
    log_es: deque[float] = field(default_factory=lambda: deque(maxlen=LOOKS_SHOWN))


@dataclass(frozen=True, slots=True)
class Sources:
    """What is looked at.

    Attributes:
        plans: model → its plan; fills once the copies are loaded.
        traffic: what every variant served so far, and how much of it failed.
        budget: of flips, as validation recorded it: pair identity → share.
        serves: whether a variant answers anybody by default, as the route is now.
        since_ns: since when ``traffic`` counts: what tells one life of the gateway from another.
    """

    models: Mapping[str, ModelConfig]
    plans: Mapping[str, ModelPlan]
    evidence: Evidence
    traffic: Callable[[], Traffic]
    budget: Callable[[str], float | None]
    serves: Callable[[str, str], bool]
    since_ns: int = 0


#: How the identity of a pair begins that cannot be compared.
BLOCKED = "blocked-"


def identity_of(pair: Pair) -> str:
    """Of the artifacts; of what cannot be compared, of the reason: another one is another pair."""
    if pair.blocked:
        return BLOCKED + hashlib.sha256(pair.blocked.encode()).hexdigest()[:6]
    return pair.identity
