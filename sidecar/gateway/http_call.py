"""One HTTP call: what handlers get and give, and the threads and the pool they work on."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, TypeVar

from starlette.types import Receive, Scope

from sidecar.errors import CancelledError, InvalidRequestError, OverloadedError
from sidecar.gateway.api import Backend
from sidecar.gateway.deadline import set_deadline
from sidecar.gateway.http_body import compress
from sidecar.gateway.messages import InferRequest, InferResponse
from sidecar.gateway.tracing import RequestTrace, working_on
from sidecar.protocol.json_codec import EncodedResponse, Envelope, decode_request, encode_response

Headers = tuple[tuple[bytes, bytes], ...]
_T = TypeVar("_T")

#: A request that is still running after this is watched for its client going away. Watching costs
#: a task; most requests are over long before.
WATCH_AFTER_S = 0.05
#: Smaller answers are sent as they are, even to clients that would take them compressed.
PACK_BYTES_MIN = 1024
_DIGITS = re.compile(rb"[0-9]{1,18}")
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}[\x21-\x7e]{0,128}")
_JSON = b"application/json"


@dataclass(slots=True)
class Call:
    """One HTTP request, as handlers see it."""

    scope: Scope
    receive: Receive
    headers: dict[bytes, bytes]
    path: Mapping[str, str]
    request_id: str
    trace: RequestTrace | None = None  # of an inference, where tracing is on

    @property
    def model(self) -> tuple[str, str]:
        """Name and version, ``""`` where the URL has none."""
        return self.path.get("model", ""), self.path.get("version", "")

    def size(self, name: bytes) -> int | None:
        """A header that holds a number of bytes. Raises ``InvalidRequestError``."""
        value = self.headers.get(name)
        if value is None:
            return None
        if not _DIGITS.fullmatch(value):
            message = f"the header {name.decode()} must be a number of bytes"
            raise InvalidRequestError(message)
        return int(value)

    @property
    def traceparent(self) -> str:
        """The header, ``""`` where it is missing or nothing like one."""
        sent = self.headers.get(b"traceparent", b"")
        return sent.decode() if _TRACEPARENT.fullmatch(sent) else ""

    @property
    def context(self) -> tuple[str, str]:
        """``traceparent`` and ``tracestate``.

        Two of the first contradict each other, and are none; several of the others are one list.
        """
        traceparent = self.traceparent
        if not traceparent:
            return "", ""
        parents = 0
        states: list[bytes] = []
        for name, value in self.scope["headers"]:
            if name == b"traceparent":
                parents += 1
            elif name == b"tracestate":
                states.append(value)
        return ("", "") if parents > 1 else (traceparent, b",".join(states).decode("latin-1"))

    @property
    def token(self) -> str | None:
        """The bearer token, if one was presented."""
        kind, _, token = self.headers.get(b"authorization", b"").partition(b" ")
        return token.strip().decode("latin-1") if kind.lower() == b"bearer" else None


@dataclass(slots=True)
class Reply:
    """What a handler answers."""

    status: int = 200
    parts: Sequence[bytes | memoryview] = ()
    content_type: bytes = _JSON
    headers: Headers = ()


def json_reply(value: Any, status: int = 200) -> Reply:
    """A reply of one JSON value."""
    return Reply(status, [json.dumps(value, separators=(",", ":")).encode("ascii")])


def error_reply(status: int, message: str, headers: Headers = ()) -> Reply:
    """``{"error": message}``, as every client of this protocol reads it."""
    reply = json_reply({"error": message}, status)
    reply.headers = headers
    return reply


Handler = Callable[[Call], Awaitable[Reply]]


class Threads:
    """A few threads with a bounded queue, for calls that may wait. Used from the loop only."""

    def __init__(self, name: str, threads: int, pending_max: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._pending = 0
        self._pending_max = pending_max

    async def run(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """Call ``function`` on a thread. Raises ``OverloadedError`` when too many wait."""
        if self._pending >= self._pending_max:
            message = f"{self._pending} control calls are waiting already; try again later"
            raise OverloadedError(message)
        self._pending += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._pool, function, *arguments)
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Start nothing more; what runs may end."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Inference:
    """One inference: handed to the work pool, awaited on the loop.

    ``cancelled`` turns true when the client has gone away.
    """

    def __init__(
        self,
        backend: Backend,
        body: bytes,
        envelope: Envelope,
        undo: Callable[[bytes], bytes],
        default_timeout_s: float | None,
        pack: str = "",
        trace: RequestTrace | None = None,
    ) -> None:
        self._backend = backend
        self._body = body
        self._envelope = envelope
        self._undo = undo
        self._default_timeout_s = default_timeout_s
        self._pack = pack
        self._trace = trace
        self.cancelled = False
        self.reached = False  # whether it got to the core, which counts it from there on
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[EncodedResponse] = self._loop.create_future()
        self._watcher: asyncio.Task[None] | None = None

    def __call__(self) -> None:
        """Work, on a thread of the pool. Raises nothing: whoever waits gets the error."""
        result: EncodedResponse | None = None
        error: BaseException | None = None
        if self._trace is not None:
            working_on(self._trace)
        try:
            result = self._work()
        except BaseException as caught:  # noqa: BLE001 - it is the waiting request's, and goes there
            error = caught
        if self._trace is not None:
            working_on(None)
        with suppress(RuntimeError):  # the loop is closed: the server was stopped meanwhile
            self._loop.call_soon_threadsafe(self._deliver, result, error)

    def _work(self) -> EncodedResponse:
        started = monotonic_ns()
        if self.cancelled:
            message = "the client closed the connection"
            raise CancelledError(message)
        packed, self._body = self._body, b""  # a compressed body is not kept beside its contents
        body = self._undo(packed)
        del packed
        request, binary = decode_request(body, self._envelope)
        request.started_ns, request.transport = started, "http"
        request.trace = self._trace
        request.parse_ns = monotonic_ns() - started
        self._set_deadline(request)
        if (tap := self._backend.tap) is not None:
            tap.consider(request, "http", body, self._envelope.json_bytes)

        def encode(response: InferResponse) -> tuple[EncodedResponse, int]:
            encoded = encode_response(response, request, binary=binary)
            nbytes = sum(map(len, encoded.parts))
            if request.sample is not None:  # as it is before it is compressed
                request.sample.response = encoded.parts
                request.sample.response_header_bytes = encoded.json_bytes
            if self._pack and nbytes >= PACK_BYTES_MIN:
                packed = compress(encoded.parts, self._pack)
                encoded = EncodedResponse([packed], encoded.json_bytes, self._pack)
            return encoded, nbytes

        self.reached = True
        return self._backend.serve(request, encode, lambda: self.cancelled)

    def _set_deadline(self, request: InferRequest) -> None:
        """From when the body was complete: HTTP has no deadline of its own, only ``timeout``."""
        set_deadline(request, request.received_ns, None, self._default_timeout_s)

    def _deliver(self, result: EncodedResponse | None, error: BaseException | None) -> None:
        if self._future.done():
            return
        if result is not None:
            self._future.set_result(result)
        else:
            assert error is not None
            self._future.set_exception(error)

    async def answer(self, receive: Receive) -> EncodedResponse:
        """Wait for the answer; meanwhile notice when the client goes away.

        Even then it waits: the work holds memory that admission must go on counting.
        """
        timer = self._loop.call_later(WATCH_AFTER_S, self._watch, receive)
        try:
            return await self._future
        finally:
            self.cancelled = True  # only matters when this task itself was cancelled
            timer.cancel()
            if self._watcher is not None:
                self._watcher.cancel()

    def _watch(self, receive: Receive) -> None:
        self._watcher = self._loop.create_task(self._until_gone(receive))

    async def _until_gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.cancelled = True
