"""Whether answers are right as often as they were, where some labels are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from validators.statistics import clopper_pearson

Array = npt.NDArray[Any]

#: Rows may carry a column of this name, on either side: 1 right, 0 wrong, NaN or −1 not known.
CORRECT = "label.correct"


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Of the rows whose label is known; ``lower``, ``upper``: Clopper-Pearson."""

    right: int
    rows: int
    rate: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True)
class AccuracyChange:
    """Reference and window beside each other.

    ``verdict``: ``lower`` or ``higher`` where the intervals do not meet, which without a change
    has at most the chance ``alpha``; else ``alike``. Rows are held to be independent.
    """

    reference: Accuracy
    current: Accuracy
    alpha: float
    verdict: Literal["lower", "higher", "alike"]


def compare_accuracy(reference: Array, current: Array, alpha: float) -> AccuracyChange | None:
    """None where either side has no known label.

    ``reference``, ``current``: bool, or numbers of which 1 is right, 0 wrong and anything else not
    known; [rows], of any two lengths. ``alpha`` in (0, 1), ValueError otherwise.
    """
    # Four bounds can be wrong: two of each side.
    before, now = _accuracy(reference, alpha / 4), _accuracy(current, alpha / 4)
    if before is None or now is None:
        return None
    verdict: Literal["lower", "higher", "alike"] = "alike"
    if now.upper < before.lower:
        verdict = "lower"
    elif now.lower > before.upper:
        verdict = "higher"
    return AccuracyChange(before, now, alpha, verdict)


def _accuracy(values: Array, alpha: float) -> Accuracy | None:
    right, wrong = (int(np.count_nonzero(values == wanted)) for wanted in (1, 0))
    rows = right + wrong
    if not rows:
        return None
    lower, upper = clopper_pearson(right, rows, alpha)
    return Accuracy(right, rows, right / rows, lower, upper)
