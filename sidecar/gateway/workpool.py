"""The work pool: many threads may exist, few run at once.

Python runs one thread at a time, and every further runnable one makes the others slower: a tiny
model served 4,117 requests/s with two runnable threads and 2,905 with four (two cores). Yet a
request that waits (for its batch, for another server, for a GPU) needs a thread to wait on. So the
pool bounds the two apart, as a scheduler of green threads does: ``running`` threads work at a
time; one that is about to wait gives its place away, and gets one back when it is woken.

``concurrent.futures.ThreadPoolExecutor`` was rejected: one bound for both, a future, a condition
and a semaphore for each item (about 10 us, a twentieth of a small request).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

Work = Callable[..., object]


class Waiter:
    """One thread of the pool, while it waits; ``WorkPool.wake`` lets it go on."""

    __slots__ = ("_gate", "item", "woken")

    def __init__(self) -> None:
        self._gate = threading.Lock()
        self._gate.acquire()
        self.item: tuple[Work, tuple[Any, ...]] | None = None
        self.woken = False

    def release(self) -> None:
        self._gate.release()

    def block(self, timeout_s: float = -1) -> bool:
        return self._gate.acquire(timeout=timeout_s)


class WorkPool:
    """Runs work on daemon threads that are started as needed and then kept.

    Args:
        running: how many work at one time (those that wait do not count).
        threads: how many exist at most; work beyond them queues. The queue itself is bounded by
            admission, which counts requests before they get here.
    """

    def __init__(self, running: int, threads: int, name: str = "work") -> None:
        self._running_max = running
        self._threads_max = max(threads, running)
        self._name = name
        self._lock = threading.Lock()
        self._queue: deque[tuple[Work, tuple[Any, ...]]] = deque()
        self._resumable: deque[Waiter] = deque()
        self._idle: list[Waiter] = []  # a stack: the thread that worked last has the warm cache
        self._running = 0
        self._threads = 0
        self._closed = False
        self._local = threading.local()

    def put(self, work: Work, *arguments: Any) -> None:
        """Run ``work(*arguments)`` on a thread of the pool, soon. Never waits.

        What ``work`` raises is logged: it has nowhere else to go.
        """
        item = (work, arguments)
        with self._lock:
            if self._running >= self._running_max:
                self._queue.append(item)
                return
            waiter = self._take_thread(item)
        if waiter is not None:
            waiter.release()

    def _take_thread(self, item: tuple[Work, tuple[Any, ...]]) -> Waiter | None:
        """With the lock held and a place free: give ``item`` to a thread; return whom to wake."""
        if self._idle:
            waiter = self._idle.pop()
            waiter.item = item
            self._running += 1
            return waiter
        if self._threads < self._threads_max:
            self._threads += 1
            self._running += 1
            name = f"{self._name}-{self._threads}"
            thread = threading.Thread(target=self._loop, args=(item,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the container's limit on threads: go on with those that exist
                self._threads -= 1
                self._running -= 1
                if self._threads == 0:
                    raise
                self._queue.append(item)
                logger.warning("no further thread can be started; %d exist", self._threads)
            return None
        self._queue.append(item)
        return None

    def _loop(self, item: tuple[Work, tuple[Any, ...]] | None) -> None:
        me = Waiter()
        self._local.waiter = me
        while item is not None:
            work, arguments = item
            try:
                work(*arguments)
            except BaseException:  # a thread that ended would keep its place forever
                logger.exception("work on the pool failed")
            # Dropped before waiting: a request's buffers must not live until the next request.
            item = work = arguments = None  # type: ignore[assignment]
            item = self._next(me)

    def _next(self, me: Waiter) -> tuple[Work, tuple[Any, ...]] | None:
        """Give the place to who was woken, else take the next item, else wait for one."""
        with self._lock:
            resumed = self._hand_over()
            if resumed is None:
                if self._queue and self._running <= self._running_max:
                    return self._queue.popleft()
                self._running -= 1
            closed = self._closed
            if closed:
                self._threads -= 1
            else:
                self._idle.append(me)
        if resumed is not None:
            resumed.release()
        if closed:
            return None
        me.block()
        item, me.item = me.item, None
        return item

    def _hand_over(self) -> Waiter | None:
        """With the lock held, a place in hand: who was woken goes before new work."""
        if self._resumable and self._running <= self._running_max:
            return self._resumable.popleft()
        return None

    # --- waiting --------------------------------------------------------------------------------

    def begin_wait(self) -> Waiter | None:
        """Give this thread's place away; pass the result to ``wait`` and to who will ``wake`` it.

        Returns ``None`` on a thread that is not of this pool, which holds no place.
        """
        me: Waiter | None = getattr(self._local, "waiter", None)
        if me is None:
            return None
        me.woken = False
        started: Waiter | None = None
        with self._lock:
            started = self._hand_over()
            if started is None:
                self._running -= 1
                # Only if a thread can take it: put back, the oldest item would be the last.
                thread = self._idle or self._threads < self._threads_max
                if thread and self._queue and self._running < self._running_max:
                    started = self._take_thread(self._queue.popleft())
        if started is not None:
            started.release()
        return me

    def wake(self, waiter: Waiter) -> None:
        """Let a waiting thread go on, as soon as there is a place for it. Idempotent."""
        with self._lock:
            if waiter.woken:
                return
            waiter.woken = True
            if self._running >= self._running_max:
                self._resumable.append(waiter)
                return
            self._running += 1
        waiter.release()

    def wake_all(self, waiters: Iterable[Waiter]) -> None:
        """``wake`` for each, for the price of one lock: a batch wakes dozens at once."""
        released: list[Waiter] = []
        with self._lock:
            for waiter in waiters:
                if waiter.woken:
                    continue
                waiter.woken = True
                if self._running >= self._running_max:
                    self._resumable.append(waiter)
                else:
                    self._running += 1
                    released.append(waiter)
        for waiter in released:
            waiter.release()

    def wait(self, waiter: Waiter, timeout_s: float | None) -> bool:
        """Wait for ``wake``. False when ``timeout_s`` was over first: the thread has a place again,
        over the limit for once, because its caller's deadline cannot wait for a free one."""
        if waiter.block(-1 if timeout_s is None else max(timeout_s, 0)):
            return True
        with self._lock:
            if not waiter.woken:
                waiter.woken = True  # a later wake finds nobody waiting
                # ... not even this thread's next wait, which begins with a waiter of its own.
                self._local.waiter = Waiter()
                self._running += 1
                return False
            if waiter in self._resumable:
                self._resumable.remove(waiter)
                self._running += 1
                return True
        waiter.block()  # the wake is on its way
        return True

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around a call that waits for something else than this pool (another server, a GPU)."""
        waiter = self.begin_wait()
        try:
            yield
        finally:
            if waiter is not None:
                with self._lock:
                    self._running += 1

    def close(self) -> None:
        """Let idle threads end; threads at work end when their work does."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            self._threads -= len(idle)
        for waiter in idle:
            waiter.release()

    def queued(self) -> int:
        """Items that wait for a thread."""
        return len(self._queue)
