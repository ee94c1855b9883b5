"""Which exchanges are offered to the cases on disk, and under what name.

Writing them may fail (a full disk): that is counted and said once, and stops nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from sidecar.cases.case import Arrays, CaseEntry, CaseError, Offer
from sidecar.monitor.exchanges import Item
from sidecar.monitor.mirror_protocol import Answer
from sidecar.monitor.record import PairBatch
from sidecar.monitor.view import CaseView
from sidecar.runtimes.base import Array
from validators.comparators import metric_specs

if TYPE_CHECKING:
    from pathlib import Path

    from sidecar.cases.writer import CaseWriter
    from sidecar.clock import Clock
    from sidecar.config_monitor import CasesConfig
    from sidecar.monitor.compare import BatchResult

logger = logging.getLogger("sidecar.monitor.casebook")

Worse = Literal["higher", "lower"]


def open_cases(folder: Path, settings: CasesConfig, clock: Clock) -> Casebook:
    """The cases in ``folder``; where they cannot be kept, one that keeps none and says why."""
    from sidecar.cases import CaseError, CaseWriter

    try:
        writer = CaseWriter(folder, settings, clock)
    except CaseError as error:
        logger.error("no cases are kept: %s", error)
        return Casebook(None, f"no cases are kept: {error}")
    if writer.message:
        logger.error("%s: %s", folder, writer.message)
    return Casebook(writer, writer.message)


class Casebook:
    """Offers exchanges to a ``CaseWriter``; for the worker's thread.

    Args:
        writer: ``None`` where cases cannot be kept.
        notice: why not, or what was found wrong with those that there were; empty otherwise.
    """

    def __init__(self, writer: CaseWriter | None, notice: str = "") -> None:
        self._writer = writer
        self._notice = notice
        self._failure = ""
        self._views: list[CaseView] = []
        self.failures = 0

    def offer(self, items: Sequence[Item], compared: Sequence[PairBatch]) -> None:
        """Offer what a micro-batch brought."""
        if self._writer is None:
            return
        for batch in compared:
            if batch.result is not None:
                self._offer_compared(batch, batch.result)
            for item, answer in batch.failed:
                self._offer_failed(batch, item, answer.failure, answer.error)
        failed = [one for batch in compared for one in batch.failed]
        offered = {id(item) for item, answer in failed if answer.failure == "crash"}
        for item in items:
            if item.set_aside and item.culprit and id(item) not in offered:
                pairs = [pair for pair in item.plan.pairs if not pair.blocked]
                its = (pair for pair in pairs if item.culprit in {pair.candidate, pair.baseline})
                named = PairBatch(next(its, pairs[0]))
                self._offer_failed(named, item, "crash", item.set_aside)

    def _offer_compared(self, batch: PairBatch, result: BatchResult) -> None:
        """Offer each exchange of a pair: most are not wanted, so little is made of them before."""
        limited = _limited(batch)
        columns = {
            f"{name}.{metric}": values.tolist()
            for name, output in result.outputs.items()
            for metric, values in output.worst.items()
        }
        decisive = [(metric, columns[metric]) for metric in limited if metric in columns]
        failures = _failures(result)
        pair = batch.pair
        for position, item in enumerate(batch.items):
            problem = _problem(result, position) if failures[position] == "structure" else ""
            metrics: dict[str, float] = {metric: values[position] for metric, values in decisive}
            offer = Offer(
                model=pair.model,
                candidate=pair.candidate,
                baseline=pair.baseline,
                metrics=metrics,
                limited=limited,
                failure=failures[position],
                request_id=item.exchange.request_id,
                time_ns=item.exchange.wall_ns,
                info={"problem": problem} if problem else {},
            )
            outputs = {
                pair.candidate: batch.candidates[position],
                pair.baseline: batch.truths[position],
            }
            # Called at once, or never.
            self._offer(offer, item, outputs, partial(_complete, metrics, columns, position))

    def _offer_failed(self, batch: PairBatch, item: Item, failure: str, error: str) -> None:
        pair = batch.pair
        offer = Offer(
            model=pair.model,
            candidate=pair.candidate,
            baseline=pair.baseline,
            failure=failure,
            request_id=item.exchange.request_id,
            time_ns=item.exchange.wall_ns,
            info={"error": error},
        )
        truth: Answer | None = item.answer(pair, pair.baseline)
        outputs = {pair.baseline: truth.outputs} if truth and truth.outputs else {}
        self._offer(offer, item, outputs)

    def _offer(
        self,
        offer: Offer,
        item: Item,
        outputs: Mapping[str, Mapping[str, Array]],
        complete: Callable[[], None] = lambda: None,
    ) -> None:
        """Offer one; ``complete`` is called first when it is wanted."""
        assert self._writer is not None

        def read() -> Arrays:
            complete()
            return Arrays(item.inputs, outputs)

        try:
            self._writer.offer(offer, read)
        except CaseError as error:
            self._note(error)

    def flush(self) -> None:
        """Write what is new."""
        if self._writer is None:
            return
        try:
            self._writer.flush()
            entries = self._writer.entries()
        except CaseError as error:
            self._note(error)
            return
        if self._failure:
            logger.info("cases are written again")
        self._failure = ""
        self._views = [_view(entry) for entry in entries]

    def views(self, model: str | None, limit: int) -> list[CaseView]:
        """What is on disk after the last flush, the newest first. From any thread."""
        found = [case for case in self._views if model is None or case.model == model]
        return sorted(found, key=lambda case: case.wall_ns, reverse=True)[:limit]

    def close(self) -> None:
        """Write what is left."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except CaseError as error:
            self._note(error)

    def _note(self, error: CaseError) -> None:
        self.failures += 1
        if not self._failure:  # once, not for each exchange
            logger.error("cases cannot be kept: %s", error)
        self._failure = str(error)

    @property
    def message(self) -> str:
        """What is wrong with the cases, empty when nothing is. From any thread."""
        return "; ".join(part for part in (self._failure, self._notice) if part)


