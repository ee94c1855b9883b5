"""Rollback checks on simulated traffic: false alarms, delays over the bound, and what peers do.

Everything is judged by the checks that ship (``twin.py`` gives their evidence for many runs; a test
holds it to them), looked at every 100 requests for 20,000 unless said. ``rounds`` times 400 runs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from sidecar.config_rollback import RollbackConfig
from tests.benchmarks import rollback_peers as peers
from tests.benchmarks import rollback_traffic as traffic
from tests.benchmarks.tools import Row
from tests.validators.sequential import twin
from validators.sequential import checks, latency
from validators.sequential.autocorrelation import Autocorrelation
from validators.sequential.paired import detection_bound, divergence

RUNS_PER_ROUND = 400
CHUNK = 200
PAIRS, EVERY, LATE = 20_000, 100, 10_000
ALPHA = 0.05
BUDGET, FLIPPING = 0.001, 0.01
LENGTHS = (20, 100, 500)
#: Pairs on which the previous version ran twice, and the share of pairs.
CALIBRATION, CALIBRATION_RATE = RollbackConfig().calibration.pairs, 0.1
#: Runs of what is looked at at every request.
DELAY_RUNS = 200

Rng = np.random.Generator
#: Runs → log E at each look, or a dict of several.
Log = np.ndarray


def rollback_simulation(rounds: int) -> list[Row]:
    """All of it; about a minute a round on one core."""
    parts = (
        false_error_alarms,
        false_flip_alarms,
        false_latency_alarms,
        steady_against_bursts,
        delays,
        late_changes,
        beside_peers,
    )
    return [row for part in parts for row in part(seeded(part.__name__), rounds)] + [cost()]


def seeded(part: str) -> Rng:
    """Each part draws from a stream of its own: alone it gives the same figures."""
    return np.random.default_rng(list(part.encode()))


# --- the checks, for many runs --------------------------------------------------------------------


def paired(sides: traffic.Sides, every: int, begin: int = 0) -> dict[str, Log]:
    """``judge_error`` and ``judge_accuracy``: both tests, and the lesser, which counts."""
    new, previous = sides
    only = (new & ~previous)[..., None], (previous & ~new)[..., None]
    pairs = evidence(*only, every, begin)
    blocks = evidence(*twin.signs(*only, checks.SIGN_LENGTH), every, begin)
    return {"pairs": pairs, "blocks": blocks, "ships": np.minimum(pairs, blocks)}


def evidence(new_only: np.ndarray, previous_only: np.ndarray, every: int, begin: int = 0) -> Log:
    counts = (twin.between_looks(only, every) for only in (new_only, previous_only))
    return twin.mixed(*counts, every, begin)


def timed(
    sides: traffic.Sides, every: int, block: int = 20, renew: int = 200, begin: int = 0
) -> dict[str, Log]:
    """``judge_latency`` at a block length; ``begin``: earlier pairs that only give thresholds."""
    only = traffic.bets(*sides, renew)
    only = only[0][:, begin:], only[1][:, begin:]
    pairs = evidence(*only, every)
    blocks = evidence(*twin.signs(*only, block), every)
    return {"pairs": pairs, "blocks": blocks, "ships": np.minimum(pairs, blocks)}


def flipped(flips: np.ndarray, every: int) -> dict[str, Log]:
    """``judge_flips`` of one output."""
    by_look = twin.between_looks(flips, every)
    pairs = twin.budgeted(by_look, every, every, BUDGET)
    length = checks.SIGN_LENGTH
    runs, count = flips.shape
    any_flip = np.zeros_like(flips)
    any_flip[:, length - 1 :: length] = flips.reshape(runs, count // length, length).any(axis=2)
    if every % length:  # blocks end at looks of their own
        blocks = twin.budgeted(twin.between_looks(any_flip, length), 1, length, length * BUDGET)
        held = np.concatenate([np.zeros((runs, 1)), blocks], axis=1)
        blocks = held[:, np.arange(every, count + 1, every) // length]
    else:
        by_block = twin.between_looks(any_flip, every)
        blocks = twin.budgeted(by_block, every // length, every, length * BUDGET)
    return {"pairs": pairs, "blocks": blocks, "ships": blocks}


# --- nothing changed ------------------------------------------------------------------------------


def share_of_alarms(
    make: Callable[[int], dict[str, Log]], rounds: int, threshold: float
) -> dict[str, float]:
    """Shares of runs with an alarm at any look, in chunks that fit into memory."""
    found: dict[str, list[float]] = {}
    for _ in range(rounds * RUNS_PER_ROUND // CHUNK):
        for name, log_e in make(CHUNK).items():
            found.setdefault(name, []).append(float((log_e >= threshold).any(axis=1).mean()))
    return {name: float(np.mean(shares)) for name, shares in found.items()}


def alarm_row(what: str, found: dict[str, float], rounds: int, detail: str = "") -> Row:
    alone = f"pair by pair {found['pairs']:.1%}, by blocks {found['blocks']:.1%}"
    runs = f"{rounds * RUNS_PER_ROUND} runs, α = {ALPHA:g} on this check alone"
    parts = "; ".join(part for part in (alone, detail, runs) if part)
    ships = found["ships"]
    return Row(f"false alarms: {what}", "≤ 5 %", f"{ships:.1%}", ships <= ALPHA, parts)


def false_error_alarms(rng: Rng, rounds: int) -> list[Row]:
    threshold = -math.log(ALPHA)
    scenes = {
        "errors, 1 % of each, independent": lambda runs: traffic.errors(rng, runs, PAIRS),
        "errors, incidents that hit both": lambda runs: traffic.incidents(rng, runs, PAIRS),
        "errors, repeats ×3 without ids": lambda runs: traffic.repeated(
            traffic.errors(rng, runs, PAIRS)
        ),
    }
    rows = [
        alarm_row(what, share_of_alarms(lambda n, d=draw: paired(d(n), EVERY), rounds, threshold),
                  rounds)
        for what, draw in scenes.items()
    ]  # fmt: skip
    beyond = {"bursts of 10, each version its own": 10, "bursts of 50, each version its own": 50}
    for what, length in beyond.items():
        found = share_of_alarms(
            lambda n, mean=length: paired(traffic.own_bursts(rng, n, PAIRS, mean), EVERY),
            rounds,
            threshold,
        )
        row = alarm_row(f"errors, {what}", found, rounds, "beyond the two hypotheses")
        row.target, row.met = "report", True
        rows.append(row)
    return rows


def false_flip_alarms(rng: Rng, rounds: int) -> list[Row]:
    def flips(runs: int) -> np.ndarray:
        return rng.random((runs, PAIRS)) < BUDGET

    def clustered(runs: int) -> np.ndarray:
        return traffic.repeated((flips(runs), flips(runs)))[0]

    rows = []
    for what, draw in (("flips at the budget", flips), ("flips, repeats ×3", clustered)):
        found = share_of_alarms(lambda n, d=draw: flipped(d(n), EVERY), rounds, -math.log(ALPHA))
        rows.append(alarm_row(what, found, rounds))
    return rows


def false_latency_alarms(rng: Rng, rounds: int) -> list[Row]:
    rows = []
    for what, rho, shared in (
        ("latency, independent", 0.0, True),
        ("latency, AR(1) 0.5 shared", 0.5, True),
        ("latency, AR(1) 0.9 shared", 0.9, True),
        ("latency, AR(1) 0.5 of each version", 0.5, False),
        ("latency, AR(1) 0.9 of each version", 0.9, False),
    ):
        chosen: list[int] = []
        found = share_of_alarms(
            lambda n, r=rho, s=shared, c=chosen: calibrated(rng, n, r, s, c),
            rounds,
            -math.log(ALPHA),
        )
        lengths = ", ".join(
            f"{length or 'none'}: {chosen.count(length) / len(chosen):.0%}"
            for length in (*LENGTHS, 0)
            if length in chosen
        )
        rows.append(alarm_row(what, found, rounds, f"blocks chosen {lengths}"))
    return rows


def calibrated(rng: Rng, runs: int, rho: float, shared: bool, chosen: list[int]) -> dict[str, Log]:
    """Each run with the block that its own calibration gave."""
    lengths = np.array([calibrate(rng, rho, shared) for _ in range(runs)])
    chosen += lengths.tolist()
    only = traffic.bets(*traffic.times(rng, runs, PAIRS, rho=rho, shared=shared), 200)
    pairs = evidence(*only, EVERY)
    blocks = np.empty_like(pairs)
    for length in LENGTHS:
        # Where none is long enough the longest is looked at, for alerts alone.
        these = lengths == length if length != LENGTHS[-1] else (lengths == length) | (lengths == 0)
        if these.any():
            signs = twin.signs(only[0][these], only[1][these], length)
            blocks[these] = evidence(*signs, EVERY)
    return {"pairs": pairs, "blocks": blocks, "ships": np.minimum(pairs, blocks)}


def calibrate(rng: Rng, rho: float, shared: bool) -> int:
    """Previous against previous, on one pair in ten."""
    count = int(CALIBRATION / CALIBRATION_RATE)
    one, other = traffic.times(rng, 1, count, rho=rho, shared=shared)
    at = np.flatnonzero(rng.random(count) < CALIBRATION_RATE)
    noise = Autocorrelation()
    noise.add((one - other)[0, at], at)
    return noise.block(LENGTHS)


def steady_against_bursts(rng: Rng, rounds: int) -> list[Row]:
    threshold = shipped_thresholds()["act"]["error"]
    rows = []
    for length in (2, 5, 20):
        found = share_of_alarms(
            lambda n, burst=length: paired(traffic.steady_and_bursty(rng, n, PAIRS, burst), EVERY),
            rounds,
            threshold,
        )
        row = alarm_row(f"that act: 1 % steadily, previous in bursts of {length}", found, rounds)
        row.detail = row.detail.replace(
            f"α = {ALPHA:g} on this check alone", "α and weight that ship for acting"
        )
        rows.append(row)
    return rows


# --- something changed ----------------------------------------------------------------------------


def shipped_harms() -> list[checks.Harm]:
    """As configured by default, with labels and a budget at hand."""
    config = RollbackConfig()
    return [
        checks.Harm("error", config.error.weight, config.error.margin, may_act=config.error.act),
        checks.Harm("latency", config.latency.weight, may_act=config.latency.act),
        checks.Harm("flip", config.flip.weight, budget=BUDGET, may_act=config.flip.act),
        checks.Harm("accuracy", config.accuracy.weight, config.accuracy.margin),
        checks.Harm("output", config.output.weight, may_act=config.output.act),
    ]


def shipped_thresholds() -> dict[str, dict[str, float]]:
    config, harms = RollbackConfig(), shipped_harms()
    return {
        "alert": checks.thresholds(harms, config.alpha_alert),
        "act": checks.thresholds([harm for harm in harms if harm.may_act], config.alpha_act),
    }


def growths() -> dict[str, float]:
    """Information of one pair, nats: of the change against H, by the best bet of a kind."""
    rng = np.random.default_rng(12)
    found = {
        "error": 0.009 * math.log(2),
        "flip": divergence(FLIPPING, BUDGET),
        "accuracy": best_bet(0.03, 0.01),
    }
    for name, draw in (("tail", traffic.tail_slower), ("slow", traffic.all_slower)):
        new, previous = draw(rng, 50, 20_000)
        bounds = np.quantile(previous, latency.QUANTILES)
        bets = [best_bet((new > previous).mean(), (new < previous).mean())]
        for bound in bounds:
            late = new > bound, previous > bound
            bets.append(best_bet((late[0] & ~late[1]).mean(), (late[1] & ~late[0]).mean()))
        found[name] = max(bets)
    return found


def best_bet(new_only: float, previous_only: float) -> float:
    """max over λ of E log(1 + λD): no test of E[D] ≤ 0 grows faster."""
    stake = (new_only - previous_only) / (new_only + previous_only)
    if stake <= 0:
        return 0.0
    if previous_only == 0:
        return new_only * math.log(2)
    return new_only * math.log1p(stake) + previous_only * math.log1p(-stake)


#: change → (its harm, pairs that are enough, log E of so many runs looked at every so many pairs).
def changes(rng: Rng) -> dict[str, tuple[str, int, Callable[[int, int, int], Log]]]:
    def failing(runs: int, pairs: int, every: int) -> Log:
        both, anew = rng.random((runs, pairs)) < 0.001, rng.random((runs, pairs)) < 0.009
        return paired((both | anew, both), every)["ships"]

    def less_accurate(runs: int, pairs: int, every: int) -> Log:
        drawn = rng.random((runs, pairs))
        return paired((drawn < 0.07, (drawn < 0.04) | (drawn > 0.99)), every)["ships"]

    def flipping(runs: int, pairs: int, every: int) -> Log:
        return flipped(rng.random((runs, pairs)) < FLIPPING, every)["ships"]

    def tail(runs: int, pairs: int, every: int) -> Log:
        return timed(with_past(rng, traffic.tail_slower, runs, pairs), every, begin=1000)["ships"]

    def slow(runs: int, pairs: int, every: int) -> Log:
        return timed(with_past(rng, traffic.all_slower, runs, pairs), every, begin=1000)["ships"]

    return {
        "flips 0.1 → 1 %": ("flip", 3000, flipping),
        "errors 0.1 → 1 %, shared": ("error", 5000, failing),
        "p99 + 20 %, tail only": ("tail", 12_000, tail),
        "all latency × 1.2": ("slow", 2000, slow),
        "accuracy 95 → 93 %": ("accuracy", 8000, less_accurate),
    }


def with_past(rng: Rng, draw: Callable[..., traffic.Sides], runs: int, pairs: int):
    """A thousand earlier pairs without the change: thresholds were known when it came."""
    return draw(rng, runs, pairs + 1000, 1000)


TARGETS = {
    "flips 0.1 → 1 %": (1.6, 1.9),
    "errors 0.1 → 1 %, shared": (1.5, 1.6),
    "p99 + 20 %, tail only": (2.3, 2.5),
}


def delays(rng: Rng, rounds: int) -> list[Row]:
    """Mean delay over the bound, at the thresholds that ship."""
    growth, thresholds, rows = growths(), shipped_thresholds(), []
    for what, (kind, pairs, judge) in changes(rng).items():
        harm = kind if kind in thresholds["alert"] else "latency"
        for place, every in enumerate((1, EVERY)):
            runs = DELAY_RUNS * rounds if every == 1 else RUNS_PER_ROUND * rounds
            log_e = np.concatenate([judge(CHUNK, pairs, every) for _ in range(runs // CHUNK)])
            target = TARGETS.get(what, (None, None))[place]
            for level in ("alert", "act"):
                threshold = thresholds[level][harm]
                bound = detection_bound(growth[kind], math.exp(-threshold))
                found = twin.first(log_e, threshold, every)
                # A run that saw nothing by the end counts as if it had there: the mean is more.
                unseen = int(np.isinf(found).sum())
                mean = float(np.mean(np.minimum(found, pairs)))
                looks = "at every request" if every == 1 else f"every {every}"
                rows.append(
                    Row(
                        f"delay over the bound: {what}, {level}, {looks}",
                        f"≤ {target}" if target else "report",
                        f"{mean / bound:.2f}",
                        not unseen and (target is None or mean / bound <= target),
                        f"{mean:.0f} pairs on average, bound {bound:.0f}, {len(found)} runs"
                        + (f", {unseen} of which saw nothing in {pairs}" if unseen else ""),
                    )
                )
    return rows


def late_changes(rng: Rng, rounds: int) -> list[Row]:
    """A change at request 10,000 against one at 0, at the thresholds that ship for alerts."""

    def failing(runs: int, begin: int) -> Log:
        shape = (runs, begin + 5000)
        both, anew = rng.random(shape) < 0.001, rng.random(shape) < 0.009
        anew[:, :begin] = rng.random((runs, begin)) < 0.0005  # now and then one alone fails
        alone = rng.random(shape) < 0.0005
        return paired((both | anew, both | alone), EVERY)["ships"]

    def flipping(runs: int, begin: int) -> Log:
        rates = np.where(np.arange(begin + 3000) < begin, BUDGET, FLIPPING)
        return flipped(rng.random((runs, begin + 3000)) < rates, EVERY)["ships"]

    def tail(runs: int, begin: int) -> Log:
        sides = traffic.tail_slower(rng, runs, begin + 7000, begin)
        return timed(sides, EVERY)["ships"]

    thresholds, rows = shipped_thresholds()["alert"], []
    for what, harm, draw in (
        ("flips 0.1 → 1 %", "flip", flipping),
        ("errors 0.1 → 1 %", "error", failing),
        ("p99 + 20 %, tail only", "latency", tail),
    ):
        means = []
        for begin in (0, LATE):
            log_e = np.concatenate([draw(CHUNK, begin) for _ in range(rounds)])
            found = twin.first(log_e[:, begin // EVERY :], thresholds[harm], EVERY)
            means.append(float(np.mean(found[np.isfinite(found)])))
            missed = 1 - np.isfinite(found).mean()
        ratio = means[1] / means[0]
        rows.append(
            Row(f"change at request 10,000 against at 0: {what}", "≤ 2.5", f"{ratio:.2f}",
                ratio <= 2.5 and missed < 0.01,
                f"{means[1]:.0f} against {means[0]:.0f} pairs; {rounds * CHUNK} runs, "
                f"{missed:.1%} not seen in the time")
        )  # fmt: skip
    return rows


def beside_peers(rng: Rng, rounds: int) -> list[Row]:
    """The same windows through everybody's rule; ours at α on this check alone."""
    runs = rounds * CHUNK
    threshold = -math.log(ALPHA)

    def alone(rate_new: float, rate_previous: float, pairs: int) -> traffic.Sides:
        return rng.random((runs, pairs)) < rate_new, rng.random((runs, pairs)) < rate_previous

    scenes = {
        "errors 0.1 → 1 %": (lambda r, n: alone(r, 0.001, n), 0.001, 0.01),
        "errors 1 → 2 %": (lambda r, n: alone(r, 0.01, n), 0.01, 0.02),
    }
    rows = []
    for what, (draw, quiet, worse) in scenes.items():
        same, changed = draw(quiet, PAIRS), draw(worse, PAIRS)
        verdicts = {
            "ours": [twin.first(paired(s, EVERY)["ships"], threshold, EVERY)
                     for s in (same, changed)]
        }  # fmt: skip
        for name, rule in peers.RULES.items():
            windows = [[twin.between_looks(side, EVERY) for side in s] for s in (same, changed)]
            verdicts[name] = [peers.first(rule(*both)) for both in windows]
        for name, (falsely, found) in verdicts.items():
            alarms, seen = np.isfinite(falsely).mean(), np.isfinite(found).mean()
            mean = np.mean(found[np.isfinite(found)]) if seen else math.inf
            rows.append(
                Row(f"{what}: {name}", "≤ 5 %" if name == "ours" else "shown",
                    f"{alarms:.1%} false, seen after {mean:.0f}",
                    name != "ours" or alarms <= ALPHA,
                    f"seen in {seen:.0%} of {runs} runs of {PAIRS} requests")
            )  # fmt: skip
    return rows


