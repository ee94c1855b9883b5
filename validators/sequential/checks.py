"""What the scheduled checks say of a new version beside the previous one: counts in, evidence out.

One function for each harm. Each takes counts by blocks of a thousand pairs (``paired.BLOCK``: pair
index // 1000 → counts), which may be sums over several processes, and gives a ``Judged``. All
evidence is an e-process mixed over its starts (``paired.StartMixture``), in natural logarithms: it
may be looked at as often as one likes, and ever reaches ``threshold`` of a harm falsely with a
probability of at most w·α, so that all harms together are wrong with at most α.

**Two tests, and the lesser of the two counts**, for alerting as for acting:

- the *mean-harm* test bets on every pair. H: E[harm(new) − (1+r)·harm(previous) | past] ≤ 0. It is
  wrong where one event makes several pairs (a retry without an id, a burst of one version alone).
- the *block* test bets on the sign of n10 − n01 in blocks of 20 pairs, and so on one sign for each
  such event. H: P(more n10 | past) ≤ (1+r)·P(more n01 | past). It is wrong where harm comes
  steadily on one side and in clusters on the other, and never counts alone.

min(E₁, E₂) reaches 1/α only when both do, so it is wrong with probability ≤ α wherever either of
the two hypotheses holds. Their maximum, or their mean, would need both.

Flips have a block test that needs no hypothesis of its own: see ``judge_flips``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from validators.sequential import latency
from validators.sequential.paired import (
    CELLS,
    Evidence,
    StartMixture,
    budget_evidence,
    cell_evidence,
    log_e_margin,
    logmeanexp,
)
from validators.statistics import Floats

#: The order of the cells where bets are on blocks: the new version was worse, the previous one was,
#: neither.
SIGN_CELLS: tuple[str, ...] = ("n10", "n01", "n00")
#: Length of the blocks that errors, accuracy, flips and output drift are judged by, in pairs.
SIGN_LENGTH = 20
#: What flips are compared with where no budget is known: a version that was trained anew is meant
#: to change some answers, and one in ten is worth a look in any case. It never acts.
FLIPS_UNKNOWN = 0.1

#: Counts per block of a thousand pairs.
Blocks = Mapping[int, npt.ArrayLike]


@dataclass(frozen=True, slots=True)
class Harm:
    """How one harm is judged.

    Attributes:
        name: ``error``, ``latency``, ``flip``, ``accuracy``, ``output``.
        weight: its part of α, beside the others' (they need not sum to 1).
        margin: r, how much more harm is tolerated, relative; that of latency is in its counts.
        budget: share of requests that may flip; ``None``: not known.
        may_act: as configured. Not whether it is held back right now: a set of weights that
            changes with the evidence would spend α more than once.
    """

    name: str
    weight: float = 1.0
    margin: float = 0.0
    budget: float | None = None
    may_act: bool = True

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(f"{self.name}: a weight is a number over 0, not {self.weight}")
        if not 0 <= self.margin < 19:
            raise ValueError(f"{self.name}: a margin is from 0 to under 19, not {self.margin}")
        if self.budget is not None and not 0 < self.budget < 1:
            raise ValueError(f"{self.name}: a budget is between 0 and 1, not {self.budget}")


@dataclass(frozen=True, slots=True)
class Judged:
    """One harm at one look.

    Attributes:
        metric: the harm's name.
        pairs: that were judged.
        new_only, previous_only: harmed by that version alone; 0 where there is no such thing.
        log_e: what alerts are decided on, against ``thresholds(harms, alpha_alert)``.
        log_e_act: what acting is decided on, against ``thresholds(those that may act, alpha_act)``;
            0 where nothing may come of it.
        text: what was seen, in a sentence without a full stop.
    """

    metric: str
    pairs: int
    new_only: float
    previous_only: float
    log_e: float
    log_e_act: float
    text: str


def thresholds(harms: Sequence[Harm], alpha: float) -> dict[str, float]:
    """Name → log(1/(w·α)), the weights scaled to sum to 1 over ``harms``.

    For acting give those alone that ``may_act``. ValueError for a risk outside (0, 1) and for a
    name that comes twice.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a risk between 0 and 1, not {alpha}")
    if len({harm.name for harm in harms}) != len(harms):
        raise ValueError("each harm is named once")
    total = math.fsum(harm.weight for harm in harms)
    return {harm.name: math.log(total / harm.weight) - math.log(alpha) for harm in harms}


