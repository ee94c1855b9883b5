"""The request's path: one page, the stages in order, outermost first.

transport   bytes ↔ messages, trace context, errors → codes     servicer.py, http.py
admission   bounds what is in flight; before the body is read,
            because a body that is not wanted should cost nothing admission.py, grpc_pool.py
── here ──
deadline    first: nothing is done for an answer nobody awaits
route       before decode: which inputs are right depends on the
            version that answers                                registry.py
decode      checks against the signature; arrays are views       protocol/arrays.py
cache       before the queue: a hit needs no execution           cache.py
fallback    around execution only: a request that is wrong for
            one variant is wrong for the other                   below
batch       joins compatible requests, or none                   batcher.py
execute     the runtime                                          runtimes/
outputs     shared memory, classification                        below
encode      the transport's function, so that its time is a
            stage like the others
record      last: the client's answer is ready. Counters and
            histograms in the page, one timing record, a record of
            the span where it is traced; failures too            record.py, tracing.py
mirror      a sampled exchange is only handed over               sample.py, tap.py
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from time import monotonic_ns
from typing import TYPE_CHECKING, TypeVar

from sidecar.errors import (
    CancelledError,
    DeadlineError,
    InvalidRequestError,
    UpstreamError,
)
from sidecar.gateway import record
from sidecar.gateway.cache import make_key
from sidecar.gateway.messages import (
    InferRequest,
    InferResponse,
    OutputRequest,
    OutputTensor,
    RegionRef,
)
from sidecar.gateway.pages import Timing
from sidecar.gateway.registry import Copy, Entry
from sidecar.protocol.arrays import materialize
from sidecar.protocol.encode import classify, raw_bytes
from sidecar.runtimes.base import Array, ForwardingRuntime

if TYPE_CHECKING:
    from sidecar.gateway.core import Gateway

Encoded = TypeVar("Encoded")
Encode = Callable[[InferResponse], tuple[Encoded, int]]  # the answer, and its size in bytes
IsCancelled = Callable[[], bool]

#: Parameters that do not change the answer, so that they are no part of a cache key.
_NOT_CONTENT = frozenset({"timeout", "priority", "binary_data_output", "sequence_start"})
#: Parameters that say how HTTP is to answer: nothing for another server.
_OF_THE_TRANSPORT = frozenset({"binary_data_output"})


def infer(
    gateway: Gateway,
    request: InferRequest,
    encode: Encode[Encoded],
    is_cancelled: IsCancelled | None = None,
    on: Copy | None = None,
) -> Encoded:
    """Answer one request, on the copy that the route says, or on a given one (``on``).

    Raises:
        RequestError: it cannot be answered; anything else is a bug, and becomes INTERNAL.
    """
    start = request.received_ns or monotonic_ns()
    copy = on
    timing = Timing()
    try:
        check_deadline(request, monotonic_ns())  # now: `start` is before the queue
        fallback: Copy | None = None
        if copy is None:
            entry, copy = gateway.registry.route(
                request.model_name, request.model_version, request.point
            )
            fallback = fallback_for(entry, copy, request.model_version)
        began = monotonic_ns()
        arrays = materialize(request, copy.inputs, copy.max_batch_size, gateway.shm.read_region)
        wanted = _wanted(request, copy)
        decoded = monotonic_ns()
        timing.decode_ns = request.parse_ns + decoded - began

        results, answered_by = _answer(
            gateway, copy, fallback, request, arrays, wanted, timing, is_cancelled
        )

        before = monotonic_ns()
        response = _outputs(gateway, request, answered_by, wanted, results)
        if answered_by is not copy:
            response.parameters["sidecar_fallback"] = answered_by.config.key
        encoded, nbytes = encode(response)
        done = monotonic_ns()
        timing.encode_ns = done - before
    except BaseException as error:
        record.failed(gateway, request, copy, start, error, timing)
        raise
    record.answered(gateway, request, answered_by, timing, start, done, nbytes, encoded)
    return encoded


# --- deadline -------------------------------------------------------------------------------------


def check_deadline(request: InferRequest, now_ns: int) -> None:
    """Refuse what is late already.

    Raises:
        DeadlineError: the time allowed was over before the request was worked on.
    """
    if request.deadline_ns is not None and now_ns >= request.deadline_ns:
        text = "the deadline was over before the request could be worked on"
        raise DeadlineError(text)


# --- outputs wanted -------------------------------------------------------------------------------


def _wanted(request: InferRequest, copy: Copy) -> list[OutputRequest]:
    if not request.outputs:
        return copy.all_outputs
    seen: set[str] = set()
    for output in request.outputs:
        if output.name not in copy.outputs:
            known = ", ".join(f"'{name}'" for name in copy.output_names)
            text = f"unexpected output '{output.name}'; model '{copy.model}' gives {known}"
            raise InvalidRequestError(text)
        if output.name in seen:
            text = f"output '{output.name}' is asked for twice"
            raise InvalidRequestError(text)
        seen.add(output.name)
    return request.outputs


# --- cache, fallback ------------------------------------------------------------------------------


def _answer(
    gateway: Gateway,
    copy: Copy,
    fallback: Copy | None,
    request: InferRequest,
    arrays: dict[str, Array],
    wanted: list[OutputRequest],
    timing: Timing,
    is_cancelled: IsCancelled | None,
) -> tuple[list[Array], Copy]:
    """The outputs, and the copy that gave them: from the cache, the serving copy, the fallback."""
    names = copy.output_names if wanted is copy.all_outputs else [o.name for o in wanted]
    key: bytes | None = None
    if copy.cached and gateway.cache is not None:
        looked = monotonic_ns()
        content = {k: v for k, v in request.parameters.items() if k not in _NOT_CONTENT}
        key = make_key(copy.cache_key, arrays, names, content)
        cached = gateway.cache.get(key)
        spent = monotonic_ns() - looked
        if cached is not None:
            gateway.page.add_duration(copy.slot, "cache_hit", spent)
            timing.executed, timing.cached = False, True
            return cached, copy
        gateway.page.add_duration(copy.slot, "cache_miss", spent)

    def run(target: Copy, into: Timing = timing) -> list[Array]:
        return _execute(gateway, target, request, arrays, names, into, is_cancelled)

    if fallback is None:
        results = run(copy)
    else:
        try:
            after_ms = copy.fallback_after_ms
            results = (
                run(copy) if after_ms is None else _in_time(gateway, copy, run, timing, after_ms)
            )
        except Exception as error:
            if not record.is_server_fault(error) or deadline_over(request):
                raise
            record.fell_back(gateway, request, copy, fallback, error)
            return run(fallback), fallback
    if key is not None and gateway.cache is not None:
        gateway.cache.put(key, results)
    return results, copy


def fallback_for(entry: Entry, copy: Copy, version: str) -> Copy | None:
    """Which copy may answer in another's stead: a client that named a version gets that or none."""
    fallback = entry.fallback
    if fallback is None or fallback is copy or version not in ("", fallback.version):
        return None
    return fallback


