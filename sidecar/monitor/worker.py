"""The monitor's one worker: a micro-batch of exchanges from the queue to evidence.

take → read → run on the child → compare → count → cases. One thread: the budget is half a core, and
nothing here needs a lock that the listener's threads would wait for.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from sidecar.clock import Clock
from sidecar.monitor.budget import Budget
from sidecar.monitor.casebook import Casebook
from sidecar.monitor.drift_watch import DriftWatch
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.exchanges import Item, Planner, Reader
from sidecar.monitor.ingest import Ingest
from sidecar.monitor.labels import LateLabels
from sidecar.monitor.mirror import MirrorProcess, Stopped
from sidecar.monitor.mirror_protocol import Outcome
from sidecar.monitor.plan import ModelPlan
from sidecar.monitor.record import PairBatch, Recorder
from sidecar.monitor.tally import Tally
from sidecar.monitor.versions import VersionPairs

logger = logging.getLogger("sidecar.monitor.worker")

#: Of one micro-batch: enough to share the cost of comparing, few enough to answer soon.
BATCH_ITEMS = 64
BATCH_BYTES = 16 * 2**20
#: What a batch should take at most.
_BATCH_S = 0.4
#: When few wait, a little patience makes a batch of them.
_GATHER_S = 0.02
_IDLE_S = 0.2
#: How often a fault of our own is logged.
_SAY_EVERY_NS = 60 * 10**9

#: Items, what came of comparing them, and from when to when (monotonic) that was.
Watch = Callable[[Sequence[Item], Sequence[PairBatch], int, int], None]


class Worker:
    """Runs batches until it is stopped.

    Args:
        on_crash: is told of an exchange that ended the child.
        watch: is shown every micro-batch when it is done.
        drift: is given the exchanges of the models that it watches.
        labels: is given the answers that wait for labels.
    """

    def __init__(
        self,
        ingest: Ingest,
        mirror: MirrorProcess,
        evidence: Evidence,
        plans: Mapping[str, ModelPlan],
        casebook: Casebook,
        budget: Budget,
        *,
        noise_rate: float,
        flush_s: float,
        clock: Clock,
        on_crash: Callable[[Item], None],
        watch: Watch | None = None,
        drift: DriftWatch | None = None,
        labels: LateLabels | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._ingest = ingest
        self._mirror = mirror
        self._casebook = casebook
        self._budget = budget
        self._on_crash = on_crash
        self._watch = watch
        self._stop = threading.Event()
        self._clock = clock
        self._say_at_ns = 0
        self._batch_items = BATCH_ITEMS
        self._flush_ns = int(flush_s * 1e9)
        self._flush_at_ns = clock.monotonic_ns() + self._flush_ns
        rng = rng or random.Random()  # noqa: S311 - a sample and an order, not a secret
        self._drift = drift
        self._labels = labels
        self.reader = Reader(plans, drift, labels)
        self._planner = Planner(mirror.copies, noise_rate, rng)
        self.tally = Tally()
        self.recorder = Recorder(evidence, self.tally)
        self._versions = VersionPairs(evidence, self.recorder, plans)
        self.compared = 0
        self.set_aside = 0
        self.dropped: Counter[str] = Counter()

    def run(self) -> None:
        """Work until ``stop``; then until the queue is empty, or ``abandon``."""
        try:
            while True:
                batch = self._ingest.take(self._batch_items, BATCH_BYTES, _IDLE_S)
                self._guarded(self._flush_cases, 0)
                if not batch:
                    if self._stop.is_set():
                        return
                    continue
                if len(batch) < self._batch_items // 4 and not self._stop.wait(_GATHER_S):
                    more = self._batch_items - len(batch)
                    batch += self._ingest.take(more, BATCH_BYTES, 0)
                self._timed(batch)
                if not self._stop.is_set():
                    self._stop.wait(self._budget.pause_s())
        except Stopped:
            return

    def _timed(self, batch: Sequence[Exchange]) -> None:
        """Process a batch, and learn from the time it took how large the next may be.

        The budget is kept between batches, and a signal heard: of a model that takes a second, a
        batch is one exchange.
        """
        start_ns = self._clock.monotonic_ns()
        self._guarded(partial(self.process, batch), len(batch))
        took_s = (self._clock.monotonic_ns() - start_ns) / 1e9
        if took_s > _BATCH_S:
            self._batch_items = max(1, min(self._batch_items, len(batch)) // 2)
        elif took_s < _BATCH_S / 4 and len(batch) == self._batch_items:
            self._batch_items = min(2 * self._batch_items, BATCH_ITEMS)

    def _flush_cases(self) -> None:
        """From time to time; here, since their writer is for one thread."""
        now_ns = self._clock.monotonic_ns()
        if now_ns >= self._flush_at_ns:
            self._flush_at_ns = now_ns + self._flush_ns
            self._casebook.flush()

    def stop(self) -> None:
        """Ask ``run`` to end once nothing waits; close the ingest first."""
        self._stop.set()

    def _guarded(self, work: Callable[[], None], exchanges: int) -> None:
        """Do it; a fault of ours in one batch must not end the watching of all that follow."""
        try:
            work()
        except Stopped:
            raise
        except Exception:
            self.dropped["fault"] += exchanges
            now_ns = self._clock.monotonic_ns()
            if now_ns >= self._say_at_ns:  # not for each of a hundred batches a second
                self._say_at_ns = now_ns + _SAY_EVERY_NS
                logger.exception("%d exchanges could not be compared", exchanges)

    def process(self, batch: Sequence[Exchange]) -> None:
        """One micro-batch, through all stages.

        Raises:
            Stopped: the mirror was closed meanwhile.
        """
        items = [item for exchange in batch if (item := self.reader.read(exchange)) is not None]
        if self._drift is not None:
            self._drift.settle()
        if not items:
            return
        self._planner.plan(items)
        outcomes = self._mirror.submit([item.job for item in items])
        for item, outcome in zip(items, outcomes, strict=True):
            self._take(item, outcome)
        start_ns = self._clock.monotonic_ns()
        compared = self.recorder.certificates(items)
        end_ns = self._clock.monotonic_ns()
        self.recorder.noise(items)
        self._versions.count(items, self._mirror.lives)
        if self._labels is not None:
            self._guarded(partial(self._wait_for_labels, items), 0)
        done = {id(item) for pair_batch in compared for item in pair_batch.items}
        done |= {id(item) for pair_batch in compared for item, _ in pair_batch.failed}
        done |= {id(item) for item in items if self._versions.has_counted(item)}
        done -= {id(item) for item in items if item.set_aside}
        self.compared += len(done)
        self.dropped["no_answer"] += sum(
            id(item) not in done and not item.set_aside for item in items
        )
        self._casebook.offer(items, compared)
        if self._watch is not None:
            self._guarded(partial(self._watch, items, compared, start_ns, end_ns), 0)

    def _wait_for_labels(self, items: Sequence[Item]) -> None:
        assert self._labels is not None
        for item in items:
            self._labels.see(item)

    def _take(self, item: Item, outcome: Outcome) -> None:
        if outcome.set_aside:
            item.set_aside, item.culprit = outcome.set_aside, outcome.culprit
            self.set_aside += 1
            if outcome.culprit:
                self._on_crash(item)
        answers = outcome.answers
        if item.noise is not None and answers:
            *answers, item.again = answers
        runs = list(item.job.runs)
        if item.twice is not None and answers:
            answers = list(answers)
            item.twice.answer = answers.pop(item.twice.place)
            runs.pop(item.twice.place)
        for run, answer in zip(runs, answers, strict=False):
            item.answers[run.variant] = answer
        for run, answer in zip(item.job.runs, outcome.answers, strict=False):
            if answer.compute_ns:
                self.tally.execution(run.variant, answer.compute_ns)