def ordered(cells: Mapping[str, float], names: Sequence[str] = CELLS) -> list[float]:
    """Counts as the store has them, by name, in the order that the functions here want."""
    return [cells.get(name, 0.0) for name in names]


def judge_error(harm: Harm, pairs: Blocks, signs: Blocks) -> Judged:
    """Errors.

    Args:
        pairs: block → counts [4] in the order of ``CELLS``, one for each pair.
        signs: block → counts [3] in the order of ``SIGN_CELLS``, one for each whole block of
            ``SIGN_LENGTH`` pairs.

    Raises:
        ValueError: for counts of another shape, negative or not finite.
    """
    return _judge_paired(harm, pairs, signs, "failed", "pairs")


def judge_accuracy(harm: Harm, pairs: Blocks, signs: Blocks) -> Judged:
    """Wrong answers, where labels came; arguments as of ``judge_error``, counted by labels."""
    return _judge_paired(harm, pairs, signs, "was wrong", "labels")


def _judge_paired(harm: Harm, pairs: Blocks, signs: Blocks, verb: str, unit: str) -> Judged:
    mixture = _mixture(pairs, (len(CELLS),))
    by_block = _mixture(signs, (len(SIGN_CELLS),))
    log_e = min(
        mixture.log_e(cell_evidence(harm.margin)), by_block.log_e(sign_evidence(harm.margin))
    )
    both, new, previous, neither = _sums(mixture)
    count = round(both + new + previous + neither)
    tolerated = f", {100 * harm.margin:.3g} % more tolerated" if harm.margin else ""
    text = (
        f"of {count} {unit} only the new version {verb} in {new:.6g}, only the previous one in "
        f"{previous:.6g}, both in {both:.6g}{tolerated}: {odds(log_e)}"
    )
    return Judged(harm.name, count, new, previous, log_e, log_e if harm.may_act else 0.0, text)


def judge_latency(harm: Harm, cells: Blocks, signs: Mapping[int, Blocks], block: int) -> Judged:
    """Model-computation time, by the five bets of ``latency.py``.

    Args:
        cells: block → counts [5, 4]: ``latency.METRICS`` × ``CELLS``, one for each pair.
        signs: length of blocks → block → counts [5, 3]: ``latency.METRICS`` × ``SIGN_CELLS``.
        block: the length that the calibration asks for; 0: longer than any, or not known yet. Then
            the longest is bet on, for alerts alone.

    Raises:
        ValueError: for counts of another shape, and for a length that was not counted.
    """
    if not signs or (block and block not in signs):
        known = ", ".join(str(length) for length in sorted(signs)) or "none"
        raise ValueError(f"blocks of {block} pairs were not counted; those that were: {known}")
    length = block or max(signs)
    mixture = _mixture(cells, (len(latency.METRICS), len(CELLS)))
    by_block = _mixture(signs[length], (len(latency.METRICS), len(SIGN_CELLS)))
    log_e = min(mixture.log_e(latency.evidence), by_block.log_e(_five_signs))
    sums = mixture.counts.sum(axis=0) if mixture.starts else np.zeros((5, 4))
    shares = ", ".join(
        f"{name} {new:.6g} to {previous:.6g}"
        for name, (_, new, previous, _) in zip(_LATENCY_WORDS, sums, strict=True)
    )
    count = round(float(sums[0].sum()))
    held = "" if block else "; not calibrated, so it cannot act"
    text = (
        f"of {count} pairs only the new version was slow, to only the previous one: {shares}; "
        f"by blocks of {length}: {odds(log_e)}{held}"
    )
    act = log_e if harm.may_act and block else 0.0
    return Judged(harm.name, count, float(sums[0, 1]), float(sums[0, 2]), log_e, act, text)


_LATENCY_WORDS = ("than the other", "over the median", "over p90", "over p95", "over p99")


