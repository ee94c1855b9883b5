"""Scores of classes (logits or probabilities): does the answer stay the same class?

The accuracy that a variant can lose is at most the rate at which its top class differs, so a
certified flip rate certifies the application class without labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.sketches import LogHistogram

Array = npt.NDArray[Any]

_FORMS = ("auto", "logits", "probabilities", "log_probabilities")
#: "auto": how far the sums of probabilities in float16 or bfloat16 may be from 1.
_SUM_TOLERANCE = 0.02
#: A margin above is decisive: probabilities, and share of the row's spread for other scores.
_NOISE_PROBABILITY = 0.01
_NOISE_SHARE = 0.01
#: Logarithms of given probabilities stop here.
_LEAST_PROBABILITY = 1e-12
#: Values of one pass; several float64 copies of it are held.
_CHUNK = 32768


class ClassScoresComparator(Comparator):
    """[rows, classes], or [rows, ..., classes]: a row then holds several decisions (pixels, words).

    The top class is the lowest index among equal scores, as ArgMax in numpy and ONNX gives it: what
    the application sees is compared, so a flip between tied classes counts, and `tie` tells.
    Margin: the reference's top score over its second. A flip is decisive when the margin is over
    the noise margin, else a near tie that any rerun could turn.

    Options: `axis` of the classes; `k` of the top-k overlap; `noise_margin` in the scores' own
    unit (default: 0.01 of probability, or 1 % of the spread of the decision's scores); `scores`:
    what they are. "auto" takes them for probabilities when all of the reference's lie in [0, 1]
    and each decision's add up to 1 within 0.02, else for logits.
    """

    kind: ClassVar[str] = "class_scores"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec("flip", "share", "higher", "decisions whose top class differs; 0 or 1 for one"),
        MetricSpec("decisive_flip", "share", "higher", "flips over the noise margin"),
        MetricSpec("near_tie_flip", "share", "higher", "flips within the noise margin"),
        MetricSpec("tie", "share", "higher", "decisions with an equal top score on either side"),
        MetricSpec("margin", "output's own", "lower", "smallest margin of the reference"),
        MetricSpec(
            "top_k_overlap", "share", "lower",
            "of the top k classes in both; the least of the row; NaN for k classes or fewer",
        ),
        MetricSpec(
            "kl", "nats", "higher", "KL(reference ‖ candidate) of the probabilities; the largest"
        ),
        MetricSpec("max_dp", "1", "higher", "largest |Δ probability|"),
    )  # fmt: skip
    options: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "axis": -1,
            "k": 5,
            "noise_margin": None,
            "scores": "auto",
        }
    )
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType(
        {"flip": 0}
    )

    @override
    def check_options(self) -> None:
        axis, k = self.settings["axis"], self.settings["k"]
        noise, form = self.settings["noise_margin"], self.settings["scores"]
        if not isinstance(axis, int) or isinstance(axis, bool) or axis == 0:
            raise ValueError(f"class_scores: `axis` is an axis after the rows, not {axis!r}")
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise ValueError(f"class_scores: `k` must be a whole number from 1, not {k!r}")
        if form not in _FORMS:
            raise ValueError(f"class_scores: `scores` is one of {', '.join(_FORMS)}, not {form!r}")
        if noise is None:
            return
        number = isinstance(noise, int | float) and not isinstance(noise, bool)
        if not number or not math.isfinite(noise) or noise < 0:
            raise ValueError(f"class_scores: `noise_margin` is a number from 0, not {noise!r}")

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        left, right = self._decisions(reference), self._decisions(candidate)
        rows, decisions, classes = left.shape
        left, right = left.reshape(-1, classes), right.reshape(-1, classes)
        form = self.settings["scores"]
        if form == "auto":
            form = "probabilities" if _are_probabilities(left) else "logits"
        sketches = {name: LogHistogram() for name in ("margin", "flip_margin", "abs_error")}
        parts: dict[str, list[Array]] = {spec.name: [] for spec in self.metrics}
        step = max(1, _CHUNK // classes)
        with np.errstate(all="ignore"):
            for start in range(0, rows * decisions, step):
                pair = [each[start : start + step].astype(np.float64) for each in (left, right)]
                for name, values in self._judge(pair[0], pair[1], form, sketches).items():
                    parts[name].append(values)
        metrics = {}
        for name, arrays in parts.items():
            values = np.concatenate(arrays).reshape(rows, decisions)
            metrics[name] = values[:, 0] if decisions == 1 else _REDUCE[name](values)
        return Comparison(rows, metrics, {name: each.trim() for name, each in sketches.items()})

    def _decisions(self, scores: Array) -> Array:
        """[rows, decisions, classes]; raises ValueError when there is nothing to choose from."""
        axis, shape = self.settings["axis"], scores.shape
        if scores.ndim < 2:
            raise ValueError(
                f"class_scores needs [rows, classes], not {shape}; one number a row is of kind "
                "`regression`, a class index of kind `exact`"
            )
        if not -scores.ndim < axis < scores.ndim:
            raise ValueError(f"class_scores: shape {shape} has no axis {axis} after the rows")
        if shape[axis] < 2:
            raise ValueError(
                f"class_scores: shape {shape} has a single class on axis {axis}, so there is "
                "nothing to choose; a single score is of kind `regression`"
            )
        last = scores if axis == -1 else np.moveaxis(scores, axis, -1)
        return last.reshape(shape[0], -1, shape[axis])

    def _judge(
        self, left: Array, right: Array, form: str, sketches: Mapping[str, LogHistogram]
    ) -> dict[str, Array]:
        """Metrics of decisions: both float64 [n, classes]; fills the sketches too."""
        delta = np.abs(right - left)
        sketches["abs_error"].add(delta[np.isfinite(delta)])
        for scores in (left, right):
            np.copyto(scores, -np.inf, where=np.isnan(scores))  # no score: never the top class
        top, best, second = _top_two(left)
        top_right, best_right, second_right = _top_two(right)
        margin = np.where(best == second, 0.0, best - second)
        flip = top != top_right
        decisive = flip & (margin > self._noise(left, best, form))
        finite = np.isfinite(margin)
        sketches["margin"].add(margin[finite])
        sketches["flip_margin"].add(margin[finite & flip])
        kl, dp = _divergence(left, best, right, best_right, form)
        return {
            "flip": flip.astype(np.float64),
            "decisive_flip": decisive.astype(np.float64),
            "near_tie_flip": (flip & ~decisive).astype(np.float64),
            "tie": ((best == second) | (best_right == second_right)).astype(np.float64),
            "margin": margin,
            "top_k_overlap": _overlap(left, right, self.settings["k"]),
            "kl": kl,
            "max_dp": dp,
        }

    def _noise(self, scores: Array, best: Array, form: str) -> Array | float:
        if self.settings["noise_margin"] is not None:
            return float(self.settings["noise_margin"])
        if form == "probabilities":
            return _NOISE_PROBABILITY
        least: Array = np.where(np.isfinite(scores), scores, np.inf).min(axis=1)
        noise: Array = _NOISE_SHARE * (best - least)
        return noise

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        reference = rng.permuted(np.tile(np.arange(10.0), (16, 1)), axis=1).astype(np.float32)
        rounding = 1 + rng.uniform(-1e-6, 1e-6, reference.shape).astype(np.float32)
        return reference, reference * rounding, np.roll(reference, 1, axis=1)


#: How the decisions of a row [rows, decisions] become its metric; NaN does not count.
_REDUCE = {
    "flip": lambda values: values.mean(axis=1),
    "decisive_flip": lambda values: values.mean(axis=1),
    "near_tie_flip": lambda values: values.mean(axis=1),
    "tie": lambda values: values.mean(axis=1),
    "margin": lambda values: np.fmin.reduce(values, axis=1),
    "top_k_overlap": lambda values: np.fmin.reduce(values, axis=1),
    "kl": lambda values: np.fmax.reduce(values, axis=1),
    "max_dp": lambda values: np.fmax.reduce(values, axis=1),
}


def _are_probabilities(scores: Array) -> bool:
    """Whether every decision of [n, classes] lies in [0, 1] and adds up to 1."""
    for part in (scores[:1], scores):  # most logits are told by the first decision
        values = part.astype(np.float64)
        if not (values.min() >= 0 and values.max() <= 1 + _SUM_TOLERANCE):
            return False
        if not (np.abs(values.sum(axis=1) - 1) <= _SUM_TOLERANCE).all():
            return False
    return True


def _top_two(scores: Array) -> tuple[Array, Array, Array]:
    """(index of the top class, its score, the next best score), each [n]."""
    rows = np.arange(scores.shape[0])
    top = scores.argmax(axis=1)
    best = scores[rows, top]
    scores[rows, top] = -np.inf
    second = scores.max(axis=1)
    scores[rows, top] = best
    return top, best, second


def _overlap(left: Array, right: Array, k: int) -> Array:
    """Share of the k top classes that both have; classes tied at the edge are in the top."""
    rows, classes = left.shape
    if k >= classes:
        return np.full(rows, np.nan)
    inside = [
        scores >= np.partition(scores, classes - k, axis=1)[:, classes - k, None]
        for scores in (left, right)
    ]
    common: Array = np.count_nonzero(inside[0] & inside[1], axis=1)
    return np.minimum(common, k) / np.float64(k)


def _divergence(
    left: Array, best: Array, right: Array, best_right: Array, form: str
) -> tuple[Array, Array]:
    """(KL in nats, largest |Δ probability|), each [n]; NaN where a score is +inf."""
    log_p, p = _probabilities(left, best, form)
    log_q, q = _probabilities(right, best_right, form)
    terms = p * (log_p - log_q)
    np.copyto(terms, 0.0, where=p == 0)  # the limit of p·log p; also where both logs are -inf
    return np.maximum(terms.sum(axis=1), 0.0), np.abs(p - q).max(axis=1)


def _probabilities(scores: Array, best: Array, form: str) -> tuple[Array, Array]:
    """(log p, p) that add up to 1; logs of given probabilities stop at 1e-12, so that a candidate
    that rounds a rare class to 0 does not make the divergence infinite."""
    if form == "probabilities":
        p = np.maximum(scores, 0)
        p /= p.sum(axis=1, keepdims=True)
        return np.log(np.maximum(p, _LEAST_PROBABILITY)), p
    shifted = scores - best[:, None]
    p = np.exp(shifted)
    total = p.sum(axis=1, keepdims=True)
    p /= total
    shifted -= np.log(total)
    return shifted, p
