"""What the monitor shows of itself: plain data, built by the monitor, served and drawn by others.

The gRPC service (``service.py``) and the terminal (``sidecar status``, ``sidecar watch``) know only
this module, so neither needs a running monitor to be tested. Every name ends in its unit where it
has one; ``wall_ns`` is wall-clock time in nanoseconds since the Unix epoch. The fields here and
those of ``proto/monitor.proto`` carry the same names; a test holds the two together.

Words: a model is a name (``digits``), a variant is a key (``digits:2/int8``), an output is a name,
or the empty text for the answer as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from sidecar.monitor.rows import EvidenceRow
from sidecar.monitor.telemetry_view import TelemetryStatus
from sidecar.monitor.view_drift import DriftView
from validators.verdict import Verdict

#: The most events that ``MonitorView.wait_events`` gives at once.
EVENTS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class CertificateView:
    """What is known, at any moment, of how often a candidate's output disagrees.

    Attributes:
        policy: hash of the limits; changed limits start new evidence.
        retention_class: ``safety-critical``, ``production``, ``edge``; empty when the limit was
            given as a number.
        limit: the share of requests that may disagree, in [0, 1].
        alpha: the chance of certifying falsely, over all looks together.
        n: requests compared.
        k: the sum over requests of the share of their rows that disagreed.
        bound: upper bound of the rate of disagreement at level ``alpha``, valid at every look.
        log_e: natural logarithm of the e-value now; certified once it reached log(1 / alpha).
        best_log_e: the largest it ever was, over restarts.
        certified_wall_ns: when it was certified; ``None``: not yet.
        requests_to_go: how many more are needed if none of them disagrees; ``None``: unknown, or
            none.
    """

    model: str
    candidate: str
    baseline: str
    output: str
    policy: str
    retention_class: str
    limit: float
    alpha: float
    method: str
    n: int
    k: float
    bound: float
    verdict: Verdict
    log_e: float
    best_log_e: float
    certified_wall_ns: int | None = None
    requests_to_go: int | None = None


@dataclass(frozen=True, slots=True)
class NoiseView:
    """How often the reference disagrees with itself in another batch composition.

    Attributes:
        requests: how many were run a second time.
        rate: the share that disagreed; ``lower`` and ``upper`` bound it at alpha / 2 each.
        excess_upper: upper(candidate) − lower(noise): the most that can be the candidate's own.
    """

    requests: int
    rate: float
    lower: float
    upper: float
    excess_upper: float


@dataclass(frozen=True, slots=True)
class OutputStatus:
    """One output of a pair: what was compared, and what came of it.

    Attributes:
        kind: the comparator's kind (``class_scores``); ``inferred`` is the sentence that says why,
            empty when the config declares it.
        limits: as people read them (``"top1_flip <= 0"``).
        requests: compared; ``rows`` and ``bad_rows`` count samples in them; ``invalid`` counts
            requests whose answers could not be compared (shape, NaN on one side, …).
        rate: k / n, ``None`` before the first; ``lower`` and ``upper`` bound it.
        worst: metric → its worst value seen so far.
    """

    output: str
    kind: str
    policy: str
    inferred: str
    limits: tuple[str, ...]
    requests: int
    rows: int
    bad_rows: int
    invalid: int
    rate: float | None
    lower: float
    upper: float
    noise: NoiseView | None = None
    certificate: CertificateView | None = None
    worst: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PairStatus:
    """A candidate beside what it is compared with.

    Attributes:
        purpose: ``certificate`` (candidate beside the reference) or ``versions`` (the new version
            beside the previous one: errors and latency).
        compared: exchanges whose answers of both sides were compared.
        verdict: the worst of its outputs; ``None``: this pair is not judged.
        blocked: why nothing is compared, empty otherwise.
        errors: ``candidate`` and ``baseline`` → executions that failed while mirroring.
        p50_ms: side → median of model compute, milliseconds; ``p99_ms`` likewise.
    """

    candidate: str
    baseline: str
    purpose: str
    compared: int
    verdict: Verdict | None
    blocked: str = ""
    outputs: list[OutputStatus] = field(default_factory=list)
    errors: dict[str, int] = field(default_factory=dict)
    p50_ms: dict[str, float] = field(default_factory=dict)
    p99_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model that is watched.

    Attributes:
        message: what keeps it from being watched as configured, empty otherwise.
    """

    model: str
    reference: str
    retention_class: str
    pairs: list[PairStatus] = field(default_factory=list)
    message: str = ""


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of the live requests, how many were really compared, and where the others went.

    Attributes:
        sampled: chosen by the gateways' taps; ``received`` by the monitor; ``compared`` in the end.
        set_aside: ended the mirror child, or ran too long: kept as cases, never tried again.
        dropped: sampled, then lost for want of room: reason → count.
        not_mirrored: cannot be mirrored (shared memory, sequences, too large): reason → count.
        rate: the share of requests sampled now; ``rate_wanted`` is the configured one.
        cpu_share_used: of this machine's processor time, by mirrors and comparisons, of late;
            ``cpu_share`` is the budget.
        queue_bytes: waiting in the monitor; ``queue_bytes_max`` is the bound.
    """

    sampled: int
    received: int
    compared: int
    set_aside: int
    dropped: dict[str, int]
    not_mirrored: dict[str, int]
    rate: float
    cpu_share_used: float
    queue_bytes: int
    rate_wanted: float = 0.0
    cpu_share: float = 0.0
    queue_bytes_max: int = 0


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """Whether evidence survives a restart.

    Attributes:
        message: what happened to it (moved aside, a full disk), empty when nothing did.
        bytes: on disk.
        shared: the database that all replicas share: host, port and name; empty: there is none.
        shared_ok: it was written the last time; ``shared_message`` says what is wrong with it.
        replicas: incarnations of all that are alive, this one too.
    """

    path: str
    ok: bool
    message: str
    bytes: int
    shared: str = ""
    shared_ok: bool = False
    shared_message: str = ""
    replicas: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """The process that holds the monitor's copies of the models.

    Attributes:
        pid: 0 when there is none.
        state: ``starting``, ``ready``, ``busy``, ``restarting``, ``stopped``.
        message: why it was last started anew, empty when it never was.
        memory_bytes: resident.
    """

    pid: int
    restarts: int
    state: str
    message: str = ""
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MonitorStatus:
    """Everything ``sidecar status`` shows.

    Attributes:
        incarnation: one life of the monitor's process.
        state: ``starting``, ``running``, ``stopping``.
        last_seq: of the latest verdict event; 0 before the first.
        telemetry: whether what is to be told is told.
    """

    started_wall_ns: int
    incarnation: str
    state: str
    models: list[ModelStatus]
    coverage: Coverage
    store: StoreStatus
    child: ChildStatus
    last_seq: int = 0
    pid: int = 0
    version: str = ""
    config: str = ""
    telemetry: TelemetryStatus = field(default_factory=TelemetryStatus)


@dataclass(frozen=True, slots=True)
class CaseView:
    """A kept exchange: where it lies, and why it was kept.

    Attributes:
        id: what ``sidecar replay`` takes.
        reason: ``reservoir``, ``worst:METRIC`` or ``failure:KIND``.
        path: of the shard that holds it.
        bytes: on disk.
        replayable: its inputs were kept.
        metrics: name → value, for this exchange.
    """

    id: str
    model: str
    candidate: str
    baseline: str
    reason: str
    wall_ns: int
    request_id: str
    path: str
    bytes: int
    replayable: bool
    metrics: dict[str, float] = field(default_factory=dict)
    info: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VerdictEvent:
    """A verdict that became another one.

    Attributes:
        seq: counts up by one, never reused within a store; 1 is the first.
        text: the sentence that people read.
    """

    seq: int
    wall_ns: int
    model: str
    candidate: str
    baseline: str
    output: str
    verdict: Verdict
    text: str
    certificate: CertificateView | None = None


def case_from_plain(plain: Mapping[str, Any]) -> CaseView:
    """Return the case that ``dataclasses.asdict`` made ``plain`` of, at this or another release."""
    return CaseView(**_known(CaseView, plain))


def event_from_plain(plain: Mapping[str, Any]) -> VerdictEvent:
    """Return the event that ``dataclasses.asdict`` made ``plain`` of, as above."""
    known = _known(VerdictEvent, plain) | {"verdict": Verdict(plain["verdict"])}
    inner = plain.get("certificate")
    if inner is not None:
        values = _known(CertificateView, inner) | {"verdict": Verdict(inner["verdict"])}
        known["certificate"] = CertificateView(**values)
    return VerdictEvent(**known)


def _known(kind: type[Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    names = {item.name for item in fields(kind)}
    return {name: value for name, value in plain.items() if name in names}


class MonitorView(Protocol):
    """What the service asks of a monitor. Called from several threads; must not block for long."""

    def status(self) -> MonitorStatus:
        """Return how things are now."""
        ...

    def evidence(self, model: str | None) -> list[EvidenceRow]:
        """Return the counts of one model, or (``None``) of all, of every incarnation known."""
        ...

    def certificates(self, model: str | None) -> list[CertificateView]:
        """Return the certificates of one model, or (``None``) of all."""
        ...

    def cases(self, model: str | None, limit: int) -> list[CaseView]:
        """Return at most ``limit`` cases, the newest first."""
        ...

    def drift(self) -> list[DriftView]:
        """Return every model whose traffic is watched for drift."""
        ...

    def wait_events(self, after_seq: int, timeout_s: float) -> list[VerdictEvent]:
        """Return events after ``after_seq``, the oldest first, at most ``EVENTS_AT_ONCE``.

        Waits up to ``timeout_s`` seconds for the first; then an empty list. Of events that are no
        longer kept, none: the first one's ``seq`` shows how many are missing.
        """
        ...
