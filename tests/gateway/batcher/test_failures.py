"""What fails a request in a batch fails that one, and everyone hears of it."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest

from sidecar.errors import (
    DeadlineError,
    ExecutionError,
    InvalidRequestError,
    OverloadedError,
    UnavailableError,
    UpstreamError,
)
from tests.gateway.batcher.support import PATIENCE_S, Caller, Clock, fail_on_13, hold, until, x


def test_one_poisoned_input_fails_no_neighbour(make, model):
    counted = []
    batcher = make(on_batch=lambda rows, requests, *_: counted.append((rows, requests)))
    hold(batcher, model)
    model.fail = fail_on_13
    callers = []
    for number, value in enumerate([1, 13, 3, 4]):
        callers.append(Caller(batcher, x(value)))
        until(lambda n=number: batcher.queued() == n + 1)
    model.proceed.set()
    answers = [caller.answer for caller in callers]
    assert str(answers[1]) == "13 among 1"
    assert [answers[n].outputs[0].item() for n in (0, 2, 3)] == [2, 6, 8]
    assert model.rows == [4, 1, 1, 1, 1]
    assert counted == [(1, 1)] * 4  # the one held, and three that succeeded


@pytest.mark.parametrize(
    ("make_error", "again"),
    [
        (lambda: UpstreamError("no connection", "UNAVAILABLE"), False),
        (lambda: UpstreamError("wrong value", "INVALID_ARGUMENT"), True),
        (lambda: OverloadedError("full"), False),
        (lambda: DeadlineError("late"), False),
        (lambda: InvalidRequestError("wrong"), True),
        (lambda: ZeroDivisionError("a fault"), True),
        (MemoryError, True),
    ],
)
def test_only_what_may_concern_one_request_is_tried_alone(make, model, make_error, again):
    batcher = make()
    hold(batcher, model)

    def fail(inputs):
        raise make_error()

    model.fail = fail
    callers = [Caller(batcher, x(n)) for n in range(3)]
    until(lambda: batcher.queued() == 3)
    model.proceed.set()
    answers = [caller.answer for caller in callers]
    assert model.rows == ([3, 1, 1, 1] if again else [3])
    assert len({id(answer) for answer in answers}) == 3  # an instance each
    error = make_error()
    for answer in answers:
        assert type(answer) is type(error)
        assert str(answer) == str(error)
        if isinstance(error, UpstreamError):
            assert answer.code == error.code


@pytest.mark.parametrize("rows", [1, 3])
def test_an_output_without_a_row_each_is_named_even_for_a_single_request(make, rows):
    batcher = make(execute=lambda inputs, outputs: [inputs["x"], np.zeros((7, 2))])
    with pytest.raises(ExecutionError, match=rf"'mean' .*\[7, 2\].* {rows} rows.*max_size to 1"):
        batcher.infer(x(*range(rows)), ["y", "mean"], rows)
    scalar = make(execute=lambda inputs, outputs: [np.float32(3)[()] * np.ones(())])
    with pytest.raises(ExecutionError, match=r"'sum' has shape \[\]"):
        scalar.infer(x(1), ["sum"], 1)


def test_an_output_that_is_not_batched_is_not_tried_again(make):
    calls = []
    entered, proceed = threading.Event(), threading.Event()

    def execute(inputs, outputs):
        calls.append(inputs["x"].shape[0])
        entered.set()
        proceed.wait(PATIENCE_S)
        return [np.zeros((1, 1))]

    batcher = make(execute=execute)
    first = Caller(batcher, x(0))
    assert entered.wait(PATIENCE_S)
    callers = [Caller(batcher, x(n)) for n in range(3)]
    until(lambda: batcher.queued() == 3)
    proceed.set()
    assert first.answer.outputs[0].item() == 0
    for caller in callers:
        assert "set batching.max_size to 1" in str(caller.answer)
    assert calls == [1, 3]


def test_too_few_outputs_are_an_error(make):
    with pytest.raises(ExecutionError, match="1 outputs instead of 2"):
        make(execute=lambda i, o: [i["x"]]).infer(x(1), ["a", "b"], 1)


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_a_fault_past_exception_fails_the_batch_and_not_the_batcher(make, model, caplog, error):
    batcher = make()
    hold(batcher, model)

    def fail(inputs):
        raise error

    model.fail = fail
    callers = [Caller(batcher, x(n)) for n in range(3)]
    until(lambda: batcher.queued() == 3)
    model.proceed.set()
    for caller in callers:
        assert isinstance(caller.answer, ExecutionError)
        assert "fault of this server" in str(caller.answer)
    model.fail = None
    assert batcher.infer(x(2), ["x*2"], 1).outputs[0].item() == 4
    assert "a batch failed by a fault" in caplog.text


def test_a_clock_that_breaks_ends_the_batcher_and_leaves_nobody_waiting(make, model, caplog):
    clock = Clock()
    broken = threading.Event()

    def ticks():
        if broken.is_set() and threading.current_thread().name == "fragile":
            text = "no time"
            raise OSError(text)
        return clock()

    batcher = make(clock=ticks, name="fragile")
    hold(batcher, model)
    callers = [Caller(batcher, x(n)) for n in range(3)]
    until(lambda: batcher.queued() == 3)
    broken.set()
    model.proceed.set()
    for caller in callers:
        assert isinstance(caller.answer, ExecutionError)
    with pytest.raises(UnavailableError):
        batcher.infer(x(1), ["x*2"], 1)
    assert "a batcher ended by a fault" in caplog.text


def test_counting_that_fails_does_not_fail_requests(make, caplog):
    batcher = make(on_batch=lambda *_: 1 // 0)
    assert batcher.infer(x(2), ["x*2"], 1).outputs[0].item() == 4
    assert "counting a batch failed" in caplog.text


@pytest.mark.parametrize("kind", [ExecutionError, ZeroDivisionError])
def test_a_failed_request_keeps_no_input_alive(make, kind):
    def execute(inputs, outputs):
        text = "no"
        raise kind(text)

    batcher = make(execute=execute)
    array = np.zeros((1, 1000))
    gone = weakref.ref(array)

    def call(inputs):
        with pytest.raises(kind):
            batcher.infer(inputs, ["y"], 1)

    gc.disable()  # reference counts alone must do
    try:
        inputs = {"x": array}
        del array
        call(inputs)
        del inputs
        until(lambda: gone() is None)
    finally:
        gc.enable()
