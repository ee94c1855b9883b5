"""How much of a disagreement rate any rerun would show.

The reference is run again in another batch composition on part of the traffic; how often it
disagrees with itself is the noise floor. It is shown beside the raw rate, and never taken off the
rate that is certified: a user meets the raw one.
"""

from __future__ import annotations

from dataclasses import dataclass

from validators.sequential import certificate
from validators.sequential.certificate import percent
from validators.statistics import clopper_pearson


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """Raw rate, noise, and the most that is left between them.

    ``excess`` = upper(raw) − lower(noise), each bound at α/2, at least 0: an upper bound, at 1 − α,
    of what the candidate adds. The union bound needs no independence, so the noise may be measured
    on some of the very requests that gave the raw rate.
    """

    k: float
    n: int
    noise_k: float
    noise_n: int
    alpha: float
    raw_upper: float
    noise_lower: float

    @property
    def raw_rate(self) -> float:
        """Share that disagrees; NaN when nothing was compared."""
        return self.k / self.n if self.n else float("nan")

    @property
    def noise_rate(self) -> float:
        """Share in which the reference disagrees with itself; NaN when it was not measured."""
        return self.noise_k / self.noise_n if self.noise_n else float("nan")

    @property
    def excess(self) -> float:
        """Upper bound of the rate that noise does not explain."""
        return max(0.0, self.raw_upper - self.noise_lower)

    @property
    def sentence(self) -> str:
        """For a reader of the report."""
        if not self.n:
            return "nothing was compared"
        raw = f"{percent(self.raw_rate)} disagree"
        if not self.noise_n:
            return f"{raw}; the noise of the reference was not measured"
        sure = f"{100 * (1 - self.alpha):.6g} % sure"
        return (
            f"{raw}; the reference with itself: {percent(self.noise_rate)} of {self.noise_n}; "
            f"beyond noise at most {percent(self.excess)} ({sure})"
        )


def noise_floor(
    k: float, n: int, noise_k: float, noise_n: int, alpha: float, *, live: bool = False
) -> NoiseFloor:
    """``k`` of ``n`` disagree with the candidate, ``noise_k`` of ``noise_n`` with a rerun.

    Offline counts are rows, for Clopper-Pearson; ``live`` ones are requests, looked at again and
    again, where k may be a sum of shares. Not measured (0 of 0): a rate from 0 to 1.

    ValueError for counts or a risk that are none, and for fractions offline.
    """
    if live:
        upper = certificate.upper_bound(k, n, alpha / 2)
        lower = certificate.lower_bound(noise_k, noise_n, alpha / 2)
        return NoiseFloor(k, n, noise_k, noise_n, alpha, upper, lower)
    if k != int(k) or noise_k != int(noise_k):
        raise ValueError(f"{k} and {noise_k} are no counts of rows; shares are for live evidence")
    upper = clopper_pearson(int(k), n, alpha / 2)[1] if n or k else 1.0
    lower = clopper_pearson(int(noise_k), noise_n, alpha / 2)[0] if noise_n or noise_k else 0.0
    return NoiseFloor(k, n, noise_k, noise_n, alpha, upper, lower)
