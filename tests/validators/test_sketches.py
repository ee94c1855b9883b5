"""The histogram of magnitudes: right within its promise, mergeable, stored and read back."""

from __future__ import annotations

import json
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from validators.sketches import CHUNK, LogHistogram

#: Half a bucket's width, as a share of the value: sqrt(17/16) - 1.
WITHIN = 0.0308
QUANTILES = (0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1)
#: float64 values down to where the histogram says zero.
MAGNITUDES = st.floats(2.0**-126, 1e300) | st.just(0.0)


def histogram(values):
    made = LogHistogram()
    made.add(values)
    return made


def check_quantiles(made, values):
    ordered = np.sort(np.abs(np.asarray(values, np.float64)).ravel())
    for share in QUANTILES:
        exact = ordered[max(0, math.ceil(share * ordered.size) - 1)]
        assert made.quantile(share) == pytest.approx(exact, rel=WITHIN, abs=0), share


# --- quantiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("size", [1, 10, 1000, 40_000, CHUNK + 12_345])
def test_quantiles_are_within_the_promise(dtype, size):
    rng = np.random.default_rng(size)
    values = (rng.standard_normal(size) * np.exp(rng.normal(0, 2, size))).astype(dtype)
    made = histogram(values)
    assert made.count == size
    check_quantiles(made, values)
    assert made.smallest == np.abs(values.astype(np.float64)).min()
    assert made.largest == np.abs(values.astype(np.float64)).max()
    assert made.mean == pytest.approx(np.abs(values.astype(np.float64)).mean(), rel=WITHIN)


@given(values=hnp.arrays(np.float64, st.integers(1, 50), elements=MAGNITUDES))
@settings(max_examples=200, deadline=None)
def test_quantiles_of_any_magnitudes(values):
    check_quantiles(histogram(values), values)


@pytest.mark.parametrize("size", [100, 40_000])
def test_float32_and_float64_count_the_same(size):
    values = np.random.default_rng(1).standard_normal(size).astype(np.float32) * np.float32(1e-3)
    values[::7] = 0
    assert histogram(values) == histogram(values.astype(np.float64))
    assert histogram(values) == histogram(-values)


def test_what_is_below_the_normal_float32_numbers_counts_as_zero():
    for dtype in (np.float32, np.float64):
        for repeat in (1, 20_000):
            values = np.repeat(np.array([0, 1e-40, 2.0**-126, 3], dtype), repeat)
            made = histogram(values)
            assert (made.zeros, made.count) == (2 * repeat, 4 * repeat)
            assert made.quantile(0.5) == 0
            assert made.quantile(0.75) == pytest.approx(2.0**-126, rel=WITHIN)
            assert (made.smallest, made.largest) == (0, 3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("repeat", [1, 20_000])
def test_infinities_are_counted_apart(dtype, repeat):
    made = histogram(np.repeat(np.array([1, 2, np.inf, -np.inf], dtype), repeat))
    assert (made.count, made.infinite) == (4 * repeat, 2 * repeat)
    assert (made.smallest, made.largest) == (1, 2)
    assert made.quantile(0.5) == pytest.approx(2, rel=WITHIN)
    assert made.quantile(0.75) == math.inf
    assert made.mean == pytest.approx(1.5, rel=WITHIN)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_refused_and_nothing_is_counted(dtype):
    values = np.ones(CHUNK + 10, dtype)
    values[-1] = np.nan
    made = LogHistogram()
    with pytest.raises(ValueError, match="takes no NaN"):
        made.add(values)
    assert made == LogHistogram()


@pytest.mark.parametrize("size", [3, 40_000])
@pytest.mark.parametrize("sign", [1, -1])
def test_nan_may_stand_for_zero(size, sign):
    values = np.full(size, 2, np.float32)
    values[1] = np.float32(sign) * np.float32(np.nan)
    made = LogHistogram()
    made.add_chunk(values, nan_is_zero=True)
    assert (made.count, made.zeros, made.largest) == (size, 1, 2)
    with pytest.raises(ValueError, match="takes no NaN"):
        LogHistogram().add_chunk(values)


def test_nothing_has_no_quantile():
    for made in (LogHistogram(), histogram([])):
        assert made.count == 0
        assert math.isnan(made.quantile(0.5))
        assert math.isnan(made.mean)
        assert made.buckets()[1].size == 0
    with pytest.raises(ValueError, match=r"share in \[0, 1\], not 50"):
        histogram([1]).quantile(50)


def test_zeros_alone():
    made = histogram(np.zeros(5, np.float32))
    assert (made.count, made.zeros, made.smallest, made.largest, made.mean) == (5, 5, 0, 0, 0)
    assert made.quantile(1) == 0


def test_buckets_hold_what_their_edges_say():
    values = np.exp(np.random.default_rng(2).normal(0, 3, 5000))
    edges, counts = histogram(values).buckets()
    assert edges.size == counts.size + 1
    assert counts[0] > 0
    assert counts[-1] > 0
    np.testing.assert_array_equal(counts, np.histogram(values, edges)[0])
    assert (np.diff(edges) / edges[:-1]).max() <= 1 / 16 + 1e-12


# --- merging and storing --------------------------------------------------------------------------

PARTS = st.lists(
    hnp.arrays(np.float32, st.integers(0, 20), elements=st.floats(0, 2.0**100, width=32)),
    max_size=4,
)


@given(parts=PARTS)
@settings(max_examples=100, deadline=None)
def test_merging_parts_is_counting_all(parts):
    whole = histogram(np.concatenate([np.zeros(0, np.float32), *parts]))
    forwards, backwards = LogHistogram(), LogHistogram()
    for part in parts:
        forwards.merge(histogram(part))
    for part in reversed(parts):
        backwards.merge(histogram(part))
    assert forwards == backwards == whole


def test_merging_leaves_the_other_as_it_was():
    one, other = histogram([1, 2]), histogram([1e9])
    before = LogHistogram.from_plain(other.to_plain())
    one.merge(other).merge(other)
    assert other == before
    assert one.count == 4
    one.add([1e9])
    assert other == before


@given(values=hnp.arrays(np.float64, st.integers(0, 30), elements=st.floats(0, allow_nan=False)))
@settings(max_examples=100, deadline=None)
def test_it_survives_json(values):
    made = histogram(values)
    stored = json.dumps(made.to_plain(), allow_nan=False)
    again = LogHistogram.from_plain(json.loads(stored))
    assert again == made
    again.add([5])
    assert again.count == made.count + 1


@pytest.mark.parametrize(
    "change",
    [
        {"counts": [1, 2, 3]},
        {"counts": [-1, 3]},
        {"counts": ["x"]},
        {"counts": None},
        {"count": 7},
        {"low": -5},
        {"low": 10},
        {"low": 40_000},
        {"buckets_per_octave": 8},
        {"zeros": "many"},
    ],
)
def test_something_else_is_not_read(change):
    plain = histogram([1, 1.5]).to_plain() | change
    with pytest.raises(ValueError, match="not a stored histogram"):
        LogHistogram.from_plain(plain)
    with pytest.raises(ValueError, match="not a stored histogram"):
        LogHistogram.from_plain({})


def test_it_is_not_hashable_and_says_what_it_holds():
    made = histogram([1.0, 2.0, 4.0])
    with pytest.raises(TypeError):
        hash(made)
    assert made != "something else"
    assert "count=3" in repr(made)
    assert "largest=4" in repr(made)
