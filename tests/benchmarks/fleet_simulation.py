"""32 replicas against one with all the traffic: delays, and false alarms, with what ships.

Pairs are simulated; who sees which, what is handed over and joined is in ``fleet_runs.py``. Looked
at every 10 s, as it ships. ``rounds`` times 100 runs, each ten with times and places of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np

from sidecar.config_rollback import RollbackConfig
from sidecar.monitor import harms
from sidecar.monitor.rounds import SPREAD
from sidecar.monitor.version_thresholds import OWN_FROM
from tests.benchmarks import fleet_postgres
from tests.benchmarks import rollback_traffic as traffic
from tests.benchmarks.fleet_runs import SYNC_S, Pairs, alone, fleet, joined_s, log_es
from tests.benchmarks.rollback_simulation import ALPHA, BUDGET, FLIPPING, shipped_thresholds
from tests.benchmarks.tools import Row
from validators.sequential.autocorrelation import Autocorrelation
from validators.sequential.paired import logmeanexp

REPLICAS = 32
#: Pairs a second, of all replicas together.
RATES = (1, 10, 100)
RUNS, TOGETHER = 100, 10
#: Runs of what is looked at for false alarms: they may have times and places in common.
ALARMS_TOGETHER = 50
PAIRS = 20_000
INTERVAL_S = RollbackConfig().interval_s
#: Times of the previous version that each replica has seen before the change, which thresholds are
#: taken from.
PAST = 2000
SHORT_PAST = 200
#: Values that a calibration has: as many as it waits for, and those of a day or so.
CALIBRATIONS = (RollbackConfig().calibration.pairs, 10_000)

Rng = np.random.Generator
Draw = Callable[[Rng, "Arrivals", int], traffic.Sides]


class Arrivals:
    """When pairs are seen, and by whom."""

    def __init__(self, rng: Rng, count: int, rate: float, look: float | None = None) -> None:
        """``look``: when the first one is, as a share of the interval; ``None``: at random."""
        self.times_s = np.cumsum(rng.exponential(1 / rate, count))
        self.replica = rng.integers(0, REPLICAS, count)
        self.phases_s = SPREAD * SYNC_S * rng.random(REPLICAS)
        first_s = (rng.random() if look is None else look) * INTERVAL_S
        self.looks_s = np.arange(first_s, self.times_s[-1] + 5, INTERVAL_S)

    def order(self) -> None:
        """By time, after some were moved."""
        order = np.argsort(self.times_s, kind="stable")
        self.times_s, self.replica = self.times_s[order], self.replica[order]

    def pairs(self, sides: traffic.Sides) -> Pairs:
        """With what happened, [runs, pairs] or [runs, pairs, bets]: new version, previous one."""
        only = [side if side.ndim == 3 else side[..., None] for side in sides]
        return Pairs(self.times_s, self.replica, *only)


def fleet_simulation(rounds: int) -> list[Row]:
    """All of it; about two minutes a round."""
    rows = delays(np.random.default_rng(61), rounds)
    rows += false_alarms(np.random.default_rng(62), rounds)
    return [*rows, *fleet_postgres.same_as_simulated()]


# --- something changed ----------------------------------------------------------------------------


def errors(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
    """0.1 → 1 %, shared."""
    shape = (runs, len(at.times_s))
    both, anew = rng.random(shape) < 0.001, rng.random(shape) < 0.009
    return anew & ~both, np.zeros(shape, np.bool_)


def flips(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
    shape = (runs, len(at.times_s))
    return rng.random(shape) < FLIPPING, np.zeros(shape, np.bool_)


def accuracy(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
    """95 → 93 %."""
    drawn = rng.random((runs, len(at.times_s)))
    new, previous = drawn < 0.07, (drawn < 0.04) | (drawn > 0.99)
    return new & ~previous, previous & ~new


def timed(
    slower: Callable[..., traffic.Sides], earlier: int
) -> Callable[[Rng, Arrivals, int], tuple]:
    """The same times for one replica, by thresholds of all, and for many: each by its own, once it
    has seen enough, and before by those of all together."""

    def draw(rng: Rng, at: Arrivals, runs: int) -> tuple[traffic.Sides, traffic.Sides]:
        past = earlier * REPLICAS
        sides = slower(rng, runs, past + len(at.times_s), past)
        together = [only[:, past:] for only in traffic.bets(*sides, 50)]
        each = [only[:, past:] for only in traffic.pooled_bets(*sides, 50 * REPLICAS)]
        place = np.concatenate([np.arange(past) % REPLICAS, at.replica])
        for replica in range(REPLICAS):
            mine = np.flatnonzero(place == replica)
            found = traffic.bets(*(side[:, mine] for side in sides), 50)
            first = max(earlier, OWN_FROM)
            for into, only in zip(each, found, strict=True):
                into[:, mine[first:] - past] = only[:, first:]
        return (together[0], together[1]), (each[0], each[1])

    return draw


def same(draw: Draw) -> Callable[[Rng, Arrivals, int], tuple]:
    def both(rng: Rng, at: Arrivals, runs: int) -> tuple[traffic.Sides, traffic.Sides]:
        sides = draw(rng, at, runs)
        return sides, sides

    return both


#: Change → (its harm, pairs that are enough, budget, what happens in one replica and in many).
CHANGES = {
    "flips 0.1 → 1 %": ("flip", 3000, BUDGET, same(flips)),
    "errors 0.1 → 1 %, shared": ("error", 6000, None, same(errors)),
    "p99 + 20 %, tail only": ("latency", 10_000, None, timed(traffic.tail_slower, PAST)),
    "p99 + 20 %, tail only, after 200 pairs of each": (
        "latency",
        10_000,
        None,
        timed(traffic.tail_slower, SHORT_PAST),
    ),
    "all latency × 1.2": ("latency", 3000, None, timed(traffic.all_slower, SHORT_PAST)),
    "accuracy 95 → 93 %": ("accuracy", 9000, None, same(accuracy)),
}


def delays(rng: Rng, rounds: int) -> list[Row]:
    """Pairs of all replicas until the alarm, over those of one replica with all of them."""
    rows, thresholds = [], shipped_thresholds()
    for what, (harm, enough, budget, draw) in CHANGES.items():
        for rate in RATES:
            found: dict[tuple[str, str], list[np.ndarray]] = {}
            levels = {level: thresholds[level][harm] for level in ("alert", "act")}
            draws = rounds * RUNS // TOGETHER
            for number in range(draws):
                look = (number + rng.random()) / draws  # at a hundred pairs a second much of it
                at = Arrivals(rng, max(enough, int(30 * rate)), rate, look)
                one, many = draw(rng, at, TOGETHER)
                metric = "slow" if harm == "latency" else harm
                for way, log_e, looks_s in _ways(at, one, many, budget, levels["act"], metric):
                    for level, threshold in levels.items():
                        first = _first(at, looks_s, log_e, threshold)
                        found.setdefault((level, way), []).append(first)
            for level in levels:
                by_way = {way: np.concatenate(parts)
                          for (of, way), parts in found.items() if of == level}  # fmt: skip
                rows.append(_delay_row(f"{what}, {rate} pairs/s, {level}", by_way))
    return [*rows, *averaged(rng, rounds)]


def _ways(
    at: Arrivals, one: traffic.Sides, many: traffic.Sides, budget: float | None, until: float,
    metric: str,
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:  # fmt: skip
    """Each with its log E [runs, looks], and when it was looked."""
    alike = {"budget": budget, "until": until}
    single, several = at.pairs(one), at.pairs(many)
    yield "one", log_es(single, alone(single), at.looks_s, **alike), at.looks_s
    looks_s, joined = joined_s(at.looks_s), fleet(several, at.phases_s, metric=metric)
    yield "32", log_es(several, joined, looks_s, **alike), looks_s
    if until == math.inf:
        return
    own = fleet(several, at.phases_s, pooled=False)
    yield "32, blocks not joined", log_es(several, own, looks_s, **alike), looks_s


def _first(at: Arrivals, looks_s: np.ndarray, log_e: np.ndarray, threshold: float) -> np.ndarray:
    """Pairs that were seen by the look with the first alarm; all, where there is none."""
    seen = np.searchsorted(at.times_s, looks_s, side="right")
    alarms = log_e >= threshold
    return np.where(alarms.any(axis=1), seen[alarms.argmax(axis=1)], len(at.times_s))


def _delay_row(what: str, found: dict[str, np.ndarray]) -> Row:
    means = {way: float(first.mean()) for way, first in found.items()}
    medians = {way: float(np.median(first)) for way, first in found.items()}
    ratio, middle = means["32"] / means["one"], medians["32"] / medians["one"]
    unjoined = means["32, blocks not joined"] / means["one"]
    return Row(
        f"32 replicas over one: {what}", "≤ 1.1", f"{ratio:.2f}", ratio <= 1.1,
        f"mean {means['32']:.0f} pairs against {means['one']:.0f}; of medians {middle:.2f}; "
        f"blocks not joined {unjoined:.2f}; {len(found['one'])} runs",
    )  # fmt: skip


def averaged(rng: Rng, rounds: int) -> list[Row]:
    """Each replica with evidence of its own, and the mean of it: valid, and slow."""
    threshold, firsts = shipped_thresholds()["alert"]["error"], {"one": [], "mean": []}
    for _ in range(max(1, rounds // 2)):
        at = Arrivals(rng, 60_000, 100)
        pairs = at.pairs(errors(rng, at, TOGETHER))
        log_e = log_es(pairs, alone(pairs), at.looks_s, until=threshold)
        firsts["one"].append(_first(at, at.looks_s, log_e, threshold))
        each = []
        for replica in range(REPLICAS):
            mine = pairs.of(replica)
            own = Pairs(pairs.times_s[mine], pairs.replica[mine], pairs.new_only[:, mine],
                        pairs.previous_only[:, mine])  # fmt: skip
            each.append(log_es(own, alone(own), at.looks_s))
        log_e = logmeanexp(np.stack(each, axis=-1))
        firsts["mean"].append(_first(at, at.looks_s, log_e, threshold))
    one, mean = (float(np.concatenate(parts).mean()) for parts in firsts.values())
    return [
        Row("the mean of 32 replicas' evidence, over one: errors 0.1 → 1 %, shared", "shown",
            f"{mean / one:.1f}", True, f"mean {mean:.0f} pairs against {one:.0f}, 100 pairs/s")
    ]  # fmt: skip


# --- nothing changed ------------------------------------------------------------------------------


def independent(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
    return _only(traffic.errors(rng, runs, len(at.times_s)))


def incidents(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
    """That hit both versions, in all replicas at the same time."""
    return _only(traffic.incidents(rng, runs, len(at.times_s)))


def repeats(*, everywhere: bool) -> Draw:
    """Every event three times within 50 ms: in replicas at random, or in the same one."""

    def draw(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
        sides = traffic.repeated(traffic.errors(rng, runs, len(at.times_s)))
        return _only(_moved(rng, at, sides, everywhere=everywhere))

    return draw


def repeated_flips(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
    flipped = rng.random((runs, len(at.times_s))) < BUDGET
    sides = traffic.repeated((flipped, np.zeros_like(flipped)))
    return _moved(rng, at, sides, everywhere=True)


def _moved(rng: Rng, at: Arrivals, sides: traffic.Sides, *, everywhere: bool) -> traffic.Sides:
    count = len(at.times_s)
    first = np.arange(count) // 3 * 3
    at.times_s = at.times_s[first] + rng.random(count) * 0.05 * (first < np.arange(count))
    if not everywhere:
        at.replica = at.replica[first]
    order = np.argsort(at.times_s, kind="stable")
    at.order()
    return sides[0][:, order], sides[1][:, order]


def at_budget(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
    flipped = rng.random((runs, len(at.times_s))) < BUDGET
    return flipped, np.zeros_like(flipped)


def own_bursts(length: int) -> Draw:
    """Each version has bursts of its own, in all replicas at the same time."""

    def draw(rng: Rng, at: Arrivals, runs: int) -> traffic.Sides:
        return _only(traffic.own_bursts(rng, runs, len(at.times_s), length))

    return draw


def _only(sides: traffic.Sides) -> traffic.Sides:
    new, previous = sides
    return new & ~previous, previous & ~new


#: What → (budget, what happens, whether it must keep α).
SCENES: dict[str, tuple[float | None, Draw, bool]] = {
    "errors, 1 % of each, independent": (None, independent, True),
    "errors, incidents in all replicas that hit both versions": (None, incidents, True),
    "errors, every event three times, in any replicas": (None, repeats(everywhere=True), True),
    "errors, every event three times, in one replica": (None, repeats(everywhere=False), True),
    "flips at the budget": (BUDGET, at_budget, True),
    "flips, every event three times, in any replicas": (BUDGET, repeated_flips, True),
    "errors, bursts of 10 of each version, in all replicas": (None, own_bursts(10), False),
}


def false_alarms(rng: Rng, rounds: int) -> list[Row]:
    rows, threshold = [], -math.log(ALPHA)
    for what, (budget, draw, must) in SCENES.items():
        for rate in (10, 100):
            found: dict[str, list[np.ndarray]] = {}
            for _ in range(2 * rounds * RUNS // ALARMS_TOGETHER):
                at = Arrivals(rng, PAIRS, rate)
                sides = draw(rng, at, ALARMS_TOGETHER)
                metric = "error" if budget is None else "flip"
                for way, log_e, _ in _ways(at, sides, sides, budget, math.inf, metric):
                    found.setdefault(way, []).append((log_e >= threshold).any(axis=1))
            rows.append(_alarm_row(f"{what}, {rate} pairs/s", found, must))
    return rows + [row for scene in TIMES for row in false_times(rng, rounds, *scene)]


def _alarm_row(what: str, found: dict[str, list[np.ndarray]], must: bool, more: str = "") -> Row:
    shares = {way: float(np.concatenate(parts).mean()) for way, parts in found.items()}
    runs = len(np.concatenate(found["32"]))
    beside = ", ".join(f"{way} {share:.1%}" for way, share in shares.items() if way != "32")
    detail = "; ".join(part for part in (beside, more, f"{runs} runs") if part)
    ships = shares["32"]
    target = "≤ 5 %" if must else "report"
    return Row(f"false alarms of 32: {what}", target, f"{ships:.1%}", not must or ships <= ALPHA,
               detail)  # fmt: skip


#: What, ρ, where the noise is, whether it must keep α.
TIMES = (
    ("latency, white noise", 0.0, "shared", True),
    ("latency, AR(1) 0.9 shared by versions and replicas", 0.9, "shared", True),
    ("latency, AR(1) 0.5 of each version in each replica", 0.5, "each", True),
    ("latency, AR(1) 0.9 of each version in each replica", 0.9, "each", True),
    ("latency, AR(1) 0.9 of each version, the same in all replicas", 0.9, "version", False),
)


def false_times(rng: Rng, rounds: int, what: str, rho: float, where: str, must: bool) -> list[Row]:
    """With the blocks that each run's own calibration asks for, after few pairs and after many."""
    found: dict[int, dict[str, list[np.ndarray]]] = {n: {} for n in CALIBRATIONS}
    chosen: dict[int, list[int]] = {n: [] for n in CALIBRATIONS}
    together = 25
    for _ in range(2 * rounds * RUNS // (4 * together)):
        at = Arrivals(rng, PAIRS, 10)
        pairs = at.pairs(_noisy(rng, at, together, rho, where))
        known = {n: fleet(pairs, at.phases_s, metric="slow", pooled=n == 20, length=n)
                 for n in harms.BLOCK_LENGTHS}  # fmt: skip
        lengths = {n: log_es(pairs, each, at.looks_s) for n, each in known.items()}
        hit = {n: (log_e >= -math.log(ALPHA)).any(axis=1) for n, log_e in lengths.items()}
        for values in CALIBRATIONS:
            asked = [calibrate(rng, rho if where == "each" else 0.0, values)
                     for _ in range(together if values < 1000 else 2)]  # fmt: skip
            chosen[values] += asked
            lengths_of = np.resize([n or max(harms.BLOCK_LENGTHS) for n in asked], together)
            ships = np.array([hit[n][run] for run, n in enumerate(lengths_of.tolist())])
            found[values].setdefault("32", []).append(ships)
            found[values].setdefault("blocks of 20 joined", []).append(hit[20])
    rows = []
    for values, ways in found.items():
        shares = [f"{n or 'none'}: {chosen[values].count(n) / len(chosen[values]):.0%}"
                  for n in (*harms.BLOCK_LENGTHS, 0) if n in chosen[values]]  # fmt: skip
        named = f"{what}, calibrated by {values} pairs"
        rows.append(_alarm_row(named, ways, must, f"blocks asked for {', '.join(shares)}"))
    return rows


def _noisy(rng: Rng, at: Arrivals, runs: int, rho: float, where: str) -> traffic.Sides:
    if where != "each":
        sides = traffic.times(rng, runs, len(at.times_s), rho=rho, shared=where == "shared")
        return traffic.bets(*sides, 200)
    only = [np.zeros((runs, len(at.times_s), 5), np.bool_) for _ in range(2)]
    for replica in range(REPLICAS):
        mine = np.flatnonzero(at.replica == replica)
        sides = traffic.times(rng, runs, len(mine), rho=rho, shared=False)
        for into, found in zip(only, traffic.bets(*sides, 50), strict=True):
            into[:, mine] = found
    return only[0], only[1]


def calibrate(rng: Rng, rho: float, values: int) -> int:
    """The length that the noise of all replicas together asks for, one pair in ten run twice."""
    together = Autocorrelation()
    each = values // REPLICAS + 1
    for _ in range(REPLICAS):
        count = each * 10
        one, other = traffic.times(rng, 1, count, rho=rho, shared=False)
        noise = Autocorrelation()
        at = np.sort(rng.choice(count, each, replace=False))
        noise.add((one - other)[0, at], at)
        together.merge(noise)
    return together.block(harms.BLOCK_LENGTHS, harms.BLOCK_LENGTHS[:1])
