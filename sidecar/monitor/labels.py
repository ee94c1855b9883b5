"""Late labels: answers wait for theirs, and what comes of both is counted.

Three things are made of a label: cells of the pairs of versions that answered its request
(``harms.ACCURACY``), counts of the version that served it (``harms.SERVED_ACCURACY``), and whether
the answer was right, for the watch for drift.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from typing_extensions import override

from exporters import instruments
from exporters.telemetry.model import Number, Point
from sidecar.clock import Clock
from sidecar.config import ModelConfig
from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchange import Exchange
from sidecar.monitor.exchanges import Item
from sidecar.monitor.label_answers import (
    ROWS_MAX,
    UnfitLabelError,
    choose_output,
    harmed,
    is_right,
    misformed,
    said,
)
from sidecar.monitor.label_fleet import LabelFleet, Room
from sidecar.monitor.label_intake import Label, LabelCounts, LabelSink
from sidecar.monitor.label_offers import Offer
from sidecar.monitor.label_store import LabelTables
from sidecar.monitor.label_waiting import Early, Shared, Waiting, WaitingRoom
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.store import Store
from sidecar.monitor.version_blocks import BlockBets, PairIndex, add_cells
from sidecar.monitor.versions import both_ran
from sidecar.runtimes.base import Array
from validators.sequential.paired import BLOCK

logger = logging.getLogger("sidecar.monitor.labels")

#: Rows of one transaction: others have the store in between.
FLUSH_ROWS = 5000
#: The reason of an outcome: the label came to another replica than its request.
OFFERED = "offered"
#: Is told of each matched request that was served: model, variant, row by row whether it was right.
OnRight = Callable[[str, str, Sequence[bool]], None]


class _Model:
    def __init__(self, config: ModelConfig) -> None:
        assert config.labels is not None
        self.name = config.name
        self.output = config.labels.output
        self.scores = frozenset(
            name for name, output in config.validation.outputs.items()
            if output.kind == "class_scores"
        )  # fmt: skip
        self.classes = {f"{config.name}:{v.key}": v.classes for v in config.variants}
        self.room = WaitingRoom(config.labels.within_s, config.labels.max_waiting)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.is_said = False


class LateLabels(LabelSink, Room):
    """Takes answers from the worker and labels from anybody; any thread.

    Args:
        models: all; those that have ``labels`` in their configuration take some.

    Attributes:
        fleet: finds labels their answers at other replicas; ``None``: there are none.
    """

    def __init__(
        self,
        models: Sequence[ModelConfig],
        evidence: Evidence,
        clock: Clock,
        on_right: OnRight | None = None,
    ) -> None:
        self._names = [model.name for model in models]
        self._models = {m.name: _Model(m) for m in models if m.labels is not None}
        self._evidence = evidence
        self._clock = clock
        self._on_right = on_right
        self._started_ns = clock.now_ns()
        self._lock = threading.Lock()
        self._bets = BlockBets(evidence)
        self._index = PairIndex(evidence)
        self._generation: int | None = None
        self._shared = Shared()
        self.fleet: LabelFleet | None = None

    def share(self) -> LabelFleet:
        """There are other replicas; before anything else is called."""
        limits = {name: model.room.limits for name, model in self._models.items()}
        self.fleet = LabelFleet(self, limits, self._clock)
        return self.fleet

    # --- answers ------------------------------------------------------------------------------

    def takes(self, model: str) -> bool:
        """Whether answers of a model are to wait for labels."""
        return model in self._models

    def see(self, item: Item) -> None:
        """Let a mirrored exchange wait: what was served, and what both of each pair said."""
        exchange = item.exchange
        if exchange.model not in self._models or not exchange.request_id:
            return
        pairs = [pair for pair in item.plan.pairs if both_ran(item, pair)]
        answers: dict[str, Mapping[str, Array]] = {}
        for pair in pairs:
            for side in (pair.candidate, pair.baseline):
                outputs = item.answers[side].outputs
                if outputs is not None:
                    answers[side] = outputs
        names = tuple((p.candidate, p.baseline, p.identity) for p in pairs)
        batched = item.plan.signature.max_batch_size > 0
        self._see(exchange, answers, item.served, names, batched=batched)

    def see_served(
        self, exchange: Exchange, outputs: Mapping[str, Array], *, batched: bool
    ) -> None:
        """Let an exchange wait that was only served."""
        if exchange.model in self._models and exchange.request_id:
            self._see(exchange, {}, outputs, (), batched=batched)

    def _see(
        self,
        exchange: Exchange,
        answers: Mapping[str, Mapping[str, Array]],
        served: Mapping[str, Array] | None,
        pairs: tuple[tuple[str, str, str], ...],
        *,
        batched: bool,
    ) -> None:
        model = self._models[exchange.model]
        of_rows = [
            {name: array if batched else array[None] for name, array in given.items()}
            for given in (*answers.values(), *([] if served is None else [served]))
        ]
        if not of_rows:
            return  # nobody answered; errors are counted as such
        output = choose_output(of_rows[-1], model.output, model.scores)
        rows = [given[output] for given in of_rows if output in given]
        if not output or len(rows) < len(of_rows) or any(len(a) > ROWS_MAX for a in rows):
            self._not_kept(model, of_rows[-1], output)
            return
        spoken = [said(array) for array in rows]
        found = dict(zip(answers, spoken, strict=False))
        if served is not None:
            # What was served is what counts of the served version; a pair is judged by its runs.
            found[f"served {exchange.variant}"] = spoken[-1]
        served_by = exchange.variant if served is not None else ""
        with self._lock:
            found = self._shared.of(tuple(found.items()), found)
            pairs = self._shared.of(pairs, pairs)
            waiting = Waiting(self._clock.now_ns(), output, served_by, found, pairs)
            early = model.room.add(exchange.request_id, waiting)
            if early is not None:
                self._match(model, Label(model.name, exchange.request_id, early), waiting)
            elif self.fleet is not None:
                self.fleet.want(model.name, exchange.request_id)

    def _not_kept(self, model: _Model, answer: Mapping[str, Array], output: str) -> None:
        with self._lock:
            model.counts["unlabelled", "rows" if output else "output"] += 1
            if output or model.is_said:
                return
            model.is_said = True
        named = f"no output {model.output!r} of classes or scores" if model.output else (
            "not one output of classes or scores"
        )  # fmt: skip
        logger.warning(
            "%s: labels have nothing to be compared with: an answer has %s (it has %s); name one "
            "with labels.output", model.name, named, ", ".join(answer) or "none",
        )  # fmt: skip

    # --- labels -------------------------------------------------------------------------------

    @override
    def check(self, model: str) -> None:
        """See that labels of a model are taken.

        Raises:
            NotFoundError: there is no such model. InvalidRequestError: it takes none.
        """
        if model not in self._names:
            message = f"there is no model {model!r}; there is {', '.join(self._names) or 'none'}"
            raise NotFoundError(message)
        if model not in self._models:
            message = f"{model} takes no labels: give it `labels: {{}}` in the configuration"
            raise InvalidRequestError(message)

    @override
    def put(self, labels: Sequence[Label]) -> LabelCounts:
        """Match what can be matched; never waits for anything."""
        counted: Counter[str] = Counter()
        refused: Counter[str] = Counter()
        for label in labels:
            with self._lock:
                outcome, why = self._put(label)
            counted[outcome] += 1
            if outcome == "refused":
                refused[why] += 1
        return LabelCounts(
            counted["matched"], counted["early"], counted["repeated"], dict(refused)
        )  # fmt: skip

    def _put(self, label: Label) -> tuple[str, str]:
        model = self._models.get(label.model)
        if model is None:
            return "refused", "no such model, or one that takes no labels"
        why = misformed(label.request_id, label.values)
        if why:
            return self._counted(model, "refused", why)
        waiting = model.room.find(label.request_id)
        if waiting is not None:
            return self._match(model, label, waiting)
        if model.room.is_done(label.request_id):
            return self._counted(model, "repeated")
        model.room.keep_early(label.request_id, Early(self._clock.now_ns(), label.values))
        return self._counted(model, "early")

    def _counted(
        self, model: _Model, outcome: str, why: str = "", reason: str = ""
    ) -> tuple[str, str]:
        model.counts[outcome, "unfit" if why else reason] += 1
        return outcome, why

    def _match(
        self, model: _Model, label: Label, waiting: Waiting, reason: str = ""
    ) -> tuple[str, str]:
        """Count a label that has found its answer; one that does not fit leaves it waiting."""
        try:
            right = {
                key: is_right(answer, label.values, self._named(model, key, waiting.output))
                for key, answer in waiting.answers.items()
            }
        except UnfitLabelError as error:
            return self._counted(model, "refused", str(error))
        model.room.done(label.request_id)
        for new, previous, identity in waiting.pairs:
            if new in waiting.answers and previous in waiting.answers:
                key = EvidenceKey(model.name, new, previous, "", harms.ACCURACY, identity)
                self._count_pair(key, *harmed(waiting.answers, right, label.values, new, previous))
        served = right.get(f"served {waiting.served}")
        if served:
            self._count_served(model, waiting, served)
        return self._counted(model, "matched", reason=reason)

    def _named(self, model: _Model, key: str, output: str) -> Sequence[str]:
        return model.classes.get(key.removeprefix("served "), {}).get(output, ())

    def _count_pair(self, key: EvidenceKey, new: Array, previous: Array) -> None:
        blocks = self._index.take(key, len(new)) // BLOCK
        add_cells(self._evidence, [key], new[:, None], previous[:, None], blocks)
        differences, of_rows = (new - previous).tolist(), blocks.tolist()
        self._bets.add(key, differences, of_rows, harms.BLOCK_LENGTHS[:1])

    def _count_served(self, model: _Model, waiting: Waiting, right: list[bool]) -> None:
        key = EvidenceKey(model.name, waiting.served, "", waiting.output, harms.SERVED_ACCURACY)
        self._evidence.add(key, {"k": sum(right), "n": len(right)})
        if self._on_right is not None:
            self._on_right(model.name, waiting.served, right)

    # --- for ``fleet`` ------------------------------------------------------------------------

    @override
    def outgoing(self, model: str, most: int) -> list[Offer]:
        with self._lock:
            return self._models[model].room.take_early(most)

    @override
    def offered(self, model: str, ids: Iterable[str], known: int) -> None:
        with self._lock:
            self._models[model].counts["repeated", OFFERED] += known
            for request_id in ids:
                self._models[model].room.offered(request_id)

    @override
    def put_back(self, model: str, offers: Sequence[Offer]) -> None:
        self._take_in(model, offers, "")

    @override
    def holds(self, model: str, ids: Iterable[str]) -> list[str]:
        room = self._models[model].room
        with self._lock:
            return [each for each in ids if room.find(each) is not None or room.is_done(each)]

    @override
    def taken(self, model: str, offers: Sequence[Offer]) -> None:
        self._take_in(model, offers, OFFERED)

    def _take_in(self, name: str, offers: Sequence[Offer], reason: str) -> None:
        model = self._models[name]
        for request_id, label in offers:
            with self._lock:
                waiting = model.room.find(request_id)
                if waiting is not None:
                    self._match(model, Label(name, request_id, label.values), waiting, reason)
                elif model.room.is_done(request_id):
                    self._counted(model, "repeated", reason=reason)
                else:  # its answer has gone meanwhile, or it could not be offered
                    model.room.keep_early(request_id, label)

    @override
    def lost(self, model: str, expired: int, full: int) -> None:
        with self._lock:
            gone = self._models[model].room.gone
            gone["lost", "expired"] += expired
            gone["lost", "full"] += full

    # --- time, the store, metrics -------------------------------------------------------------

    def tick(self) -> None:
        """Let go what has waited too long; about once a second."""
        now_ns = self._clock.now_ns()
        with self._lock:
            for model in self._models.values():
                model.room.expire(now_ns)

    def load(self, store: Store) -> None:
        """Go on waiting where an earlier life stopped.

        Raises:
            StoreError: it cannot be read.
        """
        tables = store.part(LabelTables)
        rows = {name: tables.load(name) for name in self._models}
        with self._lock:
            self._generation = store.generation
            for name, model in self._models.items():
                if bad := model.room.restore(rows[name]):
                    logger.error("%s: %d answers that wait cannot be read", name, bad)

    def flush(self, store: Store) -> None:
        """Write what has changed; before the evidence, so that nothing that was counted waits.

        Raises:
            StoreError: it cannot be written; it is tried again the next time.
        """
        tables = store.part(LabelTables)
        is_anew = store.generation != self._generation
        for model in self._models.values():
            with self._lock:
                if is_anew:
                    model.room.change_all()
                left = len(model.room.changed)
            while left > 0:
                left -= self._flush_some(model, tables)
        self._generation = store.generation

    def _flush_some(self, model: _Model, tables: LabelTables) -> int:
        """Write a part of what has changed; returns how much."""
        with self._lock:
            changed = list(islice(model.room.changed, FLUSH_ROWS))
            for key in changed:
                del model.room.changed[key]
            rows = model.room.rows(changed)
        there = {(kind, request_id) for kind, request_id, _, _ in rows}
        try:
            tables.put(model.name, rows, [key for key in changed if key not in there])
        except BaseException:
            with self._lock:
                model.room.changed |= dict.fromkeys(changed)
            raise
        return len(changed) or FLUSH_ROWS

    def points(self) -> Iterator[Point]:
        """Every metric of labels."""
        for name, model in self._models.items():
            with self._lock:
                counts, waiting = model.counts + model.room.gone, model.room.waiting
            for (outcome, reason), count in sorted(counts.items()):
                attributes = {"model.name": name, "outcome": outcome, "reason": reason}
                yield Number(instruments.LABELS, count, attributes, self._started_ns)
            yield Number(instruments.LABELS_WAITING, waiting, {"model.name": name})
            matched = counts["matched", ""] + counts["matched", OFFERED]
            ended = matched + sum(n for (what, _), n in counts.items() if what == "unlabelled")
            if ended:
                share = matched / ended
                yield Number(instruments.LABELS_COVERAGE, share, {"model.name": name})
