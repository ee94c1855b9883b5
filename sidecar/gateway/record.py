"""What a request leaves behind: counts in the page, a timing record, its span's record, a sample.

The last stage of every request's path, whichever it took (``path.py``, ``forward.py``), for success
and failure alike. Nothing here waits.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from time import monotonic_ns
from typing import TYPE_CHECKING

from sidecar.errors import (
    DeadlineError,
    ExecutionError,
    OverloadedError,
    RequestError,
    UpstreamError,
)
from sidecar.gateway.messages import InferRequest
from sidecar.gateway.pages import OTHER, Timing, outcome_of
from sidecar.gateway.timing import TimingRecord
from sidecar.gateway.tracing import RequestTrace, Traced

if TYPE_CHECKING:
    from sidecar.gateway.core import Gateway
    from sidecar.gateway.registry import Copy

logger = logging.getLogger(__name__)

#: Statuses of another server that say that it failed, not that the request is wrong.
_SERVER_FAULTS = frozenset(
    {
        "UNAVAILABLE",
        "INTERNAL",
        "UNKNOWN",
        "RESOURCE_EXHAUSTED",
        "DATA_LOSS",
        "ABORTED",
        "CANCELLED",
    }
)


def answered(
    gateway: Gateway,
    request: InferRequest,
    copy: Copy,
    timing: Timing,
    start_ns: int,
    end_ns: int,
    nbytes: int,
    encoded: object,
) -> None:
    """Count an answered request, note when, hand it over where it is traced or mirrored.

    Args:
        copy: which one answered.
        start_ns, end_ns: monotonic: the body was there, the answer is encoded.
        nbytes: of the answer.
        encoded: the answer, unless the sample has it already.
    """
    gateway.page.record(
        copy.slot, timing, end_ns - start_ns, gateway.clock.now_ns() // 1_000_000,
        request.nbytes, nbytes, request.transport,
    )  # fmt: skip
    gateway.timings.append(
        TimingRecord(
            request.request_id, request.traceparent, copy.key, start_ns, end_ns, timing, "OK",
            request.nbytes, nbytes,
        )
    )  # fmt: skip
    trace = request.trace
    if isinstance(trace, Traced) and gateway.tracing is not None:
        gateway.tracing.note(trace, request, copy, timing, start_ns, end_ns, "OK", nbytes)
    if request.sample is not None:
        request.sample.answered(copy, timing, end_ns, encoded)


def fell_back(
    gateway: Gateway, request: InferRequest, copy: Copy, fallback: Copy, error: Exception
) -> None:
    """``copy`` failed, and another one is tried: say so, count it, and note whose answer it was."""
    bug = None if isinstance(error, RequestError) else error
    logger.warning("%s failed, %s answers: %s", copy.key, fallback.key, error, exc_info=bug)
    gateway.page.add(copy.slot, "fallbacks")
    if request.sample is not None:
        request.sample.fell_back(copy, fallback, error)
    if request.trace is not None:
        request.trace.fell_back(copy, fallback)


def failed(
    gateway: Gateway,
    request: InferRequest,
    copy: Copy | None,
    start_ns: int,
    error: BaseException,
    timing: Timing | None = None,
) -> None:
    """Count a request that failed, and note when and how. (The transport logs what is a bug.)

    ``timing``: the stages that it got to.
    """
    now = monotonic_ns()
    if copy is None:  # it failed before the route: was it for a model that is here?
        with suppress(RequestError):
            _, copy = gateway.registry.find(request.model_name, request.model_version)
    slot = None if copy is None else copy.slot
    gateway.page.record_failure(slot, request.transport, error, now - start_ns)
    if copy is None:
        gateway.page.add_server("unknown_model")
    elif request.sample is not None and isinstance(error, Exception) and is_server_fault(error):
        request.sample.failed(copy, error)
    timing = timing or Timing()
    if not timing.queue_ns and request.received_ns:  # it may have spent all its time there
        timing.queue_ns = max(0, request.started_ns - request.received_ns)
    gateway.timings.append(
        TimingRecord(
            request.request_id, request.traceparent, copy.key if copy else request.model_name[:256],
            start_ns, now, timing, type(error).__name__, request.nbytes, 0,
        )
    )  # fmt: skip
    trace = request.trace
    if isinstance(trace, Traced) and gateway.tracing is not None:
        gateway.tracing.note(trace, request, copy, timing, start_ns, now, _outcome(error), 0)


def refused(
    gateway: Gateway,
    transport: str,
    error: BaseException,
    ns: int = 0,
    trace: RequestTrace | None = None,
    *,
    model: str = "",
    request_id: str = "",
    nbytes: int = 0,
) -> None:
    """Count an inference that ended before it got to a model: refused, or unreadable.

    Args:
        ns: how long it was here; nothing, where its body was not even read.
        model: as it was asked for, where that is known.
    """
    gateway.page.record_failure(None, transport, error, ns)
    if isinstance(trace, Traced) and gateway.tracing is not None:
        now = monotonic_ns()
        asked = InferRequest(
            model, "", "", request_id, [], nbytes=nbytes, transport=transport, trace=trace
        )
        timing = Timing(executed=False)
        gateway.tracing.note(trace, asked, None, timing, now - ns, now, _outcome(error), 0)


def is_server_fault(error: Exception) -> bool:
    """Whether a request failed by the server's fault, so that another variant may answer it."""
    if isinstance(error, UpstreamError):
        return error.code in _SERVER_FAULTS
    if isinstance(error, RequestError):
        return isinstance(error, ExecutionError | DeadlineError | OverloadedError)
    return True  # a bug, and the other variant need not have it


def _outcome(error: BaseException) -> str:
    """As the pages count it; what they have no name for, by its own."""
    name = outcome_of(error)
    return type(error).__name__ if name == OTHER else name
