"""Failing inputs get smaller and keep failing."""

from __future__ import annotations

import numpy as np
import pytest

from sidecar.validation.shrink import shrink


def make(rows=32, columns=64, seed=0):
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(rows, columns)).astype(np.float32)}


def test_one_row_and_one_value_are_left():
    inputs = make()
    inputs["x"][19, 40] = 1e6

    def fails(given):
        return bool((given["x"] > 1e5).any())

    found = shrink(inputs, fails, 200)
    assert found.rows == [19]
    assert found.inputs["x"].shape == (1, 64)
    assert np.flatnonzero(found.inputs["x"]).tolist() == [40]
    assert (found.values_left, found.values_before) == (1, 32 * 64)
    assert fails(found.inputs)
    assert found.runs < 60
    assert not found.exhausted
    assert found.steps == [
        "rows: 1 of 32 left",
        "x: 1 of 64 values left, others neutral",
    ]


def test_what_fails_only_together_stays_together():
    inputs = make(rows=1)
    inputs["x"][0, [3, 30, 61]] = 100

    found = shrink(inputs, lambda given: (given["x"] == 100).sum() == 3, 500)
    assert np.flatnonzero(found.inputs["x"]).tolist() == [3, 30, 61]


def test_rows_that_fail_only_together_are_both_kept():
    inputs = make(rows=16)
    inputs["x"][[2, 13], 0] = 50

    found = shrink(inputs, lambda given: (given["x"] == 50).sum() == 2, 300)
    assert found.rows == [2, 13]
    assert found.inputs["x"].shape[0] == 2


def test_inputs_of_a_request_lose_the_same_rows():
    inputs = {**make(rows=8), "mask": np.ones((8, 3), bool)}
    inputs["x"][5, 7] = np.inf

    found = shrink(inputs, lambda given: bool(np.isinf(given["x"]).any()), 200)
    assert found.rows == [5]
    assert found.inputs["mask"].shape == (1, 3)
    assert not found.inputs["mask"].any()


def test_axes_of_variable_length_are_shortened_together():
    tokens = np.arange(1, 41).reshape(1, 40)
    inputs = {"tokens": tokens, "mask": np.ones((1, 40), np.int64)}

    def fails(given):
        assert given["tokens"].shape == given["mask"].shape
        return 17 in given["tokens"]

    found = shrink(inputs, fails, 200, axes=[[("tokens", 1), ("mask", 1)]])
    assert found.inputs["tokens"].tolist() == [[17]]
    assert found.inputs["mask"].tolist() == [[0]]


def test_texts_become_empty():
    inputs = {"text": np.array([[b"fine", b"bad", b"fine"]], dtype=object)}
    found = shrink(inputs, lambda given: b"bad" in given["text"], 50)
    assert found.inputs["text"].tolist() == [[b"", b"bad", b""]]


def test_an_input_that_fails_whatever_it_holds_becomes_neutral():
    found = shrink(make(), lambda _: True, 50)
    assert found.values_left == 0
    assert found.inputs["x"].shape == (1, 64)


@pytest.mark.parametrize("budget", [1, 2, 5, 17])
def test_the_budget_bounds_the_runs_and_the_result_still_fails(budget):
    inputs = make()
    inputs["x"][19, 40] = 1e6
    runs = 0

    def fails(given):
        nonlocal runs
        runs += 1
        return bool((given["x"] > 1e5).any())

    found = shrink(inputs, fails, budget)
    assert found.runs == runs <= budget
    assert found.exhausted
    assert (found.inputs["x"] > 1e5).any()


def test_the_callers_arrays_are_left_alone():
    inputs = make()
    inputs["x"][0, 0] = 1e6
    before = inputs["x"].copy()

    def fails(given):
        failed = bool((given["x"] > 1e5).any())
        given["x"][:] = 0  # what a predicate does to its copy is its own matter
        return failed

    found = shrink(inputs, fails, 100)
    assert np.array_equal(inputs["x"], before)
    assert found.rows == [0]


def test_nan_is_a_value():
    inputs = make(rows=1)
    inputs["x"][0, 9] = np.nan
    found = shrink(inputs, lambda given: bool(np.isnan(given["x"]).any()), 100)
    assert np.isnan(found.inputs["x"][0, 9])
    assert found.values_left == 1


def test_without_a_batch_dimension_no_row_is_left_out():
    inputs = {"x": np.ones((4, 4), np.float32), "scale": np.float32(3)}
    inputs = {name: np.asarray(array) for name, array in inputs.items()}
    found = shrink(inputs, lambda given: given["scale"] == 3, 50, batched=False)
    assert found.rows is None
    assert found.inputs["x"].shape == (4, 4)
    assert found.inputs["scale"] == 3


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ({"x": np.zeros((2, 2))}, {"budget": 0}, "allows none"),
        ({"x": np.zeros((2, 2)), "y": np.zeros((3, 2))}, {}, r"differ: x \[2, 2\], y \[3, 2\]"),
        ({"x": np.zeros((2, 2))}, {"axes": [[("x", 0), ("x", 1)]]}, "not of one length"),
    ],
)
def test_bad_use(inputs, options, message):
    with pytest.raises(ValueError, match=message):
        shrink(inputs, lambda _: True, **options)


def test_inputs_that_do_not_fail_are_refused():
    with pytest.raises(ValueError, match="do not fail to begin with"):
        shrink(make(), lambda _: False)
