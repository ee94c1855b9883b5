"""Comparing a million float32 values, against Polygraphy's `Comparator` in the same run."""

from __future__ import annotations

import contextlib
import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.benchmarks.tools import Row
from validators.comparators import make_policy
from validators.compare import compare_outputs
from validators.sketches import LogHistogram

#: A pair of outputs [1000, 1000], as two runtimes give it: about 120 dB apart.
_SHAPE = (1000, 1000)
_QUANTILES = (0.5, 0.9, 0.99, 0.999)


def comparing(rounds: int) -> list[Row]:
    """All default metrics of a float tensor and quantiles of its errors, alternating with the
    peer on the same arrays, with its default settings (what it prints goes to memory)."""
    rng = np.random.default_rng(0)
    reference = rng.standard_normal(_SHAPE).astype(np.float32)
    candidate = (reference * (1 + 1e-6 * rng.standard_normal(_SHAPE))).astype(np.float32)
    sides = {"ours": _ours(reference, candidate), "peer": _polygraphy(reference, candidate)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(5 * rounds + 1):
        for name, compare in sides.items():
            start = time.perf_counter()
            agreed = compare()
            elapsed = time.perf_counter() - start
            if not agreed:
                raise RuntimeError(f"{name} finds a difference of 1e-6 too large")
            if index:  # the first round warms them up
                seconds[name].append(elapsed)
    ours, peer = (1000 * statistics.median(values) for values in seconds.values())
    return [
        Row(
            "comparing 1M float32, all metrics and quantiles, against Polygraphy",
            "≥ 40× faster",
            f"{peer / ours:.0f}×",
            peer >= 40 * ours,
            f"{ours:.2f} ms against {peer:.0f} ms, medians of {5 * rounds} alternating rounds",
        )
    ]


def _ours(reference: Any, candidate: Any) -> Callable[[], bool]:
    policies = {"y": make_policy("tensor", "fp32")}

    def compare() -> bool:
        found = compare_outputs({"y": reference}, {"y": candidate}, policies)["y"]
        for sketch in found.sketches.values():
            _quantiles(sketch)
        return not found.problems and not found.disagrees(policies["y"].limits).any()

    return compare


def _quantiles(sketch: LogHistogram) -> list[float]:
    return [sketch.quantile(share) for share in _QUANTILES]


def _polygraphy(reference: Any, candidate: Any) -> Callable[[], bool]:
    from polygraphy.comparator import Comparator, IterationResult, RunResults

    results = RunResults()
    for name, array in (("reference", reference), ("candidate", candidate)):
        results.append((name, [IterationResult({"y": array})]))

    def compare() -> bool:
        with contextlib.redirect_stdout(io.StringIO()):
            return bool(Comparator.compare_accuracy(results))

    return compare
