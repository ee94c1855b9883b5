"""A monitor's view without a monitor: what it holds is set by the test."""

from __future__ import annotations

import threading
from dataclasses import replace

from sidecar.monitor.rows import EvidenceKey, EvidenceRow
from sidecar.monitor.telemetry_view import SignalStatus, TelemetryStatus
from sidecar.monitor.view import (
    EVENTS_AT_ONCE,
    CaseView,
    CertificateView,
    ChildStatus,
    Coverage,
    ModelStatus,
    MonitorStatus,
    NoiseView,
    OutputStatus,
    PairStatus,
    StoreStatus,
    VerdictEvent,
)
from sidecar.monitor.view_drift import DriftUnit, DriftView
from validators.verdict import Verdict

INT8, ONNX, OLD = "digits:2/int8", "digits:2/onnx", "digits:1/onnx"


def certificate(verdict: Verdict = Verdict.PASS) -> CertificateView:
    certified = verdict is Verdict.PASS
    return CertificateView(
        "digits", INT8, ONNX, "scores", "abc", "production", 0.01, 0.05, "beta mixture", 500, 0.5,
        0.0091, verdict, 3.2, 3.4, 17 if certified else None, None if certified else 344,
    )  # fmt: skip


def status(verdict: Verdict = Verdict.PASS, *, requests: int = 500) -> MonitorStatus:
    rate = 0.001 if requests else None
    output = OutputStatus(
        "scores", "class_scores", "abc", "", ("top1_flip <= 0",), requests, 2 * requests, 1, 0,
        rate, 0.0002, 0.0091, NoiseView(50, 0.0, 0.0, 0.058, 0.0091),
        certificate(verdict) if requests else None, {"kl": 0.25},
    )  # fmt: skip
    flips = OutputStatus("scores", "", "", "", (), requests, 0, 0, 0, 0.004, 0.0, 1.0)
    pairs = [
        PairStatus(INT8, ONNX, "certificate", requests, verdict, "", [output]),
        PairStatus(
            ONNX, OLD, "versions", requests, None, "", [flips], {"candidate": 2, "baseline": 0},
            {"candidate": 1.5, "baseline": 1.25}, {"candidate": 4.0, "baseline": 3.5},
        ),
    ]  # fmt: skip
    return MonitorStatus(
        1, "0123456789abcdef", "running",
        [ModelStatus("digits", ONNX, "production", pairs)],
        Coverage(
            1000, 990, 980, 1, {"full": 9}, {"shared_memory": 3}, 0.05, 0.12, 2**20, 0.1, 0.25,
            2**26,
        ),
        StoreStatus("/state/monitor.sqlite3", True, "", 123_456),
        ChildStatus(77, 1, "ready", "it ran too long", 2**28),
        0, 76, "1.2.3", "served.yaml", telemetry(),
    )  # fmt: skip


def telemetry() -> TelemetryStatus:
    traces = SignalStatus(
        "traces", "otlp-grpc", "http://there:4317", False, 1200, {"queue_full": 7}, 2048,
        "connection refused",
    )  # fmt: skip
    metrics = SignalStatus("metrics", "prometheus", "127.0.0.1:9464", True)
    return TelemetryStatus("failing", "", "http://127.0.0.1:9464/metrics", [traces, metrics])


def event(seq: int, verdict: Verdict = Verdict.PASS, *, model: str = "digits") -> VerdictEvent:
    return VerdictEvent(
        seq, 1_700_000_000_000_000_000 + seq, model, INT8, ONNX, "scores", verdict,
        f"event number {seq}", certificate(verdict) if seq % 2 else None,
    )  # fmt: skip


def drift(model: str = "digits") -> DriftView:
    unit = DriftUnit("x.mean", "ks", 0.31, 0.12, 4.5, 1.5, "alarm", "more above 0.7")
    return DriftView(
        model, "spring", "file", "alarm", 7, 312, 1000, 17, 15, [unit], "", "r.html", "r.json", 18
    )


class FakeView:
    """``MonitorView``: plain lists, and events that tests append."""

    def __init__(self, events_kept: int = 1000) -> None:
        self.now = status()
        self.rows = [
            EvidenceRow(EvidenceKey("digits", INT8, ONNX, "scores", "disagrees", "abc", block),
                        "life", {"n": 8.0, "k": 0.5}, 7)
            for block in range(5)
        ]  # fmt: skip
        self.kept_cases: list[CaseView] = []
        self.drifts: list[DriftView] = []
        self.error: Exception | None = None
        self._events: list[VerdictEvent] = []
        self._events_kept = events_kept
        self._changed = threading.Condition()

    def tell(self, *events: VerdictEvent) -> None:
        """Append events; the oldest go when there are too many."""
        with self._changed:
            self._events = [*self._events, *events][-self._events_kept :]
            self.now = replace(self.now, last_seq=events[-1].seq)
            self._changed.notify_all()

    def status(self) -> MonitorStatus:
        if self.error is not None:
            raise self.error
        return self.now

    def evidence(self, model: str | None) -> list[EvidenceRow]:
        return [row for row in reversed(self.rows) if model in {None, row.key.model}]

    def certificates(self, model: str | None) -> list[CertificateView]:
        return [certificate()] if model in {None, "digits"} else []

    def cases(self, model: str | None, limit: int) -> list[CaseView]:
        found = [case for case in self.kept_cases if model in {None, case.model}]
        return found[:limit]

    def drift(self) -> list[DriftView]:
        return self.drifts

    def wait_events(self, after_seq: int, timeout_s: float) -> list[VerdictEvent]:
        with self._changed:
            self._changed.wait_for(
                lambda: self._events and self._events[-1].seq > after_seq, timeout_s
            )
            found = [one for one in self._events if one.seq > after_seq]
            return found[:EVENTS_AT_ONCE]
