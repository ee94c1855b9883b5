"""The work pool: who runs, who waits, and that no place and no wake is ever lost."""

from __future__ import annotations

import random
import threading
import time

import pytest

from sidecar.gateway.workpool import WorkPool

PATIENCE_S = 60


@pytest.fixture
def make_pool():
    pools = []

    def make(running, threads):
        pools.append(WorkPool(running, threads))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


def assert_places(pool, running):
    """``running`` items run at one time, and not one more."""
    together = threading.Barrier(running + 1)
    at_work = []

    def work():
        at_work.append(1)
        together.wait(PATIENCE_S)
        together.wait(PATIENCE_S)

    late = threading.Event()
    for _ in range(running):
        pool.put(work)
    pool.put(late.set)
    together.wait(PATIENCE_S)
    assert len(at_work) == running
    assert not late.is_set()
    assert pool.queued() == 1
    together.wait(PATIENCE_S)
    assert late.wait(PATIENCE_S)


def test_runs_everything_with_no_more_threads_than_allowed(make_pool):
    pool = make_pool(3, 8)
    lock = threading.Lock()
    state = {"now": 0, "most": 0, "done": 0}

    def work():
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        with lock:
            state["now"] -= 1
            state["done"] += 1

    for _ in range(500):
        pool.put(work)
    until(lambda: state["done"] == 500)
    assert state["most"] <= 3
    assert_places(pool, 3)


def test_runs_in_order_with_one_place(make_pool):
    pool = make_pool(1, 4)
    done = []
    for number in range(200):
        pool.put(done.append, number)
    until(lambda: len(done) == 200)
    assert done == list(range(200))


def test_a_waiting_thread_gives_its_place_away(make_pool):
    pool = make_pool(1, 8)
    waiters, order = [], []

    def waits():
        waiter = pool.begin_wait()
        waiters.append(waiter)
        assert pool.wait(waiter, PATIENCE_S)
        order.append("woken")

    def wakes():
        order.append("other")
        pool.wake(waiters[0])

    pool.put(waits)
    until(lambda: waiters)
    pool.put(wakes)
    until(lambda: len(order) == 2)
    assert order == ["other", "woken"]
    assert_places(pool, 1)


def test_who_was_woken_goes_before_new_work(make_pool):
    pool = make_pool(1, 8)
    waiters, order = [], []
    hold, release = threading.Event(), threading.Event()

    def waits():
        waiter = pool.begin_wait()
        waiters.append(waiter)
        pool.wait(waiter, PATIENCE_S)
        order.append("woken")

    def holds():
        hold.set()
        release.wait(PATIENCE_S)

    pool.put(waits)
    until(lambda: waiters)
    pool.put(holds)
    assert hold.wait(PATIENCE_S)
    pool.put(order.append, "new")
    pool.wake(waiters[0])  # no place is free yet
    release.set()
    until(lambda: len(order) == 2)
    assert order == ["woken", "new"]


def test_wake_before_wait_and_twice(make_pool):
    pool = make_pool(2, 4)
    results = []

    def work():
        waiter = pool.begin_wait()
        pool.wake(waiter)
        pool.wake(waiter)
        results.append(pool.wait(waiter, PATIENCE_S))
        waiter = pool.begin_wait()  # the second wake must not have been kept for this
        results.append(pool.wait(waiter, 0))

    pool.put(work)
    until(lambda: len(results) == 2)
    assert results == [True, False]
    assert_places(pool, 2)


def test_a_late_wake_does_not_end_the_next_wait(make_pool):
    pool = make_pool(2, 4)
    results = []

    def work():
        first = pool.begin_wait()
        results.append(pool.wait(first, 0))
        second = pool.begin_wait()
        pool.wake(first)  # who should have woken the first wait comes late
        results.append(pool.wait(second, 0))
        third = pool.begin_wait()
        pool.wake_all([first, second, third])
        results.append(pool.wait(third, PATIENCE_S))

    pool.put(work)
    until(lambda: len(results) == 3)
    assert results == [False, False, True]
    assert_places(pool, 2)


def test_wake_all_wakes_each_within_the_places(make_pool):
    pool = make_pool(2, 40)
    lock = threading.Lock()
    waiters, state = [], {"now": 0, "most": 0, "done": 0}

    def work():
        waiter = pool.begin_wait()
        with lock:
            waiters.append(waiter)
        assert pool.wait(waiter, PATIENCE_S)
        with lock:
            state["now"] += 1
            state["most"] = max(state["most"], state["now"])
        with lock:
            state["now"] -= 1
            state["done"] += 1

    for _ in range(32):
        pool.put(work)
    until(lambda: len(waiters) == 32)
    pool.wake_all(waiters)
    until(lambda: state["done"] == 32)
    assert state["most"] <= 2
    assert_places(pool, 2)


