"""The tensor comparator against float64 arithmetic, at the edges of the number formats."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from validators.comparators import build, default_limits, make_policy
from validators.compare import compare_outputs
from validators.moments import difference

COMPARATOR = build("tensor")


def metrics(reference, candidate):
    return COMPARATOR.compare(reference, candidate).metrics


def one(reference, candidate):
    """Metrics of a single row of values."""
    found = metrics(np.asarray(reference)[None], np.asarray(candidate)[None])
    return {name: float(values[0]) for name, values in found.items()}


def in_longdouble(reference, candidate):
    """The formulas, row by row, in the widest float that there is."""
    left, right = (each.reshape(len(each), -1).astype(np.longdouble) for each in
                   (reference, candidate))  # fmt: skip
    delta = right - left
    size = [np.sqrt((each**2).sum(axis=1)) for each in (left, right, delta)]
    rms = size[0] / np.sqrt(np.longdouble(left.shape[1]))
    return {
        "sqnr_db": 20 * np.log10(size[0] / size[2]),
        "max_rel_rms": np.abs(delta).max(axis=1) / rms,
        "max_abs": np.abs(delta).max(axis=1),
        "rmse": np.sqrt((delta**2).mean(axis=1)),
        "bias": np.abs(delta.mean(axis=1)),
        "cosine": (left * right).sum(axis=1) / size[0] / size[1],
        "norm_error": np.abs(size[1] / size[0] - 1),
    }


def check(reference, candidate):
    found, wanted = metrics(reference, candidate), in_longdouble(reference, candidate)
    assert found.keys() == wanted.keys()
    scale = wanted["rmse"]
    for name, values in wanted.items():
        atol = {"bias": 1e-5 * scale, "cosine": 1e-9, "norm_error": 1e-9}.get(name, 0)
        np.testing.assert_array_less(
            np.abs(found[name] - values), 2e-5 * np.abs(values) + atol + 1e-300, err_msg=name
        )


# --- against the arbiter --------------------------------------------------------------------------

#: One row, many rows, rows wider than a segment, than a chunk, and with ends that divide nothing.
SHAPES = [(1, 1), (1, 7), (512, 10), (4000, 3), (37, 8192), (3, 8193), (2, 150_001), (1, 3, 5, 7)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
def test_every_metric_is_that_of_float64(shape, dtype):
    rng = np.random.default_rng(7)
    reference = (rng.standard_normal(shape) + 3).astype(dtype)
    candidate = (reference.astype(np.float64) * (1.1 + 0.1 * rng.standard_normal(shape))).astype(
        dtype
    )
    check(reference, candidate)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_every_metric_of_integers(dtype):
    rng = np.random.default_rng(8)
    pair = rng.integers(1, 100, (2, 50, 30)).astype(dtype)
    check(pair[0], pair[1])


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e-12, 1e12, 1e18, 1e25, 1e37])
@pytest.mark.parametrize("width", [10, 20_000])
def test_the_scale_of_float32_values_is_no_matter(scale, width):
    rng = np.random.default_rng(9)
    reference = (rng.standard_normal((3, width)) * scale).astype(np.float32)
    candidate = reference * np.float32(1.001)
    check(reference, candidate)
    found = metrics(reference, candidate)
    np.testing.assert_allclose(found["sqnr_db"], 60, atol=0.01)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_floats_of_two_widths_are_compared_in_the_wider(scale):
    rng = np.random.default_rng(11)
    wide = rng.uniform(1, 2, (3, 1000)) * scale
    narrow = wide.astype(np.float32)
    check(wide, narrow)
    check(narrow, wide)
    check(narrow, 1.001 * wide)
    half = rng.uniform(1, 2, (3, 1000)).astype(np.float16)
    check(half, half.astype(np.float64) * 1.001 * scale)
    check(half, (1.1 * half).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("exponent", [-300, -200, 160, 200, 300])
def test_the_scale_of_float64_values_is_no_matter(exponent):
    rng = np.random.default_rng(10)
    reference = rng.uniform(1, 2, (3, 1000)) * 10.0**exponent
    found = metrics(reference, reference * 1.001)
    np.testing.assert_allclose(found["sqnr_db"], 60, atol=1e-9)
    np.testing.assert_allclose(found["cosine"], 1)
    np.testing.assert_allclose(found["norm_error"], 0.001)
    np.testing.assert_allclose(found["rmse"] / 10.0**exponent, 1.5e-3, rtol=0.1)


@given(
    pair=hnp.arrays(
        np.float32, (2, 2, 3), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
    )
)
@settings(max_examples=300, deadline=None)
def test_finite_values_never_give_nan_and_never_a_false_pass(pair):
    found = metrics(pair[0], pair[1])
    assert not any(np.isnan(values).any() for values in found.values())
    limits = default_limits("tensor", "fp32")
    disagrees = np.logical_or(*(each.violated(found[each.metric]) for each in limits))
    left, delta = pair[0].astype(np.float64), pair[1].astype(np.float64) - pair[0]
    far_off = np.abs(delta).max(axis=1) > 2e-4 * np.sqrt((left**2).mean(axis=1))
    np.testing.assert_array_equal(disagrees & far_off, far_off)
    assert not disagrees[(delta == 0).all(axis=1)].any()


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [[1.0, -2.0], [0.0, 0.0], [1e-45, 0.0], [3e38, -3e38]])
def test_identical_values_are_perfect(values):
    found = one(np.float32(values), np.float32(values))
    assert found["sqnr_db"] == math.inf
    assert found["cosine"] == pytest.approx(1)
    rest = ("max_rel_rms", "max_abs", "rmse", "bias", "norm_error")
    assert [found[name] for name in rest] == [0] * len(rest)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_any_difference_from_zeros_is_infinite(dtype):
    found = one(np.zeros(3, dtype), np.array([0, 0, 1], dtype))
    assert found["sqnr_db"] == -math.inf
    assert found["max_rel_rms"] == math.inf
    assert found["norm_error"] == math.inf
    assert found["cosine"] == 0
    assert found["max_abs"] == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_a_candidate_of_zeros(dtype):
    found = one(np.array([3, -4], dtype), np.zeros(2, dtype))
    assert found["sqnr_db"] == pytest.approx(0, abs=1e-9)
    assert found["cosine"] == 0
    assert found["norm_error"] == pytest.approx(1)
    assert found["max_rel_rms"] == pytest.approx(4 / np.sqrt(12.5))


@pytest.mark.parametrize("factor", [3e3, 0.5, 0.2, 0.09, 1e-2, 1e-3, 1e-5, 1e-12, -1e-3])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_candidate_of_another_size_keeps_its_direction(factor, dtype):
    reference = np.random.default_rng(3).standard_normal((4, 8000)).astype(dtype)
    found = metrics(reference, (reference * factor).astype(dtype))
    np.testing.assert_allclose(found["cosine"], math.copysign(1, factor), rtol=1e-5)
    np.testing.assert_allclose(found["norm_error"], abs(abs(factor) - 1), rtol=1e-5)


def test_a_small_error_of_the_direction_is_seen():
    angle = 1e-4
    found = one([1.0, 0.0], [math.cos(angle), math.sin(angle)])
    assert 1 - found["cosine"] == pytest.approx(angle**2 / 2, rel=1e-6)


def test_ten_times_the_reference_has_cosine_1_and_is_seen_all_the_same():
    reference = np.random.default_rng(3).standard_normal((4, 100)).astype(np.float32)
    found = metrics(reference, 10 * reference)
    np.testing.assert_allclose(found["cosine"], 1)
    np.testing.assert_allclose(found["norm_error"], 9, rtol=1e-6)
    np.testing.assert_allclose(found["sqnr_db"], -20 * math.log10(9), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_difference_of_extremes_does_not_overflow_into_a_pass(dtype):
    largest = np.finfo(dtype).max
    found = one(np.array([largest, 1], dtype), np.array([-largest, 1], dtype))
    assert found["sqnr_db"] == pytest.approx(-20 * math.log10(2))
    assert found["max_rel_rms"] == pytest.approx(2 * math.sqrt(2))
    assert found["cosine"] == pytest.approx(-1)
    assert found["max_abs"] == (math.inf if dtype == np.float64 else 2 * float(largest))


def test_a_constant_shift_shows_as_bias():
    reference = np.random.default_rng(3).standard_normal((2, 10_000)).astype(np.float32)
    found = metrics(reference, reference - np.float32(0.25))
    np.testing.assert_allclose(found["bias"], 0.25, rtol=1e-6)
    np.testing.assert_allclose(found["rmse"], 0.25, rtol=1e-6)


# --- integers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "left", "right", "delta"),
    [
        (np.int8, -128, 127, 255),
        (np.uint8, 255, 0, -255),
        (np.int32, -(2**31), 2**31 - 1, 2**32 - 1),
        (np.uint32, 2**32 - 1, 0, -(2**32 - 1)),
        (np.int64, -(2**63), 2**63 - 1, 2.0**64),
        (np.uint64, 2**64 - 1, 0, -(2.0**64)),
        (np.int64, 2**53, 2**53 + 1, 1),  # float64 cannot tell these two apart
        (np.uint64, 2**64 - 1, 2**64 - 2, -1),
    ],
)
def test_integer_differences_do_not_wrap(dtype, left, right, delta):
    pair = np.array([left], dtype), np.array([right], dtype)
    assert difference(*pair)[0] == delta
    assert one(*pair)["max_abs"] == abs(delta)
    assert difference(pair[1], pair[0])[0] == -delta


def test_differences_of_mixed_integers():
    largest = np.array([2**64 - 1], np.uint64)
    assert difference(np.array([-1], np.int64), largest)[0] == 2.0**64
    assert difference(np.array([2**63 - 1], np.int64), largest)[0] == 2.0**63
    assert difference(np.array([5], np.int8), np.array([7], np.uint64))[0] == 2
    assert difference(np.array([7], np.uint16), np.array([-5], np.int16))[0] == -12


# --- values that are not finite, on both sides ----------------------------------------------------


@pytest.mark.parametrize("width", [4, 30_000])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_equal_values_that_are_not_finite_are_left_out(width, dtype):
    rng = np.random.default_rng(4)
    reference = rng.uniform(1, 2, (3, width)).astype(dtype)
    candidate = (reference * 1.25).astype(dtype)
    for array in (reference, candidate):
        array[0, :3] = np.nan, np.inf, -np.inf
        array[1, 1] = np.inf
    found = compare_outputs(
        {"y": reference}, {"y": candidate}, {"y": make_policy("tensor", "fp32")}
    )["y"]
    assert not found.invalid.any()
    assert found.nonfinite_equal == 4
    finite = np.isfinite(reference)
    for row in range(3):
        wanted = one(reference[row][finite[row]], candidate[row][finite[row]])
        for name, value in wanted.items():
            assert found.metrics[name][row] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert found.sketches["abs_error"].count == 3 * width - 4
    assert found.sketches["rel_error"].quantile(0.5) == pytest.approx(0.25, rel=0.05)


def test_a_row_without_a_finite_value_has_no_metrics():
    reference = np.array([[np.nan, np.inf], [1, 2]], np.float32)
    for name, values in metrics(reference, reference).items():
        assert np.isnan(values).tolist() == [True, False], name


# --- sketches -------------------------------------------------------------------------------------


def test_quantiles_of_the_errors():
    rng = np.random.default_rng(6)
    reference = rng.standard_normal((300, 1000)).astype(np.float32)
    candidate = reference + np.float32(1e-3) * rng.standard_normal(reference.shape).astype(
        np.float32
    )
    sketches = COMPARATOR.compare(reference, candidate).sketches
    delta = np.abs(candidate.astype(np.float64) - reference)
    for name, values in (("abs_error", delta), ("rel_error", delta / np.abs(reference))):
        for share in (0.5, 0.9, 0.99, 0.999):
            assert sketches[name].quantile(share) == pytest.approx(
                np.quantile(values, share), rel=0.04
            )
        assert sketches[name].count == values.size
    assert sketches["abs_error"].largest == pytest.approx(delta.max())


def test_relative_errors_of_zeros():
    """As after a ReLU: 0/0 is no error, anything else over 0 is an infinite one."""
    found = COMPARATOR.compare(np.float32([[0, 0, 1, 2]]), np.float32([[0, 1, 1, 3]]))
    sketch = found.sketches["rel_error"]
    assert (sketch.count, sketch.zeros, sketch.infinite, sketch.largest) == (4, 2, 1, 0.5)
