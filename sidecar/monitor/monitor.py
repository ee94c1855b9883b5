"""The monitor, put together: places → store → mirror child → listener → worker → service.

Whatever fails here is the monitor's loss and nobody else's: no store, no case folder, a variant
that cannot be loaded each leave the rest running, and say so.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sidecar import __version__
from sidecar.clock import Clock
from sidecar.config import SidecarConfig, telemetry
from sidecar.gateway.page_files import PageFiles
from sidecar.gateway.pages import Page
from sidecar.monitor import calls_labels, places
from sidecar.monitor.alert_side import AlertSide
from sidecar.monitor.budget import TICK_S, AdaptiveRate, Budget, own_cpu_s
from sidecar.monitor.casebook import open_cases
from sidecar.monitor.channel import ExchangeListener
from sidecar.monitor.copies import copies_to_load, loaded_copies
from sidecar.monitor.coverage import coverage
from sidecar.monitor.drift_side import DriftSide
from sidecar.monitor.events import EventLog
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.exchanges import Item
from sidecar.monitor.fleet_side import evidence_of, fleet_side
from sidecar.monitor.flip_budgets import FlipBudgets
from sidecar.monitor.ingest import Ingest
from sidecar.monitor.judge import Judge
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.labels import LateLabels
from sidecar.monitor.ledger import Ledger
from sidecar.monitor.listeners import Listeners
from sidecar.monitor.measured_evidence import MeasuredEvidence
from sidecar.monitor.measures import Measures
from sidecar.monitor.mirror import MirrorProcess, Stopped
from sidecar.monitor.mirror_spans import MirrorSpans, roles_of
from sidecar.monitor.plan import ModelPlan, make_plan
from sidecar.monitor.policies import Precisions
from sidecar.monitor.rollback_side import RollbackSide
from sidecar.monitor.routing_side import RoutingSide
from sidecar.monitor.rows import EvidenceRow
from sidecar.monitor.status import StatusBoard
from sidecar.monitor.telling import Telling
from sidecar.monitor.view import (
    CaseView,
    CertificateView,
    Coverage,
    ModelStatus,
    MonitorStatus,
    StoreStatus,
    VerdictEvent,
)
from sidecar.monitor.view_drift import DriftView
from sidecar.monitor.worker import Worker
from validators.verdict import Verdict

logger = logging.getLogger("sidecar.monitor")

#: Asked to end, it finishes what runs for twice so long at most, and tells what waits for another
#: ``telling.END_WITHIN_S``; ``main.py`` ends it after eight seconds, the supervisor after ten.
_FINISH_S = 2.0


class Monitor:
    """Everything of one monitor process; also what its service shows (``MonitorView``).

    ``start`` once, ``run`` until ``stop_requested``, which then stops everything.

    Args:
        pages: the gateway's counts, for reading.
        serve_started_ns: wall clock, since when they count; 0: not known.
    """

    def __init__(
        self,
        config: SidecarConfig,
        base_dir: Path,
        source: str,
        clock: Clock,
        *,
        pages: Sequence[Page] | PageFiles = (),
        serve_started_ns: int = 0,
    ) -> None:
        self._config = config
        self._source = source
        self._clock = clock
        self._started_ns = clock.now_ns()
        self._state = "starting"
        self._state_dir = places.state_dir(config, base_dir)
        self._socket = places.socket_path(config, base_dir)
        self.stop_requested = threading.Event()
        settings = config.monitor
        self._evidence = evidence_of(settings.store, clock)
        self._events = EventLog(clock)
        self._routing = RoutingSide(
            config, base_dir, self._evidence, clock, lambda: self._keeper.shared
        )
        self.measures = Measures(pages, config, serve_started_ns, self._routing.routes.shares)
        self.telling = Telling(telemetry(config), self.measures.exemplar, clock)
        self._drift = DriftSide(config, self._events, self._state_dir, self.telling, clock)
        self._labels = LateLabels(config.models, self._evidence, clock, self._drift.watch.labelled)
        self._keeper = Keeper(
            self._state_dir,
            self._evidence,
            self._events,
            clock,
            self._drift.watch,
            self._labels,
            settings.store,
        )
        self.fleet = fleet_side(settings.store, self._keeper, clock)
        if self.fleet is not None:
            self._routing.join(self.fleet)
            if any(self._labels.takes(model.name) for model in config.models):
                self.fleet.every_sync("labels", self._labels.share().sync)
        self.alerts = AlertSide(
            config.alerts, lambda: self._keeper.shared, clock,
            lambda alert: self.rollback.still_stands(alert),  # noqa: PLW0108 - which comes later
        )  # fmt: skip
        self._ingest = Ingest(queue_bytes=settings.channel.queue_bytes, clock=clock)
        self._rate = AdaptiveRate(settings.mirror.sample_rate)
        trees, refused, keep = copies_to_load(config)
        self._mirror = MirrorProcess(
            trees, keep=keep, timeout_s=settings.mirror.timeout_s, clock=clock,
            memory_max_bytes=settings.mirror.memory_max_bytes,
        )  # fmt: skip
        self._mirror.copies.update(refused)
        self._budget = Budget(self._cpu_s, settings.mirror.cpu_share, clock)
        self._plans: dict[str, ModelPlan] = {}
        self._casebook = open_cases(self._state_dir / "cases", settings.cases, clock)
        self._worker = self._make_worker()
        self._judge = Judge(self._evidence, self._plans, self._events)
        self._board = StatusBoard(self._evidence, self._judge)
        self._ledger = Ledger(self._evidence)
        self.measured_evidence = MeasuredEvidence(
            self._evidence, self._worker.tally, self._models, lambda: self._ingest.queue_bytes,
            self._started_ns,
        )  # fmt: skip
        self.rollback = RollbackSide(
            config, self._plans, self._evidence, self.measures, self.alerts.outbox,
            lambda: self._keeper.shared, self._events, clock, copies=self._mirror.copies,
            budget=FlipBudgets(self._state_dir).budget, routes=self._routing.routes,
        )  # fmt: skip
        self._listeners = self._listening()
        self._looking = threading.Lock()
        self._listener: ExchangeListener | None = None
        self._thread = threading.Thread(target=self._worker.run, name="worker", daemon=True)

    def _make_worker(self) -> Worker:
        settings, clock = self._config.monitor, self._clock
        watch = MirrorSpans(self.telling.span, roles_of(self._config), clock)
        return Worker(
            self._ingest, self._mirror, self._evidence, self._plans, self._casebook, self._budget,
            noise_rate=settings.mirror.noise_rate, flush_s=settings.flush_s, clock=clock,
            on_crash=self._on_crash, watch=watch if self.telling.tells_spans else None,
            drift=self._drift.watch, labels=self._labels,
        )  # fmt: skip

    def _listening(self) -> Listeners:
        methods = {
            **self.alerts.methods(), **calls_labels.methods(self._labels),
            **self.rollback.methods(), **self._routing.methods(),
        }  # fmt: skip
        return Listeners(
            self._config, self, self._drift.deep, methods, self._labels, self.rollback.views,
            self._clock,
        )  # fmt: skip

    def _cpu_s(self) -> float:
        return own_cpu_s() + self._mirror.cpu_s()

    # --- life ---------------------------------------------------------------------------------

    def start(self, grpc_address: str, http_address: str | None = None) -> dict[str, str]:
        """Open, load, listen; returns the addresses: ``grpc``, ``socket``, and ``http`` if any.

        Raises:
            SidecarError: it cannot listen. (What else fails is said, and gone without.)
            Stopped: it was asked to end meanwhile.
        """
        self._drift.start()
        self._keeper.open()
        if self.fleet is not None:
            self.fleet.start()  # before copies are loaded: a fresh gateway waits for its route
        self.alerts.start()
        bound = self._listeners.start(grpc_address, http_address)
        # In a thread of its own, so that a signal is heard while a large model loads; and the
        # worker's, since the child ends with the thread that started it.
        failed: list[Exception] = []
        self._thread = threading.Thread(
            target=self._work, args=(loaded := threading.Event(), failed), name="worker",
            daemon=True,
        )  # fmt: skip
        self._thread.start()
        # Meanwhile: what has been counted is told before the copies are there.
        self.telling.start(
            [
                self.measures.points, self.measured_evidence.points, self._drift.points,
                self.alerts.points, self.rollback.points, self._labels.points,
            ]
        )  # fmt: skip
        while not loaded.wait(0.1):
            if self.stop_requested.is_set():
                raise Stopped
        if failed:
            raise failed[0]
        self._judge.look(quiet=True)
        self.rollback.start()
        self._listener = ExchangeListener(
            self._socket,
            self._receive,
            max_exchange_bytes=self._config.monitor.channel.max_exchange_bytes,
            rate=self._rate.rate,
            on_spans=self.telling.on_spans,
            on_logs=self.telling.on_logs,
            routes=self._routing.workers,
        )
        self._listener.start()
        self._state = "running"
        return {**bound, "socket": str(self._socket)}

    def _receive(self, exchange: Exchange) -> None:
        self.rollback.saw(exchange)
        self._ingest.offer(exchange)

    def _work(self, loaded: threading.Event, failed: list[Exception]) -> None:
        try:
            if self._mirror.is_needed:
                self._mirror.start()
            precisions = Precisions()
            for model in self._config.models:
                plan = make_plan(model, self._mirror.copies, precisions)
                self._plans[model.name] = plan
                if plan.message:
                    logger.warning("%s: %s", model.name, plan.message)
            self._budget.begin()
        except Exception as error:  # noqa: BLE001 - raised by `start`, in the thread that waits
            failed.append(error)
            return
        finally:
            loaded.set()
        self._worker.run()

    def run(self) -> None:
        """Look at the evidence, keep the budget and write, until asked to stop; then stop."""
        flush_at_ns = 0
        while not self.stop_requested.wait(TICK_S):
            self.tick()
            if self._clock.monotonic_ns() >= flush_at_ns:
                self._keeper.flush()
                flush_at_ns = self._clock.monotonic_ns() + int(self._config.monitor.flush_s * 1e9)
        self.close()

    def tick(self) -> None:
        """Once a second: certificates, telemetry that failed, and the sampling rate."""
        self.telling.tick()
        with self._looking:
            self._judge.look()
        self._drift.tick()
        self._labels.tick()
        self._counts()
        rate = self._rate.update(
            used=self._budget.tick(),
            budget=self._budget.share,
            fill=self._ingest.fill,
            behind_s=self._ingest.behind_s,
            lost=self._ingest.take_lost(),
        )
        if self._listener is not None:
            self._listener.set_rate(rate)

    def close(self) -> None:
        """Stop listening, finish what runs (bounded), write, close."""
        self._state = "stopping"
        self._listeners.refuse()
        if self._listener is not None:
            self._listener.close()
        self.rollback.close()
        self._ingest.close()
        self._worker.stop()
        if self._thread.is_alive():
            self._thread.join(_FINISH_S)
        self._mirror.close()
        if self._thread.is_alive():
            self._thread.join(_FINISH_S)
        if not self._thread.is_alive():
            self._mirror.join()
            self._casebook.close()
        with self._looking:
            self._judge.look()
        self._counts()
        self._drift.close()
        self.alerts.close()
        if self.fleet is not None:
            self.fleet.close()
        self._keeper.close()  # before what waits for others
        self.telling.close()
        self._listeners.stop()
        logger.info("the monitor has ended")

    @property
    def child_pid(self) -> int:
        """Of the mirror child; 0 while there is none."""
        return self._mirror.status().pid

    def copies(self) -> list[dict[str, Any]]:
        """What the mirror child has loaded, for people."""
        return loaded_copies(self._config, self._mirror.copies)

    def _on_crash(self, item: Item) -> None:
        model = item.exchange.model
        request = item.exchange.request_id or "(without an id)"
        text = f"{item.set_aside} on request {request}, which is set aside, not given to it again"
        self._events.append(
            model=model, candidate=item.culprit, baseline="", output="",
            verdict=Verdict.INVALID, text=text,
        )  # fmt: skip

    # --- MonitorView --------------------------------------------------------------------------

    def status(self) -> MonitorStatus:
        """How things are now."""
        # Before the evidence: nothing is shown as compared that is not counted in it.
        coverage = self._coverage()
        models = self._models()
        return MonitorStatus(
            started_wall_ns=self._started_ns,
            incarnation=self._evidence.incarnation,
            state=self._state,
            models=models,
            coverage=coverage,
            store=self._store_status(),
            child=self._mirror.status(),
            last_seq=self._events.last_seq,
            pid=os.getpid(),
            version=__version__,
            config=self._source,
            telemetry=self.telling.status(),
        )

    def _models(self) -> list[ModelStatus]:
        with self._looking:
            return [self._board.model(plan) for plan in list(self._plans.values())]

    def _store_status(self) -> StoreStatus:
        """The store's, with what is wrong with the cases beside it."""
        store = self._keeper.status()
        if self.fleet is not None:
            store = replace(store, replicas=self.fleet.alive())
        parts = (store.message, self._casebook.message)
        return replace(store, message="; ".join(part for part in parts if part))

    def _counts(self) -> dict[str, int]:
        """What was sampled and what became of it, over all lives, by the names of ``Ledger``."""
        taps = self._listener.worker_counters() if self._listener is not None else {}
        worker = self._worker
        dropped = self._ingest.dropped + worker.dropped
        own = {
            # In this order: nothing may look as if more had become of it than had come.
            "compared": worker.compared,
            "set_aside": worker.set_aside,
            "received": self._ingest.received,
            **{f"dropped_{reason}": n for reason, n in dropped.items()},
            **{f"not_mirrored_{reason}": n for reason, n in worker.reader.not_mirrored.items()},
        }
        return self._ledger.note(taps, own)

    def _coverage(self) -> Coverage:
        return coverage(
            self._counts(), self._config.monitor, self._rate, self._budget, self._ingest
        )

    def evidence(self, model: str | None) -> list[EvidenceRow]:
        """Counts of every life."""
        return self._evidence.rows(model)

    def certificates(self, model: str | None) -> list[CertificateView]:
        """Certificates as they stand now."""
        with self._looking:
            return self._judge.certificates(model)

    def cases(self, model: str | None, limit: int) -> list[CaseView]:
        """Cases on disk, the newest first."""
        return self._casebook.views(model, limit)

    def drift(self) -> list[DriftView]:
        """Models watched for drift."""
        return self._drift.views()

    def wait_events(self, after_seq: int, timeout_s: float) -> list[VerdictEvent]:
        """Events after ``after_seq``, waited for."""
        return self._events.wait(after_seq, timeout_s)
