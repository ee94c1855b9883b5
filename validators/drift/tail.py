"""Thresholds from draws without drift, for statistics that are another library's.

Few draws are to be had where each costs milliseconds, and the rate asked for is rarer than what
they show. So the columns' largest value of each draw is taken, its upper half is held to fall off
as an exponential does, and the threshold lies where that line reaches the rate. Statistics fall
off as fast or faster, so that it errs towards fewer alarms.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: With fewer, the tail is a guess.
DRAWS_MIN = 20
#: A column's scale is the way from its median to what it exceeds once in ten draws.
_HIGH = 0.9


def thresholds(draws: Array, expected: float, least: Array) -> Array:
    """What some column exceeds once in ``expected`` draws, float64 [columns].

    Args:
        draws: of the statistic, larger for more drift, float64 [draws ≥ 20, columns], of traffic
            without drift. A column with a NaN gets a NaN, and the others are held to the rate.
        expected: draws between two false alarms of all columns together, ≥ 5.
        least: scales under which differences mean nothing, float64 [columns], positive.

    ValueError for too few draws, no columns, and an expectation under 5.

    Source: the mean excess of an exponential tail; Davison, Smith, Models for exceedances over
    high thresholds, J. R. Stat. Soc. B 52 (1990), with the shape 0.
    """
    if draws.ndim != 2 or len(draws) < DRAWS_MIN or not draws.shape[1]:
        raise ValueError(f"draws {draws.shape}: {DRAWS_MIN} are needed, of one column at least")
    if not expected >= 5:
        raise ValueError(f"false alarms once in 5 draws or more, not {expected}")
    found = np.full(draws.shape[1], np.nan)
    known = np.isfinite(draws).all(axis=0)
    if not known.any():
        return found
    values = draws[:, known]
    middle, high = np.quantile(values, [0.5, _HIGH], axis=0)
    scale = np.maximum(high - middle, least[known])
    worst = ((values - middle) / scale).max(axis=1)
    found[known] = middle + _level(worst, expected) * scale
    return found


def _level(worst: Array, expected: float) -> float:
    start = float(np.median(worst))
    over = worst[worst > start] - start
    mean = float(over.mean()) if over.size else 0.0
    tail = start + mean * math.log(expected / 2)
    # Where the rate is one that the draws show, the line may not undercut them.
    seen = float(np.quantile(worst, min(1.0, 1 - 1 / expected)))
    return max(tail, seen, 1.0)