def deadline_over(request: InferRequest) -> bool:
    """Nobody awaits an answer any more."""
    return request.deadline_ns is not None and monotonic_ns() >= request.deadline_ns


def _in_time(
    gateway: Gateway,
    copy: Copy,
    run: Callable[[Copy, Timing], list[Array]],
    timing: Timing,
    after_ms: float,
) -> list[Array]:
    """Execute on a thread of the bulkhead and wait no longer than the fallback allows.

    A late answer is dropped and counted. A variant that hangs fills its bulkhead, no more: then
    the fallback answers at once, and the gateway's own threads stay free.
    """
    own = Timing()  # one that comes late must not write into what the fallback's times are kept in
    future: futures.Future[list[Array]] = gateway.bulkhead(copy).submit(run, copy, own)
    try:
        with gateway.pool.waiting():
            results = future.result(after_ms / 1e3)
    except TimeoutError:
        if not future.cancel():
            future.add_done_callback(lambda _: gateway.page.add(copy.slot, "late_answers"))
        text = f"{copy.key} took longer than {after_ms:g} ms"
        raise DeadlineError(text) from None
    timing.rows, timing.queue_ns = own.rows, own.queue_ns
    timing.execute_ns, timing.executed = own.execute_ns, own.executed
    return results


# --- batch, execute -------------------------------------------------------------------------------


