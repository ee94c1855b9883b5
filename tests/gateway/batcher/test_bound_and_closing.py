"""The queue's bound, and what closing a batcher does to who waits."""

from __future__ import annotations

import threading
import time

import pytest

from sidecar.errors import OverloadedError, UnavailableError
from tests.gateway.batcher.support import FOREVER_MS, PATIENCE_S, Caller, hold, until, x
from tests.gateway.test_workpool import assert_places


@pytest.mark.parametrize("on_pool", [True, False])
def test_a_full_queue_refuses_and_costs_no_place(make, model, pool, on_pool):
    batcher = make(max_queue=3)
    hold(batcher, model)
    queued = [Caller(batcher, x(n)) for n in range(3)]
    until(lambda: batcher.queued() == 3)
    refused = [Caller(batcher, x(9), pool=pool if on_pool else None) for _ in range(6)]
    for caller in refused:
        assert isinstance(caller.answer, OverloadedError)
        assert "3 requests wait" in str(caller.answer)
    model.proceed.set()
    assert all(caller.answer.outputs for caller in queued)
    assert Caller(batcher, x(4), pool=pool).answer.outputs[0].item() == 8


def test_the_bound_holds_when_many_come_at_once(make, model, pool):
    batcher = make(max_queue=5)
    held = hold(batcher, model)
    callers = [Caller(batcher, x(n), pool=pool if n % 2 else None) for n in range(40)]
    until(lambda: sum(len(caller.answers) for caller in callers) == 35)
    assert batcher.queued() == 5
    model.proceed.set()
    answers = [caller.answer for caller in callers]
    assert sum(isinstance(answer, OverloadedError) for answer in answers) == 35
    assert held.answer.outputs


def test_closing_answers_what_is_queued_and_refuses_the_rest(make, model):
    batcher = make(max_delay_ms=FOREVER_MS, max_size=100)
    callers = [Caller(batcher, x(n)) for n in range(5)]
    until(lambda: batcher.queued() == 5)
    batcher.close()  # does not wait for company
    assert sorted(c.answer.outputs[0].item() for c in callers) == [0, 2, 4, 6, 8]
    with pytest.raises(UnavailableError, match="retry"):
        batcher.infer(x(1), ["x*2"], 1)
    batcher.close()


def test_closing_between_the_check_and_the_queue_costs_no_place(make, pool):
    closes = threading.Event()

    def clock():
        if closes.is_set() and threading.current_thread().name.startswith("work"):
            closes.clear()
            batcher.close()
        return time.monotonic_ns()

    batcher = make(clock=clock)
    assert batcher.infer(x(1), ["x*2"], 1).outputs[0].item() == 2
    closes.set()
    assert isinstance(Caller(batcher, x(1), pool=pool).answer, UnavailableError)
    assert_places(pool, 2)


def test_closing_without_drain_answers_unavailable(make, model):
    batcher = make()
    held = hold(batcher, model)
    callers = [Caller(batcher, x(n)) for n in range(5)]
    until(lambda: batcher.queued() == 5)
    closing = threading.Thread(target=batcher.close, kwargs={"drain": False})
    closing.start()
    for caller in callers:
        assert isinstance(caller.answer, UnavailableError)
    model.proceed.set()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    assert held.answer.outputs[0].item() == -2  # the batch under way was finished
    assert model.rows == []


def test_may_be_closed_on_its_own_thread(make):
    """A finalizer that closes it may run on any thread, also on this one."""
    closed = []

    def execute(inputs, outputs):
        batcher.close()
        closed.append(True)
        return [inputs["x"]]

    batcher = make(execute=execute)
    assert batcher.infer(x(1), ["y"], 1).outputs[0].item() == 1
    assert closed == [True]
    with pytest.raises(UnavailableError):
        batcher.infer(x(1), ["y"], 1)
