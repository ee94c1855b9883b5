"""Another server that speaks the protocol over gRPC: the usual case in a model pod.

Requests go through as bytes (``forward``); nothing but their names is read. What dialects of the
protocol differ in is said by the variant's ``dialect`` and gathered in ``DIALECTS``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from google.protobuf.message import DecodeError, Message
from typing_extensions import override

from sidecar.errors import (
    ArtifactError,
    DeadlineError,
    RequestError,
    SidecarError,
    UnsupportedError,
    UpstreamError,
)
from sidecar.protocol import wire
from sidecar.protocol.datatypes import BY_NAME
from sidecar.protocol.fields import length_delimited
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.runtimes.base import (
    Array,
    Forwarded,
    ForwardingRuntime,
    Placement,
    Signature,
    TensorSpec,
)
from sidecar.runtimes.remote_channel import Metadata, OnCall, Upstream, passable
from sidecar.runtimes.remote_tensors import decode_answer, encode_request
from sidecar.runtimes.signature import declared, reconcile

if TYPE_CHECKING:
    from sidecar.config import VariantConfig
    from sidecar.config_runtime import RemoteConfig, TensorConfig

logger = logging.getLogger(__name__)

_M = TypeVar("_M", bound=Message)

#: Calls about the model, not of it: a server that takes longer to say that it is ready is not.
_CONTROL_TIMEOUT_S = 5.0
_READY_TIMEOUT_S = 1.0
#: Between looks at a server that is not ready yet.
_BACKOFF_S, _BACKOFF_MAX_S = 0.05, 1.0
#: Waiting does not mend these.
_PERMANENT = frozenset({"UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"})
#: Field 2 of ModelStreamInferResponse.
_INFER_RESPONSE = 2


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a server does of what the published protocol leaves open (docs/remote.md).

    Attributes:
        streams: it has ``ModelStreamInfer``.
        bare_elements: its stream elements are ``ModelInferResponse``, not wrapped.
        model_config: it has ``ModelConfig``.
        exact_metadata: ``ModelMetadata`` is read off the model; elsewhere people write it by hand,
            in part or not at all, so that the sidecar's config overrules it.
    """

    streams: bool
    bare_elements: bool
    model_config: bool
    exact_metadata: bool


DIALECTS: Mapping[str, Dialect] = {
    "triton": Dialect(streams=True, bare_elements=False, model_config=True, exact_metadata=True),
    "kserve": Dialect(streams=False, bare_elements=False, model_config=False, exact_metadata=False),
    "mlserver": Dialect(streams=True, bare_elements=True, model_config=False, exact_metadata=False),
}


