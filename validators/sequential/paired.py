"""Is the new version worse than the previous one? A bet on pairs, valid at every look.

Each mirrored request was answered by both versions. For a harm (an error, a slow answer, a wrong
label) D = harm(new) − harm(previous). Of a pair, one of four cells grows:

    n11 both harmed, n10 only the new version, n01 only the previous one, n00 neither

H: E[harm(new) | past] ≤ (1+r) · E[harm(previous) | past], r a tolerated relative margin. A bettor
who stakes the share λ < 1/(1+r) of the wealth on every pair multiplies it by 1 + λ·(harm(new) −
(1+r)·harm(previous)), which has a mean of at most 1 under H. So the wealth is a non-negative
supermartingale, and so is a weighted mean over several λ; by Ville's inequality it ever reaches
1/α with a probability of at most α. Written with counts, this is

    log E = log Σ over λ of w_λ · exp(n11·log1p(−λr) + n10·log1p(λ) + n01·log1p(−λ(1+r)))

Harms may be shares in [0, 1] instead of 0 and 1 (split a pair of harms x, y over the cells:
min(x, y) to n11, the rest to n10 or n01): log is concave, so the sum above is at most the
logarithm of the wealth that the shares themselves would give.

**A change that comes late** has to win back what was lost before. So bets start afresh with each
block of 1,000 pairs: E = Σ_k w_k E^(k), w_k = 1/(k(k+1)), where E^(k) counts from block k on, and
is 1 until then. The weights sum to 1. Terms may be left out at will: that only lowers E.

Sources: Ville (1939); Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86 (2024); Shin, Ramdas and
Rinaldo, New Engl. J. Stat. Data Sci. 2 (2024), for starts that are mixed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from validators.statistics import Floats

#: Stakes, and what each is given of the wealth. Half of it is on harm that comes from one side
#: alone, as a new fault does: that is where days count. Against equal weights this needs a tenth
#: fewer pairs there, and 4 % more where harm comes from both sides.
STAKES: tuple[float, ...] = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 0.99)
WEIGHTS: tuple[float, ...] = tuple(part / 14 for part in (1, 1, 1, 1, 1, 1, 1, 2, 5))
#: Times the budget's odds that are bet on, and what each is given of the wealth.
EXCESSES: tuple[float, ...] = (1.1, 1.25, 1.5, 2, 3, 4.5, 7, 10, 15, 25)
_EXCESS_WEIGHTS: tuple[float, ...] = tuple(part / 19 for part in (1, 1, 1, 2, 2, 3, 3, 3, 2, 1))
#: The order of the cells in arrays.
CELLS: tuple[str, ...] = ("n11", "n10", "n01", "n00")
#: Pairs of one block: bets start afresh with each.
BLOCK = 1000
#: Starts that are kept at most.
STARTS_MAX = 64
#: The latest starts, which are never dropped: a change just happened there, if at all.
_LATEST = 16

#: From counts, summed per start ([starts, ...]), to log E of each start [starts].
Evidence = Callable[[Floats], Floats]


def logmeanexp(values: Floats) -> Floats:
    """log of the mean of exp over the last axis."""
    return np.asarray(np.logaddexp.reduce(values, axis=-1) - math.log(values.shape[-1]))


def _logsumexp(values: Floats) -> Floats:
    """Of finite values, over the last axis; three times as fast as ``logaddexp.reduce``."""
    top = values.max(axis=-1)
    return np.asarray(top + np.log(np.exp(values - top[..., None]).sum(axis=-1)))


def log_e(new_only: npt.ArrayLike, previous_only: npt.ArrayLike) -> Floats:
    """log E that the new version does more harm; counts of pairs, float64 of their shape."""
    zero = np.zeros(np.broadcast_shapes(np.shape(new_only), np.shape(previous_only)))
    return log_e_margin(zero, new_only, previous_only, 0.0)


def log_e_margin(
    n11: npt.ArrayLike, n10: npt.ArrayLike, n01: npt.ArrayLike, margin: float
) -> Floats:
    """log E that the new version does more than 1 + ``margin`` times the harm.

    ValueError for a negative margin, or one that leaves no stake (19 or more).
    """
    both, new, previous, log_weights = _bets(margin)
    n11, n10, n01 = (np.asarray(count, np.float64)[..., None] for count in (n11, n10, n01))
    wealth = n10 * new + n01 * previous + log_weights
    if margin:
        wealth = wealth + n11 * both
    return _logsumexp(wealth)


@lru_cache(maxsize=64)
def _bets(margin: float) -> tuple[Floats, Floats, Floats, Floats]:
    """What a pair of each cell adds to the logarithm of each stake's wealth, and its start."""
    if not 0 <= margin < 1 / STAKES[0] - 1:
        raise ValueError(f"a margin is a share from 0 to under {1 / STAKES[0] - 1:g}, not {margin}")
    allowed = [
        (stake, weight)
        for stake, weight in zip(STAKES, WEIGHTS, strict=True)
        if stake < 1 / (1 + margin)
    ]
    stakes, weights = np.array(allowed).T
    return (
        np.log1p(-stakes * margin),
        np.log1p(stakes),
        np.log1p(-stakes * (1 + margin)),
        np.log(weights / weights.sum()),
    )


def cell_evidence(margin: float = 0.0) -> Evidence:
    """For ``StartMixture``: counts [..., 4] in the order of ``CELLS``."""

    def evidence(cells: Floats) -> Floats:
        return log_e_margin(cells[..., 0], cells[..., 1], cells[..., 2], margin)

    return evidence


