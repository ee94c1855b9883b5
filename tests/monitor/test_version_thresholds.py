"""From which time on a request counts as slow: by own times, or by those of all before."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.monitor.evidence import Evidence
from sidecar.monitor.rows import EvidenceKey, SketchRow
from sidecar.monitor.version_thresholds import OWN_FROM, PREVIOUS_MS, SIZES_MAX, Thresholds
from tests.monitor import making
from validators.sequential.latency import PAST_MIN, QUANTILES
from validators.sketches import LogHistogram

KEY = EvidenceKey("m", "m:2/new", "m:1/old", "", "", "p")
#: Of a histogram's bucket.
NEAR = 0.04


class Counted(Evidence):
    """With what earlier lives or other replicas have seen."""

    def see(self, size: int, times_ms: np.ndarray) -> None:
        sketch = LogHistogram()
        sketch.add(times_ms)
        key = EvidenceKey("m", "m:2/new", "m:1/old", "", f"{PREVIOUS_MS}/{size}", "p")
        self._merge_older(SketchRow(key, "another", sketch.to_plain()))


@pytest.fixture
def clock():
    return making.Clock()


@pytest.fixture
def evidence(clock):
    return Counted("life", clock)


def times(seed: int, count: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).lognormal(2, 0.5, count) * scale


def see(thresholds: Thresholds, times_ms: np.ndarray, size: int = 1) -> None:
    for part in np.array_split(times_ms, max(1, len(times_ms) // 25)):
        thresholds.of(KEY, [size])
        thresholds.add(KEY, [size] * len(part), part)


def test_with_few_own_times_those_of_all_decide(evidence):
    theirs = times(0, 6400)
    evidence.see(1, theirs)
    (found,) = Thresholds(evidence).of(KEY, [1])
    assert found == pytest.approx(np.quantile(theirs, QUANTILES), rel=NEAR)


def test_with_enough_own_times_they_decide_alone(evidence):
    evidence.see(1, times(0, 64_000, scale=100))
    thresholds, own = Thresholds(evidence), times(1, OWN_FROM)
    see(thresholds, own)
    (found,) = thresholds.of(KEY, [1])
    assert found == pytest.approx(np.quantile(own, QUANTILES, method="higher"))


def test_alone_they_are_of_own_times_only(evidence):
    thresholds, own = Thresholds(evidence), times(1, PAST_MIN)
    assert np.isnan(thresholds.of(KEY, [1])).all()
    see(thresholds, own)
    (found,) = thresholds.of(KEY, [1])
    assert found == pytest.approx(np.quantile(own, QUANTILES, method="higher"))


def test_each_size_of_a_batch_has_its_own(evidence):
    evidence.see(1, times(0, 5000))
    evidence.see(8, times(0, 5000, scale=10))
    one, eight, other = Thresholds(evidence).of(KEY, [1, 8, 3])
    assert eight == pytest.approx(10 * one, rel=2 * NEAR)
    assert np.isnan(other).all()


def test_what_all_have_seen_is_summed_again_but_not_at_every_pair(evidence, clock):
    evidence.see(1, times(0, 1000))
    thresholds = Thresholds(evidence)
    before = thresholds.of(KEY, [1])[0]
    evidence.see(1, times(0, 50_000, scale=10))
    thresholds.add(KEY, [1] * 60, times(2, 60))
    assert thresholds.of(KEY, [1])[0] == pytest.approx(before)  # 60 more, but no time has passed
    clock.advance(6)
    assert (thresholds.of(KEY, [1])[0] > 5 * before).all()


def test_what_was_seen_here_is_told_by_size_and_sizes_are_bounded(evidence):
    thresholds = Thresholds(evidence)
    for size in range(1, SIZES_MAX + 5):
        see(thresholds, times(size, 100), size)
    told = [
        evidence.sketch(EvidenceKey("m", "m:2/new", "m:1/old", "", f"{PREVIOUS_MS}/{size}", "p"))
        for size in range(1, SIZES_MAX + 5)
    ]
    assert [one.count for one in told] == [100] * SIZES_MAX + [0] * 4
    # The others are judged by this life's own times.
    assert not np.isnan(thresholds.of(KEY, [SIZES_MAX + 2])).any()


def test_a_timeout_is_longer_than_anything(evidence):
    theirs = np.concatenate([times(0, 950), np.full(50, np.inf)])
    evidence.see(1, theirs)
    (found,) = Thresholds(evidence).of(KEY, [1])
    assert np.isfinite(found[:3]).all()
    assert np.isinf(found[3])