class RemoteRuntime(ForwardingRuntime):
    """A model on another server."""

    def __init__(
        self,
        upstream: Upstream,
        config: RemoteConfig,
        model_name: str,
        signature: Signature,
        placement: Placement,
    ) -> None:
        super().__init__(signature, placement)
        self._upstream = upstream
        self._dialect = DIALECTS[config.dialect]
        self._timeout_s = config.timeout_s
        self._name = model_name
        self._version = config.model_version or ""
        self._inputs = {spec.name: spec.datatype for spec in signature.inputs}
        self._outputs = {spec.name: spec for spec in signature.outputs}

    @override
    def forward(
        self,
        body: bytes,
        *,
        timeout_s: float | None,
        metadata: Metadata = (),
        on_call: OnCall | None = None,
    ) -> Forwarded:
        """See ``ForwardingRuntime.forward``."""
        limit_s = self._limit_s(timeout_s)
        body = wire.override_request(body, self._name, self._version)
        passed = passable(metadata, self.admin_token)
        answer, call = self._upstream.infer(body, limit_s, passed, on_call)
        trailing = call.trailing_metadata() or ()
        sent_back = (*(call.initial_metadata() or ()), *trailing)
        return Forwarded(answer, tuple(passable(sent_back, None)) if sent_back else ())

    def _limit_s(self, timeout_s: float | None) -> float:
        if timeout_s is None:
            return self._timeout_s
        if timeout_s <= 0:
            message = "the deadline was over before the request could be sent on"
            raise DeadlineError(message)
        return min(timeout_s, self._timeout_s)

    @override
    def forward_stream(
        self,
        bodies: Iterator[bytes],
        *,
        timeout_s: float | None,
        metadata: Metadata = (),
        on_call: OnCall | None = None,
    ) -> Iterator[bytes]:
        """See ``ForwardingRuntime.forward_stream``."""
        if not self._dialect.streams:
            message = "this model's server offers no streams; use ModelInfer"
            raise UnsupportedError(message)
        if timeout_s is not None and timeout_s <= 0:
            message = "the deadline was over before the stream could be opened"
            raise DeadlineError(message)
        return self._stream(bodies, timeout_s, passable(metadata, self.admin_token), on_call)

    def _stream(
        self,
        bodies: Iterator[bytes],
        timeout_s: float | None,
        metadata: Metadata,
        on_call: OnCall | None,
    ) -> Iterator[bytes]:
        failures: list[Exception] = []

        def renamed() -> Iterator[bytes]:
            # gRPC reads this in a thread of its own. An exception there would be printed and end
            # the call without a reason; so it only ends the sending: what was sent before is still
            # answered, and then the reader of the answers gets the exception.
            try:
                for body in bodies:
                    yield wire.override_request(body, self._name, self._version)
            except Exception as error:  # noqa: BLE001 - raised below
                failures.append(error)

        for element in self._upstream.stream(renamed(), timeout_s, metadata, on_call):
            if self._dialect.bare_elements:
                yield length_delimited(_INFER_RESPONSE, element)
            else:
                yield element
        if failures:
            raise failures[0]

    @override
    def infer_impl(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        """Execute there; see ``Runtime.infer``."""
        return self.infer_within(inputs, outputs, timeout_s=None)

    @override
    def infer_within(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str],
        *,
        timeout_s: float | None,
        metadata: Metadata = (),
        id: str = "",
        parameters: Mapping[str, bool | int | float | str] | None = None,
    ) -> list[Array]:
        """See ``ForwardingRuntime.infer_within``."""
        # All outputs: not listed, since a server may then answer by its own habit.
        asked = () if len(outputs) == len(self._outputs) else outputs
        limit_s = self._limit_s(timeout_s)
        body = encode_request(
            self._name, self._version, inputs, asked, self._inputs, id, parameters or {}
        )
        passed = passable(metadata, self.admin_token) if metadata else ()
        answer, _ = self._upstream.infer(body, limit_s, passed)
        return decode_answer(answer, self._outputs, outputs)

    @override
    def ready(self) -> bool:
        """See ``ForwardingRuntime.ready``."""
        try:
            return _model_ready(self._upstream, self._name, self._version, _READY_TIMEOUT_S)
        except RequestError:
            return False

    @override
    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._upstream.close()


# --- at start -------------------------------------------------------------------------------------


def build(variant: VariantConfig) -> RemoteRuntime:
    """Connect to the variant's server, wait until its model is ready, and read its signature.

    Raises:
        SidecarError: the server does not become ready within ``connect_timeout_s``; says what was
            tried and what came back.
        ArtifactError: it does not say the model's inputs and outputs and neither does the config,
            the two contradict each other, or a TLS file cannot be used.
    """
    config = cast("RemoteConfig", variant.runtime)
    if not config.model_name:
        message = f"variant {variant.key}: runtime.model_name is needed: the model's name there"
        raise ArtifactError(message)
    upstream = Upstream(config)
    try:
        _wait_until_ready(upstream, config, config.model_name)
        signature = _read_signature(upstream, variant, config, config.model_name)
    except BaseException:
        upstream.close()
        raise
    details = {"dialect": config.dialect, "model": config.model_name}
    if config.model_version:
        details["version"] = config.model_version
    if config.tls is not None:
        details["tls"] = "mutual" if config.tls.certificate else "server"
    placement = Placement(config.address, 0, details)
    return RemoteRuntime(upstream, config, config.model_name, signature, placement)


def _call(
    upstream: Upstream, method: str, request: Message, answer: type[_M], timeout_s: float
) -> _M:
    body = upstream.call(method, request.SerializeToString(), timeout_s)
    try:
        return answer.FromString(body)
    except DecodeError:
        message = f"its answer to {method} is not the protocol's"
        raise UpstreamError(message, "INTERNAL") from None


def _model_ready(upstream: Upstream, name: str, version: str, timeout_s: float) -> bool:
    request = pb.ModelReadyRequest(name=name, version=version)
    return _call(upstream, "ModelReady", request, pb.ModelReadyResponse, timeout_s).ready


def _wait_until_ready(upstream: Upstream, config: RemoteConfig, name: str) -> None:
    deadline = time.monotonic() + config.connect_timeout_s
    backoff_s = _BACKOFF_S
    attempts = 0
    model = f"model '{name}'" + (f" {config.model_version}" if config.model_version else "")
    while True:
        attempts += 1
        remaining_s = deadline - time.monotonic()
        state, last = _probe(
            upstream,
            name,
            config.model_version or "",
            max(0.1, min(_CONTROL_TIMEOUT_S, remaining_s)),
        )
        if state == "ready":
            return
        if state == "permanent" or time.monotonic() + backoff_s > deadline:
            waited = "" if state == "permanent" else f" within {config.connect_timeout_s:g} s"
            message = f"{config.address}: {model} did not become ready{waited} ({attempts} "
            message += f"attempts); the last one: {last}. Check runtime.address, model_name, "
            message += "model_version and tls, or raise runtime.connect_timeout_s"
            raise SidecarError(message)
        time.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)