def cost() -> Row:
    """One check over 50 metric processes: 3 pairs of versions, with all that is counted of them."""
    rng = np.random.default_rng(13)
    blocks = range(PAIRS // 1000)

    def cells(*shape: int) -> dict[int, list[float]]:
        return {block: rng.integers(0, 20, shape).astype(float).tolist() for block in blocks}

    pairs, signs, five = cells(4), cells(3), cells(5, 4)
    five_signs = {length: cells(5, 3) for length in LENGTHS}
    error, slow, flip, right, output = shipped_harms()

    def check() -> None:  # e-processes of each: 2, 2, 10, 1, 4
        for _ in range(3):
            checks.judge_error(error, pairs, signs)
            checks.judge_accuracy(right, pairs, signs)
            checks.judge_latency(slow, five, five_signs, 20)
            checks.judge_flips(flip, {"y": pairs}, {"y": signs})
            checks.judge_output(output, {"0": pairs}, {"0": signs})

    check()
    took = []
    for _ in range(20):
        started = time.thread_time()
        check()
        took.append((time.thread_time() - started) * 1e3)
    took_ms = float(np.median(took))
    detail = "CPU time; 57 processes: three pairs of versions, five harms, 20 blocks of a thousand"
    return Row(
        "one check over 50 metric processes", "≤ 5 ms", f"{took_ms:.1f} ms", took_ms <= 5, detail
    )
