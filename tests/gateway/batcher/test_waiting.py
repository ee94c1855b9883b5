"""How long a request waits: for company, until its deadline, until its client is gone."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sidecar.errors import CancelledError, DeadlineError
from tests.gateway.batcher.support import FOREVER_MS, Caller, Clock, hold, until, x


def test_waits_for_company_until_the_delay_is_over_and_no_longer(make, model):
    clock = Clock()
    batcher = make(max_delay_ms=20, max_size=3, clock=clock)
    lonely = [Caller(batcher, x(1)), Caller(batcher, x(2))]
    until(lambda: batcher.queued() == 2)
    full = [Caller(batcher, {"x": np.ones((1, 7), np.float32)}) for _ in range(3)]
    for caller in full:
        assert caller.answer.outputs[0].tolist() == [[2.0] * 7]  # the clock stands still
    assert batcher.queued() == 2
    clock.now_ns += 19_999_999
    other = Caller(batcher, {"z": np.ones((3, 1))}, ["-z"])
    assert other.answer.outputs[0].tolist() == [[-1], [-1], [-1]]
    assert batcher.queued() == 2
    clock.now_ns += 1
    assert sorted(caller.answer.outputs[0].item() for caller in lonely) == [2, 4]
    assert model.rows == [3, 3, 2]
    assert lonely[0].answer.queue_ns == 20_000_000


def test_a_request_without_the_time_to_wait_does_not(make, model):
    clock = Clock()
    batcher = make(max_delay_ms=FOREVER_MS, clock=clock)
    answer = batcher.infer(x(3), ["x*2"], 1, deadline_ns=clock.now_ns + 10**11)
    assert answer.outputs[0].item() == 6


def test_a_full_batch_wakes_the_thread_that_waits_for_company(make, model):
    batcher = make(max_delay_ms=FOREVER_MS, max_size=3)
    callers = []
    for number in range(6):
        callers.append(Caller(batcher, x(number)))
        until(lambda n=number: batcher.queued() == (n + 1) % 3)
    assert sorted(c.answer.outputs[0].item() for c in callers) == [0, 2, 4, 6, 8, 10]
    assert model.rows == [3, 3]


# --- deadlines, cancellation ----------------------------------------------------------------------


@pytest.mark.parametrize("on_pool", [True, False])
def test_a_deadline_ends_the_wait_and_leaves_the_queue(make, model, pool, on_pool):
    batcher = make()
    held = hold(batcher, model)
    deadline_ns = time.monotonic_ns() + 30_000_000
    late = Caller(batcher, x(5), pool=pool if on_pool else None, deadline_ns=deadline_ns)
    assert isinstance(late.answer, DeadlineError)
    assert batcher.queued() == 0  # its place in the queue is free, though the batch before runs on
    assert not held.answers
    model.proceed.set()
    assert held.answer.outputs
    assert batcher.infer(x(6), ["x*2"], 1).outputs[0].item() == 12
    assert model.rows == [1]  # the late one was never executed
    assert model.calls[0][0]["x"].item() == 6


def test_a_deadline_ends_the_wait_for_a_batch_under_way(make, model, pool):
    batcher = make()
    model.proceed.clear()
    caller = Caller(batcher, x(5), pool=pool, deadline_ns=time.monotonic_ns() + 30_000_000)
    assert isinstance(caller.answer, DeadlineError)
    model.proceed.set()
    callers = [Caller(batcher, x(n), pool=pool) for n in range(20)]
    assert [c.answer.outputs[0].item() for c in callers] == [2 * n for n in range(20)]


def test_expired_and_cancelled_requests_are_not_executed(make, model):
    clock = Clock()
    batcher = make(clock=clock)
    hold(batcher, model)
    gone = Caller(batcher, x(1), is_cancelled=lambda: True)
    expired = Caller(batcher, x(2), deadline_ns=clock.now_ns + 5 * 10**9)
    broken = Caller(batcher, x(3), is_cancelled=lambda: 1 // 0)
    good = Caller(batcher, x(4), is_cancelled=lambda: False, deadline_ns=clock.now_ns + 10**11)
    until(lambda: batcher.queued() == 4)
    clock.now_ns += 6 * 10**9
    model.proceed.set()
    assert good.answer.outputs[0].item() == 8
    assert isinstance(gone.answer, CancelledError)
    assert isinstance(expired.answer, DeadlineError)
    assert isinstance(broken.answer, ZeroDivisionError)
    assert model.rows == [1]
