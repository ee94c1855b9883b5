"""Deep runs of all watched models: one at a time, by the schedule or on request, and their reports.

For the monitor: make ``DeepRuns`` of the configuration, ``start`` it, let ``show`` complete each
model's ``DriftView``, and ``close`` it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from sidecar.clock import Clock
from sidecar.config import ModelConfig
from sidecar.errors import InvalidRequestError, NotFoundError, OverloadedError
from sidecar.monitor.deep import results
from sidecar.monitor.deep.job import Job, Page, UnfitSampleError
from sidecar.monitor.deep.prepare import accuracy_of, prepare
from sidecar.monitor.deep.process import DeepProcess, Limits, Ran
from sidecar.monitor.deep.reports import Reports, stamp
from sidecar.monitor.deep.schedule import Schedule
from sidecar.monitor.deep.view import DeepReport
from sidecar.monitor.view_drift import DriftView
from validators.drift.accuracy import AccuracyChange
from validators.drift.columns import Rows
from validators.drift.reference import Reference

logger = logging.getLogger("sidecar.monitor.deep")

#: Beyond its own time limit: a child that is ended has to be waited for.
_WAIT_MORE_S = 30.0
#: The monitor has a few seconds to end; a child that was killed is gone in tenths of one.
_CLOSE_S = 3.0

_NEEDS = "no deep runs: {} is not installed; install model-sidecar[drift], or set "
_NEEDS += "drift.deep.enabled: false"


class SampleSource(Protocol):
    """Whoever watches the live traffic. Called from the schedule's thread and from calls."""

    def sample(self, model: str) -> tuple[Reference, Rows] | None:
        """The reference, and live rows in the order in which they came; ``None``: none yet.

        Where labels are known, the rows (and the reference's sample) have a column
        ``label.correct`` (``validators/drift/accuracy.py``).
        """
        ...

    def alarming(self, model: str) -> bool:
        """Whether the windows of this model say that it drifts now."""
        ...


@dataclass(slots=True)
class _Turn:
    """The run under way; ``html``: it makes a page whatever it finds."""

    model: str
    html: bool
    process: DeepProcess | None = None
    report: DeepReport | None = None


