"""How a pair of versions stands: a state machine without a clock, a store or a thread.

::

    insufficient ⇄ ok → suspect → regressed → rolled_back
                     ↘___________↗          ↘ blocked → rolled_back (an operator tries again)
    (anything) → blocked, while the two versions cannot be compared at all

- ``suspect``: some harm's evidence has reached 1/(w·α_alert); ``regressed``: that of a harm that
  may act has reached 1/(w·α_act). Both stay (Ville's inequality speaks of the best evidence that
  was ever seen, so an early look that sufficed is not taken back by a later one).
- Too few pairs, or none for too long while requests come, are ``insufficient`` and never ``ok``.
- Only another pair (another artifact), or an operator, sets it back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from sidecar.monitor.rollback.checks import Look
from sidecar.monitor.rollback.counts import Reset
from sidecar.monitor.view_rollback import HarmView


class State(StrEnum):
    """Of a pair."""

    INSUFFICIENT = "insufficient"
    OK = "ok"
    SUSPECT = "suspect"
    REGRESSED = "regressed"
    ROLLED_BACK = "rolled_back"
    BLOCKED = "blocked"


#: States that only an operator, or another pair, ends.
LATCHED = frozenset({State.SUSPECT, State.REGRESSED, State.ROLLED_BACK, State.BLOCKED})


@dataclass(frozen=True, slots=True)
class Best:
    """The best evidence that was ever seen of one harm: for alerting, and for acting."""

    terms: str
    log_e: float = -math.inf
    log_e_act: float = -math.inf

    def joined(self, harm: HarmView, terms: str) -> Best:
        """With one more look; of another hypothesis nothing is taken over."""
        old = self if self.terms == terms else Best(terms)
        # What holds a harm back now (too few pairs, no calibration) held it back at that look too.
        act = harm.log_e_act if harm.may_act else -math.inf
        return Best(terms, max(old.log_e, harm.log_e), max(old.log_e_act, act))


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a pair stands; durable.

    Attributes:
        since_ns: wall clock, when it came to this state.
        decision: the id of the decision that made it so; empty where none was needed.
        best: metric → the best evidence.
        rounds: how often an operator has set it back.
        reset: what was counted until then is not looked at.
        pairs: at the latest look; ``pair_ns``: wall clock, when the latest of them was seen.
        revision: the write that it was read from, or that has kept it; 0: it was never kept.
    """

    state: State = State.INSUFFICIENT
    since_ns: int = 0
    decision: str = ""
    text: str = ""
    best: Mapping[str, Best] = field(default_factory=dict)
    rounds: int = 0
    reset: Reset = field(default_factory=Reset)
    pairs: int = 0
    pair_ns: int = 0
    revision: int = field(default=0, compare=False)

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "state": str(self.state), "since_ns": self.since_ns, "decision": self.decision,
            "text": self.text, "rounds": self.rounds, "reset": self.reset.to_plain(),
            "best": {name: [b.terms, b.log_e, b.log_e_act] for name, b in self.best.items()},
            "pairs": self.pairs, "pair_ns": self.pair_ns,
        }  # fmt: skip

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Standing:
        """The inverse of ``to_plain``.

        Raises:
            ValueError: it is none.
        """
        try:
            return cls(
                State(plain["state"]), int(plain["since_ns"]), str(plain["decision"]),
                str(plain["text"]),
                {name: Best(str(b[0]), float(b[1]), float(b[2])) for name, b in
                 dict(plain["best"]).items()},
                int(plain["rounds"]), Reset.from_plain(plain["reset"]), int(plain["pairs"]),
                int(plain["pair_ns"]),
            )  # fmt: skip
        except (KeyError, TypeError, IndexError) as error:
            message = f"not a standing: {error!r}"
            raise ValueError(message) from None


@dataclass(frozen=True, slots=True)
class Reached:
    """A state that a look has led to, which is worth a decision.

    Attributes:
        harm: what decided, with the best evidence it ever had in place of the present one;
            ``None``: none did.
    """

    state: State
    harm: HarmView | None
    log_e: float = 0.0
    threshold: float = 0.0
    text: str = ""


def step(
    standing: Standing, look: Look, *, min_pairs: int, stale: bool, now_ns: int
) -> tuple[Standing, Reached | None]:
    """One look at a pair that can be compared.

    Returns:
        How it stands now, and what was reached, if that must be decided on first: the state in the
        standing is then still the old one, and becomes the new one by ``decided``.
    """
    best = dict(standing.best)
    for harm in look.harms:
        terms = look.terms[harm.metric]
        best[harm.metric] = best.get(harm.metric, Best(terms)).joined(harm, terms)
    pair_ns = now_ns if look.pairs > standing.pairs else standing.pair_ns
    standing = replace(standing, best=best, pairs=look.pairs, pair_ns=pair_ns)
    if standing.state in {State.REGRESSED, State.ROLLED_BACK, State.BLOCKED}:
        return standing, None
    if look.pairs < min_pairs and standing.state is not State.SUSPECT:
        text = f"{look.pairs} of {min_pairs} pairs"
        return to(standing, State.INSUFFICIENT, text, now_ns), None
    reached = _reached(standing, look)
    if reached is not None:
        return standing, reached
    if standing.state is State.SUSPECT:
        return standing, None
    if stale:
        text = "no new pair has come for too long, while requests do"
        return to(standing, State.INSUFFICIENT, text, now_ns), None
    text = f"not shown to be worse in {look.pairs:,} pairs"
    return to(standing, State.OK, text, now_ns), None


def _reached(standing: Standing, look: Look) -> Reached | None:
    """The worst that the best evidence says, by the harm that is furthest over its threshold."""
    acting = [
        (standing.best[harm.metric].log_e_act, harm.threshold_act, harm)
        for harm in look.harms
        if standing.best[harm.metric].log_e_act >= harm.threshold_act
    ]
    if acting:
        log_e, threshold, harm = max(acting, key=lambda one: one[0] - one[1])
        return Reached(State.REGRESSED, harm, log_e, threshold, harm.text)
    if standing.state is State.SUSPECT:
        return None
    alerting = [
        (standing.best[harm.metric].log_e, harm.threshold, harm)
        for harm in look.harms
        if standing.best[harm.metric].log_e >= harm.threshold
    ]
    if alerting:
        log_e, threshold, harm = max(alerting, key=lambda one: one[0] - one[1])
        return Reached(State.SUSPECT, harm, log_e, threshold, harm.text)
    return None


def to(
    standing: Standing, state: State, text: str, now_ns: int, decision: str | None = None
) -> Standing:
    """The same in another state; the time is that of the change."""
    since_ns = standing.since_ns if state is standing.state and standing.since_ns else now_ns
    kept = standing.decision if decision is None else decision
    return replace(standing, state=state, text=text, since_ns=since_ns, decision=kept)


def anew(standing: Standing, reset: Reset, text: str, now_ns: int) -> Standing:
    """Set back by an operator: judged from now on, with all of α."""
    return Standing(
        State.INSUFFICIENT, now_ns, text=text, rounds=standing.rounds + 1, reset=reset,
        pair_ns=standing.pair_ns, revision=standing.revision,
    )  # fmt: skip


def log_threshold(alpha: float) -> float:
    """log(1/α)."""
    return -math.log(alpha)
