"""Which exchanges are offered to the cases on disk, and under what name.

Writing them may fail (a full disk): that is counted and said once, and stops nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from sidecar.cases.case import Arrays, CaseEntry, CaseError, Offer
from sidecar.monitor.exchanges import Item
from sidecar.monitor.mirror_protocol import Answer
from sidecar.monitor.record import PairBatch
from sidecar.monitor.view import CaseView
from sidecar.runtimes.base import Array
from validators.comparators import metric_specs

if TYPE_CHECKING:
    from sidecar.cases.writer import CaseWriter
    from sidecar.monitor.compare import BatchResult, OutputResult

logger = logging.getLogger("sidecar.monitor.casebook")

Worse = Literal["higher", "lower"]


class Casebook:
    """Offers exchanges to a ``CaseWriter``; for the worker's thread.

    Args:
        writer: ``None`` where cases cannot be kept (the reason was logged).
    """

    def __init__(self, writer: CaseWriter | None) -> None:
        self._writer = writer
        self._failing = False
        self._views: list[CaseView] = []
        self.failures = 0

    def offer(self, items: Sequence[Item], compared: Sequence[PairBatch]) -> None:
        """Offer what a micro-batch brought."""
        if self._writer is None:
            return
        for batch in compared:
            if batch.result is not None:
                limited = _limited(batch)
                for position, item in enumerate(batch.items):
                    self._offer_compared(batch, position, item, limited)
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

    def _offer_compared(
        self, batch: PairBatch, position: int, item: Item, limited: Mapping[str, Worse]
    ) -> None:
        result = batch.result
        assert result is not None
        metrics = {
            f"{name}.{metric}": float(values[position])
            for name, output in result.outputs.items()
            for metric, values in output.worst.items()
            if not math.isnan(values[position])
        }
        problems = [
            f"{name}: {output.problems[position]}"
            for name, output in result.outputs.items()
            if position in output.problems
        ]
        self._offer(
            Offer(
                model=batch.pair.model,
                candidate=batch.pair.candidate,
                baseline=batch.pair.baseline,
                metrics=metrics,
                limited=limited,
                failure=_failure(result, position),
                request_id=item.exchange.request_id,
                time_ns=item.exchange.wall_ns,
                info={"problem": problems[0]} if problems else {},
            ),
            item,
            {
                batch.pair.candidate: batch.candidates[position],
                batch.pair.baseline: batch.truths[position],
            },
        )

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

    def _offer(self, offer: Offer, item: Item, outputs: Mapping[str, Mapping[str, Array]]) -> None:
        assert self._writer is not None
        try:
            self._writer.offer(offer, lambda: Arrays(item.inputs, outputs))
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
        if self._failing:
            logger.info("cases are written again")
        self._failing = False
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
        if not self._failing:  # once, not for each exchange
            logger.error("cases cannot be kept: %s", error)
        self._failing = True


def _limited(batch: PairBatch) -> dict[str, Worse]:
    """Metrics that have a limit, and which side of them is worse."""
    assert batch.pair.policies is not None
    found: dict[str, Worse] = {}
    for name, policy in batch.pair.policies.policies.items():
        specs = metric_specs(policy.kind)
        for limit in policy.limits:
            found[f"{name}.{limit.metric}"] = specs[limit.metric].worse
    return found


def _failure(result: BatchResult, position: int) -> str | None:
    outputs: list[OutputResult] = list(result.outputs.values())
    if any(output.structural[position] for output in outputs):
        return "structure"
    if any(output.invalid_rows[position] for output in outputs):
        return "invalid"
    return "disagrees" if result.bad_rows[position] else None


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