def judge_flips(
    harm: Harm, outputs: Mapping[str, Blocks], signs: Mapping[str, Blocks] | None = None
) -> Judged:
    """Answers that change, against a budget f0 of requests; the mean of E over outputs.

    **By blocks**, where one event makes several flips: X = min(1, flips in a block of L pairs). If
    a request flips with a mean of at most f0 given the *blocks* before, however flips hang together
    within one, E[X | past] ≤ L·f0 (a minimum is at most the sum, and means add up). So X against
    the budget L·f0 is tested by the same e-process, under a weaker hypothesis than pair by pair: so
    where blocks are counted they count alone. They lose what lies between 1 − (1−θ)^L and L·θ: a
    tenth at 1 %, more than half at 10 %. Budgets of 1/L or more are tested pair by pair.

    Args:
        outputs: output (and policy) → block → counts [4] in the order of ``CELLS``, with n10 the
            flips and n00 the rest, shares of rows allowed.
        signs: output → block → counts [3] in the order of ``SIGN_CELLS``: n10 the sum of X over
            whole blocks of ``SIGN_LENGTH`` pairs, n00 of 1 − X. ``None``: not counted.

    Raises:
        ValueError: for counts of another shape, negative or not finite.
    """
    budget = FLIPS_UNKNOWN if harm.budget is None else harm.budget
    flips = total = 0.0
    terms: list[float] = []
    for name, blocks in outputs.items():
        mixture = _mixture(blocks, (len(CELLS),))
        by_block = SIGN_LENGTH * budget
        if signs is not None and by_block < 1:
            of_blocks = _mixture(signs.get(name, {}), (len(SIGN_CELLS),))
            terms.append(of_blocks.log_e(_flips_of_blocks(by_block)))
        else:
            terms.append(mixture.log_e(_flips(budget)))
        _, new, _, neither = _sums(mixture)
        flips, total = max((flips, total), (new, new + neither))
    log_e = float(logmeanexp(np.array(terms or [0.0])))
    known = "" if harm.budget is not None else "; no budget is known for this pair"
    text = (
        f"of {total:.6g} answers {flips:.6g} changed, against a budget of {100 * budget:.3g} %: "
        f"{odds(log_e)}{known}"
    )
    act = log_e if harm.may_act and harm.budget is not None else 0.0
    return Judged(harm.name, round(total), flips, 0.0, log_e, act, text)


def judge_output(
    harm: Harm, classes: Mapping[str, Blocks], signs: Mapping[str, Blocks] | None = None
) -> Judged:
    """How often each class (or quantile of a score) is answered, in both directions.

    H: no class is given more often, or less, by the new version. E is the mean over classes and
    both sides of paired e-processes; a mean of e-processes is one.

    Args:
        classes: class → block → counts [4] in the order of ``CELLS``; n10 only the new version gave
            it, n01 only the previous one.
        signs: class → block → counts [3] in the order of ``SIGN_CELLS``, by blocks of
            ``SIGN_LENGTH``. ``None``: not counted.

    Raises:
        ValueError: for counts of another shape, negative or not finite.
    """
    names = list(classes)
    pairs = _together([classes[name] for name in names], len(CELLS))
    sides = [_each(pairs, cell_evidence(harm.margin)), _each(pairs, _mirrored(harm.margin))]
    if signs is not None:
        of_blocks = _together([signs.get(name, {}) for name in names], len(SIGN_CELLS))
        by_sign = (sign_evidence(harm.margin), _mirrored_signs(harm.margin))
        sides = [
            np.minimum(side, _each(of_blocks, evidence))
            for side, evidence in zip(sides, by_sign, strict=True)
        ]
    best = np.maximum(*sides)
    sums = pairs.counts.sum(axis=0)
    count = float(sums.sum(axis=-1).max(initial=0.0))
    most, text_class = (0.0, 0.0, 0.0), ""
    if names and best.max() >= 0:
        at = int(np.argmax(best))
        most, text_class = (float(best[at]), float(sums[at, 1]), float(sums[at, 2])), names[at]
    log_e = float(logmeanexp(np.concatenate(sides) if names else np.zeros(1)))
    which = (
        f"; most of it is class {text_class}: only the new version gave it in {most[1]:.6g}, only "
        f"the previous one in {most[2]:.6g}"
        if text_class
        else ""
    )
    text = f"of {count:.6g} answers, {len(classes)} classes: {odds(log_e)}{which}"
    act = log_e if harm.may_act else 0.0
    return Judged(harm.name, round(count), most[1], most[2], log_e, act, text)


