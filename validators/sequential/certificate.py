"""Certificates: how often two variants disagree, with a bound that holds.

Offline, the number of rows is fixed beforehand, and the bound is Clopper's and Pearson's. Live,
somebody looks at the evidence all the time and would stop at the first good look: repeated looks
at Clopper-Pearson certify falsely in a quarter of all cases. There the evidence is an e-process:
a non-negative number that starts at 1 and cannot be expected to grow while the hypothesis holds.

**The unit** is one request, X in [0, 1] the share of its rows that disagree; k = ΣX, n the number
of requests.

**Evidence for a rate under the limit L**, against H: E[X_i | past] ≥ L:

    E = ∫ over θ in (0, L) of (θ/L)^k ((1−θ)/(1−L))^(n−k) dπ(θ),   π = Beta(1/2, 2/L) cut to (0, L)

*Proof.* Take one θ ≤ L and one request. With u = θ/L ≤ 1 ≤ v = (1−θ)/(1−L), the inequality of the
weighted means gives u^X v^(1−X) ≤ X·u + (1−X)·v for every X in [0, 1]. The right side is linear in
X and falls as X grows; its mean, at a conditional mean m of X, is v − m·(v − u), which is 1 at
m = L and at most 1 for m ≥ L. So the product over requests is a non-negative supermartingale that
starts at 1, for each θ, and so is the mean over π. Ville: P(some n has E ≥ 1/α) ≤ α, whatever the
rule by which one stops, and so the best E ever seen counts. ∎

*When the rate drifts.* Divide each factor by 1 + (v−u)(L − m_i), a bound on its conditional mean:
the product M is a supermartingale whatever the m_i are, and E = M · Π(1 + (v−u)(L − m_i)) ≤ M as
soon as the average of m_1 … m_n is at least L (a geometric mean is at most the arithmetic one). So
P(some n has E ≥ 1/α while the average rate so far is ≥ L) ≤ α: a certificate speaks of the average
over the traffic seen when it was issued, also when that traffic was of several kinds.

π is chosen so that L = 1 % needs 344, 649, 882 requests with 0, 1, 2 disagreements at α = 0.05.

**Evidence for a rate over the limit** is the mirror image: θ in (L, 1), u ≥ 1 ≥ v, H: mean ≤ L,
π = Beta(1, 1/(5 L)) cut to (L, 1): most of its weight is on rates of a few times the limit.

Bounds come by inversion: all limits whose hypothesis E does not reject (a confidence sequence).

Sources: Ville, Étude critique de la notion de collectif (1939); Robbins, Ann. Math. Statist. 41
(1970), for the mixture; Waudby-Smith and Ramdas, J. R. Stat. Soc. B 86 (2024), for bounded X.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from validators.statistics import (
    Floats,
    clopper_pearson,
    log_mass_above,
    log_mass_below,
    logistic,
    solve_rising,
)
from validators.verdict import Verdict

#: Of π below the limit: Beta(1/2, 2/L).
_UNDER_A, _UNDER_B = 0.5, 2.0
#: Of π above the limit: Beta(1, 1/(5 L)).
_OVER_A, _OVER_B = 1.0, 0.2
#: Limits looked at when bounds are inverted, as logits: 2e-12 to 1 − 2e-12.
_LOGIT_MAX = 27.0


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is known about a rate: ``k`` of ``n`` disagree, and what follows from it."""

    n: int  # rows offline, requests live
    k: float  # live: sum of the shares of rows that disagree
    limit: float
    alpha: float
    method: Literal["clopper-pearson", "e-process"]
    bound: float  # upper bound of the rate, wrong with probability ≤ alpha; 1 if nothing was seen
    verdict: Verdict
    log_e: float = -math.inf  # live: the best evidence for a rate under the limit; PASS is latched
    lower: float = 0.0  # lower bound of the rate, wrong with probability ≤ alpha
    log_e_over: float = -math.inf  # live: the best evidence for a rate over the limit

    @property
    def sentence(self) -> str:
        """The certificate as a reader wants it."""
        unit = "rows" if self.method == "clopper-pearson" else "requests"
        if self.verdict is Verdict.INVALID:
            return f"no {unit} were compared: nothing can be certified"
        seen = f"{self.k:.6g} of {self.n} {unit} disagree"
        sure = f"{100 * (1 - self.alpha):.6g} % sure"
        if self.verdict is Verdict.PASS:
            return f"{seen}: certified to be under {percent(self.limit)} ({sure})"
        if self.verdict is Verdict.FAIL:
            return f"{seen}: over {percent(self.limit)} ({sure})"
        return (
            f"{seen}: between {percent(self.lower)} and {percent(self.bound)}, each {sure}; "
            f"too few to tell whether that is under {percent(self.limit)}"
        )


def percent(rate: float) -> str:
    """A rate of 0.00123 as ``0.123 %``."""
    return f"{100 * rate:.3g} %"


def _check(limit: float, alpha: float | None = None) -> None:
    if not 0 < limit < 1:
        raise ValueError(f"a limit is a rate between 0 and 1, not {limit}")
    if alpha is not None and not 0 < alpha < 1:
        raise ValueError(f"alpha is a risk between 0 and 1, not {alpha}")


