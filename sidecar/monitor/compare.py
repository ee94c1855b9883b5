"""Comparing a micro-batch: many small answers as one large one, then taken apart by request.

A comparator costs a few hundred microseconds however few rows it gets, which is too much for each
of hundreds of exchanges a second. So answers of one structure are joined along their rows, compared
by one call, and reduced over each request's rows. What is unlike the rest, or makes a comparator
fail, is compared alone: one strange answer must not spoil its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sidecar.monitor.bundle import structure
from sidecar.runtimes.base import Array
from validators.comparators import metric_specs
from validators.compare import OutputComparison, compare_outputs
from validators.policy import OutputPolicy
from validators.sketches import LogHistogram

Answer = Mapping[str, Array]


@dataclass(slots=True)
class OutputResult:
    """One output over the requests of a batch; arrays have one entry a request, in batch order.

    Attributes:
        compared: bool: the request has this output at all.
        rows, bad_rows, invalid_rows: int64; a structural problem makes every row bad.
        structural: bool: nothing could be compared, for the reason in ``problems``.
        worst: metric → float64, the worst row's; NaN where it does not apply.
        violated: metric with a limit → bool, some row is beyond it.
        sketches: name → histogram over all requests.
        problems: position → sentence.
    """

    output: str
    kind: str
    compared: Array
    rows: Array
    bad_rows: Array
    invalid_rows: Array
    structural: Array
    worst: dict[str, Array] = field(default_factory=dict)
    violated: dict[str, Array] = field(default_factory=dict)
    sketches: dict[str, LogHistogram] = field(default_factory=dict)
    problems: dict[int, str] = field(default_factory=dict)

    @property
    def x(self) -> Array:
        """float64 [requests]: the share of rows that disagree; 0 where not compared."""
        return self.bad_rows / np.maximum(self.rows, 1)


@dataclass(slots=True)
class BatchResult:
    """A micro-batch of pairs of answers, compared.

    Attributes:
        outputs: name → result.
        rows, bad_rows: int64 [requests]; a row is bad when any of its outputs is.
    """

    outputs: dict[str, OutputResult]
    rows: Array
    bad_rows: Array

    @property
    def x(self) -> Array:
        """float64 [requests]: the share of rows with an output that disagrees."""
        return self.bad_rows / np.maximum(self.rows, 1)


class Comparer:
    """Compares many answers under one set of policies.

    Args:
        policies: output → how it is compared.
        batched: the first axis counts rows; else the whole answer is one row.
    """

    def __init__(self, policies: Mapping[str, OutputPolicy], *, batched: bool) -> None:
        self._policies = policies
        self._batched = batched

    def compare(self, truths: Sequence[Answer], candidates: Sequence[Answer]) -> BatchResult:
        """Compare ``candidates`` with ``truths``, request by request."""
        count = len(truths)
        zeros = np.zeros(count, np.int64)
        result = BatchResult({}, zeros.copy(), zeros.copy())
        groups: dict[Any, list[int]] = {}
        for position, (truth, candidate) in enumerate(zip(truths, candidates, strict=True)):
            key = self._group_key(truth, candidate)
            # What cannot be joined has a group of its own.
            groups.setdefault(key if key is not None else position, []).append(position)
        for members in groups.values():
            self._compare_group(result, members, truths, candidates)
        return result

    def _group_key(self, truth: Answer, candidate: Answer) -> Any:
        """What answers must have in common to be compared together; ``None``: it is alone."""
        if not self._batched:
            return tuple(
                (name, array.dtype, array.shape)
                for answer in (truth, candidate)
                for name, array in answer.items()
            )
        rows = -1
        for answer in (truth, candidate):
            for array in answer.values():
                length = array.shape[0] if array.ndim else 0
                if length == 0 or rows not in {-1, length}:
                    return None
                rows = length
        return structure(truth), structure(candidate)

    def _compare_group(
        self,
        result: BatchResult,
        members: list[int],
        truths: Sequence[Answer],
        candidates: Sequence[Answer],
    ) -> None:
        truth = self._join([truths[position] for position in members])
        candidate = self._join([candidates[position] for position in members])
        policies = {n: p for n, p in self._policies.items() if n in truth or n in candidate}
        compared = compare_outputs(truth, candidate, policies)
        # Where both are NaN they agree; of an answer that is nothing else that would be a pass for
        # comparing nothing, which only comparing it alone shows.
        alone = any(found.problems or found.nonfinite_equal for found in compared.values())
        if len(members) > 1 and alone:
            for position in members:
                self._compare_group(result, [position], truths, candidates)
            return
        lengths = [self._rows(truths[position]) for position in members]
        bad_any: Array | None = None
        for name, found in compared.items():
            bad = self._note(result, name, found, members, lengths)
            if bad_any is None or bad.shape == bad_any.shape:
                bad_any = bad if bad_any is None else bad_any | bad
            else:  # alone, with outputs of different lengths: their rows cannot be told apart
                bad_any |= bad.any()
        if bad_any is not None:
            where = np.asarray(members)
            starts = _starts(lengths)
            result.rows[where] = lengths
            result.bad_rows[where] = np.add.reduceat(bad_any, starts, dtype=np.int64)

    def _rows(self, answer: Answer) -> int:
        if not self._batched:
            return 1
        return max(1, next((len(array) for array in answer.values() if array.ndim), 1))

    def _join(self, answers: list[Answer]) -> dict[str, Array]:
        if not self._batched:
            return {name: np.stack([each[name] for each in answers]) for name in answers[0]}
        if len(answers) == 1:
            return dict(answers[0])
        return {name: np.concatenate([each[name] for each in answers]) for name in answers[0]}

    def _note(
        self,
        result: BatchResult,
        name: str,
        found: OutputComparison,
        members: list[int],
        lengths: list[int],
    ) -> Array:
        """Reduce one output's rows to its requests; returns bool [rows of the group]: bad."""
        if len(members) == 1 and found.rows:
            lengths = [found.rows]
        total = sum(lengths)
        target = result.outputs.get(name)
        if target is None:
            target = result.outputs[name] = _empty(name, found.kind, len(result.rows))
        where = np.asarray(members)
        target.compared[where] = True
        target.rows[where] = lengths
        if found.problems:
            target.structural[where] = True
            target.bad_rows[where] = target.invalid_rows[where] = lengths
            target.problems.update(dict.fromkeys(members, found.problems[0]))
            return np.ones(total, np.bool_)
        policy = self._policies[name]
        violations = found.violations(policy.limits)
        bad = found.invalid.copy()
        starts = _starts(lengths)
        for metric, violated in violations.items():
            bad |= violated
            flags = target.violated.setdefault(metric, np.zeros(len(result.rows), np.bool_))
            flags[where] = np.logical_or.reduceat(violated, starts)
        target.bad_rows[where] = np.add.reduceat(bad, starts, dtype=np.int64)
        target.invalid_rows[where] = np.add.reduceat(found.invalid, starts, dtype=np.int64)
        specs = metric_specs(found.kind)
        for metric, values in found.metrics.items():
            reduce = np.fmax if specs[metric].worse == "higher" else np.fmin
            worst = target.worst.setdefault(metric, np.full(len(result.rows), np.nan))
            worst[where] = reduce.reduceat(values, starts)
        for sketch, histogram in found.sketches.items():
            target.sketches.setdefault(sketch, LogHistogram()).merge(histogram)
        return bad


def _starts(lengths: Sequence[int]) -> Array:
    return np.concatenate([[0], np.cumsum(lengths[:-1])]).astype(np.intp)


def _empty(name: str, kind: str, count: int) -> OutputResult:
    flags = np.zeros(count, np.bool_)
    numbers = np.zeros(count, np.int64)
    return OutputResult(
        name, kind, flags.copy(), numbers.copy(), numbers.copy(), numbers.copy(), flags.copy()
    )
