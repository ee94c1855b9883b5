"""With labels: how much accuracy does the candidate keep?

Without labels, the disagreement rate bounds what can be lost (``certificate.py``); labels show what
is lost. Of each row, reference and candidate are right or wrong: a negative flip was right and is
wrong now, a positive flip the other way round; accuracy lost = negative − positive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.sequential.certificate import percent
from validators.statistics import clopper_pearson
from validators.verdict import Verdict

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Retention:
    """Counts of rows, and what follows with a risk of ``alpha``."""

    rows: int
    reference_right: int
    candidate_right: int
    negative_flips: int
    positive_flips: int
    limit: float
    alpha: float
    lost_upper: float  # upper bound of the share of predictions lost
    lost_lower: float  # lower bound of it; negative: accuracy may have been won
    verdict: Verdict

    @property
    def reference_accuracy(self) -> float:
        """Share of rows; NaN of none."""
        return self.reference_right / self.rows if self.rows else float("nan")

    @property
    def candidate_accuracy(self) -> float:
        """Share of rows; NaN of none."""
        return self.candidate_right / self.rows if self.rows else float("nan")

    @property
    def retention(self) -> float:
        """Accuracy of the candidate over that of the reference; NaN if that is 0."""
        if not self.reference_right:
            return float("nan")
        return self.candidate_right / self.reference_right

    @property
    def lost(self) -> float:
        """Share of predictions lost; negative when accuracy was won."""
        return self.reference_accuracy - self.candidate_accuracy

    @property
    def sentence(self) -> str:
        """For a reader of the report."""
        if not self.rows:
            return "no row has a label"
        if not self.reference_right:
            return f"the reference has none of {self.rows} rows right: are these their labels?"
        sure = f"{100 * (1 - self.alpha):.6g} % sure"
        return (
            f"accuracy {percent(self.candidate_accuracy)}, the reference's "
            f"{percent(self.reference_accuracy)} ({self.negative_flips} negative flips, "
            f"{self.positive_flips} positive, of {self.rows}); lost: from "
            f"{percent(self.lost_lower)} to {percent(self.lost_upper)}, each {sure}; allowed: "
            f"{percent(self.limit)}"
        )


def classes(answers: Array) -> Array:
    """The class of each row, [rows]: of scores [rows, classes] the top one, else what is given.

    ``answers``: scores [rows, classes ≥ 2], or classes [rows] or [rows, 1] (integers, booleans,
    texts). ValueError for other shapes, and for classes that are fractions.
    """
    if answers.ndim == 2 and answers.shape[1] > 1:
        return np.asarray(answers.argmax(axis=1), np.int64)
    if answers.ndim not in {1, 2}:
        raise ValueError(f"classes are [rows], scores [rows, classes], not {answers.shape}")
    flat = answers.reshape(len(answers))
    if flat.dtype.kind == "f" and not np.array_equal(flat, np.round(flat)):
        raise ValueError("one fraction a row is neither a class nor the scores of several")
    if flat.dtype.kind in "OSU":
        texts = [each.encode() if isinstance(each, str) else each for each in flat.tolist()]
        result = np.empty(len(texts), dtype=object)
        result[:] = texts
        return result
    return flat


def judge_retention(
    labels: Array, reference: Array, candidate: Array, limit: float, alpha: float
) -> Retention:
    """PASS when at most ``limit`` of the predictions are lost, FAIL when more are, at ``alpha``.

    ``labels``: classes [rows]. ``reference``, ``candidate``: answers as ``classes`` takes them, of
    the same rows, which are a sample of the traffic.

    The upper bound of what is lost is that of the negative flips: positive ones only win some
    back. The lower bound is lower(negative) − upper(positive), α/2 each. INVALID: no rows, or a
    reference that has none right (having had nothing, nothing can be lost).

    ValueError when the numbers of rows differ, for texts against numbers, for a limit or a risk
    that are none.
    """
    if not 0 < limit < 1:
        raise ValueError(f"a limit is a share between 0 and 1, not {limit}")
    truth, before, after = classes(labels), classes(reference), classes(candidate)
    if not len(truth) == len(before) == len(after):
        raise ValueError(f"{len(truth)} labels for {len(before)} and {len(after)} answers")
    for name, side in (("reference", before), ("candidate", after)):
        if (side.dtype == object) != (truth.dtype == object) and len(truth):
            raise ValueError(f"labels are {_sort(truth)}, the {name}'s classes {_sort(side)}")
    was_right: Array = np.asarray(before == truth, np.bool_)
    is_right: Array = np.asarray(after == truth, np.bool_)
    rows, right = len(truth), int(was_right.sum())
    negative, positive = int((was_right & ~is_right).sum()), int((~was_right & is_right).sum())
    upper, lower, verdict = 1.0, -1.0, Verdict.INVALID
    if rows:
        upper = clopper_pearson(negative, rows, alpha)[1]
        lower = clopper_pearson(negative, rows, alpha / 2)[0]
        lower -= clopper_pearson(positive, rows, alpha / 2)[1]
    if right:
        verdict = Verdict.FAIL if lower > limit else Verdict.INCONCLUSIVE
        verdict = Verdict.PASS if upper <= limit else verdict
    return Retention(
        rows, right, int(is_right.sum()), negative, positive, limit, alpha, upper, lower, verdict
    )


def _sort(values: Array) -> str:
    return "texts" if values.dtype == object else "numbers"
