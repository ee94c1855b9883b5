"""What a runtime is: the thing that executes one copy of a variant.

A runtime lives in one file, named in ``runtimes.BUILTIN``. Its builder imports what it needs
(torch, tensorrt, …) inside itself, so that a process pays only for what its config names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a model.

    Attributes:
        name: as the artifact calls it.
        datatype: the protocol's name (``"FP32"``).
        shape: full shape including the batch dimension; -1 where any size is allowed.
        optional: the model may be called without it (inputs only).
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """What a variant takes and gives.

    Attributes:
        inputs: in the artifact's order.
        outputs: in the artifact's order.
        max_batch_size: the largest size of the first dimension, when every input and output has
            a dynamic first dimension of the same meaning; 0 when the model has no batch dimension
            (its first dimension is fixed), so that requests may not be joined.
        platform: for ``ModelMetadata`` (``"onnxruntime_onnx"``, ``"pytorch_exported"``, …).
        backend: for ``ModelConfig`` (``"onnxruntime"``, ``"pytorch"``, ``"tensorrt"``,
            ``"remote"``).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int
    platform: str
    backend: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a copy lives and what it takes; shown by ``serve`` and in statistics.

    Attributes:
        device: ``"cpu"``, ``"cuda:0"``, or the address of a remote server.
        memory_bytes: what the copy holds (weights and workspace, as well as it is known); 0 when
            it lies in another process.
        details: short facts for people (``{"threads": "1", "provider": "CPUExecutionProvider"}``).
    """

    device: str
    memory_bytes: int
    details: Mapping[str, str] = field(default_factory=dict)


class Runtime(ABC):
    """One loaded copy of a variant. Thread-safe: ``infer`` may be called from several threads."""

    #: False where Python threads gain nothing by waiting elsewhere: execution uses this machine's
    #: cores. True where ``infer`` mostly waits (another server, a GPU), so that the work pool may
    #: run other requests meanwhile.
    waits: ClassVar[bool] = False

    def __init__(self, signature: Signature, placement: Placement) -> None:
        self.signature = signature
        self.placement = placement

    def infer(
        self, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
    ) -> list[Array]:
        """Execute once.

        Args:
            inputs: name → C-contiguous array of the declared dtype (BYTES: object array of
                ``bytes``) whose shape fits the signature. The request's path has checked that;
                arrays may be read-only views of a request's buffer, so implementations never
                write into them and never keep them after returning.
            outputs: the names wanted, in order; ``None`` for all, in the signature's order.

        Returns:
            One array per wanted output, in that order, of the declared dtype. The arrays are the
            caller's: no later call writes into them.

        Raises:
            ExecutionError: the model failed on this input; the message is fit for clients.
            DeadlineError: only from runtimes with a time limit of their own (``remote``).
        """
        if outputs is None:
            outputs = [spec.name for spec in self.signature.outputs]
        return self.infer_impl(inputs, outputs)

    @abstractmethod
    def infer_impl(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Execute; ``inputs`` and ``outputs`` are as ``infer`` documents."""

    def example_inputs(self, batch: int = 1) -> dict[str, Array]:
        """Zero inputs that this copy accepts: what warm-up runs.

        Overridden where not every shape that fits the signature is accepted.
        """
        return synthesize_inputs(self.signature, batch)

    def close(self) -> None:
        """Free what is held. Idempotent; nothing is called after it."""
        return


def synthesize_inputs(signature: Signature, batch: int = 1) -> dict[str, Array]:
    """Make zero inputs that fit ``signature``: what warm-up runs.

    Dynamic dimensions become 1, a dynamic first dimension ``batch``; BYTES elements are empty.
    """
    from sidecar.protocol.datatypes import BY_NAME

    arrays: dict[str, Array] = {}
    for spec in signature.inputs:
        shape = [1 if size < 0 else size for size in spec.shape]
        if shape and spec.shape[0] < 0:
            shape[0] = batch
        datatype = BY_NAME[spec.datatype]
        if datatype.item_bytes:
            arrays[spec.name] = np.zeros(shape, datatype.numpy)
        else:
            arrays[spec.name] = np.full(shape, b"", dtype=object)
    return arrays


