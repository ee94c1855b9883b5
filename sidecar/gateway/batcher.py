"""Dynamic batching: requests that wait together are executed together.

Requests are joined along their first dimension, in order of arrival, and only those alike in
everything else (input names, dtypes, the other dimensions). Those that differ form a group of
their own beside the first. A group is executed when it is full, or when its oldest request has
waited for ``max_delay_ms``; while a batch executes, the next one gathers without delay.

One thread per batcher takes from the queue, so that a copy executes one batch at a time. Handing
the role to whichever request's thread is there ("leader and followers") was rejected: that
request would wait for the others' timers, and could not keep its own deadline.

How arrays are joined and split is in ``batch_arrays.py``; this is about who waits for what.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from sidecar.errors import (
    CancelledError,
    DeadlineError,
    ExecutionError,
    OverloadedError,
    RequestError,
    UnavailableError,
)
from sidecar.gateway.batch_arrays import concerns_one_request, group_key, join, split, twin
from sidecar.gateway.batch_queue import BatchQueue, BatchResult, Request
from sidecar.gateway.workpool import Waiter, WorkPool
from sidecar.runtimes.base import Array

logger = logging.getLogger(__name__)

Execute = Callable[[dict[str, Array], Sequence[str]], list[Array]]
OnBatch = Callable[[int, int, int, int, int], None]


class Batcher:
    """Joins the requests of one copy. Thread-safe.

    Args:
        execute: the runtime's ``infer``; called by one thread at a time.
        max_size: rows in one execution. A request of more rows is executed alone, not split.
        max_delay_ms: how long the oldest request of a group waits for company.
        max_queue: requests that wait; further ones are refused.
        pool: whose places the waiting threads give away.
        clock: monotonic nanoseconds, comparable with the requests' deadlines.
        on_batch: called once per execution that succeeded, before its requests are answered, with
            rows, requests, and the nanoseconds of joining, executing and splitting.
        name: of its thread.
    """

    def __init__(
        self,
        execute: Execute,
        *,
        max_size: int,
        max_delay_ms: float,
        max_queue: int,
        pool: WorkPool,
        clock: Callable[[], int] = time.monotonic_ns,
        on_batch: OnBatch | None = None,
        name: str = "batcher",
    ) -> None:
        self._execute = execute
        self._max_size = max_size
        self._delay_ns = round(max_delay_ms * 1e6)
        self._max_queue = max_queue
        self._pool = pool
        self._clock = clock
        self._on_batch = on_batch
        # Reentrant: `close` may be called by a finalizer, which the garbage collector runs on any
        # thread at any allocation, so also on one that holds this lock.
        self._lock = threading.RLock()
        self._queue = BatchQueue(max_size)
        self._closed = False
        self._gate = threading.Lock()  # taken, except for the moment in which it wakes the thread
        self._gate.acquire()
        self._asleep = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    # --- a request's thread ---------------------------------------------------------------------

    def infer(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str],
        rows: int,
        deadline_ns: int | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> BatchResult:
        """Wait for company, execute with it, and return this request's rows.

        Args:
            inputs: name → array whose first dimension is ``rows``. May be empty (all optional):
                then it is executed alone.
            outputs: the names wanted, in order.
            deadline_ns: on ``clock``.
            is_cancelled: asked just before execution.

        Raises:
            InvalidRequestError: the inputs' first dimensions are not all ``rows``.
            OverloadedError: ``max_queue`` requests wait already.
            UnavailableError: the batcher is closed.
            DeadlineError, CancelledError: the caller's time was over, or it went away.
            ExecutionError: the runtime failed, or gave an output without a row for each row.
            And what else ``execute`` raises.
        """
        key, weight = group_key(inputs, rows, self._max_size)
        request = Request(inputs, outputs, rows, weight, deadline_ns, is_cancelled)
        self._check_open()
        # The place is given away before the request can be seen: its wake may come at once.
        waiter = self._pool.begin_wait()
        request.pooled = waiter is not None
        request.waiter = Waiter() if waiter is None else waiter
        try:
            self._enqueue(request, key)
        except RequestError:
            if waiter is not None:
                self._pool.wake(waiter)
                self._pool.wait(waiter, None)
            raise
        timeout_s = None
        if deadline_ns is not None:
            timeout_s = max(0.0, (deadline_ns - self._clock()) / 1e9)
        if waiter is not None:
            woken = self._pool.wait(waiter, timeout_s)
        else:
            woken = request.waiter.block(-1 if timeout_s is None else timeout_s)
        if not woken:
            self._abandon(request)
        if request.result is not None:
            return request.result
        error = request.error or _late()
        try:
            raise error
        finally:
            # The traceback holds this frame: without this, inputs live until a garbage collection.
            request.error = None
            del error, request, inputs

    def _check_open(self) -> None:
        """With or without the lock: refuse what cannot be queued."""
        if self._closed:
            text = "the model is being unloaded or the server is shutting down; retry"
            raise UnavailableError(text)
        if self._queue.size >= self._max_queue:
            text = f"{self._max_queue} requests wait for their batch, which is the limit; "
            text += "retry later"
            raise OverloadedError(text)

    def _enqueue(self, request: Request, key: object) -> None:
        request.queued_ns = self._clock()
        request.due_ns = request.queued_ns + self._delay_ns
        if request.deadline_ns is not None and request.deadline_ns <= request.due_ns:
            request.due_ns = request.queued_ns  # waiting for company would be all it ever does
        with self._lock:
            self._check_open()
            # The thread needs to know of a new group's timer, and of a full group. Otherwise it
            # sleeps on: being woken for each request would cost more than the request.
            wake = self._queue.add(request, key) and self._asleep
            if wake:
                self._asleep = False
        if wake:
            self._gate.release()

    def _abandon(self, request: Request) -> None:
        """Take a request whose time is over out of the queue, unless its batch is under way."""
        with self._lock:
            if not request.taken:
                self._queue.remove(request)

    # --- the batcher's thread -------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            while self._serve():
                pass
        except BaseException:  # whatever it was, nobody may wait for this thread
            logger.exception("a batcher ended by a fault")
        finally:
            with self._lock:
                self._closed = True
                left = self._queue.drain()
            self._fail(left, _fault)

    def _serve(self) -> bool:
        """Answer one batch; False: closed, and nothing is left.

        A function of its own, so that no batch's arrays are kept while waiting for the next.
        """
        batch = self._next_batch()
        if batch is None:
            return False
        try:
            self._run(batch)
        except BaseException:  # also what extensions raise past Exception
            logger.exception("a batch failed by a fault of the server")
            self._fail(batch, _fault)
        return True

    def _next_batch(self) -> list[Request] | None:
        """Wait for a batch; ``None``: closed, and nothing is left."""
        while True:
            with self._lock:
                now = self._clock()
                batch, due_ns = self._queue.take(now, at_once=self._closed)
                if batch:
                    return batch
                if self._closed:
                    return None
                self._asleep = True
            timeout_s = -1.0
            if due_ns is not None:
                # A lock's timeout has a bound of about 292 years; a clock may be any.
                timeout_s = min((due_ns - now) / 1e9, 3600.0)
            if not self._gate.acquire(timeout=timeout_s):
                with self._lock:
                    late = self._asleep
                    self._asleep = False
                if not late:
                    self._gate.acquire()  # a wake is on its way: left there, it would be too many

    def _run(self, batch: list[Request]) -> None:
        live = self._drop_dead(batch)
        if not live:
            return
        try:
            self._execute_batch(live)
        except Exception as error:  # noqa: BLE001 - raised again on the requests' threads
            if len(live) == 1 or not concerns_one_request(error):
                self._fail(live, partial(twin, error))
                return
            # Once only: a single request that fails is its own fault.
            logger.debug("a batch of %d requests failed; each is run alone", len(live))
        else:
            self._wake(live)
            return
        for request in live:
            self._run([request])

    def _drop_dead(self, batch: list[Request]) -> list[Request]:
        """Answer those whose time is over or whose caller has gone; return the others."""
        now = self._clock()
        live: list[Request] = []
        dead: list[Request] = []
        for request in batch:
            try:
                if request.deadline_ns is not None and request.deadline_ns <= now:
                    request.error = _late()
                elif request.is_cancelled is not None and request.is_cancelled():
                    text = "the caller went away while the request waited for its batch"
                    request.error = CancelledError(text)
            except Exception as error:  # noqa: BLE001 - the transport's fault: this request's alone
                request.error = error
            (live if request.error is None else dead).append(request)
        if dead:
            self._wake(dead)
        return live

    def _execute_batch(self, batch: list[Request]) -> None:
        """Execute requests together and give each its ``result``."""
        began = self._clock()
        inputs, wanted = join([r.inputs for r in batch], [r.outputs for r in batch])
        joined = self._clock()
        results = self._execute(inputs, wanted)
        executed = self._clock()
        sizes = [request.rows for request in batch] if inputs else None
        parts = split(wanted, results, sizes, [request.outputs for request in batch])
        done = self._clock()
        for request, outputs in zip(batch, parts, strict=True):
            request.result = BatchResult(outputs, began - request.queued_ns, done - began)
        rows = sum(request.rows for request in batch)
        if self._on_batch is not None:
            try:
                self._on_batch(rows, len(batch), joined - began, executed - joined, done - executed)
            except Exception:
                logger.exception("counting a batch failed")

    # --- answering ------------------------------------------------------------------------------

    def _wake(self, batch: Sequence[Request]) -> None:
        """Let the requests' threads go on, each once."""
        waiting = [request for request in batch if not request.woken]
        if not waiting:  # no lock of the pool is taken: `close` may run inside of one
            return
        pooled: list[Waiter] = []
        for request in waiting:
            request.woken = True
            if request.pooled:
                pooled.append(request.waiter)
            else:
                request.waiter.release()
        self._pool.wake_all(pooled)

    def _fail(self, batch: Sequence[Request], make: Callable[[], BaseException]) -> None:
        """Answer with an error, an instance each: raising one on many threads mixes tracebacks."""
        for request in batch:
            if request.result is None and request.error is None:
                request.error = make()
        self._wake(batch)

    # --- life -----------------------------------------------------------------------------------

    def queued(self) -> int:
        """Requests that wait for a batch."""
        return self._queue.size

    def close(self, *, drain: bool = True) -> None:
        """Refuse new requests, answer those queued, end the thread. Idempotent.

        Args:
            drain: execute what is queued, without waiting for company; otherwise it is answered
                with ``UnavailableError``. The batch under way is finished in any case.
        """
        with self._lock:
            self._closed = True
            dropped = [] if drain else self._queue.drain()
            wake = self._asleep
            self._asleep = False
        self._fail(dropped, _closing)
        if wake:
            self._gate.release()
        if self._thread is not threading.current_thread():  # a finalizer may run on it
            self._thread.join()


# --- errors ---------------------------------------------------------------------------------------


def _late() -> BaseException:
    text = "the deadline was over while the request waited for its batch"
    return DeadlineError(text)


def _closing() -> BaseException:
    text = "the model was unloaded while the request waited for its batch; retry"
    return UnavailableError(text)


def _fault() -> BaseException:
    text = "the request's batch failed by a fault of this server"
    return ExecutionError(text)


__all__ = ["BatchResult", "Batcher"]
