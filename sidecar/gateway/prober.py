"""Runs a worker's own copy of a version once, on request: only what was tried can be switched to.

In a thread of its own, beside requests, not through the pool and the batcher that they need. A copy
that hangs holds its thread for ever: so there is one for each copy, and a few in all.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.errors import (
    ExecutionError,
    NotFoundError,
    RequestError,
    SidecarError,
    UnavailableError,
)
from sidecar.monitor.routed_frames import ProbeAsked, Probed
from sidecar.runtimes.base import Array, ForwardingRuntime

if TYPE_CHECKING:
    from sidecar.gateway.registry import Copy, Registry

logger = logging.getLogger(__name__)

#: Under way at once; more are refused, and that is an answer, too.
PROBES_MAX = 4


class Prober:
    """Answers probes.

    Args:
        registry: whose copies are tried.
        on_done: takes the answer; called in the probe's thread, or in that of ``ask``.
    """

    def __init__(self, registry: Registry, on_done: Callable[[Probed], None]) -> None:
        self._registry = registry
        self._on_done = on_done
        self._lock = threading.Lock()
        self._running: dict[str, int] = {}  # copy → since when, monotonic

    def ask(self, asked: ProbeAsked) -> None:
        """Begin; never waits."""
        try:
            copy = self._find(asked)
        except RequestError as error:
            self._on_done(Probed(asked.id, ok=False, text=str(error), ms=0))
            return
        with self._lock:
            refused = self._refusal(copy)
            if not refused:
                self._running[copy.cache_key] = monotonic_ns()
        if refused:
            self._on_done(Probed(asked.id, ok=False, text=refused, ms=0))
            return
        threading.Thread(
            target=self._run, args=(asked, copy), name=f"probe-{copy.key}", daemon=True
        ).start()

    def _find(self, asked: ProbeAsked) -> Copy:
        entry = self._registry.entry(asked.model)
        copy = entry.held.get(asked.version)
        if copy is None:
            there = ", ".join(entry.held) or "none"
            text = f"there is no copy of version '{asked.version}'; of these there is one: {there}"
            raise NotFoundError(text)
        return copy

    def _refusal(self, copy: Copy) -> str:
        since_ns = self._running.get(copy.cache_key)
        if since_ns is not None:
            seconds = (monotonic_ns() - since_ns) / 1e9
            return f"the probe before has been running for {seconds:.3g} s: the copy hangs, or it "\
                "takes so long"  # fmt: skip
        if len(self._running) >= PROBES_MAX:
            return f"{PROBES_MAX} probes are under way: {', '.join(sorted(self._running))}"
        return ""

    def _run(self, asked: ProbeAsked, copy: Copy) -> None:
        began = monotonic_ns()
        ok, text = False, ""
        try:
            text = _try(copy, asked.timeout_s)
            ok = True
        except SidecarError as error:
            text = str(error)
        except Exception as error:
            logger.exception("probing %s failed", copy.key)
            text = f"it failed by a fault of its own ({type(error).__name__})"
        with self._lock:
            self._running.pop(copy.cache_key, None)
        self._on_done(Probed(asked.id, ok, text, (monotonic_ns() - began) / 1e6))


def _try(copy: Copy, timeout_s: float) -> str:
    """Execute a copy; returns what it was tried on.

    Raises:
        SidecarError: it is not ready, or fails on zeros and on ones. (Zeros alone are no fair
            question to every model; one that is right to refuse both cannot be probed.)
    """
    runtime: Any = copy.runtime
    forwards = isinstance(runtime, ForwardingRuntime)
    if forwards and not runtime.ready():
        text = f"the server behind it ({runtime.placement.device}) is not ready"
        raise UnavailableError(text)

    def execute(inputs: dict[str, Array]) -> None:
        results = (
            runtime.infer_within(inputs, copy.output_names, timeout_s=timeout_s)
            if forwards
            else runtime.infer(inputs)
        )
        if len(results) != len(copy.output_names):
            text = f"it gave {len(results)} outputs of {len(copy.output_names)}"
            raise ExecutionError(text)

    inputs = runtime.example_inputs(1)
    try:
        execute(inputs)
    except RequestError as error:
        if not any(array.dtype != object for array in inputs.values()):
            raise
        logger.info("%s fails on zeros, and is tried on ones: %s", copy.key, error)
        execute({name: _ones(array) for name, array in inputs.items()})
        return "answered ones"
    return "answered zeros"


def _ones(array: Array) -> Array:
    return array if array.dtype == object else np.ones_like(array)
