"""One request that is mirrored, from its decoding to its answer (see ``tap.py``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from time import monotonic_ns
from typing import TYPE_CHECKING

import numpy as np

from sidecar.gateway.messages import InferRequest
from sidecar.monitor.exchange import Bytes, Exchange

if TYPE_CHECKING:
    from sidecar.gateway.pages import Timing
    from sidecar.gateway.registry import Copy
    from sidecar.gateway.tap import Tap

logger = logging.getLogger(__name__)


class Sample:
    """A request that was sampled: what is known of it until it is answered.

    Attributes:
        response: the answer's bytes in pieces, where the transport sends them in another form.
        response_header_bytes: as in ``Exchange``.
    """

    __slots__ = (
        "_body", "_fallback", "_header_bytes", "_request", "_start_ns", "_tap", "_transport",
        "response", "response_header_bytes",
    )  # fmt: skip

    def __init__(
        self,
        tap: Tap,
        request: InferRequest,
        transport: str,
        body: bytes,
        header_bytes: int | None,
    ) -> None:
        self._tap = tap
        self._request = request
        self._transport = transport
        self._body = body
        self._header_bytes = header_bytes
        self._start_ns = request.received_ns or monotonic_ns()
        self._fallback: Copy | None = None
        self.response: Sequence[Bytes] | None = None
        self.response_header_bytes: int | None = None

    def answered(self, copy: Copy, timing: Timing, end_ns: int, encoded: object) -> None:
        """Hand the exchange over. ``encoded``: the answer, unless ``response`` has it already."""
        if self.response is None and isinstance(encoded, bytes):
            self.response = (encoded,)
        if self.response is not None:
            self._offer(copy, "OK", self.response, end_ns, timing.execute_ns)

    def failed(self, copy: Copy, error: Exception) -> None:
        """Hand over that a version failed, by its own fault: that, too, must be seen."""
        self._offer(self._fallback or copy, type(error).__name__, None, monotonic_ns(), 0)

    def fell_back(self, copy: Copy, fallback: Copy, error: Exception) -> None:
        """``copy`` failed; what becomes of the request now is another exchange."""
        self.failed(copy, error)
        self._fallback = fallback

    def set_aside(self, counter: str) -> None:
        """Not to be mirrored after all; counted as ``counter``."""
        self._tap.count("tap_sampled", counter)

    def _offer(
        self,
        copy: Copy,
        outcome: str,
        response: Sequence[Bytes] | None,
        end_ns: int,
        execute_ns: int,
    ) -> None:
        request, tap = self._request, self._tap
        try:
            if response is not None:
                response = [owned(part) for part in response]
            trace = request if request.trace is None else request.trace
            exchange = Exchange(
                request.request_id, trace.traceparent, copy.model, copy.key, self._transport,
                self._body, None, self._header_bytes, self.response_header_bytes, outcome,
                self._start_ns, end_ns, execute_ns, tap.clock.now_ns(), os.getpid(),
            )  # fmt: skip
            tap.offer(exchange, response)
        except Exception:  # the client's answer is ready, and must not be lost by a fault here
            logger.exception("an exchange could not be handed over")


def owned(part: Bytes) -> Bytes:
    """``part``, or a copy where it is a small piece of a larger array.

    One request's rows are a view of the whole batch's, which must not be kept alive by them: the
    queue is bounded by what it counts.
    """
    if isinstance(part, memoryview) and isinstance(part.obj, np.ndarray):
        owner: object = part.obj
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        if isinstance(owner, np.ndarray) and owner.nbytes > 2 * part.nbytes:
            return bytes(part)
    return part


def uses_regions(request: InferRequest) -> bool:
    """Whether tensors of it lie in shared memory, or are to."""
    return any(tensor.region is not None for tensor in request.inputs) or any(
        output.region is not None for output in request.outputs
    )
