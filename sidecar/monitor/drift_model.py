"""One model watched for drift: collecting → calibrating → watching; or not watched, and why.

The worker's thread offers exchanges and settles them, the monitor's looks at the time, others ask
for a view: one lock, held for milliseconds.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sidecar.clock import Clock
from sidecar.config import ModelConfig
from sidecar.monitor.drift_collect import Collector
from sidecar.monitor.drift_columns import Columns, ColumnsError, MisfitError, columns_of
from sidecar.monitor.drift_past import HISTORY, Past
from sidecar.monitor.drift_reference import RegisteredReference, default_version
from sidecar.monitor.drift_sample import WindowSample
from sidecar.monitor.drift_seen import Seen, can_join, join
from sidecar.monitor.drift_windows import DriftWindows, Judged
from sidecar.monitor.self_described import looks_batched
from validators.drift.accuracy import CORRECT
from validators.drift.columns import Rows
from validators.drift.reference import Reference
from validators.drift.state import State

logger = logging.getLogger("sidecar.monitor.drift")

#: Exchanges in a row that do not fit the reference, until that is said of the model.
MISFITS_SAID = 10
#: Of a sample of rows (reference or live): with 200 columns 10,000 rows.
SAMPLE_VALUES_MAX = 2_000_000
NOT_WATCHED = "not_watched"


@dataclass(frozen=True, slots=True)
class Closed:
    """A window that was closed: from and to (wall clock), and what it did to the state."""

    judged: Judged
    start_ns: int
    end_ns: int
    before: State
    after: State
    alarms_before: tuple[str, ...]
    alarms: tuple[str, ...]


def sample_rows(model: ModelConfig, columns: int) -> int:
    """How many rows are kept of a reference, and of live traffic."""
    return max(1, min(model.drift.deep.rows, SAMPLE_VALUES_MAX // max(1, columns)))


class ModelDrift:
    """All that is known of the drift of one model.

    Args:
        on_full: is given a collector that has all its rows, to make a reference of.

    Attributes:
        has_begun: traffic has come.
        phase: ``starting``, ``collecting``, ``calibrating``, ``watching``, ``failed``.
        skipped: exchanges that were not counted in a window: reason → count.
        warnings: what is to be known, and does not keep it from being watched.
    """

    def __init__(
        self, model: ModelConfig, clock: Clock, on_full: Callable[[ModelDrift, Collector], None]
    ) -> None:
        self.model = model
        #: Whose exchanges are looked at: the reference's, or the default's.
        self.version = default_version(model)
        self.lock = threading.RLock()
        self.phase = "starting"
        self.skipped: Counter[str] = Counter()
        self.warnings: list[str] = []
        self.registered: RegisteredReference | None = None
        self.windows: DriftWindows | None = None
        self.collector: Collector | None = None
        self.sample: WindowSample | None = None
        self.history: deque[Past] = deque(maxlen=HISTORY)
        self.last_judged: Past | None = None
        self.next_seq = 1
        self.alarm_since_ns: int | None = None
        self.opened_ns = clock.now_ns()
        #: Grows with every change that is worth writing down.
        self.changes = 0
        self._clock = clock
        self._on_full = on_full
        self._failure = ""
        self._misfits = 0
        self._misfit = ""
        self._pending: list[Seen] = []
        #: Of the latest rows whose label came; of this life.
        self._right: deque[bool] = deque(maxlen=model.drift.deep.rows)
        self.has_begun = False
        self._random = random.Random(0)  # noqa: S311 - a sample, not a secret

    # --- reference ----------------------------------------------------------------------------

    def collect(self) -> None:
        """The first rows that come are to be the reference."""
        with self.lock:
            self.phase = "collecting"

    def resume(self, collector: Collector) -> None:
        """Go on collecting what an earlier life began."""
        with self.lock:
            self.collector = collector
            if collector.is_full:
                self._calibrate(collector)

    def _calibrate(self, collector: Collector) -> None:
        self.phase = "calibrating"
        logger.info(
            "%s: its first %d rows are the drift reference; calibrating", self.model.name,
            collector.rows,
        )  # fmt: skip
        self._on_full(self, collector)

    def fail(self, message: str) -> None:
        """It is not watched, for this reason."""
        logger.error("%s is not watched for drift: %s", self.model.name, message)
        with self.lock:
            self.phase, self._failure = "failed", message
            self.changes += 1

    def use(self, registered: RegisteredReference) -> None:
        """Watch against this reference from now on."""
        drift = self.model.drift
        columns = registered.reference.columns
        with self.lock:
            self.registered = registered
            self.version = registered.variant.partition("/")[0] or self.version
            self.collector = None
            self.windows = DriftWindows(
                registered.reference, registered.calibration,
                window_max_s=drift.window_max_s, now_s=self._now_s(),
            )  # fmt: skip
            self.sample = WindowSample(columns, sample_rows(self.model, len(columns)))
            self.opened_ns = self._clock.now_ns()
            self.phase = "watching"
            self.changes += 1

    def _now_s(self) -> float:
        return self._clock.monotonic_ns() / 1e9

    # --- rows ---------------------------------------------------------------------------------

    def wants(self) -> bool:
        """Whether an exchange is to be decoded for it; by ``sample_rate``. For the worker."""
        if self.phase in {"starting", "failed"}:
            return False
        rate = self.model.drift.sample_rate
        return rate >= 1 or self._random.random() < rate

    def offer(self, seen: Seen) -> None:
        """Take an exchange; it is looked at by the next ``settle``. For the worker."""
        self._pending.append(seen)

    def settle(self) -> list[Closed]:
        """Look at what was offered, all of one shape at once; return windows that this closed."""
        pending, self._pending = self._pending, []
        closed: list[Closed] = []
        with self.lock:
            self.has_begun = self.has_begun or bool(pending)
            for group in self._alike(pending):
                if self.phase == "watching":
                    closed += self._count(group)
                elif self.phase == "collecting":
                    for seen in group:
                        self._collect(seen)
                else:
                    self.skipped["calibrating"] += len(group)
        return closed

    def _alike(self, pending: list[Seen]) -> Iterator[list[Seen]]:
        """Neighbours that can be joined: describing them together costs little more than one."""
        batched = self.registered is not None and self.registered.columns.batched
        group: list[Seen] = []
        for seen in pending:
            if group and not (batched and can_join(group[0], seen)):
                yield group
                group = []
            group.append(seen)
        if group:
            yield group

    def _count(self, group: list[Seen]) -> list[Closed]:
        assert self.registered is not None
        columns = self.registered.columns
        seen = join(group)
        try:
            rows = columns.describe(columns.arrays(seen.inputs, seen.outputs))
            return self._add(rows)
        except ValueError as error:  # a misfit, or values that the bins cannot take
            if len(group) == 1:
                self._note_misfit(str(error))
                return []
            # One that is odd must not cost the others.
            return [closed for one in group for closed in self._count([one])]

    def _note_misfit(self, text: str) -> None:
        self.skipped["misfit"] += 1
        self._misfits += 1
        if self._misfits >= MISFITS_SAID and not self._misfit:
            self._misfit = text
            logger.warning(
                "%s: traffic does not fit its drift reference: %s", self.model.name, text
            )

    def _add(self, rows: Rows) -> list[Closed]:
        """Count rows, in pieces that end where windows end."""
        assert self.windows is not None
        assert self.sample is not None
        windows, names = self.windows, [c.name for c in self.windows.reference.columns]
        if absent := [name for name in names if name not in rows]:
            raise MisfitError(f"there is no column {absent[0]!r}")
        size, begin = len(rows[names[0]]), 0
        closed: list[Closed] = []
        while begin < size:
            end = min(size, begin + windows.calibration.window_rows - windows.window.rows)
            part = {name: rows[name][begin:end] for name in names}
            before = windows.state
            judged = windows.add(part, self._now_s())
            self.sample.add(part)
            begin = end
            closed += [self._closed(one, before.state, before.alarms) for one in judged]
        self._misfits, self._misfit = 0, ""
        self.changes += 1
        return closed

    def tick(self) -> list[Closed]:
        """Close a window that is too old."""
        with self.lock:
            if self.windows is None or self.phase != "watching":
                return []
            before = self.windows.state
            judged = self.windows.tick(self._now_s())
            return [] if judged is None else [self._closed(judged, before.state, before.alarms)]

    def _closed(self, judged: Judged, before: State, alarms: tuple[str, ...]) -> Closed:
        assert self.windows is not None
        assert self.sample is not None
        now_ns, start_ns = self._clock.now_ns(), self.opened_ns
        self.sample.close()
        self.opened_ns = now_ns
        self.history.append(Past(self.next_seq, now_ns, judged.rows, judged.scores))
        self.next_seq += 1
        if judged.scores is not None:
            self.last_judged = self.history[-1]
        state = self.windows.state
        if state.state is not State.ALARM:
            self.alarm_since_ns = None
        elif self.alarm_since_ns is None:
            self.alarm_since_ns = now_ns
        self.changes += 1
        return Closed(judged, start_ns, now_ns, before, state.state, alarms, state.alarms)

    # --- collecting ---------------------------------------------------------------------------

    def _collect(self, seen: Seen) -> None:
        try:
            collector = self._collector(seen)
            collector.add(collector.columns.arrays(seen.inputs, seen.outputs))
        except ColumnsError as error:
            self.skipped["misfit"] += 1
            if self._failure != str(error):
                logger.error("%s is not watched for drift: %s", self.model.name, error)
            self._failure = str(error)
            return
        except MisfitError as error:
            self._note_misfit(str(error))
            return
        self._failure, self._misfits, self._misfit = "", 0, ""
        self.changes += 1
        if collector.is_full:
            self._calibrate(collector)

    def _collector(self, seen: Seen) -> Collector:
        """The one that there is; a new one for the first exchange.

        And where rows were taken to be the first axis, and that turns out to be wrong.
        """
        found = self.collector
        guess = looks_batched(seen.inputs, seen.outputs)
        contradicts = seen.batched is None and not guess
        if found is not None and not (found.columns.batched and contradicts):
            return found
        batched = guess if seen.batched is None else seen.batched
        columns = columns_of(self.model, seen.inputs, seen.outputs, batched=batched)
        for text in columns.inferred:
            logger.info("%s: %s", self.model.name, text)
        self.collector = Collector(columns, self.model.drift.reference_rows)
        return self.collector

    # --- for others ---------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """What is shown of it all; never ``ok`` while something is not known."""
        with self.lock:
            if self._failure or self._misfit:
                return NOT_WATCHED
            if self.phase == "watching" and self.windows is not None:
                return str(self.windows.state.state)
            return str(State.INSUFFICIENT_DATA)

    @property
    def message(self) -> str:
        """What keeps it from being watched as configured, empty otherwise."""
        with self.lock:
            parts = [self._failure]
            if self._misfit:
                again = f"`sidecar reference CONFIG --model {self.model.name} --inputs …`"
                parts.append(
                    f"traffic does not fit the reference ({self._misfit}): register one of what "
                    f"the model takes now: {again}"
                )
            return "; ".join(part for part in (*parts, *self.warnings) if part)

    @property
    def columns(self) -> Columns | None:
        """How exchanges become rows; ``None``: not known yet."""
        with self.lock:
            if self.registered is not None:
                return self.registered.columns
            return self.collector.columns if self.collector is not None else None

    def live_sample(self) -> tuple[Reference, Rows] | None:
        """The reference, and the latest rows that were kept of live traffic; copies."""
        with self.lock:
            if self.registered is None or self.sample is None:
                return None
            reference, rows = self.registered.reference, self.sample.rows()
            facts = self.registered.facts
            labelled = facts.get("labelled_rows")
            if self._right and isinstance(labelled, int) and labelled > 0:
                # Only how many were right is known of either side, and nothing more is asked.
                known = np.zeros(labelled)
                known[: round(facts.get("accuracy", 0.0) * labelled)] = 1
                reference = replace(reference, sample={**reference.sample, CORRECT: known})
                rows = {**rows, CORRECT: np.array(self._right, np.float64)}
            return reference, rows

    def labelled(self, right: Sequence[bool]) -> None:
        """Whether answers that were served were right, row by row; any thread."""
        with self.lock:
            self._right.extend(right)

    # --- memory -------------------------------------------------------------------------------

    def to_plain(self) -> dict[str, Any]:
        """What of the open window and the state survives, as JSON values."""
        with self.lock:
            assert self.windows is not None
            return {
                **self.windows.to_plain(self._now_s()),
                "opened_wall_ns": self.opened_ns,
                "alarm_since_wall_ns": self.alarm_since_ns,
            }

    def restore(self, plain: Mapping[str, Any], history: Sequence[Past]) -> None:
        """Go on where another life stopped.

        Raises:
            ValueError: it was made with another reference, or is no such thing.
        """
        with self.lock:
            assert self.windows is not None
            self.windows.restore(plain, self._now_s())
            since, opened = plain.get("alarm_since_wall_ns"), plain.get("opened_wall_ns")
            is_alarm = self.windows.state.state is State.ALARM
            self.alarm_since_ns = since if is_alarm and isinstance(since, int) else None
            self.opened_ns = opened if isinstance(opened, int) else self.opened_ns
            self.history.extend(history)
            judged = [past for past in self.history if past.units is not None]
            self.last_judged = judged[-1] if judged else None
            self.next_seq = history[-1].seq + 1 if history else 1

    def settings(self) -> dict[str, Any]:
        """Of the calibration, as ``drift_calibrate.make`` takes them."""
        drift = self.model.drift
        return {
            "window_rows": drift.window_rows,
            "min_rows": drift.min_rows,
            "expected_windows": drift.expected_windows_between_false_alarms,
            "block_rows": drift.block_rows,
            "methods": dict(drift.methods),
            "seed": 0,
        }