def _execute(
    gateway: Gateway,
    copy: Copy,
    request: InferRequest,
    arrays: dict[str, Array],
    names: list[str],
    timing: Timing,
    is_cancelled: IsCancelled | None,
) -> list[Array]:
    if is_cancelled is not None and is_cancelled():
        text = "the caller went away before the request was executed"
        raise CancelledError(text)
    if copy.max_batch_size and arrays:
        timing.rows = next(iter(arrays.values())).shape[0]
    began = monotonic_ns()
    if request.received_ns:
        timing.queue_ns = max(0, request.started_ns - request.received_ns)
    if copy.batcher is not None:
        result = copy.batcher.infer(arrays, names, timing.rows, request.deadline_ns, is_cancelled)
        # All but the execution was waiting: to be joined with others, and for a place to go on.
        timing.queue_ns += max(0, monotonic_ns() - began - result.execute_ns)
        timing.execute_ns = result.execute_ns
        timing.executed = False  # the batch is counted once, by the batcher
        return result.outputs
    try:
        if isinstance(copy.runtime, ForwardingRuntime):
            with gateway.pool.waiting():
                return _ask(copy.runtime, request, arrays, names)
        if copy.runtime.waits:
            with gateway.pool.waiting():
                return copy.runtime.infer(arrays, names)
        return copy.runtime.infer(arrays, names)
    finally:
        timing.execute_ns = monotonic_ns() - began


def _ask(
    runtime: ForwardingRuntime, request: InferRequest, arrays: dict[str, Array], names: list[str]
) -> list[Array]:
    """Another server executes: it gets what is left of the time, the request's identity, and whose
    trace it belongs to."""
    deadline_ns = request.deadline_ns
    metadata = [("x-request-id", request.request_id)] if request.request_id else []
    if request.trace is not None:
        metadata += request.trace.headers()
    elif request.traceparent:
        metadata.append(("traceparent", request.traceparent))
    try:
        return runtime.infer_within(
            arrays,
            names,
            timeout_s=None if deadline_ns is None else (deadline_ns - monotonic_ns()) / 1e9,
            metadata=metadata,
            id=request.id,
            parameters={k: v for k, v in request.parameters.items() if k not in _OF_THE_TRANSPORT},
        )
    except CancelledError:
        raise cancelled_there() from None


def cancelled_there() -> UpstreamError:
    """For a call that nobody here has cancelled: a server that stops ends its calls so."""
    return UpstreamError("the upstream server cancelled the request", "CANCELLED")


# --- outputs --------------------------------------------------------------------------------------


def _outputs(
    gateway: Gateway,
    request: InferRequest,
    copy: Copy,
    wanted: list[OutputRequest],
    results: list[Array],
) -> InferResponse:
    tensors: list[OutputTensor] = []
    for output, array in zip(wanted, results, strict=True):
        datatype, result = copy.outputs[output.name].datatype, array
        if output.classification:
            result = classify(
                array, output.classification, output.name, batched=copy.max_batch_size > 0
            )
            datatype = "BYTES"
        tensor = OutputTensor(output.name, datatype, result.shape, result)
        if output.region is not None:
            raw = raw_bytes(result)
            if len(raw) > output.region.byte_size:
                text = f"output '{output.name}' takes {len(raw)} bytes, its shared-memory region "
                text += f"'{output.region.region}' gives it {output.region.byte_size}"
                raise InvalidRequestError(text)
            gateway.shm.write_region(output.region, raw)
            tensor.array = None
            tensor.region = RegionRef(output.region.region, len(raw), output.region.offset)
        tensors.append(tensor)
    return InferResponse(request.model_name, copy.version, request.id, tensors)
