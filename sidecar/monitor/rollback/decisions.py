"""What was decided: everything that it was made from, and what came of it, in plain data and words.

A decision is durable before anything is done about it. Its id follows from what it is about, so
that whoever comes to the same one (after a restart, or beside another monitor) makes no second.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from enum import StrEnum
from typing import Any

from exporters.alerts.alert import Alert, Severity
from exporters.alerts.alert import State as AlertState
from sidecar.monitor.rollback.states import Reached, State
from sidecar.monitor.view_rollback import DecisionView


class ActionState(StrEnum):
    """How far the action of a decision is."""

    NONE = "none"
    WAITING = "waiting"  #: for an operator, a freeze to end, the cool-down, a fresh pair
    PENDING = "pending"  #: nothing holds it back; it has not begun
    ACTING = "acting"  #: it may have been done; doing it again is safe
    VERIFYING = "verifying"  #: it was done; does it show?
    DONE = "done"
    BLOCKED = "blocked"  #: a person must look; an operator may have it tried again
    FAILED = "failed"
    UNDONE = "undone"


#: The monitor goes on with these by itself.
OPEN = frozenset(
    {ActionState.WAITING, ActionState.PENDING, ActionState.ACTING, ActionState.VERIFYING}
)


class Kind(StrEnum):
    """What a decision is about; also the alert's name."""

    ROLLBACK = "ModelRollback"
    SUSPECTED = "ModelRegressionSuspected"
    BLOCKED = "RollbackBlocked"
    STALE = "RollbackCheckStale"
    SERVED = "ModelServingErrors"


