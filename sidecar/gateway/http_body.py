"""Reading a request's body: bounded in bytes, in time, and in what it decompresses to."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from starlette.types import Receive

from sidecar.errors import InvalidRequestError
from sidecar.gateway.api import Backend

#: What a body of unknown length is admitted with at first; it doubles as the body grows.
UNKNOWN_BYTES = 256 * 1024
_STEP = 256 * 1024


class RefusedError(Exception):
    """A refusal that only HTTP has (413, 415, 408, 411, …); ``str()`` is sent to the client."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class DisconnectedError(Exception):
    """The client went away; there is nobody to answer."""


class Reservation:
    """The bytes one request holds, as admission knows them; a context manager.

    A body whose length is known is admitted before its first byte is read. One that is chunked or
    compressed is admitted as it grows, at least doubling, so that it takes few steps.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._stack = ExitStack()
        self._nbytes = 0
        self._counted = False

    def grow(self, total: int) -> None:
        """Hold at least ``total`` bytes. Raises ``OverloadedError``."""
        if self._counted and total <= self._nbytes:
            return
        step = max(total - self._nbytes, self._nbytes)
        requests = 0 if self._counted else 1
        self._stack.enter_context(self._backend.admit(step, requests=requests))
        self._counted = True
        self._nbytes += step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not handed the exception: admission counts, it does not judge.
        self._stack.close()


async def read_body(
    receive: Receive,
    length: int | None,
    *,
    max_bytes: int,
    stall_s: float,
    reservation: Reservation | None = None,
) -> bytes:
    """Read a body.

    Args:
        receive: the connection's ASGI ``receive``.
        length: the ``Content-Length``; ``None`` for a chunked body.
        max_bytes: the most it may have.
        stall_s: how long the client may send nothing.
        reservation: grown to the body's size, before it is read as far as that is known.

    Raises:
        RefusedError: too large (413), or stalled (408). OverloadedError. DisconnectedError.
    """
    if length is not None and length > max_bytes:
        raise _too_large(max_bytes)
    if reservation is not None:
        reservation.grow(UNKNOWN_BYTES if length is None else length)
    chunks: list[bytes] = []
    total = 0
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(stall_s) as limit:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise DisconnectedError
                chunk: bytes = message.get("body", b"")
                if chunk:
                    chunks.append(chunk)
                    total += len(chunk)
                    if total > max_bytes:
                        raise _too_large(max_bytes)
                    if length is None and reservation is not None:
                        reservation.grow(total)
                if not message.get("more_body", False):
                    break
                limit.reschedule(loop.time() + stall_s)
    except TimeoutError:
        reason = f"no byte of the body came for {stall_s:g} s"
        raise RefusedError(408, reason, ((b"connection", b"close"),)) from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _too_large(max_bytes: int) -> RefusedError:
    message = f"the body is larger than the {max_bytes} bytes this server accepts "
    return RefusedError(413, message + "(gateway.http.max_body_bytes)")


def check_encoding(encoding: str) -> str:
    """Return the ``Content-Encoding`` to undo: ``""``, ``"gzip"`` or ``"deflate"``.

    Raises:
        RefusedError: 415, another one, or several on top of each other.
    """
    name = encoding.strip().lower()
    if name in {"", "identity"}:
        return ""
    if name in {"gzip", "deflate"}:
        return name
    message = f"Content-Encoding {encoding[:60]!r} is not known here; use gzip, deflate or none"
    raise RefusedError(415, message, ((b"accept-encoding", b"gzip, deflate"),))


def decompress(body: bytes, encoding: str, max_bytes: int, reservation: Reservation) -> bytes:
    """Undo ``encoding``, never holding more than ``max_bytes`` (a few KiB can claim gigabytes).

    ``deflate`` is the zlib format, as the standard says; the bare stream that some clients send
    under that name is understood too.

    Raises:
        RefusedError: 413. InvalidRequestError: broken, truncated, or followed by something else.
        OverloadedError.
    """
    if not encoding:
        return body
    wbits = 31 if encoding == "gzip" else 15
    if encoding == "deflate" and not _has_zlib_header(body):
        wbits = -15
    decoder = zlib.decompressobj(wbits)
    chunks: list[bytes] = []
    total = 0
    pending = body
    try:
        while not decoder.eof:
            # One byte beyond the bound is enough to know that it is broken.
            chunk = decoder.decompress(pending, min(_STEP, max_bytes + 1 - total))
            pending = decoder.unconsumed_tail
            if not chunk and not decoder.eof and not pending:
                message = f"the {encoding} body is truncated"
                raise InvalidRequestError(message)
            total += len(chunk)
            if total > max_bytes:
                raise _too_large(max_bytes)
            reservation.grow(len(body) + total)
            chunks.append(chunk)
    except zlib.error:
        message = f"the body is not valid {encoding}"
        raise InvalidRequestError(message) from None
    if decoder.unused_data:
        message = f"the {encoding} body is followed by {len(decoder.unused_data)} more bytes"
        raise InvalidRequestError(message)
    return b"".join(chunks)


def accepted_encoding(accept: str) -> str:
    """Return how to compress an answer: ``"gzip"``, ``"deflate"`` or ``""``.

    Only where the client names that one coding and no other. HTTP libraries send a list by default
    (``gzip, deflate, br``), and compressing tensors for clients in the same pod costs far more time
    than it saves; tritonclient sends one name, when its user asks for it.
    """
    name = accept.strip().lower()
    return name if name in {"gzip", "deflate"} else ""


def compress(parts: Sequence[bytes | memoryview], encoding: str) -> bytes:
    """Compress an answer, at the fastest level."""
    packer = zlib.compressobj(1, wbits=31 if encoding == "gzip" else 15)
    return b"".join([*map(packer.compress, parts), packer.flush()])


def _has_zlib_header(body: bytes) -> bool:
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
