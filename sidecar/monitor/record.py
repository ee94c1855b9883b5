"""From answers to evidence: who disagreed with whom, counted by request and by row.

The unit of evidence is a request: X, the share of its rows that disagree. Of each pair, output and
limits one key counts n and k = ΣX, rows, bad rows, requests with an invalid row, and those whose
structure alone made comparing impossible.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sidecar.monitor.compare import BatchResult, Comparer, OutputResult
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchanges import Item
from sidecar.monitor.mirror_protocol import ERRORS, FAILURES, Answer
from sidecar.monitor.plan import Pair
from sidecar.monitor.rows import EvidenceKey, Remark
from sidecar.monitor.tally import Tally
from sidecar.runtimes.base import Array
from validators.comparators import metric_specs


@dataclass(slots=True)
class PairBatch:
    """What a micro-batch brought for one pair.

    Attributes:
        items: those that were compared, in the order of ``result``.
        failed: those on which the candidate failed and the baseline did not, and its answer.
    """

    pair: Pair
    items: list[Item] = field(default_factory=list)
    truths: list[dict[str, Array]] = field(default_factory=list)
    candidates: list[dict[str, Array]] = field(default_factory=list)
    failed: list[tuple[Item, Answer]] = field(default_factory=list)
    result: BatchResult | None = None


def whole_hash(identity: str, hashes: Mapping[str, str]) -> str:
    """The policy of an answer as a whole: changes with that of any output."""
    joined = "".join(f"{name}={hashes[name]};" for name in sorted(hashes))
    return f"{identity}-{hashlib.sha256(joined.encode()).hexdigest()[:12]}"


class Recorder:
    """Compares what the child answered, and counts."""

    def __init__(self, evidence: Evidence, tally: Tally | None = None) -> None:
        self._evidence = evidence
        self._tally = tally or Tally()

    def certificates(self, items: Sequence[Item]) -> list[PairBatch]:
        """Compare candidates with their truth, for every certificate pair of these items."""
        batches: dict[int, PairBatch] = {}
        for item in items:
            for pair in item.plan.pairs:
                if _is_judged(pair):
                    self._gather(batches.setdefault(id(pair), PairBatch(pair)), item)
        for batch in batches.values():
            if batch.items:
                batch.result = self.compare(batch.pair, batch.truths, batch.candidates, batch.items)
                self._count(batch.pair, batch.result, "disagrees")
            self._count_failures(batch)
        return list(batches.values())

    def noise(self, items: Sequence[Item]) -> None:
        """Compare the baseline's second answers, in another batch, with its first.

        Under the policies of every pair that it is the baseline of: a noise rate says something
        beside a rate of disagreement only under the same limits.
        """
        batches: dict[int, PairBatch] = {}
        for item in items:
            if item.noise is None or item.again is None or item.again.outputs is None:
                continue
            first = item.answer(item.noise, item.noise.baseline)
            if first is None or first.outputs is None:
                continue
            for pair in item.plan.pairs:
                if pair.baseline == item.noise.baseline and _is_judged(pair):
                    batch = batches.setdefault(id(pair), PairBatch(pair))
                    batch.items.append(item)
                    batch.truths.append(dict(first.outputs))
                    batch.candidates.append(dict(item.again.outputs))
        counted: set[tuple[str, str]] = set()
        for batch in batches.values():
            result = self.compare(batch.pair, batch.truths, batch.candidates, batch.items)
            assert batch.pair.policies is not None
            under = (batch.pair.baseline, whole_hash("", batch.pair.policies.hashes))
            if under not in counted:
                self._count(batch.pair, result, "noise")
            counted.add(under)

    def compare(
        self,
        pair: Pair,
        truths: list[dict[str, Array]],
        candidates: list[dict[str, Array]],
        items: list[Item],
    ) -> BatchResult:
        """Compare answers under the pair's policies; where less was asked for, only that."""
        policies = pair.policies
        assert policies is not None
        for index, item in enumerate(items):
            policies.ensure(truths[index], batched=pair.batched)
            policies.ensure(candidates[index], batched=pair.batched)
            wanted = policies.comparable(item.wanted)
            if wanted is not None:
                truths[index] = {n: a for n, a in truths[index].items() if n in wanted}
                candidates[index] = {n: a for n, a in candidates[index].items() if n in wanted}
        return Comparer(policies.policies, batched=pair.batched).compare(truths, candidates)

    def _gather(self, batch: PairBatch, item: Item) -> None:
        pair = batch.pair
        candidate = item.answer(pair, pair.candidate)
        truth = item.answer(pair, pair.baseline)
        if candidate is None or truth is None:
            return
        if candidate.outputs is not None and truth.outputs is not None:
            batch.items.append(item)
            batch.truths.append(dict(truth.outputs))
            batch.candidates.append(dict(candidate.outputs))
            return
        failures = [("candidate", candidate), ("baseline", truth)]
        cells = {side: 1.0 for side, answer in failures if answer.failure in FAILURES}
        if cells:
            key = EvidenceKey(pair.model, pair.candidate, pair.baseline, "", "failures")
            self._evidence.add(key, cells)
        if candidate.failure in FAILURES and truth.outputs is not None:
            batch.failed.append((item, candidate))
            if pair.policies is not None:
                pair.policies.ensure(truth.outputs, batched=pair.batched)

    # --- counting -----------------------------------------------------------------------------

    def _keys(self, pair: Pair, metric: str) -> dict[str, EvidenceKey]:
        """Output → key; of several outputs also ``""``, the answer as a whole."""
        assert pair.policies is not None
        candidate = pair.baseline if metric == "noise" else pair.candidate
        sides = (pair.model, candidate, pair.baseline)
        hashes = pair.policies.hashes
        keys = {name: EvidenceKey(*sides, name, metric, hashes[name]) for name in hashes}
        if len(hashes) > 1:
            keys[""] = EvidenceKey(*sides, "", metric, whole_hash(pair.identity, hashes))
        return keys

    def _count(self, pair: Pair, result: BatchResult, metric: str) -> None:
        keys = self._keys(pair, metric)
        for name, output in result.outputs.items():
            key = keys.get(name)
            if key is None:  # an output that no policy fits: still a disagreement, and said
                sides = (pair.model, pair.candidate, pair.baseline)
                key = EvidenceKey(*sides, name, metric, f"{pair.identity}-")
            self._evidence.add(key, _cells(output))
            if metric == "disagrees":
                self._note(key, output)
        if "" in keys:
            seen = result.rows > 0
            cells = {
                "n": int(np.count_nonzero(seen)),
                "k": float(result.x.sum()),
                "wrong": int(np.count_nonzero(result.bad_rows)),
                "rows": int(result.rows.sum()),
                "bad_rows": int(result.bad_rows.sum()),
            }
            self._evidence.add(keys[""], cells)

    def _note(self, key: EvidenceKey, output: OutputResult) -> None:
        for name, sketch in output.sketches.items():
            place = EvidenceKey(
                key.model, key.candidate, key.baseline, key.output, name, key.policy
            )
            self._evidence.add_sketch(place, sketch)
        if (ratios := output.worst.get("sqnr_db")) is not None:
            self._tally.sqnr(key.candidate, key.output, ratios)
        remark = Remark(problem=next(iter(output.problems.values()), ""))
        specs = metric_specs(output.kind) if output.kind else {}
        for metric, values in output.worst.items():
            is_higher = specs[metric].worse == "higher"
            found = float((np.fmax if is_higher else np.fmin).reduce(values))
            if not np.isnan(found):
                (remark.highest if is_higher else remark.lowest)[metric] = found + 0.0  # no -0
        self._evidence.remark(replace(key, metric=""), remark)

    def _count_failures(self, batch: PairBatch) -> None:
        """An error on a request that the truth answered is a wrong answer, to every row of it.

        So is the end of the process: of what is served, the client would have got nothing at all.
        A timeout is not: it says nothing about what the answer would have been.
        """
        errors = [item for item, answer in batch.failed if answer.failure in ERRORS]
        if not errors or batch.pair.policies is None:
            return
        rows = sum(item.rows for item in errors)
        cells = {
            "n": len(errors), "k": len(errors), "wrong": len(errors), "rows": rows,
            "bad_rows": rows, "invalid": len(errors),
        }  # fmt: skip
        for key in self._keys(batch.pair, "disagrees").values():
            self._evidence.add(key, cells)


def _is_judged(pair: Pair) -> bool:
    return pair.purpose == "certificate" and not pair.blocked


def _cells(output: OutputResult) -> dict[str, float]:
    return {
        "n": int(np.count_nonzero(output.compared)),
        "k": float(output.x.sum()),
        "wrong": int(np.count_nonzero(output.bad_rows)),
        "rows": int(output.rows.sum()),
        "bad_rows": int(output.bad_rows.sum()),
        "invalid": int(np.count_nonzero(output.invalid_rows)),
        "structural": int(np.count_nonzero(output.structural)),
    }
