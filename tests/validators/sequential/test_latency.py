"""Five bets on times: what is counted, from which past, and what is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from validators.sequential.latency import (
    METRICS,
    PAST_MIN,
    QUANTILES,
    History,
    cells,
    evidence,
)
from validators.sequential.paired import StartMixture

ALPHA = 0.05
NONE = [math.nan] * 4
N11, N10, N01, N00 = range(4)


def kinds(new, previous, margin=0.0, thresholds=NONE):
    """Which cell one pair adds to, per metric."""
    counts = cells(new, previous, margin, thresholds)
    assert counts.shape == (5, 4)
    assert counts.sum(axis=1).tolist() == [1] * 5
    return dict(zip(METRICS, counts.argmax(axis=1).tolist(), strict=True))


def test_the_sign_is_taken_against_the_margin():
    assert kinds(1.2, 1.0, 0.1)["slow"] == N10
    assert kinds(1.05, 1.0, 0.1)["slow"] == N01
    assert kinds(1.05, 1.0, 0.0)["slow"] == N10
    assert kinds(2.0, 1.0, 1.0)["slow"] == N00  # just at the margin
    assert kinds(math.inf, 1.0, 0.1)["slow"] == N10  # a timeout
    assert kinds(1.0, math.inf, 0.1)["slow"] == N01
    assert kinds(math.inf, math.inf, 0.1)["slow"] == N00


def test_thresholds_tell_the_tails_apart():
    found = kinds(12.0, 6.0, 0.0, [5.0, 8.0, 10.0, 20.0])
    assert found == {
        "slow": N10, "slow_p50": N11, "slow_p90": N10, "slow_p95": N10, "slow_p99": N00,
    }  # fmt: skip
    assert kinds(6.0, 12.0, 0.0, [5.0, 8.0, 10.0, 20.0])["slow_p90"] == N01
    assert kinds(12.0, 6.0, 0.25, [5.0, 8.0, 10.0, 20.0])["slow_p95"] == N00  # granted 12.5


def test_without_a_past_only_the_sign_bets():
    found = kinds(3.0, 1.0)
    assert found.pop("slow") == N10
    assert set(found.values()) == {N00}


def test_many_pairs_are_counted_as_one_by_one():
    rng = np.random.default_rng(40)
    new, previous = rng.lognormal(size=(2, 50))
    thresholds = np.quantile(rng.lognormal(size=300), QUANTILES)
    one_by_one = sum(cells(a, b, 0.1, thresholds) for a, b in zip(new, previous, strict=True))
    assert cells(new, previous, 0.1, thresholds).tolist() == one_by_one.tolist()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: cells(1.0, 1.0, -0.1, NONE), "latency margin"),
        (lambda: cells(1.0, 1.0, math.nan, NONE), "latency margin"),
        (lambda: cells(math.nan, 1.0, 0.1, NONE), "a timeout is infinite"),
        (lambda: cells(1.0, -1.0, 0.1, NONE), "at least 0"),
        (lambda: evidence(np.zeros((4, 5))), "not \\[4, 5\\]"),
    ],
)
def test_what_cannot_be_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


# --- thresholds -----------------------------------------------------------------------------------


def test_thresholds_come_from_the_past_alone():
    history = History()
    for number in range(PAST_MIN):
        assert np.isnan(history.thresholds("b8")).all(), number
        counts = history.count("b8", 5.0, float(number), 0.0)
        assert counts[1:, N00].tolist() == [1] * 4
    known = history.thresholds("b8")
    assert known.tolist() == np.quantile(np.arange(PAST_MIN), QUANTILES, method="higher").tolist()
    counts = history.count("b8", 1e6, 1e6, 0.0)  # judged by thresholds that do not know it
    assert counts[1:, N11].tolist() == [1] * 4
    assert np.isnan(history.thresholds("b1")).all()


def test_old_times_leave_the_window_and_old_keys_the_table():
    history = History(window=200, keys_max=2)
    for _ in range(500):
        history.add("a", 1.0)
    for _ in range(200):
        history.add("a", 7.0)
    assert history.thresholds("a").tolist() == [7.0] * 4
    for key in ("b", "a", "c"):  # "b" was used longest ago
        for _ in range(PAST_MIN):
            history.add(key, 3.0)
    assert np.isnan(history.thresholds("b")).all()
    assert not np.isnan(history.thresholds("a")).any()
    assert not np.isnan(history.thresholds("c")).any()


def test_timeouts_are_times_like_others():
    history = History()
    for number in range(PAST_MIN):
        history.add("a", math.inf if number % 4 == 0 else 1.0)
    assert history.thresholds("a").tolist() == [1.0, math.inf, math.inf, math.inf]
    assert history.count("a", math.inf, math.inf, 0.1)[4].tolist() == [0, 0, 0, 1]


# --- false alarms and delays ----------------------------------------------------------------------


def run(rng, *, looks, every, slow=1.0, tail=1.0, margin=0.0):
    """Pairs until the first alarm (inf: none). Noise is mostly shared by the two of a pair."""
    thresholds = np.quantile(rng.lognormal(0, 0.35, 5000), QUANTILES)
    total = np.zeros((5, 4))
    for look in range(1, looks + 1):
        shared = rng.lognormal(0, 0.3, every)
        previous = shared * rng.lognormal(0, 0.18, every)
        new = shared * rng.lognormal(0, 0.18, every) * slow
        total += cells(np.where(new > thresholds[2], new * tail, new), previous, margin, thresholds)
        if evidence(total) >= -math.log(ALPHA):
            return look * every
    return math.inf


def test_the_same_version_seldom_alarms():
    rng = np.random.default_rng(41)
    found = [run(rng, looks=40, every=100) for _ in range(150)]
    assert np.isfinite(found).mean() <= ALPHA
    # Slower within the margin is as good as the same.
    found = [run(rng, looks=40, every=100, slow=1.1, margin=0.1) for _ in range(100)]
    assert np.isfinite(found).mean() <= ALPHA


def test_a_change_of_everything_is_seen_after_dozens_of_pairs():
    rng = np.random.default_rng(42)
    found = [run(rng, looks=200, every=5, slow=1.2) for _ in range(40)]
    assert np.mean(found) < 100  # rollback.md: 47


def test_a_change_of_the_tail_alone_is_seen():
    rng = np.random.default_rng(43)
    found = [run(rng, looks=100, every=100, tail=1.2) for _ in range(20)]
    assert np.mean(found) < 4000  # rollback.md: 1004, with tails of another shape


def test_fresh_starts_take_the_five_bets_together():
    rng = np.random.default_rng(44)
    blocks = {n: rng.multinomial(1000, [0.1, 0.2, 0.3, 0.4], 5) for n in range(30)}
    for number in (30, 31):
        blocks[number] = rng.multinomial(1000, [0.1, 0.3, 0.2, 0.4], 5)
    mixture = StartMixture.of_blocks(blocks)
    together = np.sum(list(blocks.values()), axis=0)
    assert float(evidence(together)) < -math.log(ALPHA) < mixture.log_e(evidence)