def budget_evidence(budget: float) -> Evidence:
    """For ``StartMixture``: counts [..., 2] of (flips, pairs) against a budget of flips.

    E = Σ_j w_j (θ_j/f0)^s ((1−θ_j)/(1−f0))^(n−s), the odds of θ_j those of f0 times ``EXCESSES``;
    the proof, for each θ over f0, stands in ``certificate.py``. A sum takes a hundredth of the time
    of the integral there, and its weights are where a fault would be. Rates less than about 1.05
    times the budget are not seen. ``budget`` f0 in (0, 1), ValueError otherwise.
    """
    if not 0 < budget < 1:
        raise ValueError(f"a budget is a share between 0 and 1, not {budget}")
    odds = np.array(EXCESSES) * budget / (1 - budget)
    gain = np.log(odds / (1 + odds)) - math.log(budget)
    loss = -np.log1p(odds) - math.log1p(-budget)
    log_weights = np.log(_EXCESS_WEIGHTS)

    def evidence(counts: Floats) -> Floats:
        flips, pairs = counts[..., 0, None], counts[..., 1, None]
        terms = flips * gain + (pairs - flips) * loss + log_weights
        return _logsumexp(terms)

    return evidence


def split(new: npt.ArrayLike, previous: npt.ArrayLike) -> Floats:
    """Harms of pairs, each in [0, 1] and of shape [n], as counts [4] in the order of ``CELLS``.

    ValueError for harms outside [0, 1] and for NaN.
    """
    new, previous = np.asarray(new, np.float64), np.asarray(previous, np.float64)
    for harm in (new, previous):
        if not np.all((harm >= 0) & (harm <= 1)):
            raise ValueError("harms are shares between 0 and 1; leave out pairs without one")
    both = np.minimum(new, previous)
    either = np.maximum(new, previous)
    return np.array(
        [both.sum(), (new - both).sum(), (previous - both).sum(), (1 - either).sum()], np.float64
    )


@dataclass(frozen=True, slots=True)
class StartMixture:
    """Counts per block, and the evidence of all starts together.

    starts: 1-based numbers of the blocks at which a stretch of counts begins, rising.
    counts: float64 [len(starts), ...], what was counted from a start up to the next one.
    """

    starts: tuple[int, ...]
    counts: Floats

    def __post_init__(self) -> None:
        rising = all(map(operator.lt, self.starts, self.starts[1:]))
        if not rising or len(self.starts) != len(self.counts) or (self.starts or (1,))[0] < 1:
            raise ValueError(
                "starts are block numbers from 1 on, rising, one for each row of counts"
            )

    @classmethod
    def of_blocks(cls, blocks: Mapping[int, npt.ArrayLike]) -> StartMixture:
        """From counts per block, numbered from 0 as in the store (pair index // ``BLOCK``)."""
        numbers = sorted(blocks)
        counts = np.array([blocks[number] for number in numbers], np.float64)
        return cls(tuple(number + 1 for number in numbers), counts)

    def terms(self, evidence: Evidence) -> Floats:
        """log(w_k E^(k)) of each start, [starts]."""
        from_start_on = np.cumsum(self.counts[::-1], axis=0)[::-1]
        starts = np.asarray(self.starts, np.float64)
        return np.asarray(evidence(from_start_on) - np.log(starts) - np.log1p(starts))

    def log_e(self, evidence: Evidence) -> float:
        """log Σ_k w_k E^(k); 0 when nothing was counted."""
        if not self.starts:
            return 0.0
        # Blocks that are still to come: Σ over k > K of 1/(k(k+1)) = 1/(K+1), each with E = 1.
        to_come = -math.log(self.starts[-1] + 1)
        return float(np.logaddexp(np.logaddexp.reduce(self.terms(evidence)), to_come))

    def thin(self, evidence: Evidence, keep: int = STARTS_MAX) -> StartMixture:
        """Drop the least promising starts until ``keep`` remain; their counts go to the one before.

        The first start and the latest sixteen stay. Which starts are dropped may depend on the
        data: at any look what is kept is at most the full mixture.
        """
        if keep <= _LATEST:
            raise ValueError(f"keeps at least {_LATEST + 1} starts, not {keep}")
        excess = len(self.starts) - keep
        if excess <= 0:
            return self
        middle = self.terms(evidence)[1:-_LATEST]
        dropped = set((np.argsort(middle, kind="stable")[:excess] + 1).tolist())
        kept = [at for at in range(len(self.starts)) if at not in dropped]
        counts = np.add.reduceat(self.counts, kept, axis=0)
        return StartMixture(tuple(self.starts[at] for at in kept), counts)


def detection_bound(growth: float, alpha: float) -> float:
    """Requests that any test of level ``alpha`` needs at least on average, about.

    log(1/α) over the information of one pair against H, in nats (for a rate θ against a budget f0
    the Kullback-Leibler divergence, ``divergence``). A test's efficiency is this over its delay.
    """
    if growth <= 0 or not 0 < alpha < 1:
        raise ValueError("needs a growth over 0 and a risk between 0 and 1")
    return -math.log(alpha) / growth


def divergence(rate: float, budget: float) -> float:
    """Kullback-Leibler divergence of Bernoulli(``rate``) from Bernoulli(``budget``), nats."""
    parts = ((rate, budget), (1 - rate, 1 - budget))
    return sum(p * math.log(p / q) for p, q in parts if p > 0)
