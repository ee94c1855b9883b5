"""What others would say of the same traffic: a z-test looked at again and again, and three rules.

"-like": the rule as the tools' documents describe it, over windows of 100 requests; not the tools.
Each function takes failures per window of the new and the previous version, [runs, windows], and
gives whether the rule fires at each window, bool [runs, windows].
"""

from __future__ import annotations

import numpy as np
from scipy import stats

WINDOW = 100
#: Kayenta judges two series of points and wants some; of the latest it looks at so many.
POINTS_MIN, POINTS_MAX = 10, 50


def repeated_z(new: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Two proportions so far, one-sided at 5 %, at every look."""
    seen = WINDOW * np.arange(1, new.shape[1] + 1)
    one, two = new.cumsum(axis=1) / seen, previous.cumsum(axis=1) / seen
    pooled = (one + two) / 2
    error = np.sqrt(np.maximum(pooled * (1 - pooled) * 2 / seen, 1e-12))
    return (one - two) / error > 1.645


def kayenta_like(new: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Mann-Whitney on the points so far, 98 %, and a quarter more at least; from ten points on."""
    fires = np.zeros(new.shape, np.bool_)
    for at in range(POINTS_MIN, new.shape[1] + 1):
        these = slice(max(0, at - POINTS_MAX), at)
        one, two = new[:, these], previous[:, these]
        found = stats.mannwhitneyu(one, two, axis=1, alternative="greater", method="asymptotic")
        fires[:, at - 1] = (found.pvalue < 0.01) & (one.mean(axis=1) > 1.25 * two.mean(axis=1))
    return fires


def flagger_like(new: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Success under 99 % in a window is a failed check; five of them, ever, roll back."""
    return (new > 0.01 * WINDOW).cumsum(axis=1) >= 5


def argo_like(new: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """More than 0.5 % in a window is a failed measurement; more than ten of them fail the run."""
    return (new > 0.005 * WINDOW).cumsum(axis=1) > 10


RULES = {
    "z-test at every look": repeated_z,
    "Kayenta-like": kayenta_like,
    "Flagger-like, 99 %, threshold 5": flagger_like,
    "Argo-like, 0.5 %, limit 10": argo_like,
}


def first(fires: np.ndarray) -> np.ndarray:
    """Requests at the first alarm of each run, infinite where there is none."""
    return np.where(fires.any(axis=1), (fires.argmax(axis=1) + 1.0) * WINDOW, np.inf)
