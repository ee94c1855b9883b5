"""A model, callers and a clock that tests of the batcher hold in their hands."""

from __future__ import annotations

import threading
import time

import numpy as np

from sidecar.errors import ExecutionError

PATIENCE_S = 60
FOREVER_MS = 3_600_000


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.001)


class Model:
    """Doubles and negates its rows; can be held, and told to fail, by what a test puts in."""

    def __init__(self):
        self.calls = []  # (inputs, outputs) of each execution
        self.entered = threading.Semaphore(0)
        self.proceed = threading.Event()
        self.proceed.set()
        self.fail = None

    def infer(self, inputs, outputs):
        self.calls.append((inputs, list(outputs)))
        self.entered.release()
        assert self.proceed.wait(PATIENCE_S)
        if self.fail is not None:
            self.fail(inputs)
        results = {}
        for name, array in inputs.items():
            results[f"{name}*2"] = array * 2
            results[f"-{name}"] = -array
        return [results[name] for name in outputs]

    @property
    def rows(self):
        return [next(iter(inputs.values())).shape[0] for inputs, _ in self.calls]


class Caller:
    """One request on a thread, and what became of it."""

    def __init__(self, batcher, inputs, outputs=("x*2",), rows=None, pool=None, **options):
        self.answers = []
        if rows is None:
            rows = next(iter(inputs.values())).shape[0]

        def call():
            try:
                self.answers.append(batcher.infer(inputs, list(outputs), rows, **options))
            except BaseException as error:  # noqa: BLE001 - an answer like any other
                self.answers.append(error)

        if pool is None:
            threading.Thread(target=call, daemon=True).start()
        else:
            pool.put(call)

    @property
    def answer(self):
        until(lambda: self.answers)
        return self.answers[0]


class Clock:
    """Stands still until it is moved."""

    def __init__(self):
        self.now_ns = 10**15

    def __call__(self):
        return self.now_ns


def x(*values):
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


def hold(batcher, model):
    """Keep the batcher's thread busy, so that what follows gathers."""
    model.proceed.clear()
    caller = Caller(batcher, x(-1.0))
    assert model.entered.acquire(timeout=PATIENCE_S)
    model.calls.clear()
    return caller


def fail_on_13(inputs):
    if (inputs["x"] == 13).any():
        text = f"13 among {inputs['x'].shape[0]}"
        raise ExecutionError(text)
