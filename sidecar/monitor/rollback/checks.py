"""From the counts of a pair of versions to what each harm says of it, and why it may not act.

The arithmetic is that of ``validators/sequential/checks.py``; here are the names of the counts, the
settings, and what holds a harm back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import add

from sidecar.config import ModelConfig
from sidecar.config_rollback import HarmConfig, RollbackConfig
from sidecar.monitor import harms
from sidecar.monitor.evidence import Cells
from sidecar.monitor.plan import Pair
from sidecar.monitor.rollback.counts import Blocks, Reset, Series
from sidecar.monitor.view_rollback import CalibrationView, HarmView
from validators.sequential import checks, latency
from validators.sequential.autocorrelation import Autocorrelation
from validators.sequential.checks import SIGN_CELLS, SIGN_LENGTH, Harm, Judged
from validators.sequential.paired import CELLS

#: How a metric is named that is counted by blocks: ``error/20``.
_LENGTHS = {str(length): length for length in harms.BLOCK_LENGTHS}
#: Evidence that nothing but chance makes of two equal sides; over it they are not equal.
_CLEAN_ALPHA = 0.05

Counts = Mapping[Series, Blocks]


@dataclass(frozen=True, slots=True)
class Calibration:
    """The previous version beside itself: its counts, and what its own summary says.

    Attributes:
        cells: ``{"pairs"}``; of earlier releases also ``{"block"}``.
        noise: sums by lag (``Autocorrelation.to_cells``).
        pooled: the shortest blocks are joined over replicas.
    """

    counts: Counts
    cells: Cells
    noise: Cells = field(default_factory=dict)
    pooled: bool = False


@dataclass(frozen=True, slots=True)
class Look:
    """One pair at one look.

    Attributes:
        pairs: that both versions were run on, since it is judged.
        harms: each with its evidence, thresholds, and what holds it back.
        terms: metric → what its hypothesis depends on beside the name (margin, budget, blocks):
            the best evidence ever seen counts for the same hypothesis only.
    """

    pairs: int
    harms: tuple[HarmView, ...]
    terms: Mapping[str, str]
    calibration: CalibrationView | None = None


def look(
    config: ModelConfig,
    pair: Pair,
    counts: Counts,
    calibration: Calibration,
    *,
    budget: float | None = None,
    since: Reset | None = None,
) -> Look:
    """Judge one pair.

    Args:
        counts: of the pair; ``calibration``: of its previous version beside itself.
        budget: recorded for flips of this pair; one of the settings outweighs it.
        since: what was counted up to then is not looked at.
    """
    settings = config.rollback
    since = since or Reset()
    read = _Reader(pair, {s: since.since(s, blocks) for s, blocks in counts.items()})
    budget = settings.flip.budget if settings.flip.budget is not None else budget
    judged_by = _harms(config, budget)
    calibrated = _calibration(settings, calibration)
    alert = checks.thresholds(list(judged_by.values()), settings.alpha_alert)
    acting = [harm for harm in judged_by.values() if harm.may_act]
    act = checks.thresholds(acting, settings.alpha_act) if acting else {}
    total = math.fsum(harm.weight for harm in judged_by.values())
    found, terms = [], {}
    for name, harm in judged_by.items():
        judged = _JUDGES[name](read, harm, calibrated)
        held = _held(settings, harm, judged, calibrated, budget)
        terms[name] = _terms(config, harm, calibrated)
        found.append(
            HarmView(
                metric=name, pairs=judged.pairs, new_only=judged.new_only,
                previous_only=judged.previous_only, log_e=judged.log_e, threshold=alert[name],
                log_e_act=judged.log_e_act, threshold_act=act.get(name, math.inf),
                may_act=not held, held=held, weight=harm.weight / total, text=judged.text,
                margin=config.validation.latency_margin if name == "latency" else harm.margin,
            )
        )  # fmt: skip
    return Look(read.pairs, tuple(found), terms, calibrated)


def _harms(config: ModelConfig, budget: float | None) -> dict[str, Harm]:
    """Those that are looked at. α is shared among them: one that is never counted wastes its part,
    so accuracy is one of them only where labels are taken."""
    settings = config.rollback
    wanted: dict[str, HarmConfig] = {
        harms.ERROR: settings.error, "latency": settings.latency, harms.FLIP: settings.flip,
        harms.ACCURACY: settings.accuracy, "output": settings.output,
    }  # fmt: skip
    if config.labels is None:
        del wanted[harms.ACCURACY]
    return {
        name: Harm(
            name, harm.weight, getattr(harm, "margin", 0.0),
            budget if name == harms.FLIP else None, harm.act,
        )
        for name, harm in wanted.items()
        if harm.enabled
    }  # fmt: skip


class _Reader:
    """Counts of one pair, as the judges want them."""

    def __init__(self, pair: Pair, counts: Counts) -> None:
        self._pair = pair
        self._by_metric: dict[str, list[tuple[Series, Blocks]]] = {}
        for series, blocks in counts.items():
            self._by_metric.setdefault(series[0], []).append((series, blocks))

    @property
    def pairs(self) -> int:
        """That both versions were run on."""
        return round(sum(map(sum, self.pairs_of(harms.ERROR).values())))

    def _of_metric(self, metric: str) -> list[tuple[Series, Blocks]]:
        mine = self._pair.identity
        return [
            (series, blocks)
            for series, blocks in self._by_metric.get(metric, ())
            if series[2].startswith(mine) and self._is_current(series)
        ]

    def _is_current(self, series: Series) -> bool:
        """Answers judged by limits that are no longer those configured are no evidence."""
        policies = self._pair.policies
        metric, output, policy = series
        is_of_answers = metric.partition("/")[0] == harms.FLIP or metric.startswith(harms.OUTPUT)
        if not is_of_answers or policies is None or not policies.hashes:
            return True
        return policy in {policies.hashes.get(output), f"{self._pair.identity}-"}

    def pairs_of(self, metric: str) -> Blocks:
        """Block → [4], for each pair; over outputs and policies, of which there is usually one."""
        found = self._of_metric(metric)
        if len(found) == 1:
            return found[0][1]
        total: Blocks = {}
        for _, blocks in found:
            for block, row in blocks.items():
                into = total.get(block)
                total[block] = row if into is None else list(map(add, into, row))
        return total

    def signs_of(self, metric: str, length: int) -> Blocks:
        """Block → [3], for each ``length`` pairs."""
        return _signs(self.pairs_of(harms.by(metric, length)))

    def flips(self) -> tuple[dict[str, Blocks], dict[str, Blocks] | None]:
        """Output → its counts, pair by pair and by blocks; ``None``: those are not counted."""
        signs = {
            f"{output}\0{policy}": _signs(blocks)
            for (_, output, policy), blocks in self._of_metric(harms.by(harms.FLIP, SIGN_LENGTH))
        }
        pairs = {
            f"{output}\0{policy}": blocks
            for (_, output, policy), blocks in self._of_metric(harms.FLIP)
        }
        return pairs, signs or None

    def classes(self) -> tuple[dict[str, Blocks], dict[str, Blocks] | None]:
        """Class → its counts, pair by pair and by blocks."""
        pairs: dict[str, Blocks] = {}
        signs: dict[str, Blocks] = {}
        for metric in self._by_metric:
            if not metric.startswith(harms.OUTPUT):
                continue
            name = metric.removeprefix(harms.OUTPUT)
            base, _, length = name.rpartition("/")
            for (_, output, _), blocks in self._of_metric(metric):
                if length not in _LENGTHS:
                    pairs[_class(output, name)] = blocks
                elif _LENGTHS[length] == SIGN_LENGTH:
                    signs[_class(output, base)] = _signs(blocks)
        return pairs, signs or None


def _signs(blocks: Blocks) -> Blocks:
    """In the order of ``SIGN_CELLS``: of blocks there is none in which both were the worse."""
    return {block: row[1:] for block, row in blocks.items()}


def _class(output: str, name: str) -> str:
    return f"{name} of {output}" if output else name


def _error(read: _Reader, harm: Harm, _: CalibrationView) -> Judged:
    signs = read.signs_of(harms.ERROR, SIGN_LENGTH)
    return checks.judge_error(harm, read.pairs_of(harms.ERROR), signs)


def _accuracy(read: _Reader, harm: Harm, _: CalibrationView) -> Judged:
    signs = read.signs_of(harms.ACCURACY, SIGN_LENGTH)
    return checks.judge_accuracy(harm, read.pairs_of(harms.ACCURACY), signs)


def _latency(read: _Reader, harm: Harm, calibrated: CalibrationView) -> Judged:
    block = calibrated.block if calibrated.ok else 0
    return _judge_times(read, harm, block)


def _judge_times(read: _Reader, harm: Harm, block: int) -> Judged:
    length = block or max(harms.BLOCK_LENGTHS)
    cells = _stacked([read.pairs_of(metric) for metric in latency.METRICS], len(CELLS))
    signs = _stacked(
        [read.signs_of(metric, length) for metric in latency.METRICS], len(SIGN_CELLS)
    )  # fmt: skip
    return checks.judge_latency(harm, cells, {length: signs}, block)


def _stacked(metrics: list[Blocks], width: int) -> dict[int, list[list[float]]]:
    """Of each metric block → counts; together block → counts of all metrics."""
    none = [0.0] * width
    numbers = sorted({block for blocks in metrics for block in blocks})
    return {number: [blocks.get(number, none) for blocks in metrics] for number in numbers}


def _flips(read: _Reader, harm: Harm, _: CalibrationView) -> Judged:
    return checks.judge_flips(harm, *read.flips())


def _output(read: _Reader, harm: Harm, _: CalibrationView) -> Judged:
    return checks.judge_output(harm, *read.classes())


_JUDGES: Mapping[str, Callable[[_Reader, Harm, CalibrationView], Judged]] = {
    harms.ERROR: _error, "latency": _latency, harms.FLIP: _flips, harms.ACCURACY: _accuracy,
    "output": _output,
}  # fmt: skip


def _terms(config: ModelConfig, harm: Harm, calibrated: CalibrationView) -> str:
    if harm.name == "latency":
        block = calibrated.block if calibrated.ok else 0
        return f"margin {config.validation.latency_margin:g}, blocks of {block}"
    return f"margin {harm.margin:g}, budget {harm.budget}"


# --- what holds a harm back -----------------------------------------------------------------------


def _calibration(settings: RollbackConfig, given: Calibration) -> CalibrationView:
    """Whether times may be believed: enough pairs, no difference where there is none, and noise
    that a block is long enough for."""
    pairs, wanted = int(given.cells.get("pairs", 0)), settings.calibration.pairs
    block, why = _block_wanted(given, wanted)
    policies = {series[2] for series in given.counts if series[0] in latency.METRICS}
    log_e = 0.0
    for policy in policies:  # of one pair there is one
        read = _Reader(replace(_ANY, identity=policy), given.counts)
        log_e = _judge_times(read, Harm("latency"), block).log_e
    view = CalibrationView(pairs, wanted, block, log_e, ok=False, text="")
    if pairs < wanted:
        said = f"{pairs} of {wanted} pairs of the previous version beside itself"
        if settings.calibration.rate == 0:
            said += "; rollback.calibration.rate is 0, so no more will come"
        return replace(view, text=said)
    if not block:
        return replace(view, text=why)
    if log_e >= -math.log(_CLEAN_ALPHA):
        return replace(
            view,
            text=f"the previous version looks slower than itself ({checks.odds(log_e)}): times "
            "are not to be believed here",
        )
    return replace(view, ok=True, text=f"clean over {pairs} pairs, blocks of {block}")


_ANY = Pair("", "", "", "versions")


def _block_wanted(given: Calibration, wanted: int) -> tuple[int, str]:
    """The length of a block that the noise asks for, of all lives and replicas together; 0: none,
    and why."""
    noise = Autocorrelation()
    with suppress(ValueError):
        noise = Autocorrelation.from_cells(given.noise)
    if noise.values >= wanted:
        pooled = harms.BLOCK_LENGTHS[:1] if given.pooled else ()
        block = noise.block(harms.BLOCK_LENGTHS, pooled)
    elif "block" in given.cells and not given.pooled:
        block = int(given.cells["block"])
    else:
        return 0, f"how times hang together is known of {noise.values} of {wanted} pairs"
    longest = max(harms.BLOCK_LENGTHS)
    return block, f"times hang together for longer than blocks of {longest} pairs can undo"


def _held(
    settings: RollbackConfig,
    harm: Harm,
    judged: Judged,
    calibrated: CalibrationView,
    budget: float | None,
) -> str:
    """Why it only alerts; empty: it may act."""
    name = harm.name
    if not harm.may_act:
        return "output drift only alerts" if name == "output" else f"rollback.{name}.act is off"
    if name in {harms.FLIP, "output"} and budget is None:
        return (
            "a version that was trained anew is meant to differ, and how much is not known of this "
            "pair: record it with sidecar validate, or set rollback.flip.budget"
        )
    if name == "latency" and not calibrated.ok:
        return f"calibration: {calibrated.text}"
    if judged.pairs < settings.min_pairs:
        return f"{judged.pairs} of {settings.min_pairs} pairs"
    return ""