def _limited(batch: PairBatch) -> dict[str, Worse]:
    """Metrics that have a limit, and which side of them is worse."""
    assert batch.pair.policies is not None
    found: dict[str, Worse] = {}
    for name, policy in batch.pair.policies.policies.items():
        specs = metric_specs(policy.kind)
        for limit in policy.limits:
            found[f"{name}.{limit.metric}"] = specs[limit.metric].worse
    return found


def _complete(metrics: dict[str, float], columns: Mapping[str, list[float]], at: int) -> None:
    """Make ``metrics`` all of an exchange's, without those that do not apply to it."""
    metrics.clear()
    found = ((metric, values[at]) for metric, values in columns.items())
    metrics.update((metric, value) for metric, value in found if not math.isnan(value))


def _failures(result: BatchResult) -> list[str | None]:
    """The kind of failure of each exchange, the gravest first; ``None``: it agreed."""
    found: list[str | None] = [None] * len(result.rows)
    outputs = result.outputs.values()
    kinds = [("disagrees", result.bad_rows)]
    kinds += [("invalid", output.invalid_rows) for output in outputs]
    kinds += [("structure", output.structural) for output in outputs]
    for kind, flags in kinds:
        for position in np.flatnonzero(flags).tolist():
            found[position] = kind
    return found


def _problem(result: BatchResult, position: int) -> str:
    found = ((name, output.problems.get(position)) for name, output in result.outputs.items())
    return next((f"{name}: {problem}" for name, problem in found if problem), "")


def _view(entry: CaseEntry) -> CaseView:
    return CaseView(
        id=entry.id,
        model=entry.model,
        candidate=entry.candidate,
        baseline=entry.baseline,
        reason=entry.reason,
        wall_ns=entry.time_ns,
        request_id=entry.request_id,
        path=str(entry.path),
        bytes=entry.nbytes,
        replayable=entry.can_be_replayed,
        metrics=dict(entry.metrics),
        info={name: str(value) for name, value in entry.info.items()},
    )