def _probe(upstream: Upstream, name: str, version: str, timeout_s: float) -> tuple[str, str]:
    """One look: ``ready``, ``waiting`` or ``permanent``, and the last answer in words."""
    method = "ServerLive"
    try:
        live = _call(upstream, method, pb.ServerLiveRequest(), pb.ServerLiveResponse, timeout_s)
        if not live.live:
            return "waiting", "ServerLive answered live: false"
        method = "ModelReady"
        if not _model_ready(upstream, name, version, timeout_s):
            return "waiting", "ModelReady answered ready: false"
    except RequestError as error:
        # The operator reads this, not a client: with gRPC's own words, addresses and all.
        cause: Any = error.__cause__
        details = str(error) if cause is None else f"{cause.code().name}: {cause.details()}"
        code = getattr(error, "code", "")
        return ("permanent" if code in _PERMANENT else "waiting"), f"{method} failed: {details}"
    return "ready", ""


def _read_signature(
    upstream: Upstream, variant: VariantConfig, config: RemoteConfig, name: str
) -> Signature:
    version = config.model_version or ""
    where = f"{config.address}: model '{name}'"
    try:
        metadata = _call(
            upstream,
            "ModelMetadata",
            pb.ModelMetadataRequest(name=name, version=version),
            pb.ModelMetadataResponse,
            _CONTROL_TIMEOUT_S,
        )
    except RequestError as error:
        if variant.inputs is None or variant.outputs is None:
            message = f"{where} cannot be described ({error}); declare `inputs` and `outputs`"
            raise ArtifactError(message) from error
        metadata = pb.ModelMetadataResponse()
    optional: set[str] = set()
    limit = 0
    if DIALECTS[config.dialect].model_config:
        limit, optional = _read_model_config(upstream, name, version)
    exact = DIALECTS[config.dialect].exact_metadata
    inputs = _specs(where, "inputs", metadata.inputs, variant.inputs, exact, optional)
    outputs = _specs(where, "outputs", metadata.outputs, variant.outputs, exact, set())
    if not all(spec.shape and spec.shape[0] == -1 for spec in (*inputs, *outputs)):
        limit = 0
    return Signature(inputs, outputs, limit, metadata.platform or "remote", "remote")


def _read_model_config(upstream: Upstream, name: str, version: str) -> tuple[int, set[str]]:
    """``max_batch_size`` and the optional inputs. Without ``ModelConfig``: 0, which joins nothing,
    since the limit of the server is not known."""
    request = pb.ModelConfigRequest(name=name, version=version)
    try:
        answer = _call(upstream, "ModelConfig", request, pb.ModelConfigResponse, _CONTROL_TIMEOUT_S)
    except RequestError as error:
        logger.info("the server of model '%s' offers no ModelConfig (%s)", name, error)
        return 0, set()
    optional = {tensor.name for tensor in answer.config.input if tensor.optional}
    return max(answer.config.max_batch_size, 0), optional


def _specs(
    where: str,
    field: str,
    tensors: Sequence[Any],
    config: Sequence[TensorConfig] | None,
    exact: bool,
    optional: set[str],
) -> tuple[TensorSpec, ...]:
    """Inputs or outputs: as the server describes them, completed or overruled by the config."""
    found = tuple(
        TensorSpec(t.name, t.datatype, tuple(max(size, -1) for size in t.shape), t.name in optional)
        for t in tensors
    )
    lacking = [spec.name for spec in found if not spec.name or spec.datatype not in BY_NAME]
    wanted = declared(config)
    if found and not lacking and (wanted is None or exact):
        return reconcile(where, field, found, config)
    if wanted is not None:
        if found and {spec.name for spec in found} != {spec.name for spec in wanted}:
            names = ", ".join(spec.name for spec in found)
            logger.warning(
                "%s lists other %s than the config, which is used: %s", where, field, names
            )
        return wanted
    what = f"datatype of {', '.join(lacking)}" if lacking else field
    message = f"{where} does not say its {what}; declare the variant's `{field}`:\n"
    message += f"    {field}:\n      - {{name: …, datatype: FP32, shape: [-1, …]}}"
    raise ArtifactError(message)
