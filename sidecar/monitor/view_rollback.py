"""What is shown of rollback checks, decisions and routes (see ``view.py``)."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class HarmView:
    """One check of a pair of versions, at its latest look.

    Attributes:
        metric: ``error``, ``latency``, ``flip``, ``accuracy``, ``output``.
        pairs: that both versions answered, repeats and warm-up left out.
        new_only, previous_only: harmed by that version alone.
        log_e: evidence for alerting, natural logarithm; ``log_e_act``: for acting (the lesser of
            its tests).
        threshold, threshold_act: what they are compared with.
        may_act: else ``held`` says why it only alerts.
        margin: tolerated; ``weight``: its part of α.
        text: what it says, in a sentence.
    """

    metric: str
    pairs: int
    new_only: float
    previous_only: float
    log_e: float
    threshold: float
    log_e_act: float
    threshold_act: float
    may_act: bool
    held: str = ""
    margin: float = 0.0
    weight: float = 0.0
    text: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One alert of a decision on one channel."""

    channel: str
    name: str  # of the alert
    state: str  # waiting, sent, failed, suppressed
    attempts: int = 0
    error: str = ""
    sent_wall_ns: int | None = None


@dataclass(frozen=True, slots=True)
class DecisionView:
    """One decision, with everything that it was made from and that came of it.

    Attributes:
        state: what the pair became: ``suspect``, ``regressed``, ``rolled_back``, ``blocked``,
            ``ok`` (reset by an operator).
        metric: what decided; ``log_e``, ``threshold``, ``pairs`` of it.
        text: the whole story, in sentences.
        action: the kind that was asked for; ``action_state``: none, waiting (for approval),
            pending, acting, verifying, done, blocked, failed, undone; ``action_text``: in words.
        by: ``monitor``, or who.
        resolved_wall_ns: ``None``: it stands.
    """

    id: str
    model: str
    new: str
    previous: str
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
    resolved_wall_ns: int | None = None
    deliveries: list[Delivery] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CalibrationView:
    """The previous version beside itself."""

    pairs: int
    wanted: int
    block: int
    log_e: float
    ok: bool
    text: str


@dataclass(frozen=True, slots=True)
class RollbackView:
    """One pair of versions.

    Attributes:
        state: ``insufficient``, ``ok``, ``suspect``, ``regressed``, ``rolled_back``, ``blocked``.
        text: why, in words.
        stale: no new pair for too long, while there is traffic.
        frozen: nobody but an operator may act; ``frozen_text``: who said so, and why.
        log_es: the best metric's evidence over its threshold, of the latest checks, oldest first.
    """

    model: str
    new: str
    previous: str
    state: str
    text: str
    since_wall_ns: int = 0
    checked_wall_ns: int | None = None
    stale: bool = False
    frozen: bool = False
    frozen_text: str = ""
    action: str = "observe"
    decision: DecisionView | None = None
    metrics: list[HarmView] = field(default_factory=list)
    calibration: CalibrationView | None = None
    log_es: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CompareSide:
    """One version in an unpaired comparison: a rate, and bounds that hold at every look."""

    version: str
    n: int
    value: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class CompareMetric:
    """One metric of two versions that share the traffic.

    Attributes:
        unit: ``1`` (a share), ``ms``.
        difference_lower, difference_upper: of second minus first, at every look together.
        text: the answer, in a sentence.
    """

    metric: str
    unit: str
    first: CompareSide
    second: CompareSide
    difference_lower: float
    difference_upper: float
    text: str


@dataclass(frozen=True, slots=True)
class CompareView:
    """Two versions of a model beside each other, each on its own share of the traffic."""

    model: str
    alpha: float
    metrics: list[CompareMetric] = field(default_factory=list)
    text: str = ""