SEVERITIES: Mapping[Kind, Severity] = {
    Kind.ROLLBACK: Severity.CRITICAL, Kind.SUSPECTED: Severity.WARNING,
    Kind.BLOCKED: Severity.CRITICAL, Kind.STALE: Severity.WARNING,
    Kind.SERVED: Severity.CRITICAL,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PairId:
    """Two variants ``model:version/name``, and the identity of their artifacts."""

    model: str
    new: str
    previous: str
    identity: str

    @property
    def new_short(self) -> str:
        """``version/name``."""
        return self.new.removeprefix(f"{self.model}:")

    @property
    def previous_short(self) -> str:
        """``version/name``."""
        return self.previous.removeprefix(f"{self.model}:")


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision; see ``DecisionView``. Plain data: it is stored as such.

    Attributes:
        pair: of which; ``kind``: which alert tells of it.
        approved_by: an operator who lets it act in spite of a freeze, or of ``approve``.
        performed_ns: wall clock; ``performed_mono_ns``: the same on the clock that never goes back,
            which on one machine goes on over restarts; ``performed_in``: the life of the process.
            The cool-down is counted from these.
        seen: what its action first saw at the target: a later leader acts on that and nothing else.
        marks: what was counted when it was closed, where counting goes on from there.
        blocked_alert: the id of the alert that says that the action was blocked; empty: none.
        owner, fence: the leader that has it, and by which term; ``revision``: the write that it was
            read from, or that has kept it.
    """

    id: str
    pair: PairId
    kind: str
    state: str
    wall_ns: int
    metric: str = ""
    log_e: float = 0.0
    threshold: float = 0.0
    pairs: int = 0
    text: str = ""
    action: str = "observe"
    action_state: str = "none"
    action_text: str = ""
    by: str = "monitor"
    resolved_ns: int | None = None
    approved_by: str = ""
    performed_ns: int = 0
    performed_mono_ns: int = 0
    performed_in: str = ""
    blocked_alert: str = ""
    seen: str = ""
    marks: Mapping[str, float] = field(default_factory=dict)
    owner: str = ""
    fence: int = 0
    revision: int = 0

    def to_plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Decision:
        """The inverse; what a later release added is left out.

        Raises:
            ValueError: it is none.
        """
        try:
            names = {item.name for item in fields(cls)}
            values = {name: value for name, value in plain.items() if name in names}
            return cls(**{**values, "pair": PairId(**plain["pair"])})
        except (KeyError, TypeError) as error:
            message = f"not a decision: {error!r}"
            raise ValueError(message) from None

    @property
    def is_open(self) -> bool:
        """The monitor goes on with it by itself."""
        return self.resolved_ns is None and self.action_state in OPEN

    def view(self, deliveries: list[Any] | None = None) -> DecisionView:
        """As it is shown."""
        return DecisionView(
            id=self.id, model=self.pair.model, new=self.pair.new_short,
            previous=self.pair.previous_short, state=self.state, wall_ns=self.wall_ns,
            metric=self.metric, log_e=self.log_e, threshold=self.threshold, pairs=self.pairs,
            text=self.text, action=self.action, action_state=self.action_state,
            action_text=self.action_text, by=self.by, resolved_wall_ns=self.resolved_ns,
            deliveries=deliveries or [],
        )  # fmt: skip


def decision_id(pair: PairId, kind: Kind, which: str) -> str:
    """Twelve hex digits.

    Args:
        which: what tells it from others of the pair and kind: how often it was set back, when it
            began.
    """
    parts = (pair.model, pair.new, pair.previous, pair.identity, str(kind), which)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def of_reached(
    pair: PairId, reached: Reached, *, rounds: int, now_ns: int, action: str, action_state: str,
    action_text: str,
) -> Decision:  # fmt: skip
    """The decision that a look has led to."""
    kind = Kind.ROLLBACK if reached.state is State.REGRESSED else Kind.SUSPECTED
    harm = reached.harm
    return Decision(
        id=decision_id(pair, kind, str(rounds)), pair=pair, kind=str(kind),
        state=str(reached.state), wall_ns=now_ns, metric=harm.metric if harm else "",
        log_e=reached.log_e, threshold=reached.threshold, pairs=harm.pairs if harm else 0,
        text=_why(pair, reached), action=action, action_state=action_state,
        action_text=action_text,
    )  # fmt: skip


def _why(pair: PairId, reached: Reached) -> str:
    harm = reached.harm
    if harm is None:
        return f"{pair.new} beside {pair.previous}: {reached.text}."
    sure = "it is rolled back" if reached.state is State.REGRESSED else "it is told, and not more"
    held = f" It may not act: {harm.held}." if reached.state is State.SUSPECT and harm.held else ""
    verb = "is" if reached.state is State.REGRESSED else "looks"
    return (
        f"{pair.new} {verb} worse than {pair.previous} at {NOUNS.get(harm.metric, harm.metric)}: "
        f"{harm.text}. The odds against chance are {odds(reached.log_e)}, over the "
        f"{odds(reached.threshold)} at which {sure}.{held}"
    )


#: Metric → as a noun in a sentence.
NOUNS: Mapping[str, str] = {
    "error": "errors", "latency": "latency", "flip": "changed answers", "accuracy": "accuracy",
    "output": "the answers that it gives", "served": "errors while serving",
}  # fmt: skip


def odds(log_e: float) -> str:
    """Evidence as odds: ``1,234 to 1``; beyond a million a power of ten."""
    if log_e >= math.log(1e6):
        return f"10^{log_e / math.log(10):.0f} to 1"
    number = math.exp(log_e)
    return f"{number:,.0f} to 1" if number >= 10 else f"{number:.2g} to 1"


def alert_of(decision: Decision, *, ended_ns: int = 0) -> Alert:
    """The decision's own alert; with ``ended_ns`` its resolved state."""
    kind = Kind(decision.kind)
    return _alert(decision, kind, decision.id, ended_ns)


def blocked_alert_of(decision: Decision, *, ended_ns: int = 0) -> Alert:
    """The alert that says that its action was blocked."""
    return _alert(decision, Kind.BLOCKED, decision.blocked_alert, ended_ns)


def _alert(decision: Decision, kind: Kind, name: str, ended_ns: int) -> Alert:
    pair = decision.pair
    labels = {"model": pair.model, "new": pair.new_short, "previous": pair.previous_short}
    if decision.metric:
        labels["metric"] = decision.metric
    told = f" {decision.action_text}" if decision.action_text else ""
    return Alert(
        id=name, name=str(kind),
        state=AlertState.RESOLVED if ended_ns else AlertState.FIRING,
        severity=SEVERITIES[kind], summary=_summary(decision, kind), text=decision.text + told,
        started_ns=decision.wall_ns, ended_ns=ended_ns,
        labels={label: value for label, value in labels.items() if value},
        values={
            "decision_id": decision.id, "e_value": _e_value(decision.log_e),
            "threshold": _e_value(decision.threshold), "n_pairs": decision.pairs,
            "action": decision.action, "action_state": decision.action_state,
        },
        # Done within seconds, or while nobody could be reached: it must be heard of in any case.
        lasting=kind is Kind.ROLLBACK,
    )  # fmt: skip


def _summary(decision: Decision, kind: Kind) -> str:
    pair = decision.pair
    noun = NOUNS.get(decision.metric, decision.metric)
    match kind:
        case Kind.ROLLBACK:
            return f"{pair.new} is worse than {pair.previous_short} at {noun}"
        case Kind.SUSPECTED:
            return f"{pair.new} looks worse than {pair.previous_short} at {noun}"
        case Kind.BLOCKED:
            return f"{pair.new} cannot be judged or rolled back: a person must look"
        case Kind.STALE:
            return f"{pair.new} serves, and is not compared with {pair.previous_short} any more"
        case Kind.SERVED:
            return f"{pair.new} fails too often while serving"


def _e_value(log_e: float) -> float:
    """What JSON can hold."""
    return round(math.exp(min(log_e, 700.0)), 3)


def resolved(decision: Decision, text: str, now_ns: int) -> Decision:
    """It stands no more; ``text`` says why, as a sentence."""
    told = f"{decision.action_text} {text}".strip()
    return replace(decision, resolved_ns=now_ns, action_text=told)