class DeepRuns:
    """The runs of those models whose configuration asks for them.

    Args:
        models: all of the configuration.
        state_dir: reports lie in ``drift/MODEL`` of it.
        installed: says whether a package can be imported.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        source: SampleSource,
        state_dir: Path,
        clock: Clock,
        *,
        installed: Callable[[str], bool] = lambda name: find_spec(name) is not None,
    ) -> None:
        self._source = source
        self._clock = clock
        self._models = {
            model.name: model
            for model in models
            if model.drift.enabled is not False and model.drift.deep.enabled
        }
        self._reports = {
            name: Reports.of(state_dir, name, keep=model.drift.deep.keep)
            for name, model in self._models.items()
        }
        missing = [
            label
            for label, package in (("Evidently", "evidently"), ("APScheduler", "apscheduler"))
            if self._models and not installed(package)
        ]
        self.missing = _NEEDS.format(" and ".join(missing)) if missing else ""
        self._latest = {name: kept for name, kept in self._kept().items() if kept is not None}
        self._messages: dict[str, str] = {}
        self._free = threading.Condition()
        self._turn: _Turn | None = None
        self._closed = False
        self._schedule: Schedule | None = None

    def _kept(self) -> dict[str, DeepReport | None]:
        found: dict[str, DeepReport | None] = {}
        for name, reports in self._reports.items():
            kept = reports.latest()
            if kept is not None:
                page = "" if kept.page is None else str(kept.page)
                found[name] = DeepReport(name, page, str(kept.path), made_wall_ns=kept.made_wall_ns)
        return found

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the schedule, where there is anything to run and what it takes."""
        if not self._models:
            return
        if self.missing:
            logger.info("%s", self.missing)  # the default is: where they are installed
            return
        every = {name: model.drift.deep.every_s for name, model in self._models.items()}
        now_ns = self._clock.now_ns()
        age_s = {
            name: (now_ns - report.made_wall_ns) / 1e9
            for name, report in self._latest.items()
            if report.made_wall_ns is not None
        }
        self._schedule = Schedule(every, self.scheduled, age_s)
        self._schedule.start()

    def close(self) -> None:
        """End the schedule, and the run under way; returns when its process is gone."""
        if self._schedule is not None:
            self._schedule.close()
        with self._free:
            self._closed = True
            if self._turn is not None and self._turn.process is not None:
                self._turn.process.stop()
            self._free.notify_all()
            self._free.wait_for(lambda: self._turn is None, _CLOSE_S)

    # --- what is shown --------------------------------------------------------------------------

    def show(self, view: DriftView) -> DriftView:
        """The view, with this model's latest report, and what keeps its runs from being done."""
        if view.model not in self._models:
            return view
        parts = (view.message, self.missing or self._messages.get(view.model, ""))
        message = "; ".join(part for part in parts if part)
        latest = self._latest.get(view.model)
        if latest is None:
            return replace(view, message=message)
        return replace(
            view, message=message, report_html=latest.path_html, report_json=latest.path_json,
            report_wall_ns=latest.made_wall_ns,
        )  # fmt: skip

    # --- runs -----------------------------------------------------------------------------------

    def scheduled(self, model: str) -> None:
        """What the schedule calls: nothing that goes wrong is raised, and the next run comes."""
        try:
            report = self.run_now(model, html=False)
        except OverloadedError as error:
            self._say(model, f"no deep run: {error}")
            return
        except Exception:
            self._messages[model] = "the latest deep run failed by a fault of the monitor"
            logger.exception("deep run of %s", model)
            return
        if report.path_json:
            logger.info("%s: %s (%s)", model, report.summary, report.path_json)

    def soon(self, model: str) -> None:
        """Let the schedule run it now, without waiting: its traffic has just moved."""
        if self._schedule is not None and model in self._models:
            self._schedule.soon(model)

    def run_now(self, model: str = "", *, html: bool = True) -> DeepReport:
        """Run now and wait, bounded by the run's own time limit; from any thread.

        While another run is under way it is waited for; one that gives the same is shared.

        Args:
            model: empty: the only one that is watched.
            html: make Evidently's page whatever is found, not only as configured.

        Raises:
            NotFoundError: no such model has deep runs.
            InvalidRequestError: none was named, and there are several.
            OverloadedError: the runs before it have not ended in time.
        """
        settings = self._named(model)
        name = settings.name
        if self.missing:
            return DeepReport(name, message=self.missing)
        wait_s = settings.drift.deep.timeout_s + _WAIT_MORE_S
        with self._free:
            shared = self._turn
            if shared is not None and shared.model == name and (shared.html or not html):
                self._free.wait_for(lambda: shared.report is not None, wait_s)
                if shared.report is not None:
                    return shared.report
            if not self._free.wait_for(lambda: self._turn is None or self._closed, wait_s):
                busy = self._turn.model if self._turn is not None else name
                message = f"a deep run of {busy!r} is under way, and one goes at a time"
                raise OverloadedError(message)
            if self._closed:
                return DeepReport(name, message="the monitor ends")
            turn = self._turn = _Turn(name, html)
        try:
            turn.report = self._run(settings, turn)
            return turn.report
        finally:
            with self._free:
                self._turn = None
                if turn.report is None:  # raised: whoever shares it must not wait on
                    turn.report = DeepReport(name, message="the run failed; see the log")
                self._free.notify_all()

    def _named(self, model: str) -> ModelConfig:
        known = ", ".join(self._models) or "none"
        if model:
            if model not in self._models:
                message = f"no model {model!r} has deep drift runs; there is {known}"
                raise NotFoundError(message)
            return self._models[model]
        if not self._models:
            message = "no model has deep drift runs (drift.deep.enabled)"
            raise NotFoundError(message)
        if len(self._models) > 1:
            message = f"several models have deep drift runs, name one: {known}"
            raise InvalidRequestError(message)
        return next(iter(self._models.values()))

    def _run(self, settings: ModelConfig, turn: _Turn) -> DeepReport:
        name, drift = settings.name, settings.drift
        samples = self._source.sample(name)
        if samples is None:
            return self._not_run(name, "no deep run yet: there is no reference")
        reference, rows = samples
        accuracy = accuracy_of(drift, reference, rows)
        page = self._page(settings, turn, accuracy)
        try:
            job, key = prepare(
                settings, reference, rows, page, accuracy, self._reports[name].read_thresholds
            )
        except UnfitSampleError as error:
            return self._not_run(name, f"no deep run: {error}")
        limits = Limits(drift.deep.timeout_s, drift.deep.memory_max_bytes)
        process = DeepProcess(job, limits, self._clock)
        with self._free:
            turn.process = process
            if self._closed:
                process.stop()
        ran = process.run()
        report = self._write(settings, job, ran, accuracy, reference.rows)
        self._keep_thresholds(name, key, job, ran)
        return report

    def _page(self, settings: ModelConfig, turn: _Turn, accuracy: AccuracyChange | None) -> Page:
        configured = settings.drift.deep.html
        if turn.html or configured == "always":
            return "always"
        if configured == "never":
            return "never"
        fell = accuracy is not None and accuracy.verdict == "lower"
        return "always" if fell or self._source.alarming(settings.name) else "on_drift"

    def _write(
        self, settings: ModelConfig, job: Job, ran: Ran, accuracy: AccuracyChange | None, rows: int
    ) -> DeepReport:
        name = settings.name
        if ran.result is None:
            return self._not_run(name, f"the latest deep run failed: {ran.message}", ran.seconds)
        now_ns = self._clock.now_ns()
        plain = results.report(
            job, ran.result, accuracy, reference_rows=rows, made_wall_ns=now_ns,
            made=stamp(now_ns), seconds=ran.seconds,
        )  # fmt: skip
        plain["message"] = ran.message
        report = DeepReport(
            name, drifted=plain["drifted"], columns=len(plain["columns"]),
            columns_drifted=len(plain["columns_drifted"]), rows=job.current.rows,
            seconds=ran.seconds, made_wall_ns=now_ns, summary=plain["summary"],
            message=ran.message,
        )  # fmt: skip
        try:
            kept = self._reports[name].write(plain, ran.page)
        except OSError as error:
            folder = self._reports[name].folder
            message = f"the report could not be written to {folder}: {error.strerror or error}"
            self._say(name, message)
            return replace(report, message=message)
        page = "" if kept.page is None else str(kept.page)
        report = replace(report, path_html=page, path_json=str(kept.path))
        self._latest[name] = report
        self._say(name, f"the latest deep run: {ran.message}" if ran.message else "")
        return report

    def _keep_thresholds(self, name: str, key: str, job: Job, ran: Ran) -> None:
        if ran.result is None or not ran.result["calibrated"]:
            return
        known = {plan.name: plan.threshold for plan in job.plans if plan.threshold is not None}
        try:
            self._reports[name].write_thresholds(key, known | ran.result["calibrated"])
        except OSError as error:
            logger.warning("thresholds of %s are not kept: %s", name, error.strerror or error)

    def _not_run(self, name: str, message: str, seconds: float = 0.0) -> DeepReport:
        self._say(name, message)
        return DeepReport(name, seconds=seconds, message=message)

    def _say(self, name: str, message: str) -> None:
        """In the view, and in the log when it is news."""
        if message and message != self._messages.get(name):
            logger.warning("%s: %s", name, message)
        self._messages[name] = message
