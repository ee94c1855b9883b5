"""The checks' evidence for many runs at once, look by look: what ``checks.py`` gives, in numpy.

Counts come as increments between looks. Block k of a thousand pairs begins at a look whose number
``starts`` gives; a test holds this file to the functions that ship.
"""

from __future__ import annotations

import math

import numpy as np

from validators.sequential.paired import BLOCK, STAKES, WEIGHTS, budget_evidence

_STAKES, _LOG_WEIGHTS = np.array(STAKES), np.log(WEIGHTS)


def mixed(new_only: np.ndarray, previous_only: np.ndarray, every: int, begin: int = 0):
    """log E of ``StartMixture`` over the mean of the metrics, [runs, looks].

    ``new_only``, ``previous_only``: [runs, looks, metrics] between looks of ``every`` pairs.
    Each term w_k E^(k) of a stake λ grows by the same factor, so all starts are one running sum.
    """
    runs, looks, metrics = new_only.shape
    gain, loss = np.log1p(_STAKES), np.log1p(-_STAKES)
    wealth = np.full((runs, metrics, len(_STAKES)), -np.inf)
    found = np.empty((runs, looks))
    for look in range(looks):
        block, within = divmod(begin + look * every, BLOCK)
        if within == 0 or look == 0:  # w_k, and what is still to come
            weight = -math.log(block + 1) - math.log(block + 2)
            wealth = np.logaddexp(wealth, weight + _LOG_WEIGHTS - math.log(metrics))
            to_come = -math.log(block + 2)
        wealth = wealth + (
            new_only[:, look, :, None] * gain + previous_only[:, look, :, None] * loss
        )
        top = wealth.max(axis=(1, 2), keepdims=True)
        total = np.log(np.exp(wealth - top).sum(axis=(1, 2))) + top[:, 0, 0]
        found[:, look] = np.logaddexp(total, to_come)
    return found


def budgeted(flips: np.ndarray, trials: int, every: int, budget: float) -> np.ndarray:
    """log E of ``StartMixture`` against a budget, [runs, looks].

    ``flips`` [runs, looks] of ``trials`` between looks of ``every`` pairs.
    """
    runs, looks = flips.shape
    total = np.concatenate([np.zeros((runs, 1), np.int64), flips.cumsum(axis=1)], axis=1)
    table = _table(int(total.max()), looks, trials, budget)
    found = np.empty((runs, looks))
    per_block = BLOCK // every
    for look in range(1, looks + 1):
        blocks = (look - 1) // per_block + 1
        since = per_block * np.arange(blocks)
        numbers = np.arange(1, blocks + 1)
        seen = total[:, look, None] - total[:, since]
        terms = table[look - since, seen] - np.log(numbers * (numbers + 1.0))
        mixture = np.logaddexp.reduce(terms, axis=1)
        found[:, look - 1] = np.logaddexp(mixture, -math.log(blocks + 1))
    return found


def _table(most: int, looks: int, trials: int, budget: float) -> np.ndarray:
    """Evidence of s flips after so many looks, [looks + 1, most + 1]."""
    counts = np.stack(np.broadcast_arrays(
        np.arange(most + 1.0), trials * np.arange(looks + 1.0)[:, None]
    ), axis=-1)  # fmt: skip
    return budget_evidence(budget)(counts)


def signs(new_only: np.ndarray, previous_only: np.ndarray, length: int):
    """Bets by blocks of ``length`` pairs of what happened pair by pair, [runs, pairs, ...] each.

    Each block counts at its last pair.
    """
    runs, pairs, *rest = new_only.shape
    whole = pairs // length
    difference = new_only[:, : whole * length].astype(np.int64) - previous_only[:, : whole * length]
    worse = np.sign(difference.reshape(runs, whole, length, *rest).sum(axis=2))
    found = np.zeros((2, *new_only.shape), np.int8)
    found[0, :, length - 1 :: length] = worse > 0
    found[1, :, length - 1 :: length] = worse < 0
    return found


def between_looks(happened: np.ndarray, every: int) -> np.ndarray:
    """[runs, pairs, ...] of pairs → [runs, looks, ...] of looks."""
    runs, pairs, *rest = happened.shape
    return happened.reshape(runs, pairs // every, every, *rest).sum(axis=2, dtype=np.int64)


def first(log_e: np.ndarray, threshold: float, every: int) -> np.ndarray:
    """Pairs at the first alarm of each run, infinite where there is none."""
    alarms = log_e >= threshold
    return np.where(alarms.any(axis=1), (alarms.argmax(axis=1) + 1.0) * every, np.inf)
