"""How the gRPC server's work gets to threads: three lanes, and bodies that nobody waits for.

grpcio's synchronous server takes a thread for a request *before* its body has arrived, and the
thread waits for it: two thread switches a request, and as many threads held as there are clients
that open a request and send nothing. So unary calls are received here first, by the server's own
event thread, and get a thread when the message is complete. That reaches into grpcio's internals
(pinned in constraints.txt). Where they have another form, ``prefetch_supported`` is false and
grpcio's own way is used: slower, no less right. Measured in docs/benchmarks.md; the reasons are in
docs/decisions/0002-receive-before-thread.md.

Lanes, so that no kind of work can stop another kind:

- inference: the work pool, bounded by admission;
- control (health, metadata, statistics): a small pool of its own, or four idle streams would stop
  health, and a liveness probe would restart the pod;
- slow (load, unload): a pool of its own, because loading takes seconds;
- streams: a thread each, at most ``max_streams``.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable
from concurrent import futures
from time import monotonic_ns
from typing import Any

from grpc import _server
from grpc._cython import cygrpc
from typing_extensions import override

from sidecar.errors import OverloadedError
from sidecar.gateway.admission import Admission
from sidecar.gateway.workpool import WorkPool
from sidecar.protocol.status import client_message, status_of

logger = logging.getLogger(__name__)

#: Per thread: when the body of the call that it works on was complete (``received_ns``).
current = threading.local()

CountRefusal = Callable[..., None]

_EXPECTED = {
    "_unary_response_in_pool": 6,
    "_stream_response_in_pool": 6,
    "_receive_message": 3,
    "_abort": 4,
}


def prefetch_supported() -> bool:
    """Whether grpcio's internals have the form that this module was written against."""
    for name, parameters in _EXPECTED.items():
        function = getattr(_server, name, None)
        if function is None or len(inspect.signature(function).parameters) != parameters:
            return False
    return hasattr(_server, "_RECEIVE_MESSAGE_TOKEN") and hasattr(cygrpc, "ReceiveMessageOperation")


class _Scheduled:
    """What grpcio wants back from ``submit``; it only counts calls by it, and we do that."""

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        del callback


_SCHEDULED = _Scheduled()


class GrpcPool(futures.ThreadPoolExecutor):
    """The executor given to ``grpc.server``: sorts calls into lanes.

    It is a ``ThreadPoolExecutor`` (its own threads are the control lane), because grpcio checks
    for one. Handlers say their lane by an attribute ``lane``: ``"inference"``, ``"slow"``,
    ``"stream"``; control otherwise. ``count_refusal`` counts what is refused here: the transport,
    the call's metadata, why, and how large its body was and when it was complete.
    """

    def __init__(self, work: WorkPool, admission: Admission, count_refusal: CountRefusal) -> None:
        super().__init__(max_workers=4, thread_name_prefix="grpc-control")
        self._work = work
        self._admission = admission
        self._count_refusal = count_refusal
        self._slow = futures.ThreadPoolExecutor(2, thread_name_prefix="grpc-slow")
        self._streams = futures.ThreadPoolExecutor(
            admission.max_streams, thread_name_prefix="grpc-stream"
        )
        self.prefetch = prefetch_supported()
        if not self.prefetch:
            logger.warning("this grpcio has another inside: requests wait for bodies on threads")

    @override
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Called by grpcio's event thread, with the call's state locked. Never waits."""
        if len(args) != 7:
            return super().submit(fn, *args, **kwargs)
        target, rpc_event, state, behavior = args[:4]
        lane = getattr(behavior, "lane", "control")
        if lane == "stream":
            return self._submit_stream(fn, args, rpc_event, state)
        if lane == "inference":
            try:
                self._admission.enter_request()
            except OverloadedError as error:
                self._count_refusal("grpc", rpc_event.invocation_metadata, error)
                return _refuse(state, rpc_event.call, error)
        if not self.prefetch or target is not _server._unary_response_in_pool:
            if lane == "inference":
                self._work.put(self._admitted, fn, args, 0, 0)
                return _SCHEDULED
            return self._submit_other(lane, fn, args)
        self._receive(fn, args, lane)
        return _SCHEDULED

    def _submit_other(self, lane: str, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        if lane == "slow":
            return self._slow.submit(fn, *args)
        return super().submit(fn, *args)

    def _receive(self, fn: Callable[..., Any], args: tuple[Any, ...], lane: str) -> None:
        """Ask for the message; when it is here, put the call on its lane."""
        target, rpc_event, state, behavior, _, deserializer, serializer = args
        received = _server._receive_message(state, rpc_event.call, deserializer)

        def on_received(event: Any) -> Any:
            done = received(event)
            body, state.request = state.request, None
            self._dispatch(
                fn, (target, rpc_event, state, behavior, lambda: body, deserializer, serializer),
                lane, body,
            )  # fmt: skip
            return done

        rpc_event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), on_received)
        state.due.add(_server._RECEIVE_MESSAGE_TOKEN)

    def _dispatch(
        self, fn: Callable[..., Any], args: tuple[Any, ...], lane: str, body: Any
    ) -> None:
        rpc_event, state = args[1], args[2]
        if body is None:
            if lane == "inference":
                self._admission.leave_request(0)
            _end_without_message(state, rpc_event)
            return
        if lane != "inference":
            self._submit_other(lane, fn, args)
            return
        nbytes, received_ns = len(body), monotonic_ns()
        try:
            self._admission.enter_bytes(nbytes)
        except OverloadedError as error:
            self._admission.leave_request(0)
            metadata = rpc_event.invocation_metadata
            self._count_refusal("grpc", metadata, error, nbytes, received_ns)
            with state.condition:
                _refuse(state, rpc_event.call, error)
            return
        self._work.put(self._admitted, fn, args, nbytes, received_ns)

    def _admitted(
        self, fn: Callable[..., Any], args: tuple[Any, ...], nbytes: int, received_ns: int
    ) -> None:
        current.received_ns = received_ns
        try:
            fn(*args)
        finally:
            self._admission.leave_request(nbytes)

    def _submit_stream(
        self, fn: Callable[..., Any], args: tuple[Any, ...], rpc_event: Any, state: Any
    ) -> Any:
        try:
            self._admission.enter_stream()
        except OverloadedError as error:
            self._count_refusal("stream", rpc_event.invocation_metadata, error)
            return _refuse(state, rpc_event.call, error)
        future = self._streams.submit(fn, *args)
        future.add_done_callback(lambda _: self._admission.leave_stream())
        return _SCHEDULED

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the lanes' idle threads."""
        for pool in (self._slow, self._streams):
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)
        super().shutdown(wait=wait, cancel_futures=cancel_futures)


def _end_without_message(state: Any, rpc_event: Any) -> None:
    """The client cancelled, or closed its side without sending a request."""
    with state.condition:
        if state.client is not _server._CANCELLED:
            text = b"the call ended without a request message"
            _server._abort(state, rpc_event.call, cygrpc.StatusCode.invalid_argument, text)


def _refuse(state: Any, call: Any, error: OverloadedError) -> _Scheduled:
    """End a call before its body was read; the caller holds the state's lock."""
    status = status_of(error)
    code = cygrpc.StatusCode.resource_exhausted
    assert status.grpc == "RESOURCE_EXHAUSTED"
    _server._abort(state, call, code, client_message(error).encode())
    return _SCHEDULED
