"""The monitor's own metrics: what became of the exchanges, and what comparing them has shown.

Counters are of this life of the monitor, from zero: evidence is of all lives, but a counter that
began before the process that tells it would look like a burst to whoever reads it. Gauges (rates
and their bounds) are of all lives, as ``sidecar status`` shows them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from exporters import instruments
from exporters.telemetry.model import Histogram, Number, Point
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.ledger import COVERAGE, by_reason
from sidecar.monitor.tally import Tally
from sidecar.monitor.view import ModelStatus

Attributes = dict[str, str]


class MeasuredEvidence:
    """Makes points of what the monitor has counted; for any thread.

    Args:
        evidence: where comparisons and coverage are counted.
        tally: executions of copies, and the ratios of answers.
        models: every model's status as it is now; one call at a time is the caller's to see to.
        queue_bytes: of exchanges that wait.
        started_ns: wall clock, when this monitor began.
    """

    def __init__(
        self,
        evidence: Evidence,
        tally: Tally,
        models: Callable[[], Iterable[ModelStatus]],
        queue_bytes: Callable[[], int],
        started_ns: int,
    ) -> None:
        self._evidence = evidence
        self._tally = tally
        self._models = models
        self._queue_bytes = queue_bytes
        self._since_ns = started_ns

    def points(self) -> Iterator[Point]:
        """Every metric of mirroring and comparing, as it is now."""
        yield from self._exchanges()
        yield Number(instruments.MIRROR_QUEUE, self._queue_bytes())
        yield from self._results()
        yield from self._rates()
        for variant, (counts, total) in self._tally.executions().items():
            attributes = {**variant_attributes(variant), "role": "mirror", "stage": "execute"}
            yield Histogram(
                instruments.INFERENCE_DURATION, counts, total, attributes, self._since_ns
            )
        for (variant, output), (counts, total) in self._tally.sqnrs().items():
            attributes = {**variant_attributes(variant), "output": output}
            yield Histogram(instruments.COMPARISON_SQNR, counts, total, attributes, self._since_ns)

    def _exchanges(self) -> Iterator[Point]:
        cells = {name: int(n) for name, n in self._evidence.own_cells(COVERAGE).items()}
        dropped, not_mirrored = by_reason(cells)
        counted = {(name, ""): cells.get(name, 0) for name in ("compared", "set_aside")}
        counted |= {("dropped", reason): count for reason, count in dropped.items()}
        counted |= {("not_mirrored", reason): count for reason, count in not_mirrored.items()}
        for (outcome, reason), count in counted.items():
            if count:
                yield self._number(
                    instruments.MIRROR_EXCHANGES, count, {"outcome": outcome, "reason": reason}
                )

    def _results(self) -> Iterator[Point]:
        """Verdicts on single requests, over all baselines and limits that they were judged by."""
        counted: Counter[tuple[str, str, str]] = Counter()
        for key in self._evidence.all_keys():
            if key.metric != "disagrees":
                continue
            cells = self._evidence.own_cells(key)
            invalid, wrong = cells.get("structural", 0), cells.get("wrong", 0)
            for verdict, count in (
                ("PASS", cells.get("n", 0) - wrong),
                ("FAIL", wrong - invalid),
                ("INVALID", invalid),
            ):
                counted[key.candidate, key.output, verdict] += int(count)
        for (variant, output, verdict), count in counted.items():
            if count:
                attributes = {**variant_attributes(variant), "output": output, "verdict": verdict}
                yield self._number(instruments.COMPARISON_RESULTS, count, attributes)

    def _rates(self) -> Iterator[Point]:
        """Of each variant beside the reference; the whole answer's where there are outputs."""
        told: set[tuple[str, str]] = set()
        for model in self._models():
            for pair in model.pairs:
                if pair.purpose != "certificate" or pair.blocked:
                    continue
                for output in pair.outputs:
                    if output.rate is None or (pair.candidate, output.output) in told:
                        continue
                    told.add((pair.candidate, output.output))
                    attributes = {**variant_attributes(pair.candidate), "output": output.output}
                    yield Number(instruments.DISAGREEMENT_RATE, output.rate, attributes)
                    yield Number(instruments.DISAGREEMENT_BOUND, output.upper, attributes)

    def _number(
        self, instrument: instruments.Instrument, count: int, attributes: Mapping[str, str]
    ) -> Number:
        return Number(instrument, count, attributes, self._since_ns)


def variant_attributes(key: str) -> Attributes:
    """Of a variant's key, ``model:version/name``."""
    model, _, rest = key.rpartition(":")
    version, _, name = rest.partition("/")
    return {"model.name": model, "model.version": version, "variant": name}
