"""The new version beside the previous one: errors, latency, flips, outputs, as cells of pairs.

Both were run by the mirror child, in an order drawn at random; times are of model computation. The
cells are those of ``validators/sequential/paired.py``: n11 both harmed, n10 only the new version,
n01 only the previous one, n00 neither; by blocks of a thousand pairs, in order of arrival. Under
which names is said in ``harms.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sidecar.monitor import harms
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchanges import Item
from sidecar.monitor.plan import ModelPlan, Pair
from sidecar.monitor.record import Recorder
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.version_blocks import BlockBets, PairIndex, add_cells
from sidecar.monitor.version_latency import NEW_MS, Latency, seen_ns
from sidecar.monitor.version_outputs import OutputClasses
from sidecar.monitor.version_repeats import Repeats
from sidecar.monitor.version_thresholds import PREVIOUS_MS
from sidecar.runtimes.base import Array
from validators.sequential.paired import BLOCK

__all__ = ["NEW_MS", "PREVIOUS_MS", "WARM_UP_PAIRS", "VersionPairs", "both_ran"]

#: A copy that was just loaded is slow, and not by its own fault.
WARM_UP_PAIRS = 20
#: Pairs of the blocks that everything but latency is bet on by.
_SHORT = harms.BLOCK_LENGTHS[:1]


class VersionPairs:
    """Counts pairs of versions.

    Args:
        plans: model → its plan, whose config says which slowdown is tolerated.
    """

    def __init__(
        self, evidence: Evidence, recorder: Recorder, plans: Mapping[str, ModelPlan]
    ) -> None:
        self._evidence = evidence
        self._recorder = recorder
        self._plans = plans
        self._bets = BlockBets(evidence)
        self._index = PairIndex(evidence)
        self._repeats = Repeats()
        self._latency = Latency(evidence, self._bets)
        self._outputs = OutputClasses(evidence, self._bets)
        self._warm: dict[tuple[str, str], tuple[int, int]] = {}
        self._counted: dict[tuple[str, str], int] = {}

    def has_counted(self, item: Item) -> bool:
        """Whether ``count`` takes this item for some pair."""
        return any(both_ran(item, pair) for pair in item.plan.pairs)

    def count(self, items: Sequence[Item], child: int) -> None:
        """Count what these items say about every pair of versions.

        Args:
            child: number of the mirror child's life: a new one has to warm up.
        """
        batches: dict[int, tuple[Pair, list[Item]]] = {}
        for item in items:
            for pair in item.plan.pairs:
                if both_ran(item, pair):
                    batches.setdefault(id(pair), (pair, []))[1].append(item)
        for pair, members in batches.values():
            self._count_pair(pair, self._without_repeats(pair, members), child)

    def _without_repeats(self, pair: Pair, items: list[Item]) -> list[Item]:
        sides = pair.candidate, pair.baseline
        fresh = [i for i in items if not self._repeats.is_repeat(sides, i.exchange.request_id)]
        if dropped := len(items) - len(fresh):
            self._evidence.add(self._key(pair, harms.REPEATS, 0), {"dropped": dropped})
        return fresh

    def _count_pair(self, pair: Pair, items: list[Item], child: int) -> None:
        if not items:
            return
        new = [item.answers[pair.candidate] for item in items]
        previous = [item.answers[pair.baseline] for item in items]
        error = self._key(pair, harms.ERROR, 0)
        blocks = self._index.take(error, len(items)) // BLOCK
        failed = np.array([[a.failure != "" for a in new], [a.failure != "" for a in previous]])
        harmed = failed.astype(np.float64)[..., None]
        add_cells(self._evidence, [error], harmed[0], harmed[1], blocks)
        self._bets.add(
            error, (harmed[0] - harmed[1])[:, 0].tolist(), blocks.tolist(), seen_ns=seen_ns(items)
        )
        warm = self._warm_from(pair, child, len(items))
        config = self._plans[pair.model].config
        self._latency.count(
            pair, items[warm:], blocks[warm:], self._positions(pair, len(items))[warm:],
            margin=config.validation.latency_margin,
        )  # fmt: skip
        answered: Array = ~np.any(failed, axis=0)
        both = [item for item, ok in zip(items, answered.tolist(), strict=True) if ok]
        self._count_answers(pair, both, blocks[answered])

    def _key(
        self, pair: Pair, metric: str, block: int, output: str = "", policy: str = ""
    ) -> EvidenceKey:
        sides = (pair.model, pair.candidate, pair.baseline)
        return EvidenceKey(*sides, output, metric, policy or pair.identity, block)

    def _warm_from(self, pair: Pair, child: int, count: int) -> int:
        """How many of the next ``count`` pairs still belong to the warm-up."""
        sides = (pair.candidate, pair.baseline)
        life, seen = self._warm.get(sides, (child, 0))
        seen = seen if life == child else 0
        self._warm[sides] = (child, seen + count)
        return min(max(WARM_UP_PAIRS - seen, 0), count)

    def _positions(self, pair: Pair, count: int) -> Array:
        """Which of this life's pairs the next ones are, int64 [count]."""
        sides = (pair.candidate, pair.baseline)
        start = self._counted.get(sides, 0)
        self._counted[sides] = start + count
        return np.arange(start, start + count, dtype=np.int64)

    def _count_answers(self, pair: Pair, items: list[Item], blocks: Array) -> None:
        """Which answers changed, and how often each is given."""
        if not items:
            return
        truths = [dict(item.answers[pair.baseline].outputs or {}) for item in items]
        candidates = [dict(item.answers[pair.candidate].outputs or {}) for item in items]
        result = self._recorder.compare(pair, truths, candidates, items)
        seen = seen_ns(items)
        assert pair.policies is not None
        for name, output in result.outputs.items():
            policy = pair.policies.hashes.get(name, f"{pair.identity}-")
            flip = self._key(pair, harms.FLIP, 0, name, policy)
            compared = output.compared
            flipped, of_pairs = output.x[compared], blocks[compared]
            # Between two answers neither is the wrong one: what differs counts as the new's.
            column = flipped[:, None]
            add_cells(self._evidence, [flip], column, np.zeros_like(column), of_pairs)
            times = [at for at, is_in in zip(seen, compared.tolist(), strict=True) if is_in]
            self._bets.add(
                flip, flipped.tolist(), of_pairs.tolist(), _SHORT, seen_ns=times
            )  # fmt: skip
            sound = compared & ~output.structural
            answers = [
                (candidates[at][name], truths[at][name]) for at in np.flatnonzero(sound).tolist()
            ]
            self._outputs.count(
                self._key(pair, "", 0, name, policy), answers, output.kind, blocks[sound],
                batched=pair.batched, seen_ns=[seen[at] for at in np.flatnonzero(sound).tolist()],
            )  # fmt: skip


def both_ran(item: Item, pair: Pair) -> bool:
    """Whether this is a pair of versions that both were run on the item, whatever came of it."""
    if pair.purpose != "versions" or pair.blocked:
        return False
    answers = (item.answers.get(pair.candidate), item.answers.get(pair.baseline))
    return all(answer is not None and answer.failure != "absent" for answer in answers)
