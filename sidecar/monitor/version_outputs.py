"""How often each version gives each answer: the counts of output drift (``harms.OUTPUT``).

Of class scores, of whole numbers and of texts the answer is the class. Of anything else it is a
number (the mean of its row), and the class is between which quantiles of the previous version it
lies; they are taken from its first answers, which are counted for nothing else.

A request counts as one pair: x the share of its rows that the new version gives this class, y that
of the previous one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.version_blocks import BlockBets, add_cells
from sidecar.runtimes.base import Array
from validators.dtypes import dtype_class

#: Classes of one output that are counted by themselves. They are the first that were answered, and
#: what comes after is ``OTHER``: so a count begins with the first answer that could belong to it.
CLASSES_MAX = 32
OTHER = "other"
#: Answers of the previous version that its quantiles are taken from, and how many there are.
FIRST_ROWS = 200
BINS = 5
#: The metric of the key that keeps the bounds of the bins, so that a restart goes on with them.
BOUNDS = "output_bounds"
_TEXT_MAX = 40
#: By row: names of classes, or numbers.
Answers = list[str] | Array


@dataclass(slots=True)
class _Known:
    classes: set[str]
    has_other: bool = False
    bounds: Array | None = None
    first: list[float] = field(default_factory=list)


class OutputClasses:
    """Counts classes of outputs, for one thread."""

    def __init__(self, evidence: Evidence, bets: BlockBets) -> None:
        self._evidence = evidence
        self._bets = bets
        self._known: dict[EvidenceKey, _Known] = {}

    def count(
        self, key: EvidenceKey, answers: Sequence[tuple[Array, Array]], kind: str, blocks: Array,
        *, batched: bool, seen_ns: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """Count requests' answers for one output.

        Args:
            key: of the pair, output and policy; metric and block are none.
            answers: of each request the new version's and the previous one's.
            kind: what the output is compared as; boxes and masks are counted by their mean.
            blocks: int64 [requests].
            batched: the first axis counts rows.
            seen_ns: [requests], wall clock; default: just now.
        """
        known = self._known.get(key) or self._learn(key)
        counted: list[tuple[dict[str, float], dict[str, float]]] = []
        kept: list[int] = []
        numbers = blocks.tolist()
        for at, (new, previous) in enumerate(answers):
            sides = [answers_of(array, kind, batched=batched) for array in (new, previous)]
            if names := self._names(key, known, *sides):
                counted.append((_shares(known, names[0]), _shares(known, names[1])))
                kept.append(at)
        if not counted:
            return
        of_pairs = [numbers[at] for at in kept]
        of_blocks = np.array(of_pairs, np.int64)
        times = None if seen_ns is None else [seen_ns[at] for at in kept]
        classes = sorted(known.classes) + ([OTHER] if known.has_other else [])
        harmed = np.array([[[side.get(c, 0.0) for c in classes] for side in p] for p in counted])
        keys = [self._key(key, name) for name in classes]
        add_cells(self._evidence, keys, harmed[:, 0], harmed[:, 1], of_blocks)
        for place, column in zip(keys, (harmed[:, 0] - harmed[:, 1]).T.tolist(), strict=True):
            self._bets.add(place, column, of_pairs, harms.BLOCK_LENGTHS[:1], seen_ns=times)

    @staticmethod
    def _key(key: EvidenceKey, name: str) -> EvidenceKey:
        return EvidenceKey(*_sides(key), key.output, f"{harms.OUTPUT}{name}", key.policy)

    def _names(
        self, key: EvidenceKey, known: _Known, new: Answers | None, previous: Answers | None
    ) -> tuple[list[str], list[str]] | None:
        """Of both sides' rows the classes; ``None``: nothing that counts (yet)."""
        if isinstance(new, list) and isinstance(previous, list):
            return new, previous
        if not isinstance(new, np.ndarray) or not isinstance(previous, np.ndarray):
            return None  # one answers in numbers and the other in classes, or neither says anything
        if known.bounds is None:
            self._gather(key, known, previous)
            return None
        return _bins(new, known.bounds), _bins(previous, known.bounds)

    def _learn(self, key: EvidenceKey) -> _Known:
        """What earlier lives have counted under this key."""
        classes = {
            each.metric.removeprefix(harms.OUTPUT)
            for each in self._evidence.all_keys()
            if (*_sides(each), each.output, each.policy) == (*_sides(key), key.output, key.policy)
            and each.metric.startswith(harms.OUTPUT)
        }
        classes = {name for name in classes if "/" not in name}  # the same by blocks
        known = self._known[key] = _Known(classes - {OTHER}, has_other=OTHER in classes)
        cells = self._evidence.cells(_bounds_key(key))
        if lives := cells.get("n"):
            # Cells of lives are added up: where two have found their own (the store could not be
            # read), the mean of both is as good a set of bins as either.
            known.bounds = np.array([cells[f"at{i}"] / lives for i in range(BINS - 1)])
        return known

    def _gather(self, key: EvidenceKey, known: _Known, previous: Array) -> None:
        known.first += previous[np.isfinite(previous)].tolist()
        if len(known.first) < FIRST_ROWS:
            return
        bounds = np.quantile(known.first, np.arange(1, BINS) / BINS)
        known.bounds, known.first = bounds, []
        cells = {"n": 1.0, **{f"at{i}": float(bound) for i, bound in enumerate(bounds)}}
        self._evidence.add(_bounds_key(key), cells)


def answers_of(array: Array, kind: str, *, batched: bool) -> Answers | None:
    """What an output says, by row: names of classes, or float64 [rows]; ``None``: no such thing.

    Scores [rows, classes] give the index of the highest, whole numbers [rows] or [rows, n] the
    first, texts likewise; other numbers their mean.
    """
    if not batched:
        array = array[None]
    if array.size == 0 or array.ndim == 0:
        return None
    if kind == "class_scores" and array.ndim == 2:
        return [str(index) for index in np.argmax(array, axis=1).tolist()]
    first = array.reshape(len(array), -1)
    if dtype_class(array.dtype) in {"int", "bool"}:
        return [str(int(value)) for value in first[:, 0].tolist()]
    if dtype_class(array.dtype) == "float":
        return np.asarray(np.mean(first, axis=1, dtype=np.float64))
    return [_text(value) for value in first[:, 0].tolist()]


def _shares(known: _Known, names: list[str]) -> dict[str, float]:
    """Class → its share of the rows; learns classes that are new, while there is room."""
    shares: dict[str, float] = {}
    for name in names:
        own = name
        if name not in known.classes:
            if len(known.classes) < CLASSES_MAX:
                known.classes.add(name)
            else:
                own, known.has_other = OTHER, True
        shares[own] = shares.get(own, 0.0) + 1 / len(names)
    return {name: min(share, 1.0) for name, share in shares.items()}


def _text(value: Any) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text[:_TEXT_MAX].replace("/", "_")  # a slash parts the name from a block's length


def _bins(values: Array, bounds: Array) -> list[str]:
    # NaN sorts after every number: an answer that is none is a class of its own.
    places = np.searchsorted(bounds, values, side="right")
    finite = np.isfinite(values).tolist()
    return [f"q{at}" if ok else "invalid" for at, ok in zip(places.tolist(), finite, strict=True)]


def _sides(key: EvidenceKey) -> tuple[str, str, str]:
    return key.model, key.candidate, key.baseline


def _bounds_key(key: EvidenceKey) -> EvidenceKey:
    return EvidenceKey(*_sides(key), key.output, BOUNDS, key.policy)
