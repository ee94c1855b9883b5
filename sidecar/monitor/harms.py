"""The names under which pairs of versions are counted: written by ``versions.py`` and the labels,
read by the checks.

A key is ``EvidenceKey(model, new, previous, output, metric, policy, block)``; ``block`` is the
pair's index // 1000 (``paired.BLOCK``). Cells are those of ``paired.CELLS``.

- ``error``, ``slow``, ``slow_p50`` …: one count for each pair. ``accuracy``: for each row with a
  label, harm = wrong, in order of the labels' arrival.
- The same with ``by(metric, length)``: bets by blocks of ``length`` pairs, on the sign of n10 − n01
  within the block: ``n10`` counts blocks in which the new version was worse, ``n01`` the previous
  one, ``n00`` neither. ``error`` and latency by every length, the others by the first. A block in
  progress is in memory only. With a shared store those of the first length are joined over replicas
  (``pool_rests.py``), and have at least so many pairs.
- ``flip``: ``n10`` rows that changed, ``n00`` rows that did not, as shares of their request; per
  output and policy. By blocks: ``n10`` sums min(1, what flipped in the block), ``n00`` the rest.
- ``output``: how often each class (or quantile of a score) is answered; ``metric`` is
  ``output:CLASS``; ``n10`` only the new version gives it, ``n01`` only the previous one, as shares
  of the request's rows; per output and policy. Classes are bounded: the rest is ``output:other``.
- ``repeats``: cells ``{"dropped"}``: pairs left out as repeats of the same request.
- ``CALIBRATION``: candidate = baseline = the previous version; ``slow`` and its kind as above, and
  under ``CALIBRATION`` the cell ``{"pairs"}``: how many pairs it has seen (stores of earlier
  releases have ``"block"`` as well, the length that was asked for). The policy is the pair's
  identity: a new version is calibrated anew.
- ``NOISE``: beside it, the sums by lag that the length of a block is made of
  (``Autocorrelation.to_cells``): they add up over lives and replicas.
- ``served_accuracy``: of a variant by itself, what it served: candidate the variant, baseline
  empty, cells ``{"k", "n"}``: rows that were right, rows that have a label.
"""

from __future__ import annotations

#: Lengths of blocks that are counted, all of them; the calibration says which one is bet on.
BLOCK_LENGTHS = (20, 100, 500)
ERROR, FLIP, ACCURACY, REPEATS, CALIBRATION = "error", "flip", "accuracy", "repeats", "calibration"
OUTPUT = "output:"
NOISE = "calibration_noise"
SERVED_ACCURACY = "served_accuracy"


def by(metric: str, length: int) -> str:
    """The metric's name where it is counted by blocks of ``length`` pairs."""
    return f"{metric}/{length}"


def is_capped(metric: str) -> bool:
    """Whether blocks count min(1, what happened in them), for a budget, and no sign."""
    return metric.partition("/")[0] == FLIP


def is_time(metric: str) -> bool:
    """Whether it is about times: copies of a request are no copies of its time."""
    return metric.startswith("slow")
