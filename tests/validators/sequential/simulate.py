"""Simulated traffic for the sequential tests: what they promise, counted over many runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from validators.sequential.certificate import evidence_under
from validators.statistics import log_betainc

#: (k, n, limit) arrays → log E, or minus the log of a p-value.
Evidence = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def clopper_pearson_evidence(k: np.ndarray, n: np.ndarray, limit: float) -> np.ndarray:
    """−log of P(at most k of n | limit): at log(1/α) Clopper and Pearson certify."""
    return -log_betainc(k + 1, n - k, limit)[1]


def e_process_evidence(k: np.ndarray, n: np.ndarray, limit: float) -> np.ndarray:
    return evidence_under(k, n, limit)


def most_allowed(evidence: Evidence, looks: np.ndarray, limit: float, alpha: float) -> np.ndarray:
    """Per look, the largest k (a fraction) that still certifies; −1 if even k = 0 does not."""
    low, high = np.zeros(len(looks)), np.minimum(looks - 1.0, 2 * limit * looks + 50)
    for _ in range(40):
        middle = (low + high) / 2
        certifies = evidence(middle, looks, limit) >= -math.log(alpha)
        low, high = np.where(certifies, middle, low), np.where(certifies, high, middle)
    none = evidence(np.zeros(len(looks)), looks, limit) < -math.log(alpha)
    return np.where(none, -1.0, low)


def looks_at(every: int, last: int) -> np.ndarray:
    return np.arange(every, last + 1, every, dtype=np.float64)


def requests_to_certify(
    evidence: Evidence, draw: Callable[[int], np.ndarray], looks: np.ndarray, alpha: float,
    limit: float,
) -> np.ndarray:  # fmt: skip
    """Per run, the number of requests at its first certificate; inf when there never is one.

    ``draw(looks)`` gives what disagreed between two looks, [runs, looks].
    """
    allowed = most_allowed(evidence, looks, limit, alpha)
    certified = draw(len(looks)).cumsum(axis=1) <= allowed + 1e-9
    first = np.argmax(certified, axis=1)
    return np.where(certified.any(axis=1), looks[first], np.inf)


def alarm_delays(
    log_e: Callable[[np.ndarray], np.ndarray], counts: np.ndarray, every: int, alpha: float
) -> np.ndarray:
    """Per run, the number of pairs at its first alarm; inf when there is none.

    ``counts`` [runs, looks, ...] of what happened between two looks.
    """
    alarms = log_e(counts.cumsum(axis=1)) >= -math.log(alpha)
    first = np.argmax(alarms, axis=1)
    return np.where(alarms.any(axis=1), (first + 1) * float(every), np.inf)
