"""What becomes one batch: joined answers equal single ones."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from sidecar.errors import InvalidRequestError
from tests.gateway.batcher.support import FOREVER_MS, Caller, hold, until, x


def test_what_gathers_while_a_batch_executes_is_one_batch_in_order_of_arrival(make, model):
    counted = []
    batcher = make(on_batch=lambda rows, requests, *ns: counted.append((rows, requests, ns)))
    held = hold(batcher, model)
    callers = []
    for number in range(5):
        callers.append(Caller(batcher, x(number)))
        until(lambda n=number: batcher.queued() == n + 1)
    model.proceed.set()
    for number, caller in enumerate(callers):
        assert caller.answer.outputs[0].tolist() == [[2 * number]]
        assert caller.answer.queue_ns > 0
        assert caller.answer.execute_ns > 0
    assert held.answer.outputs[0].tolist() == [[-2]]
    assert [call[0]["x"].ravel().tolist() for call in model.calls] == [[0, 1, 2, 3, 4]]
    assert [(rows, requests) for rows, requests, _ in counted] == [(1, 1), (5, 5)]
    assert all(ns >= 0 for _, _, times in counted for ns in times)


def test_never_more_rows_than_max_size_and_a_larger_request_goes_alone(make, model):
    batcher = make(max_size=4)
    hold(batcher, model)
    callers = []
    for number, rows in enumerate([2, 1, 2, 6, 4, 1]):
        callers.append(Caller(batcher, x(*range(rows))))
        until(lambda n=number: batcher.queued() == n + 1)
    model.proceed.set()
    for rows, caller in zip([2, 1, 2, 6, 4, 1], callers, strict=True):
        assert caller.answer.outputs[0].ravel().tolist() == [2.0 * n for n in range(rows)]
    assert model.rows == [3, 2, 6, 4, 1]


def test_a_single_request_is_passed_on_as_it_is(make, model):
    inputs = x(1, 2, 3)
    answer = make().infer(inputs, ["x*2"], 3)
    assert model.calls[0][0] is inputs
    assert answer.outputs[0].ravel().tolist() == [2, 4, 6]


def test_requests_that_differ_are_groups_of_their_own(make, model):
    batcher = make()
    hold(batcher, model)
    requests = [
        {"x": np.ones((1, 2), np.float32)},
        {"x": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 2), np.float64)},
        {"x": np.ones((1, 2), np.float32), "y": np.ones((1, 2), np.float32)},
        {"y": np.ones((1, 2), np.float32), "x": np.ones((1, 2), np.float32)},
        {"x": np.ones((1, 2), np.float32)},
        {"x": np.ones((1, 2), ml_dtypes.bfloat16)},
        {"x": np.ones((1, 2), np.uint16)},
    ]
    callers = []
    for number, inputs in enumerate(requests):
        callers.append(Caller(batcher, inputs))
        until(lambda n=number: batcher.queued() == n + 1)
    model.proceed.set()
    for inputs, caller in zip(requests, callers, strict=True):
        (output,) = caller.answer.outputs
        assert output.dtype == inputs["x"].dtype
        assert np.array_equal(output, inputs["x"] * 2)
    assert model.rows == [2, 1, 1, 2, 1, 1]


def test_bytes_and_bfloat16_are_joined(make, pool):
    seen = []

    def echo(inputs, outputs):
        seen.append(inputs["x"].shape[0])
        return [inputs["x"]]

    batcher = make(execute=echo, max_delay_ms=FOREVER_MS, max_size=2)
    for dtype, values in ((object, [b"a", b"\xff\x00"]), (ml_dtypes.bfloat16, [1.5, -2])):
        callers = [
            Caller(batcher, {"x": np.array([[value]], dtype)}, ["x"], pool=pool) for value in values
        ]
        for value, caller in zip(values, callers, strict=True):
            assert caller.answer.outputs[0].tolist() == [[value]]
    assert seen == [2, 2]


def test_each_gets_the_outputs_it_asked_for_in_its_order(make, model):
    batcher = make()
    hold(batcher, model)
    wanted = [["x*2"], ["-x", "x*2"], ["-x"], ["x*2"]]
    callers = []
    for number, outputs in enumerate(wanted):
        callers.append(Caller(batcher, x(number + 1), outputs))
        until(lambda n=number: batcher.queued() == n + 1)
    model.proceed.set()
    values = {"x*2": 2, "-x": -1}
    for number, (outputs, caller) in enumerate(zip(wanted, callers, strict=True)):
        expected = [values[name] * (number + 1) for name in outputs]
        assert [array.item() for array in caller.answer.outputs] == expected
    assert [outputs for _, outputs in model.calls] == [["x*2", "-x"]]


def test_requests_without_inputs_are_executed_alone(make):
    calls = []

    def execute(inputs, outputs):
        calls.append(dict(inputs))
        return [np.arange(3)]

    batcher = make(execute=execute, max_delay_ms=5)
    callers = [Caller(batcher, {}, ["n"], rows=1) for _ in range(3)]
    for caller in callers:
        assert caller.answer.outputs[0].tolist() == [0, 1, 2]
    assert calls == [{}, {}, {}]


def test_inputs_must_agree_on_the_rows(make):
    inputs = {"a": np.zeros((2, 1)), "b": np.zeros((1, 1))}
    with pytest.raises(InvalidRequestError, match=r"'b' has shape \[1, 1\].* 2 rows"):
        make().infer(inputs, ["a*2"], 2)
    with pytest.raises(InvalidRequestError, match=r"'a' has shape \[\]"):
        make().infer({"a": np.zeros(())}, ["a*2"], 1)
