"""Is the new version slower? Five bets on pairs of times, averaged.

Both versions of a pair ran in the same place, in an order drawn at random; the times are of model
computation. With a tolerated margin δ:

- ``slow``: new > (1+δ)·previous counts against the new version, new < (1+δ)·previous for it. It
  tests the median of the ratio, and sees a change of everything after a few dozen pairs.
- ``slow_p50`` … ``slow_p99``: a time is a harm when it is over a quantile τ_q of the previous
  version's recent times; the new version is granted (1+δ)·τ_q. They see changes of the tail, which
  the sign does not.

τ_q is taken from earlier pairs only (the last 5,000), so that a bet is placed before its pair is
seen. The mean of five e-processes is an e-process.

Noise that is independent between the versions but correlated in time breaks ``slow`` (rollback.md,
*Autocorrelation*): latency may act only after a comparison of previous with previous.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from validators.sequential.paired import CELLS, log_e, logmeanexp
from validators.statistics import Floats

QUANTILES: tuple[float, ...] = (0.5, 0.9, 0.95, 0.99)
#: The five bets, in the order of arrays.
METRICS: tuple[str, ...] = ("slow", "slow_p50", "slow_p90", "slow_p95", "slow_p99")
#: Past times of the previous version that thresholds are taken from.
WINDOW = 5000
#: Fewer past times give no thresholds: the 99th percentile would be the largest of a handful.
PAST_MIN = 100
#: Thresholds are renewed after so many further times.
_RENEW = 50


def cells(
    new: npt.ArrayLike, previous: npt.ArrayLike, margin: float, thresholds: npt.ArrayLike
) -> Floats:
    """Counts [5, 4]: the metrics in the order of ``METRICS``, cells as in ``paired.CELLS``.

    ``new``, ``previous``: times of pairs, [n] or one each, any unit. ``thresholds``: τ_q [4] or
    [n, 4], in the order of ``QUANTILES``, known before the pairs; NaN places no bet. A timeout is
    an infinite time. ValueError for NaN, for times under 0 and for a negative margin.
    """
    new_harmed, previous_harmed = harms(new, previous, margin, thresholds)
    return _tally(new_harmed, previous_harmed)


def harms(
    new: npt.ArrayLike, previous: npt.ArrayLike, margin: float, thresholds: npt.ArrayLike
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Each pair by itself: whether the new and whether the previous version was harmed, [n, 5].

    Arguments and errors as of ``cells``.
    """
    new, previous = np.atleast_1d(np.asarray(new, np.float64), np.asarray(previous, np.float64))
    if margin < 0 or math.isnan(margin):
        raise ValueError(f"a latency margin is a share of at least 0, not {margin}")
    if not (np.all(new >= 0) and np.all(previous >= 0)):
        raise ValueError("times are numbers of at least 0; a timeout is infinite, not NaN")
    granted = (1 + margin) * previous
    bounds = np.broadcast_to(np.asarray(thresholds, np.float64), (len(new), len(QUANTILES)))
    # A comparison with NaN is false on both sides: neither is harmed, and nothing was staked.
    new_harmed = [(new > granted)[:, None], new[:, None] > (1 + margin) * bounds]
    previous_harmed = [(new < granted)[:, None], previous[:, None] > bounds]
    return np.concatenate(new_harmed, axis=1), np.concatenate(previous_harmed, axis=1)


def _tally(new: npt.NDArray[np.bool_], previous: npt.NDArray[np.bool_]) -> Floats:
    """bool [n, m] each → counts [m, 4]."""
    kinds = (new & previous, new & ~previous, ~new & previous, ~new & ~previous)
    return np.stack([kind.sum(axis=0) for kind in kinds], axis=-1).astype(np.float64)


def evidence(counts: Floats) -> Floats:
    """log of the mean of the five E; counts [..., 5, 4] → [...]. Fits ``StartMixture``."""
    if counts.shape[-2:] != (len(METRICS), len(CELLS)):
        raise ValueError(f"counts are [..., 5, 4], not {list(counts.shape)}")
    return logmeanexp(log_e(counts[..., 1], counts[..., 2]))


class History:
    """The previous version's recent times per key, and the thresholds they give.

    A key is whatever times are comparable within (a batch size, say). At most ``keys_max`` keys:
    the one used longest ago goes first. Not safe for several threads.
    """

    def __init__(self, window: int = WINDOW, keys_max: int = 64) -> None:
        self._window, self._keys_max = window, keys_max
        self._past: OrderedDict[Hashable, _Past] = OrderedDict()

    def thresholds(self, key: Hashable) -> Floats:
        """τ_q [4] from what was added so far; NaN while that is fewer than ``PAST_MIN`` times."""
        past = self._past.get(key)
        return np.full(len(QUANTILES), np.nan) if past is None else past.thresholds

    def seen(self, key: Hashable) -> int:
        """How many times the thresholds of a key may rest on."""
        past = self._past.get(key)
        return 0 if past is None else past.seen

    def add(self, key: Hashable, previous: float) -> None:
        """Call it after the pair's own cells were counted."""
        past = self._past.get(key)
        if past is None:
            while len(self._past) >= self._keys_max:
                self._past.popitem(last=False)
            past = self._past[key] = _Past(self._window)
        self._past.move_to_end(key)
        past.add(previous)

    def count(self, key: Hashable, new: float, previous: float, margin: float) -> Floats:
        """``cells`` of one pair under the thresholds so far; then its time joins them."""
        counts = cells(new, previous, margin, self.thresholds(key))
        self.add(key, previous)
        return counts


class _Past:
    """A ring of times."""

    __slots__ = ("_at", "_filled", "_stale", "_times", "thresholds")

    def __init__(self, window: int) -> None:
        self._times = np.empty(window)
        self._at = self._filled = self._stale = 0
        self.thresholds: Floats = np.full(len(QUANTILES), np.nan)

    @property
    def seen(self) -> int:
        return self._filled

    def add(self, time: float) -> None:
        self._times[self._at] = time
        self._at = (self._at + 1) % len(self._times)
        self._filled = min(self._filled + 1, len(self._times))
        self._stale += 1
        if self._filled >= PAST_MIN and (self._filled == PAST_MIN or self._stale >= _RENEW):
            # "higher" gives a time that was really seen: no arithmetic with infinite ones.
            past = self._times[: self._filled]
            self.thresholds = np.quantile(past, QUANTILES, method="higher")
            self._stale = 0