def _count(k: npt.ArrayLike, n: npt.ArrayLike) -> tuple[Floats, Floats]:
    k, n = np.asarray(k, np.float64), np.asarray(n, np.float64)
    if not np.all((k >= 0) & (k <= n * (1 + 1e-9))):
        raise ValueError(f"{k} of {n} is no count: needs 0 ≤ k ≤ n")
    return np.minimum(k, n), n  # a sum of shares may exceed their number by a rounding error


def evidence_under(k: npt.ArrayLike, n: npt.ArrayLike, limit: npt.ArrayLike) -> Floats:
    """log E that the rate is under ``limit``, of arrays that broadcast against each other."""
    k, n = _count(k, n)
    limit = np.asarray(limit, np.float64)
    prior = log_mass_below(_UNDER_A, _UNDER_B / limit, limit)
    return log_mass_below(k + _UNDER_A, n - k + _UNDER_B / limit, limit) - prior


def evidence_over(k: npt.ArrayLike, n: npt.ArrayLike, limit: npt.ArrayLike) -> Floats:
    """log E that the rate is over ``limit``, of arrays that broadcast against each other."""
    k, n = _count(k, n)
    limit = np.asarray(limit, np.float64)
    prior = log_mass_above(_OVER_A, _OVER_B / limit, limit)
    return log_mass_above(k + _OVER_A, n - k + _OVER_B / limit, limit) - prior


def log_e(k: float, n: int, limit: float) -> float:
    """log E that the mean of X is under ``limit``; ``k`` = ΣX may be a fraction. 0 for n = 0.

    At log(1/α) or more, at any look, the rate is certified with a risk of α. ValueError unless
    0 ≤ k ≤ n and 0 < limit < 1.
    """
    _check(limit)
    return float(evidence_under(k, n, limit))


def log_e_over(k: float, n: int, limit: float) -> float:
    """log E that the mean of X is over ``limit``; the mirror of ``log_e``."""
    _check(limit)
    return float(evidence_over(k, n, limit))


def upper_bound(k: float, n: int, alpha: float) -> float:
    """Upper bound of the mean of X that holds at all looks together with probability 1 − α."""
    _check(0.5, alpha)
    seen, trials = _count(k, n)
    if seen >= trials:
        return 1.0

    def excess(logit: Floats) -> Floats:
        return evidence_under(seen, trials, logistic(logit)) + math.log(alpha)

    found = solve_rising(excess, -_LOGIT_MAX, _LOGIT_MAX)
    return 1.0 if found >= _LOGIT_MAX else float(logistic(found))


def lower_bound(k: float, n: int, alpha: float) -> float:
    """Lower bound of the mean of X that holds at all looks together with probability 1 − α."""
    _check(0.5, alpha)
    seen, trials = _count(k, n)
    if seen <= 0:
        return 0.0

    def excess(mirrored: Floats) -> Floats:  # the evidence rises as the limit falls
        return evidence_over(seen, trials, logistic(-mirrored)) + math.log(alpha)

    found = solve_rising(excess, -_LOGIT_MAX, _LOGIT_MAX)
    return 0.0 if found >= _LOGIT_MAX else float(logistic(-found))


def certify_offline(k: int, n: int, limit: float, alpha: float) -> Certificate:
    """PASS when the rate is under ``limit`` with a risk of ``alpha``, FAIL when it is over.

    ``k`` of ``n`` rows disagree; the rows are a sample of the traffic, its size fixed beforehand.
    INVALID for n = 0. ValueError for counts or rates that are none.
    """
    _check(limit, alpha)
    if n == 0:
        return Certificate(0, 0, limit, alpha, "clopper-pearson", 1.0, Verdict.INVALID)
    lower, upper = clopper_pearson(k, n, alpha)
    verdict = _judge(passed=upper <= limit, failed=lower > limit)
    return Certificate(n, k, limit, alpha, "clopper-pearson", upper, verdict, lower=lower)


def certify_live(
    k: float,
    n: int,
    limit: float,
    alpha: float,
    best_log_e: float = -math.inf,
    best_log_e_over: float = -math.inf,
) -> Certificate:
    """The same at any look: ``k`` = ΣX over ``n`` requests, X in [0, 1].

    ``best_log_e`` is the best ``log_e`` of earlier looks (also of earlier processes) at the same
    evidence: a certificate once earned stays. ``best_log_e_over``, when given, lets FAIL stay as
    well. FAIL outweighs PASS: a certificate speaks of the traffic up to then, a failure of all.
    """
    _check(limit, alpha)
    if n == 0:
        return Certificate(
            0, 0, limit, alpha, "e-process", 1.0, Verdict.INVALID, best_log_e,
            log_e_over=best_log_e_over,
        )  # fmt: skip
    under = max(best_log_e, log_e(k, n, limit))
    over = max(best_log_e_over, log_e_over(k, n, limit))
    verdict = _judge(passed=under >= -math.log(alpha), failed=over >= -math.log(alpha))
    bound, lower = upper_bound(k, n, alpha), lower_bound(k, n, alpha)
    return Certificate(n, k, limit, alpha, "e-process", bound, verdict, under, lower, over)


def _judge(*, passed: bool, failed: bool) -> Verdict:
    if failed:
        return Verdict.FAIL
    return Verdict.PASS if passed else Verdict.INCONCLUSIVE