def infer_max_batch_size(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], configured: int | None
) -> int:
    """Return a signature's ``max_batch_size``.

    Every input and output must have a first dimension of -1 for requests to be joined along it.
    ``configured`` (the runtime's ``max_batch_size`` setting) bounds it; without it, 1024.
    """
    tensors = [*inputs, *outputs]
    batched = bool(tensors) and all(spec.shape and spec.shape[0] == -1 for spec in tensors)
    if not batched:
        return 0
    return 1024 if configured is None else configured


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What another server answered: the wire bytes of a ``ModelInferResponse``, and metadata."""

    body: bytes
    metadata: tuple[tuple[str, str | bytes], ...] = ()


class ForwardingRuntime(Runtime):
    """A runtime behind which another server stands: request bytes go through unparsed.

    ``infer`` (arrays in and out) works as for any runtime, for the monitor and for HTTP; the gRPC
    path uses ``forward``.
    """

    waits: ClassVar[bool] = True

    #: The gateway's own admin token, which it sets here if it has one: an ``authorization`` header
    #: with it is held back from the other server. Any other authorization is passed on.
    admin_token: str | None = None

    @abstractmethod
    def forward(
        self,
        body: bytes,
        *,
        timeout_s: float | None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        on_call: Callable[[Callable[[], None]], None] | None = None,
    ) -> Forwarded:
        """Send a serialized ``ModelInferRequest`` on and wait for the answer.

        Args:
            body: as the client sent it; the model's name and version are overridden (by appended
                fields: in protobuf the last one wins) where they differ upstream.
            timeout_s: what is left of the caller's deadline; the configured limit bounds it.
            metadata: request metadata to pass on (trace context, ``x-request-id``, the client's
                own headers); reserved and hop-by-hop keys are left out by the implementation.
            on_call: is given, once the call is under way, a function that cancels it: from any
                thread, at any time, any number of times. For a client that goes away.

        Raises:
            InvalidRequestError: ``body`` is no ``ModelInferRequest``.
            UpstreamError: the server failed, with its status name.
            DeadlineError: it did not answer in time. CancelledError: the call was cancelled.
        """

    @abstractmethod
    def infer_within(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        timeout_s: float | None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        id: str = "",  # noqa: A002 - the field's name
        parameters: Mapping[str, bool | int | float | str] | None = None,
    ) -> list[Array]:
        """``infer`` for a client's request that cannot go on as bytes (HTTP, shared memory).

        Args:
            inputs, outputs: as in ``infer``.
            timeout_s, metadata: as in ``forward``.
            id, parameters: the request's own, for the other server.
        """

    @abstractmethod
    def forward_stream(
        self,
        bodies: Iterator[bytes],
        *,
        timeout_s: float | None,
        metadata: Sequence[tuple[str, str | bytes]] = (),
        on_call: Callable[[Callable[[], None]], None] | None = None,
    ) -> Iterator[bytes]:
        """Open a stream there: ``ModelInferRequest`` bytes in, ``ModelStreamInferResponse`` out.

        A server may answer a request any number of times, and after the last request too.

        Args:
            bodies: read by another thread, one ahead of what the server has taken. When it raises,
                what was sent before is still answered; then the answers raise the same exception.
            timeout_s: what is left of the caller's deadline, for the whole stream; ``None``: none,
                since a stream may rightly stay open for days.
            metadata, on_call: as in ``forward``.

        Returns:
            The elements, in Triton's form whatever the server's dialect. Closing it ends the call.

        Raises:
            UnsupportedError: the server's dialect has no streams. Otherwise as ``forward``, raised
                by the iterator.
        """

    @abstractmethod
    def ready(self) -> bool:
        """Ask the server whether the model is ready (short time limit, never raises)."""
