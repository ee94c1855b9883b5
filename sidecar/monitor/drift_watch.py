"""The watch for drift: all models, fed by the worker, looked at by the monitor, kept in the store.

What it costs is part of the monitor's budget, as it runs on the worker's thread; making a reference
of the first rows is not, and runs in a child (``drift_calibrate``).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from sidecar.clock import Clock
from sidecar.config import ModelConfig
from sidecar.errors import SidecarError
from sidecar.monitor import drift_reference, drift_words
from sidecar.monitor.drift_calibrate import CalibrationChild, CalibrationError
from sidecar.monitor.drift_collect import Collector
from sidecar.monitor.drift_columns import MisfitError
from sidecar.monitor.drift_keep import ModelKeeper
from sidecar.monitor.drift_model import Closed, ModelDrift, sample_rows
from sidecar.monitor.drift_reference import ReferenceFileError, RegisteredReference
from sidecar.monitor.drift_seen import Seen
from sidecar.monitor.drift_view import view_of
from sidecar.monitor.drift_windows import Judged
from sidecar.monitor.events import EventLog
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.store import Store
from sidecar.monitor.view_drift import DriftView
from sidecar.runtimes.artifacts import fingerprint
from sidecar.runtimes.base import Array
from validators.drift.columns import Rows
from validators.drift.reference import Reference
from validators.verdict import Verdict

logger = logging.getLogger("sidecar.monitor.drift")

#: Is told of each window that closed: model, what came of it, begin and end in wall-clock time.
OnWindow = Callable[[str, Judged, int, int], None]
_SAY_EVERY_NS = 60 * 10**9


class DriftWatch:
    """Watches models for drift.

    ``start`` once, before traffic; ``takes``, ``take`` and ``settle`` are for the worker's thread,
    the others for any. ``close`` once.

    Args:
        models: those to watch.
        on_window: see ``OnWindow``; what it raises is logged and goes no further.
    """

    def __init__(
        self, models: Sequence[ModelConfig], events: EventLog, clock: Clock,
        on_window: OnWindow | None = None,
    ) -> None:  # fmt: skip
        self.models = {
            model.name: ModelDrift(model, clock, self._calibrate_later) for model in models
        }
        self.on_window = on_window
        self._events = events
        self._clock = clock
        self._keepers = [ModelKeeper(model) for model in self.models.values()]
        self._generation = 0
        self._say_at_ns = 0
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._child: CalibrationChild | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="drift", daemon=True)

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Read the references that are files; without one, the first rows will be it."""
        for drift in self.models.values():
            path = drift.model.drift.reference
            if path is None:
                drift.collect()
                continue
            try:
                registered = drift_reference.read(path)
            except ReferenceFileError as error:
                drift.fail(str(error))
                continue
            if wrong := drift_reference.misfit(registered, drift.model, str(path)):
                drift.fail(wrong)
                continue
            drift.use(registered)
            self._jobs.put(lambda one=drift: self._check_artifact(one))  # type: ignore[misc]
        if self.models:
            self._thread.start()

    def close(self) -> None:
        """End what runs beside. Idempotent."""
        self._closed.set()
        self._jobs.put(None)
        if (child := self._child) is not None:
            child.kill()
        if self._thread.is_alive():
            self._thread.join(2.0)

    # --- traffic ------------------------------------------------------------------------------

    def takes(self, exchange: Exchange) -> bool:
        """Whether an exchange is to be decoded for this: a good one, of a model, by the rate."""
        drift = self.models.get(exchange.model)
        if drift is None or exchange.response is None or exchange.outcome != "OK":
            return False
        if not exchange.variant.startswith(f"{exchange.model}:{drift.version}/"):
            # Another version answers otherwise, and is meant to: it has a reference of its own, or
            # none.
            drift.skipped["other_version"] += 1
            return False
        return drift.wants()

    def take(
        self, model: str, inputs: dict[str, Array], outputs: dict[str, Array] | None,
        batched: bool | None,
    ) -> None:  # fmt: skip
        """An exchange, decoded; looked at by the next ``settle``."""
        self.models[model].offer(Seen(inputs, outputs, batched))

    def skip(self, model: str, reason: str) -> None:
        """An exchange that could not be decoded."""
        self.models[model].skipped[reason] += 1

    def settle(self) -> None:
        """Count what was taken; never raises."""
        for drift in self.models.values():
            try:
                closed = drift.settle()
            except Exception:
                drift.skipped["fault"] += 1
                now_ns = self._clock.monotonic_ns()
                if now_ns >= self._say_at_ns:
                    self._say_at_ns = now_ns + _SAY_EVERY_NS
                    logger.exception("%s: exchanges were not counted for drift", drift.model.name)
                continue
            self._tell(drift, closed)

    def tick(self) -> None:
        """Close windows that are too old; about once a second."""
        for drift in self.models.values():
            self._tell(drift, drift.tick())

    def _tell(self, drift: ModelDrift, closed: Sequence[Closed]) -> None:
        name = drift.model.name
        for window in closed:
            found = drift_words.event(window)
            if found is not None:
                verdict, text = found
                log = logger.warning if verdict is Verdict.FAIL else logger.info
                log("%s: %s", name, text)
                self._events.append(
                    model=name, candidate=name, baseline="", output="", verdict=verdict, text=text
                )
            if self.on_window is not None:
                try:
                    self.on_window(name, window.judged, window.start_ns, window.end_ns)
                except Exception:
                    logger.exception("a drift window could not be told")

    # --- for others ---------------------------------------------------------------------------

    def views(self) -> list[DriftView]:
        """Every model, as it is shown."""
        found = []
        for drift in self.models.values():
            path = drift.model.drift.reference
            found.append(view_of(drift, path.name if path is not None else ""))
        return found

    def sample(self, model: str) -> tuple[Reference, Rows] | None:
        """The reference of a model, and the latest live rows (at most ``drift.deep.rows``).

        Categories are texts. ``None``: there is no such model, or no reference yet. Both are the
        caller's to read; the reference is not to be changed.
        """
        drift = self.models.get(model)
        return None if drift is None else drift.live_sample()

    def labelled(self, model: str, variant: str, right: Sequence[bool]) -> None:
        """Labels of an answer that ``variant`` served: row by row, whether it was right."""
        drift = self.models.get(model)
        if drift is not None and variant.startswith(f"{model}:{drift.version}/"):
            drift.labelled(right)

    def alarming(self, model: str) -> bool:
        """Whether a model's windows say that it drifts now."""
        drift = self.models.get(model)
        return drift is not None and drift.alarm_since_ns is not None

    # --- the store ----------------------------------------------------------------------------

    def load(self, store: Store) -> None:
        """Go on where an earlier life stopped.

        Raises:
            StoreError: it cannot be read.
        """
        tables = store.drift()
        self._generation = store.generation
        for keeper in self._keepers:
            keeper.load(tables)

    def flush(self, store: Store) -> None:
        """Write what has changed.

        Raises:
            StoreError: it cannot be written; it is tried again the next time.
        """
        if store.generation != self._generation:
            self._generation = store.generation
            for keeper in self._keepers:
                keeper.forget()
        tables = store.drift()
        for keeper in self._keepers:
            keeper.flush(tables)

    # --- beside -------------------------------------------------------------------------------

    def _work(self) -> None:
        """Thread: one reference after another, so that several models do not take all cores."""
        while (job := self._jobs.get()) is not None and not self._closed.is_set():
            try:
                job()
            except Exception:
                logger.exception("what was to be done for drift has failed")

    def _calibrate_later(self, drift: ModelDrift, collector: Collector) -> None:
        self._jobs.put(lambda: self._calibrate(drift, collector))

    def _calibrate(self, drift: ModelDrift, collector: Collector) -> None:
        try:
            with drift.lock:  # the store may be reading it
                columns, rows, notes = collector.finish()
            self._child = child = CalibrationChild()
            if self._closed.is_set():
                return
            settings = {**drift.settings(), "sample_rows": sample_rows(drift.model, len(columns))}
            reference, calibration = child.run(columns, rows, settings)
        except (CalibrationError, MisfitError, ValueError, OSError) as error:
            if not self._closed.is_set():
                drift.fail(f"no reference can be made of its first rows: {error}")
            return
        finally:
            self._child = None
        created = datetime.fromtimestamp(self._clock.now_ns() / 1e9, UTC).isoformat("T", "seconds")
        facts = {
            "settings": drift_reference.live_settings(drift.model),
            "rows": reference.rows,
            "warnings": notes,
        }
        registered = RegisteredReference(
            drift.model.name, "", "", "live", created, collector.columns, reference, calibration,
            facts,
        )  # fmt: skip
        for note in notes:
            logger.warning("%s: %s", drift.model.name, note)
        drift.use(registered)
        logger.info("%s: watched for drift, %d columns", drift.model.name, len(reference.columns))

    def _check_artifact(self, drift: ModelDrift) -> None:
        """Say so where the reference was made with another artifact of its variant."""
        registered = drift.registered
        if registered is None or not registered.artifact:
            return
        for variant in drift.model.variants:
            if variant.key != registered.variant or variant.runtime.kind == "remote":
                continue
            with contextlib.suppress(SidecarError, OSError):
                if fingerprint(Path(variant.runtime.path)) == registered.artifact:
                    return
            text = f"the reference was made with another artifact of {variant.key}: outputs may "
            text += "differ for that alone"
            logger.warning("%s: %s", drift.model.name, text)
            with drift.lock:
                drift.warnings.append(text)
            return
