"""Simulated pairs of versions: errors, flips and times, with and without a change, [runs, pairs].

Each function gives what happened to the new and to the previous version, request by request.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.signal import lfilter

from validators.sequential.latency import PAST_MIN, QUANTILES, WINDOW

#: Of log times: between requests, shared by both versions; and of one version alone.
SHARED, OWN = 0.5, 0.2

Sides = tuple[np.ndarray, np.ndarray]
Rng = np.random.Generator


def errors(rng: Rng, runs: int, pairs: int, rate: float = 0.01) -> Sides:
    """Independent errors at the same rate."""
    return rng.random((runs, pairs)) < rate, rng.random((runs, pairs)) < rate


def incidents(rng: Rng, runs: int, pairs: int) -> Sides:
    """Incidents of about 50 requests, one in 2,000: in them each version fails every other time."""
    down = _bursts(rng, runs, pairs, 1 / 2000, 50)
    own = [rng.random((runs, pairs)) < np.where(down, 0.5, 0.001) for _ in range(2)]
    return own[0], own[1]


def own_bursts(rng: Rng, runs: int, pairs: int, length: int = 10) -> Sides:
    """Each version has bursts of its own, all requests failing in them: 1 % on both sides."""
    start = 0.01 / length
    return _bursts(rng, runs, pairs, start, length), _bursts(rng, runs, pairs, start, length)


def repeated(sides: Sides, times: int = 3) -> Sides:
    """Each event comes so many times in a row, as retries without an id."""
    pairs = sides[0].shape[1]
    new, previous = (np.repeat(side, times, axis=1)[:, :pairs] for side in sides)
    return new, previous


def steady_and_bursty(rng: Rng, runs: int, pairs: int, length: int) -> Sides:
    """The new version fails in 1 % of requests, the previous one in whole bursts: equal means."""
    steady = rng.random((runs, pairs)) < 0.01
    starts = rng.random((runs, pairs)) < 0.01 / length
    return steady, _stretched(starts, length)


def _bursts(rng: Rng, runs: int, pairs: int, start: float, mean: int) -> np.ndarray:
    """Whether a request is in a burst of geometric length; bursts start at a rate of ``start``."""
    # A chain of two states, drawn by its change points: in runs as in one long line.
    total = runs * pairs
    gaps = rng.geometric(start, int(total * start * 1.2) + 100)
    lengths = rng.geometric(1 / mean, len(gaps))
    begins = np.cumsum(gaps + lengths) - lengths
    change = np.zeros(total + 1, np.int32)
    inside = begins < total
    np.add.at(change, begins[inside], 1)
    np.add.at(change, np.minimum(begins + lengths, total)[inside], -1)
    return (change[:-1].cumsum() > 0).reshape(runs, pairs)


def _stretched(starts: np.ndarray, length: int) -> np.ndarray:
    """True for ``length`` requests from each start on; overlapping bursts follow each other."""
    # A queue with one server: what waits after a request is S − min S, S the sum of comings less
    # goings.
    balance = np.cumsum(starts * length - 1, axis=1, dtype=np.int64)
    least = np.minimum(np.minimum.accumulate(balance, axis=1), 0)
    before = np.concatenate([np.zeros((len(starts), 1), np.int64), least[:, :-1]], axis=1)
    return np.asarray(balance >= before)


def times(rng: Rng, runs: int, pairs: int, *, rho: float = 0.0, shared: bool = True) -> Sides:
    """Log times of two equal versions; AR(1) with ``rho`` on what they share, or on each alone."""
    common = SHARED * correlated(rng, runs, pairs, rho if shared else 0.0)
    own = [OWN * correlated(rng, runs, pairs, 0.0 if shared else rho) for _ in range(2)]
    return common + own[0], common + own[1]


def correlated(rng: Rng, runs: int, pairs: int, rho: float) -> np.ndarray:
    """AR(1) with a variance of 1, stationary from the start, float32."""
    noise = rng.standard_normal((runs, pairs), np.float32)
    if rho == 0:
        return noise
    noise[:, 1:] *= np.sqrt(1 - rho**2)
    return lfilter([1.0], [1.0, -rho], noise, axis=1).astype(np.float32)


def tail_slower(rng: Rng, runs: int, pairs: int, change: int = 0) -> Sides:
    """From ``change`` on the slowest 2 % of requests take 1.2 times as long: p99 + 20 %."""
    common = SHARED * correlated(rng, runs, pairs, 0.0)
    own = [0.05 * correlated(rng, runs, pairs, 0.0) for _ in range(2)]
    slow = common > SHARED * 2.0537
    slow[:, :change] = False
    return common + own[0] + np.log(1.2) * slow, common + own[1]


def all_slower(rng: Rng, runs: int, pairs: int, change: int = 0) -> Sides:
    """From ``change`` on every request takes 1.2 times as long."""
    new, previous = times(rng, runs, pairs)
    new[:, change:] += np.log(1.2)
    return new, previous


def bets(new: np.ndarray, previous: np.ndarray, renew: int) -> Sides:
    """What ``latency.cells`` counts (n10, n01), bool [runs, pairs, 5]; log times, no margin.

    Thresholds are from the last ``WINDOW`` earlier times of the previous version, as they ship,
    and are renewed after each ``renew`` pairs.
    """

    def bounds(at: int) -> np.ndarray:
        past = previous[:, max(0, at - WINDOW) : at]
        ranks = np.ceil(np.array(QUANTILES) * (past.shape[1] - 1)).astype(int)
        return np.asarray(np.partition(past, ranks, axis=1)[:, ranks])

    return _bets(new, previous, renew, bounds)


def pooled_bets(new: np.ndarray, previous: np.ndarray, renew: int) -> Sides:
    """The same by thresholds of all earlier times, from a histogram (``LogHistogram``)."""

    def bounds(at: int) -> np.ndarray:
        past = previous[:, :at]
        ranks = np.ceil(np.array(QUANTILES) * at).astype(int) - 1
        mantissa, exponent = np.frexp(np.exp(np.partition(past, ranks, axis=1)[:, ranks]))
        lower = np.floor(mantissa * 32)
        return np.log(np.sqrt(lower * (lower + 1)) / 32) + exponent * np.log(2)

    return _bets(new, previous, renew, bounds)


def _bets(
    new: np.ndarray, previous: np.ndarray, renew: int, bounds: Callable[[int], np.ndarray]
) -> Sides:
    """``bounds``: [runs, 4] from the pairs before a number."""
    runs, pairs = new.shape
    only = np.zeros((2, runs, pairs, 1 + len(QUANTILES)), np.bool_)
    only[0, :, :, 0], only[1, :, :, 0] = new > previous, new < previous
    for at in range(renew, pairs, renew):
        if at < PAST_MIN:
            continue
        over, now = bounds(at)[:, None, :], slice(at, at + renew)
        late = new[:, now, None] > over, previous[:, now, None] > over
        only[0, :, now, 1:], only[1, :, now, 1:] = late[0] & ~late[1], late[1] & ~late[0]
    return only[0], only[1]
