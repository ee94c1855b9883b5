"""From counts to the figures that are shown: rates, percentiles, accuracy, stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sidecar.demo.load import NOT_ANSWERED, Tally, Target
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import Array

#: What we call a stage → the field of the server's ``InferStatistics``.
STAGES = {
    "decode": "compute_input",
    "queue": "queue",
    "execute": "compute_infer",
    "encode": "compute_output",
}

#: ``(model, version)`` → stage → ``(count, nanoseconds)``.
Totals = dict[tuple[str, str], dict[str, tuple[int, int]]]


@dataclass(frozen=True, slots=True)
class Percentiles:
    """End-to-end latency at the client, milliseconds."""

    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """One row of the table.

    Attributes:
        answered: how many different digits have an answer; accuracy is over those.
        accuracy: 0 to 1; ``None`` before the first answer.
        latency_ms: transport → percentiles, without transports that have no answer yet.
        stages_us: stage → mean microseconds in the server; without stages that never ran.
    """

    variant: str
    requests: dict[str, int]
    failures: int
    differences: int
    rate_per_s: float
    answered: int
    accuracy: float | None
    latency_ms: dict[str, Percentiles]
    stages_us: dict[str, float]

    def plain(self) -> dict[str, Any]:
        """Return it as what JSON can hold."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One version in fp32 against int8, over the digits both have answered.

    Attributes:
        disagreements: digits with different answers.
        score_difference_max: the largest difference of any score; ``None`` without digits.
    """

    version: str
    digits: int
    disagreements: int
    score_difference_max: float | None


def totals(statistics: Iterable[pb.ModelStatistics]) -> Totals:
    """Read the stages' counts and sums from the server's statistics.

    A version whose fallback has figures of its own is the sum of both: what its clients met.
    """
    found: Totals = {}
    for model in statistics:
        stages = found.setdefault((model.name, model.version), {})
        for stage, field in STAGES.items():
            duration = getattr(model.inference_stats, field)
            count, total_ns = stages.get(stage, (0, 0))
            stages[stage] = (count + duration.count, total_ns + duration.ns)
    return found


def stage_means_us(before: Totals, now: Totals, target: Target) -> dict[str, float]:
    """Return the mean of each stage since ``before``, in microseconds."""
    means: dict[str, float] = {}
    key = (target.model, target.version)
    for stage, (count, total_ns) in now.get(key, {}).items():
        count_before, total_before_ns = before.get(key, {}).get(stage, (0, 0))
        if count > count_before:
            means[stage] = (total_ns - total_before_ns) / (count - count_before) / 1e3
    return means


def figures(
    target: Target, tally: Tally, labels: Array, elapsed_s: float, stages_us: dict[str, float]
) -> VariantFigures:
    """Return one variant's row."""
    answers = tally.answers()
    is_answered = answers != NOT_ANSWERED
    answered = int(is_answered.sum())
    correct = int((answers[is_answered] == labels[is_answered]).sum())
    latency_ms: dict[str, Percentiles] = {}
    for transport, latencies in tally.latencies_ns.items():
        if latencies:
            p50, p99 = np.percentile(np.fromiter(latencies, np.int64), (50, 99)) / 1e6
            latency_ms[transport] = Percentiles(float(p50), float(p99))
    return VariantFigures(
        variant=target.label,
        requests=dict(tally.requests),
        failures=tally.failures,
        differences=tally.differences,
        rate_per_s=sum(tally.requests.values()) / elapsed_s if elapsed_s > 0 else 0.0,
        answered=answered,
        accuracy=correct / answered if answered else None,
        latency_ms=latency_ms,
        stages_us=stages_us,
    )


def compare_formats(tallies: Mapping[Target, Tally]) -> list[Comparison]:
    """Compare each version's int8 with its fp32 ONNX."""
    by_form = {(target.version, target.form): tally for target, tally in tallies.items()}
    results: list[Comparison] = []
    for version in sorted({version for version, _ in by_form}):
        exact, quantized = by_form.get((version, "onnx")), by_form.get((version, "int8"))
        if exact is None or quantized is None:
            continue
        left, right = exact.answers(), quantized.answers()
        both = (left != NOT_ANSWERED) & (right != NOT_ANSWERED)
        apart = np.abs(exact.scores[both] - quantized.scores[both])
        results.append(
            Comparison(
                version=version,
                digits=int(both.sum()),
                disagreements=int((left[both] != right[both]).sum()),
                score_difference_max=float(apart.max()) if apart.size else None,
            )
        )
    return results
