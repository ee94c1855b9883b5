"""What a transport may ask of the gateway's core; ``http.py`` knows nothing else of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol, TypeVar

from google.protobuf.message import Message

from sidecar.gateway.messages import InferRequest, InferResponse
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import model_config_pb2 as config_pb

if TYPE_CHECKING:
    from sidecar.gateway.tap import Tap
    from sidecar.gateway.tracing import RequestTrace, Tracing

Encoded = TypeVar("Encoded")


class CountFailure(Protocol):
    """As ``record.refused``."""

    def __call__(
        self,
        transport: str,
        error: BaseException,
        ns: int = 0,
        trace: RequestTrace | None = None,
        *,
        model: str = "",
        request_id: str = "",
        nbytes: int = 0,
    ) -> None:
        """Count it: ``ns`` nanoseconds it was here, ``nbytes`` of its body came."""
        ...


class Backend(Protocol):
    """The core, as a transport sees it. Methods raise ``RequestError`` and its kinds."""

    #: Hands a sample of what is answered to the monitor; ``None``: there is none.
    tap: Tap | None
    #: Decides which requests are traced; ``None``: none are.
    tracing: Tracing | None
    #: Model → the header whose value says which version answers, where one is configured.
    sticky: Mapping[str, str]

    def serve(
        self,
        request: InferRequest,
        encode: Callable[[InferResponse], tuple[Encoded, int]],
        is_cancelled: Callable[[], bool] | None = None,
    ) -> Encoded:
        """Answer one request; called on the work pool, and blocks until the answer is there.

        Args:
            request: as decoded; its deadline is set by the transport.
            encode: makes the answer's wire form, and says its size in bytes: it is called inside,
                so that encoding is a stage with a time, and its failure a failed request.
            is_cancelled: asked before what is dear: whether the caller has gone away.
        """
        ...

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the work pool, soon; never waits. ``work`` raises nothing.

        Raises:
            OverloadedError: the pool's queue is full; UnavailableError: it is closed.
        """
        ...

    def admit(self, nbytes: int, *, requests: int = 1) -> AbstractContextManager[object]:
        """Count a request and its body as in flight while the context is open; never waits.

        ``requests`` is 0 where a request that was counted already turns out to be larger (a chunked
        or a compressed body). Entered and left on any thread.

        Raises:
            OverloadedError: a bound of ``gateway.admission`` would be exceeded. On entering or
                already on calling.
        """
        ...

    @property
    def count_failure(self) -> CountFailure:
        """Counts an inference that never got to ``serve``."""
        ...

    def server_live(self) -> bool:
        """Whether the process answers; must not wait, it is called on the event loop."""
        ...

    def server_ready(self) -> bool:
        """Whether requests should come here; must not wait, it is called on the event loop."""
        ...

    def server_metadata(self) -> dict[str, object]:
        """``{"name": …, "version": …, "extensions": […]}``; must not wait."""
        ...

    def model_ready(self, name: str, version: str) -> bool:
        """Whether a model (``version`` ``""``: its default version) answers. May wait."""
        ...

    def model_metadata(self, name: str, version: str) -> pb.ModelMetadataResponse:
        """Inputs, outputs, versions. May wait (a remote variant asks its server)."""
        ...

    def model_config(self, name: str, version: str) -> config_pb.ModelConfig:
        """The model's configuration, as clients read it. May wait."""
        ...

    def statistics(self, name: str, version: str) -> pb.ModelStatisticsResponse:
        """Counts and times; ``name`` ``""``: of every model. May wait (several workers)."""
        ...

    def admin(self, method: str, request: Message, token: str | None) -> Message:
        """Run a control call; returns when every worker has it. May wait for long.

        Args:
            method: the name of the gRPC method: ``RepositoryIndex``, ``RepositoryModelLoad``,
                ``RepositoryModelUnload``, ``SystemSharedMemoryStatus`` (``Register``,
                ``Unregister``), ``CudaSharedMemoryStatus`` (…), ``TraceSetting``, ``LogSettings``.
            request: that method's request. The last two change nothing without settings.
            token: the bearer token that was presented, or ``None``.

        Raises:
            PermissionDeniedError: the call needs a token, or a listener, that this one is not.
        """
        ...
