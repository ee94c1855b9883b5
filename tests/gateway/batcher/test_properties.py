"""Dynamic batching at random: joined answers equal single ones, everyone gets exactly one."""

from __future__ import annotations

import itertools
import random
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.errors import (
    CancelledError,
    DeadlineError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from sidecar.gateway.batch_queue import BatchQueue, Request
from sidecar.gateway.batcher import Batcher
from sidecar.gateway.workpool import WorkPool
from tests.gateway.batcher.support import Caller, Model, fail_on_13, x


@given(
    requests=st.lists(
        st.tuples(st.integers(0, 5), st.integers(1, 2), st.permutations(["x*2", "-x"])),
        min_size=1,
        max_size=40,
    ),
    max_size=st.integers(1, 8),
    max_delay_ms=st.sampled_from([0, 0.2, 2]),
    on_pool=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_batches_answer_as_singles_do(requests, max_size, max_delay_ms, on_pool):
    pool, model = WorkPool(2, 64), Model()
    batcher = Batcher(
        model.infer, max_size=max_size, max_delay_ms=max_delay_ms, max_queue=100, pool=pool
    )
    try:
        numbers = itertools.count(1)
        callers = []
        for rows, width, outputs in requests:
            values = np.array([next(numbers) for _ in range(rows * width)], np.float32)
            inputs = {"x": values.reshape(rows, width)}
            caller = Caller(batcher, inputs, outputs, pool=pool if on_pool else None)
            callers.append((inputs, outputs, caller))
        for inputs, outputs, caller in callers:
            expected = Model().infer(inputs, outputs)
            assert [a.tolist() for a in caller.answer.outputs] == [a.tolist() for a in expected]
        sizes = {rows for rows, _, _ in requests}
        assert all(rows <= max_size or rows in sizes for rows in model.rows)
        assert sum(model.rows) == sum(rows for rows, _, _ in requests)
    finally:
        batcher.close()
        pool.close()


@pytest.mark.parametrize("seed", range(6))
def test_everyone_gets_exactly_one_answer(make, model, pool, seed):
    rng = random.Random(seed)
    model.fail = fail_on_13
    batcher = make(max_size=4, max_delay_ms=0.3, max_queue=20)
    callers = []
    for number in range(250):
        value = 13 if rng.random() < 0.1 else number + 100
        now = time.monotonic_ns()
        deadline = rng.choice([None, None, now - 1, now + rng.randrange(3_000_000), now + 10**10])
        cancelled = rng.random() < 0.1
        caller = Caller(
            batcher,
            x(value),
            pool=pool if rng.random() < 0.8 else None,
            deadline_ns=deadline,
            is_cancelled=lambda gone=cancelled: gone,
        )
        callers.append((value, deadline, cancelled, caller))
        if number == 200 and seed % 2:
            threading.Thread(target=batcher.close, kwargs={"drain": seed == 1}).start()
    for value, deadline, cancelled, caller in callers:
        answer = caller.answer
        if isinstance(answer, DeadlineError):
            assert deadline is not None
        elif isinstance(answer, CancelledError):
            assert cancelled
        elif isinstance(answer, RequestError):
            closed = seed % 2 and isinstance(answer, UnavailableError)
            assert closed or isinstance(answer, OverloadedError) or value == 13
        else:
            assert answer.outputs[0].item() == 2 * value
            assert value != 13
            assert not cancelled
    batcher.close()
    assert all(len(caller.answers) == 1 for *_, caller in callers)
    assert batcher.queued() == 0
    executed = [v for inputs, _ in model.calls for v in inputs["x"].ravel().tolist()]
    assert max((executed.count(v) for v in executed if v != 13), default=1) <= 2
    assert max(model.rows, default=0) <= 4


@given(
    operations=st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "add", "take", "remove"]),
            st.integers(0, 3),  # group
            st.integers(0, 6),  # weight
            st.integers(0, 20),  # time that passes before
        ),
        max_size=80,
    ),
    max_size=st.integers(1, 6),
    delay=st.integers(0, 25),
)
@settings(max_examples=300, deadline=None)
def test_the_queue_keeps_order_bound_and_fairness(operations, max_size, delay):
    queue, now, waiting = BatchQueue(max_size), 0, []
    serial = itertools.count()

    def check(batch):
        keys = {request.key for request in batch}
        assert len(keys) == 1
        first = [r for _, r in waiting if r.key in keys][: len(batch)]
        assert batch == first  # the oldest of the group, in order
        assert len(batch) == 1 or sum(r.weight for r in batch) <= max_size
        due = [r for _, r in waiting if r.due_ns <= now and r is head_of(r.key)]
        if due:
            assert batch[0].queued_ns == min(r.queued_ns for r in due)
            assert batch[0] in due
        else:
            assert sum(r.weight for _, r in waiting if r.key in keys) >= max_size
        for request in batch:
            assert request.taken
            waiting.remove((request.number, request))

    def head_of(key):
        return next(r for _, r in waiting if r.key == key)

    class Tagged(Request):
        pass

    for kind, group, weight, passes in operations:
        now += passes
        if kind == "add":
            request = Tagged({}, [], weight, weight)
            request.key, request.number = group, next(serial)
            request.queued_ns, request.due_ns = now, now + delay
            queue.add(request, group)
            waiting.append((request.number, request))
        elif kind == "remove" and waiting:
            _, request = waiting.pop(weight % len(waiting))
            queue.remove(request)
        elif kind == "take":
            batch, next_ns = queue.take(now)
            if batch:
                check(batch)
            elif waiting:
                assert next_ns == min(r.due_ns for _, r in waiting) > now
            else:
                assert next_ns is None
        assert queue.size == len(waiting)
    while waiting:
        batch, _ = queue.take(now, at_once=True)
        keys = {r.key for r in batch}
        assert batch[0] is head_of(next(iter(keys)))
        for request in batch:
            waiting.remove((request.number, request))
    assert queue.take(now, at_once=True) == ([], None)