def test_the_order_is_kept_while_all_threads_wait(make_pool):
    pool = make_pool(1, 2)
    waiters, order = {}, []

    def waits(name, *then):
        for item in then:
            pool.put(order.append, item)
        waiters[name] = pool.begin_wait()  # nobody is left who could take what is queued
        pool.wait(waiters[name], PATIENCE_S)

    pool.put(waits, "a")
    until(lambda: "a" in waiters)
    pool.put(waits, "b", "c", "d", "e")
    until(lambda: "b" in waiters)
    pool.wake(waiters["a"])
    until(lambda: len(order) == 3)
    assert order == ["c", "d", "e"]
    pool.wake(waiters["b"])
    assert_places(pool, 1)


def test_closing_does_not_forget_who_was_woken(make_pool):
    pool = make_pool(1, 4)
    waiters = []
    went_on = threading.Event()

    def waits():
        waiter = pool.begin_wait()
        waiters.append(waiter)
        pool.wait(waiter, None)
        went_on.set()

    def closes():
        pool.wake(waiters[0])  # has no place yet: this item holds the only one
        pool.close()

    pool.put(waits)
    until(lambda: waiters)
    pool.put(closes)
    assert went_on.wait(PATIENCE_S)


def test_closing_ends_idle_threads_and_finishes_what_is_queued():
    pool = WorkPool(2, 4)
    release, done = threading.Event(), []
    threads_before = threading.active_count()
    for number in range(6):
        pool.put(lambda n: (release.wait(PATIENCE_S), done.append(n)), number)
    pool.close()
    release.set()
    until(lambda: len(done) == 6)
    until(lambda: threading.active_count() <= threads_before)


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), KeyboardInterrupt()])
def test_work_that_fails_costs_no_place(make_pool, caplog, error):
    pool = make_pool(2, 2)

    def work():
        raise error

    for _ in range(5):
        pool.put(work)
    assert_places(pool, 2)
    assert sum("work on the pool failed" in r.message for r in caplog.records) == 5


def test_a_thread_that_is_not_the_pools_has_no_place_to_give(make_pool):
    pool = make_pool(1, 1)
    assert pool.begin_wait() is None
    with pool.waiting():
        pass
    assert_places(pool, 1)


def test_waiting_gives_the_place_away_and_takes_one_back(make_pool):
    pool = make_pool(1, 4)
    inside, release, done = threading.Event(), threading.Event(), []

    def work():
        with pool.waiting():
            inside.set()
            release.wait(PATIENCE_S)
        done.append("first")

    pool.put(work)
    assert inside.wait(PATIENCE_S)
    other = threading.Event()
    pool.put(other.set)
    assert other.wait(PATIENCE_S)
    release.set()
    until(lambda: done)
    assert_places(pool, 1)


def test_goes_on_with_the_threads_there_are_when_no_more_can_be_started(make_pool):
    pool = make_pool(2, 4)
    hold, release = threading.Event(), threading.Event()
    pool.put(lambda: (hold.set(), release.wait(PATIENCE_S)))
    assert hold.wait(PATIENCE_S)
    before = threading.stack_size(1 << 46)  # no machine has room for it: the start fails for real
    try:
        late = threading.Event()
        pool.put(late.set)
    finally:
        threading.stack_size(before)
    assert not late.is_set()
    release.set()
    assert late.wait(PATIENCE_S)
    assert_places(pool, 2)


def test_under_random_waits_wakes_and_time_limits_nothing_is_lost(make_pool):
    pool = make_pool(2, 24)
    lock = threading.Lock()
    state = {"done": 0, "timeouts": 0}
    asleep: list = []
    stop = threading.Event()

    def work(seed):
        rng = random.Random(seed)
        for _ in range(3):
            waiter = pool.begin_wait()
            with lock:
                asleep.append(waiter)
            woken = pool.wait(waiter, rng.choice([None, None, 0, 0.0005, 0.003]))
            with lock:
                state["timeouts"] += not woken
        with lock:
            state["done"] += 1

    def waker():
        rng = random.Random(0)
        while not stop.is_set():
            with lock:
                count = rng.randint(0, len(asleep))
                batch = [asleep.pop(rng.randrange(len(asleep))) for _ in range(count)]
            if rng.random() < 0.5:
                pool.wake_all(batch)  # many of them late: their wait is over
            else:
                for waiter in batch:
                    pool.wake(waiter)

    thread = threading.Thread(target=waker)
    thread.start()
    try:
        for seed in range(400):
            pool.put(work, seed)
        until(lambda: state["done"] == 400)
    finally:
        stop.set()
        thread.join()
    assert state["timeouts"] > 0
    assert_places(pool, 2)
