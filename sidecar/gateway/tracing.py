"""Which requests are traced, whose trace they belong to, and what another server is told of it.

The decision is made from the ids alone, before anything is recorded: who is not traced pays for the
decision, who is for one tuple more. Spans are made of these (``sidecar/traces.py``) by the monitor;
no SDK is loaded here, and nothing of telemetry at all where nothing is traced.

A header that cannot be read is no context: a new trace begins, and what was sent is not handed on.
"""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from sidecar.clock import Clock
from sidecar.traces import SpanRecord

if TYPE_CHECKING:
    from exporters.telemetry.context import TraceContext
    from sidecar.gateway.backlog import Backlog
    from sidecar.gateway.messages import InferRequest
    from sidecar.gateway.pages import Timing
    from sidecar.gateway.registry import Copy

#: A caller's context that is right, and says "not sampled": most are, so that none pays for more.
_NOT_SAMPLED = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f][02468ace]")
#: Characters of a model's name that was asked for and is nobody's.
_NAME_MAX = 256
#: Identities only have to differ. (Seeded by the system for each process, as workers are spawned.)
_bits = random.Random().getrandbits  # noqa: S311 - no secret

_working = threading.local()


class Untraced:
    """A request that is not recorded: all that is left to do is to say so to who comes behind."""

    __slots__ = ("_flags", "_header", "_state", "_trace_id")

    def __init__(self, header: str, state: str, trace_id: int = 0, flags: int = 0) -> None:
        self._header, self._state = header, state
        self._trace_id, self._flags = trace_id, flags

    @property
    def traceparent(self) -> str:
        """The caller's, which says "not sampled", or one that does."""
        if not self._header:
            self._header = f"00-{self._trace_id:032x}-{_bits(64) or 1:016x}-{self._flags:02x}"
        return self._header

    def headers(self) -> list[tuple[str, str]]:
        """For another server: it is not to record this trace either."""
        return _headers(self.traceparent, self._state)

    def fell_back(self, failed: Copy, answers: Copy) -> None:
        """Nobody is told."""


class Traced:
    """A request that is recorded: the identities of its spans, and what its path adds.

    Attributes:
        client_span: made when another server is asked; 0: none was.
        failed: key of the variant that failed before another was tried, or ``""``.
        instead: that other one.
    """

    __slots__ = (
        "client_span", "failed", "flags", "instead", "parent_id", "span_id", "state", "trace_id",
    )  # fmt: skip

    def __init__(self, trace_id: int, parent_id: int, flags: int, state: str) -> None:
        self.trace_id, self.parent_id = trace_id, parent_id
        self.flags, self.state = flags, state
        self.span_id = _bits(64) or 1
        self.client_span = 0
        self.failed = ""
        self.instead: Copy | None = None

    @property
    def traceparent(self) -> str:
        """The header that names the request's own (SERVER) span."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{self.flags:02x}"

    def headers(self) -> list[tuple[str, str]]:
        """For another server: its span is a child of our CLIENT span, the same at each attempt."""
        if not self.client_span:
            self.client_span = _bits(64) or 1
        header = f"00-{self.trace_id:032x}-{self.client_span:016x}-{self.flags:02x}"
        return _headers(header, self.state)

    def fell_back(self, failed: Copy, answers: Copy) -> None:
        """Another variant is tried: there is one span, and it says so."""
        self.failed, self.instead = failed.key, answers


RequestTrace = Traced | Untraced


def _headers(traceparent: str, tracestate: str) -> list[tuple[str, str]]:
    headers = [("traceparent", traceparent)]
    if tracestate:
        headers.append(("tracestate", tracestate))
    return headers


class Tracing:
    """Decides, and notes what was decided for.

    Args:
        settings: ``SidecarConfig.tracing``.
        spans: where the records go.
        clock: for wall-clock times.
    """

    def __init__(
        self, settings: Mapping[str, Any], spans: Backlog[SpanRecord], clock: Clock
    ) -> None:
        from exporters.telemetry import context

        self._sampler = context.Sampler(settings["ratio"], settings["parent"])
        self._believes_callers = bool(settings["parent"])
        self._parse = context.parse
        self._sampled, self._random = context.SAMPLED, context.RANDOM
        self._spans, self._clock = spans, clock

    def begin(self, traceparent: str = "", tracestate: str = "") -> RequestTrace:
        """Whose trace a request belongs to, and whether it is recorded.

        Args:
            traceparent: the header as received, ``""`` where there was none.
            tracestate: the same; several are joined with a comma.
        """
        if not traceparent:
            trace_id = _bits(128) or 1
            if self._sampler.decide(None, trace_id):
                return Traced(trace_id, 0, self._random | self._sampled, "")
            return Untraced("", "", trace_id, self._random)
        if self._believes_callers and _NOT_SAMPLED.fullmatch(traceparent):
            return Untraced(traceparent, tracestate)
        caller = self._parse(traceparent, tracestate)
        if caller is None:
            return self.begin()
        if self._sampler.decide(caller, caller.trace_id):
            flags = caller.flags | self._sampled
            return Traced(caller.trace_id, caller.span_id, flags, caller.state)
        # Where the caller's flag is not changed its context is handed on as it is; a changed flag
        # needs a new identity, says the specification.
        header = "" if caller.sampled else traceparent
        return Untraced(header, caller.state, caller.trace_id, caller.flags & ~self._sampled)

    def note(
        self,
        trace: Traced,
        request: InferRequest,
        copy: Copy | None,
        timing: Timing,
        start_ns: int,
        end_ns: int,
        outcome: str,
        bytes_out: int,
    ) -> None:
        """Note a traced request that is over. ``start_ns``, ``end_ns``: monotonic."""
        # One pair of readings for both times, so that their difference is what was measured.
        wall_ns = self._clock.now_ns() - monotonic_ns()
        if trace.instead is not None:
            copy = trace.instead
        if copy is None:
            model, version, variant, client_span = request.model_name[:_NAME_MAX], "", "", 0
        else:
            model, version, variant = copy.model, copy.version, copy.config.name
            client_span = trace.client_span if copy.forwards else 0
        self._spans.put(
            SpanRecord(
                trace.traceparent, trace.state, trace.parent_id, client_span, request.request_id,
                model, version, variant, request.transport, outcome, wall_ns + start_ns,
                wall_ns + end_ns, timing.queue_ns, timing.decode_ns, timing.execute_ns,
                timing.encode_ns, timing.rows, timing.executed, timing.cached, trace.failed,
                request.nbytes, bytes_out,
            )
        )  # fmt: skip


# --- whose request a thread works on --------------------------------------------------------------


def working_on(trace: RequestTrace | None) -> None:
    """What this thread logs from here on belongs to a request; ``None``: to none."""
    _working.trace = trace


def current() -> TraceContext | None:
    """The trace of the request that this thread works on, where it is recorded."""
    trace = getattr(_working, "trace", None)
    return context_of(trace) if isinstance(trace, Traced) else None


def context_of(trace: Traced) -> TraceContext:
    """The request's own span, for a log record."""
    from exporters.telemetry.context import TraceContext

    return TraceContext(trace.trace_id, trace.span_id, trace.flags, trace.state)