def odds(log_e: float) -> str:
    """Evidence as a reader wants it: E as it stands, or a power of ten where it is large."""
    if log_e < math.log(1e6):
        return f"evidence {math.exp(log_e):.3g}"
    return f"evidence 10^{log_e / math.log(10):.1f}"


def sign_evidence(margin: float = 0.0) -> Evidence:
    """For ``StartMixture``: counts [..., 3] in the order of ``SIGN_CELLS``."""

    def evidence(counts: Floats) -> Floats:
        none = np.zeros(counts.shape[:-1])
        return log_e_margin(none, counts[..., 0], counts[..., 1], margin)

    return evidence


def _mirrored(margin: float) -> Evidence:
    forward = cell_evidence(margin)
    return lambda counts: forward(counts[..., [0, 2, 1, 3]])


def _mirrored_signs(margin: float) -> Evidence:
    forward = sign_evidence(margin)
    return lambda counts: forward(counts[..., [1, 0, 2]])


def _five_signs(counts: Floats) -> Floats:
    """log of the mean of the five E; counts [..., 5, 3] → [...]."""
    return logmeanexp(sign_evidence()(counts))


def _flips(budget: float) -> Evidence:
    against = budget_evidence(budget)
    return lambda counts: against(
        np.stack([counts[..., 1], counts[..., 1] + counts[..., 3]], axis=-1)
    )


def _flips_of_blocks(budget: float) -> Evidence:
    against = budget_evidence(budget)
    return lambda counts: against(
        np.stack([counts[..., 0], counts[..., 0] + counts[..., 2]], axis=-1)
    )


def _mixture(blocks: Blocks, shape: tuple[int, ...]) -> StartMixture:
    """Counts of each block, checked; all at once, since there may be dozens of series of dozens."""
    if not blocks:
        return StartMixture((), np.zeros((0, *shape)))
    mixture = None
    with suppress(ValueError):  # of several shapes, or numbered under 0
        mixture = StartMixture.of_blocks(blocks)
    if mixture is None or mixture.counts.shape[1:] != shape:
        raise ValueError(
            f"blocks {sorted(blocks)[:3]} … are numbered from 0 on, and each has counts of shape "
            f"{list(shape)}"
        )
    if not np.all((mixture.counts >= 0) & np.isfinite(mixture.counts)):
        raise ValueError("counts are finite and not under 0")
    return mixture


def _together(series: Sequence[Blocks], width: int) -> StartMixture:
    """Counts of several series by the same blocks, [blocks, series, width]. Where one was not
    counted in a block that another one was, it has a start there with nothing counted: that is
    another choice of starts, made without looking."""
    none = [0.0] * width
    numbers = sorted({number for blocks in series for number in blocks})
    of_all: dict[int, npt.ArrayLike] = {
        number: np.array([blocks.get(number, none) for blocks in series]) for number in numbers
    }
    if not of_all:
        return StartMixture((), np.zeros((0, len(series), width)))
    return _mixture(of_all, (len(series), width))


def _each(mixture: StartMixture, evidence: Evidence) -> Floats:
    """log E of each series of ``_together``, [series]."""
    if not mixture.starts:
        return np.zeros(mixture.counts.shape[1])
    from_start_on = np.cumsum(mixture.counts[::-1], axis=0)[::-1]
    starts = np.asarray(mixture.starts, np.float64)[:, None]
    terms = evidence(from_start_on) - np.log(starts) - np.log1p(starts)
    to_come = -math.log(mixture.starts[-1] + 1)
    return np.asarray(np.logaddexp(np.logaddexp.reduce(terms, axis=0), to_come))


def _sums(mixture: StartMixture) -> list[float]:
    """Counts of all blocks together, [4]."""
    if not mixture.starts:
        return [0.0] * len(CELLS)
    return [float(value) for value in mixture.counts.sum(axis=0)]
