"""From exchanges to jobs for the mirror child: what is read, what is run, in which batch."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.errors import RequestError
from sidecar.gateway.messages import InferRequest
from sidecar.monitor.bundle import structure
from sidecar.monitor.decode import NotComparableError, decode_inputs, decode_outputs, parse
from sidecar.monitor.drift_exchanges import has_rows, look
from sidecar.monitor.drift_watch import DriftWatch
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.label_exchanges import wait_for_labels
from sidecar.monitor.mirror_protocol import Answer, Composition, CopyInfo, Job, Run
from sidecar.monitor.plan import ModelPlan, Pair, ServedPlan
from sidecar.runtimes.base import Array

if TYPE_CHECKING:
    from sidecar.monitor.labels import LateLabels

#: Other requests that one is joined with, at most, to see the reference's own noise.
_COMPANIONS_MAX = 3


@dataclass(slots=True)
class Twice:
    """The previous version beside itself, on one exchange.

    Attributes:
        place: of the extra run, the first of the two, among the job's runs.
        is_swapped: the extra run stands for the previous version and the other for the new one;
            drawn, so that neither side is always the one that found its input cold.
        answer: of the extra run.
    """

    pair: Pair
    place: int
    is_swapped: bool
    answer: Answer | None = None


@dataclass(slots=True)
class Item:
    """One exchange on its way through.

    Attributes:
        inputs: as the served variant's signature has them.
        rows: of the first input; 1 without a batch dimension.
        served: the outputs that users got; ``None`` where they cannot be compared.
        wanted: the outputs that the request asked for; ``None``: all.
        job: what the child is given, and ``answers``: variant → what it gave.
        noise: the pair whose baseline runs a second time in another batch, and ``again``: its
            second answer.
        twice: the pair of versions whose previous one runs twice, the place of its extra run among
            the job's, and what came of that one.
        set_aside, culprit: as in ``Outcome``.
    """

    exchange: Exchange
    plan: ServedPlan
    inputs: dict[str, Array]
    rows: int
    served: dict[str, Array] | None
    wanted: frozenset[str] | None
    job: Job
    answers: dict[str, Answer] = field(default_factory=dict)
    noise: Pair | None = None
    again: Answer | None = None
    twice: Twice | None = None
    set_aside: str = ""
    culprit: str = ""

    def answer(self, pair: Pair, variant: str) -> Answer | None:
        """What one side of a pair answered; ``None``: that is not known."""
        if pair.purpose == "certificate" and variant == self.exchange.variant:
            return None if self.served is None else Answer(self.served)
        return self.answers.get(variant)


class Reader:
    """Decodes exchanges, and counts by reason those that cannot be mirrored.

    ``drift`` gets those that are watched for drift, mirrored or not; ``labels`` those that take
    labels and are not mirrored (of the others the worker knows more).
    """

    def __init__(
        self, plans: Mapping[str, ModelPlan], drift: DriftWatch | None = None,
        labels: LateLabels | None = None,
    ) -> None:  # fmt: skip
        self._plans = plans
        self._drift = drift
        self._labels = labels
        self.not_mirrored: Counter[str] = Counter()

    def read(self, exchange: Exchange) -> Item | None:
        """One exchange as an item; ``None``: it cannot be mirrored, and is counted."""
        model = self._plans.get(exchange.model)
        plan = model.served.get(exchange.variant) if model is not None else None
        wanted_for_drift = self._drift is not None and self._drift.takes(exchange)
        if plan is None or not any(not pair.blocked for pair in plan.pairs):
            self.not_mirrored["drift_only" if wanted_for_drift else "no_pair"] += 1
            if self._drift is not None and wanted_for_drift:
                look(self._drift, exchange, plan)
            if self._labels is not None and self._labels.takes(exchange.model):
                wait_for_labels(self._labels, exchange, plan)
            return None
        try:
            parsed = parse(exchange)
            wanted = frozenset(output.name for output in parsed.outputs) or None
            inputs = decode_inputs(exchange, plan.signature, parsed=parsed)
            served = self._served(exchange, plan, parsed)
        except NotComparableError as error:
            self.not_mirrored[error.reason] += 1
            return None
        except RequestError:
            self.not_mirrored["bad_request"] += 1
            return None
        if self._drift is not None and wanted_for_drift:
            self._drift.take(exchange.model, inputs, served, has_rows(plan.signature))
        batched = plan.signature.max_batch_size > 0
        rows = next((len(a) for a in inputs.values() if a.ndim), 1) if batched else 1
        if rows == 0:
            self.not_mirrored["empty"] += 1
            return None
        return Item(exchange, plan, inputs, rows, served, wanted, Job(inputs, []))

    def _served(
        self, exchange: Exchange, plan: ServedPlan, parsed: InferRequest
    ) -> dict[str, Array] | None:
        """The served answer; ``None`` where there is none to compare (the others still can be).

        Raises:
            RequestError: the answer is not what its transport says.
        """
        try:
            return decode_outputs(exchange, plan.signature, parsed=parsed)
        except NotComparableError as error:
            if error.reason != "failed":
                self.not_mirrored[error.reason] += 1
            return None


class Planner:
    """Decides what is executed for each item of a micro-batch.

    Args:
        copies: what the child has.
        noise_rate: share of items whose reference runs a second time.
        rng: a sample and an order, not a secret.
    """

    def __init__(
        self, copies: Mapping[str, CopyInfo], noise_rate: float, rng: random.Random
    ) -> None:
        self._copies = copies
        self._noise_rate = noise_rate
        self._rng = rng

    def plan(self, items: Sequence[Item]) -> None:
        """Give each item its runs, in an order drawn at random, and some a second run."""
        alike: dict[object, list[int]] = {}
        for index, item in enumerate(items):
            alike.setdefault((item.plan.variant, structure(item.inputs)), []).append(index)
        for index, item in enumerate(items):
            variants = list(item.plan.runs)
            self._rng.shuffle(variants)
            if item.plan.calibrated and self._rng.random() < item.plan.calibration_rate:
                item.twice = self._run_twice(self._rng.choice(item.plan.calibrated), variants)
            item.job.runs = [Run(variant) for variant in variants]
            if item.plan.noise is not None and self._rng.random() < self._noise_rate:
                others = alike[item.plan.variant, structure(item.inputs)]
                self._add_noise(items, index, others)

    def _run_twice(self, pair: Pair, variants: list[str]) -> Twice:
        """Put the new version between two runs of the previous one, among the others anywhere.

        A run straight after another one of the same copy finds everything warm. So the two are
        never neighbours, and the second of them, which like the new version's comes after a run of
        the other, is the one that is compared with the new version.
        """
        variants.remove(pair.baseline)
        at = variants.index(pair.candidate)
        variants.insert(self._rng.randint(at + 1, len(variants)), pair.baseline)
        place = self._rng.randint(0, at)
        variants.insert(place, pair.baseline)
        return Twice(pair, place, self._rng.random() < 0.5)

    def _add_noise(self, items: Sequence[Item], index: int, alike: list[int]) -> None:
        item = items[index]
        pair = item.plan.noise
        assert pair is not None
        info = self._copies.get(pair.baseline)
        first_is_served = pair.baseline == item.exchange.variant
        if info is None or info.signature is None or (first_is_served and item.served is None):
            return
        limit = info.signature.max_batch_size
        composition: Composition | None = None
        if limit > 1:
            composition = self._companions(items, index, alike, limit)
        item.noise = pair
        item.job.runs.append(Run(pair.baseline, composition))

    def _companions(
        self, items: Sequence[Item], index: int, alike: list[int], limit: int
    ) -> Composition | None:
        rows = items[index].rows
        chosen: list[int] = []
        candidates = [other for other in alike if other != index]
        for other in self._rng.sample(candidates, min(_COMPANIONS_MAX, len(candidates))):
            if rows + items[other].rows <= limit:
                chosen.append(other)
                rows += items[other].rows
        if chosen:
            return Composition(tuple(chosen), self._rng.randint(0, len(chosen)))
        own = items[index].rows
        return Composition(times=2) if own * 2 <= limit else None
