"""Quantities: the user's unit, the range, or what the reference's answers suggest."""

from __future__ import annotations

import numpy as np
import pytest

from validators.comparators import build, make_policy
from validators.compare import compare_outputs


def metrics(reference, candidate, **options):
    pair = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    found = build("regression", options).compare(*pair).metrics
    return {name: values.tolist() for name, values in found.items()}


def test_differences_are_judged_in_the_users_unit():
    found = metrics([[20.0], [21.0]], [[20.25], [20.0]], unit=0.5)
    assert found["delta_units"] == [0.5, 2]
    assert found["abs_delta"] == [0.25, 1]
    assert found["bias"] == [0.25, 1]
    assert found["rmse"] == [0.25, 1]


def test_a_range_gives_a_thousandth_of_it():
    assert metrics([[20.0]], [[20.05]], range=100)["delta_units"] == pytest.approx([0.5])


def test_without_either_the_range_of_the_answers_and_zero_is_taken():
    assert metrics([[50.0]], [[50.05]])["delta_units"] == pytest.approx([1])
    assert metrics([[50.0], [-50.0]], [[50.05], [-50.1]])["delta_units"] == pytest.approx([0.5, 1])
    assert metrics([[-20.0]], [[-20.01]])["delta_units"] == pytest.approx([0.5])


def test_a_difference_from_nothing_but_zeros_is_infinite():
    assert metrics([[0.0], [0.0]], [[0.0], [1e-9]])["delta_units"] == [0, np.inf]
    assert metrics([[0.0]], [[1e-9]], unit=1)["delta_units"] == [1e-9]


def test_a_row_of_several_values_is_judged_by_its_worst():
    found = metrics([[1.0, 2, 3, 4]], [[1.0, 2, 3, 8]], unit=1)
    assert found["delta_units"] == [4]
    assert found["bias"] == [1]
    assert found["rmse"] == [2]


def test_the_default_limit_is_one_unit():
    policy = make_policy("regression", "fp32", options={"unit": 0.5})
    reference = {"y": np.array([[1.0], [1.0]])}
    found = compare_outputs(reference, {"y": np.array([[1.5], [1.51]])}, {"y": policy})["y"]
    assert found.disagrees(policy.limits).tolist() == [False, True]


def test_integers_and_equal_nan():
    pair = np.array([[5], [7]], np.uint8), np.array([[7], [5]], np.uint8)
    assert build("regression", {"unit": 1}).compare(*pair).metrics["abs_delta"].tolist() == [2, 2]
    policy = make_policy("regression", "fp32")
    broken = {"y": np.array([[np.nan], [100.0]])}
    found = compare_outputs(broken, broken, {"y": policy})["y"]
    assert not found.disagrees(policy.limits).any()
    assert found.nonfinite_equal == 1


@pytest.mark.parametrize(
    "options",
    [{"unit": 0}, {"unit": -1}, {"unit": "kelvin"}, {"range": float("inf")}, {"range": True}],
)
def test_bad_options_are_refused(options):
    name = next(iter(options))
    with pytest.raises(ValueError, match=f"regression: `{name}` must be a number over 0"):
        build("regression", options)


def test_unit_and_range_exclude_each_other():
    with pytest.raises(ValueError, match="`unit` or `range`, not both"):
        build("regression", {"unit": 1, "range": 10})
