"""A v2 server of the tests' own, to stand behind a ``remote`` variant: real grpcio, on loopback.

It speaks Triton's dialect by default and answers each input under its output's name; a test gives
it another ``infer`` (or ``stream``) to make it slow, wrong, or silent. ``python -m
tests.support.upstream PORT`` is the same in a process of its own, to be killed.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc

from sidecar.config import ModelConfig, VariantConfig
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import model_config_pb2
from sidecar.runtimes.base import TensorSpec
from tests.clients.certificates import Files

_SERVICE = "inference.GRPCInferenceService"
_MAX_MESSAGE_BYTES = 256 * 2**20
#: Longer than any test waits; only so that a broken test ends.
PATIENCE_S = 20.0

Infer = Callable[[bytes, grpc.ServicerContext], bytes]
Stream = Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]


@dataclass(frozen=True)
class Call:
    """One call as the server saw it. ``remaining_s`` is huge where there was no deadline; ``pairs``
    is the metadata with what came twice."""

    method: str
    body: bytes
    metadata: dict[str, str | bytes]
    remaining_s: float
    pairs: tuple[tuple[str, str | bytes], ...] = ()


@dataclass
class Model:
    """The model it serves. The metadata's shapes include the batch dimension."""

    name: str = "there"
    versions: tuple[str, ...] = ("1",)
    inputs: tuple[TensorSpec, ...] = (TensorSpec("x", "FP32", (-1, 4)),)
    outputs: tuple[TensorSpec, ...] = (TensorSpec("y", "FP32", (-1, 4)),)
    max_batch_size: int = 8
    platform: str = "test_identity"


class Upstream:
    """A running server; a context manager.

    Attributes:
        model: what it describes and serves.
        infer, stream: what answers ``ModelInfer`` and ``ModelStreamInfer``.
        ready: what ``ModelReady`` answers.
        missing: methods answered with UNIMPLEMENTED.
        extra: bytes appended to the answer of a method (fields of another dialect).
        calls: the inferences seen.
        address: where it listens.
    """

    def __init__(
        self,
        model: Model | None = None,
        *,
        address: str = "127.0.0.1:0",
        tls: Files | None = None,
        client_certificates: bool = False,
    ) -> None:
        self.model = model or Model()
        self.infer: Infer = self.identity
        self.stream: Stream = self.identity_stream
        self.ready = True
        self.missing: set[str] = set()
        self.extra: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self._server = grpc.server(
            ThreadPoolExecutor(64),
            handlers=[self._handlers()],
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ],
        )
        if tls is None:
            port = self._server.add_insecure_port(address)
        else:
            secret = grpc.ssl_server_credentials(
                [(tls.server_key.read_bytes(), tls.server.read_bytes())],
                root_certificates=tls.ca.read_bytes() if client_certificates else None,
                require_client_auth=client_certificates,
            )
            port = self._server.add_secure_port(address, secret)
        self.address = address if address.startswith("unix:") else f"127.0.0.1:{port}"
        self._server.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop at once, calls under way included."""
        self._server.stop(None).wait()

    # --- the service ----------------------------------------------------------------------------

    def _handlers(self) -> grpc.GenericRpcHandler:
        unary: dict[str, Callable[[bytes, Any], bytes]] = {
            "ServerLive": lambda _b, _c: pb.ServerLiveResponse(live=True).SerializeToString(),
            "ModelReady": self._model_ready,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelInfer": self._infer,
        }
        handlers = {
            method: grpc.unary_unary_rpc_method_handler(self._guarded(method, answer))
            for method, answer in unary.items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(_SERVICE, handlers)

    def _guarded(self, method: str, answer: Callable[[bytes, Any], bytes]) -> Any:
        def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
            if method in self.missing:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"no {method} here")
            return answer(body, context) + self.extra.get(method, b"")

        return handle

    def _named(self, request: Any, context: grpc.ServicerContext) -> None:
        if request.name != self.model.name:
            text = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)

    def _model_ready(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        self._named(pb.ModelReadyRequest.FromString(body), context)
        return pb.ModelReadyResponse(ready=self.ready).SerializeToString()

    def _model_metadata(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        self._named(pb.ModelMetadataRequest.FromString(body), context)
        answer = pb.ModelMetadataResponse(
            name=self.model.name, versions=self.model.versions, platform=self.model.platform
        )
        for specs, tensors in (
            (self.model.inputs, answer.inputs),
            (self.model.outputs, answer.outputs),
        ):
            for spec in specs:
                tensors.add(name=spec.name, datatype=spec.datatype, shape=spec.shape)
        return answer.SerializeToString()

    def _model_config(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        self._named(pb.ModelConfigRequest.FromString(body), context)
        config = model_config_pb2.ModelConfig(
            name=self.model.name, max_batch_size=self.model.max_batch_size
        )
        for spec in self.model.inputs:
            config.input.add(name=spec.name, optional=spec.optional)
        return pb.ModelConfigResponse(config=config).SerializeToString()

    def _record(self, method: str, body: bytes, context: grpc.ServicerContext) -> None:
        pairs = tuple((key, value) for key, value in context.invocation_metadata() or ())
        self.calls.append(Call(method, body, dict(pairs), context.time_remaining(), pairs))

    def _infer(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        self._record("ModelInfer", body, context)
        return self.infer(body, context)

    def _stream(self, bodies: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self._record("ModelStreamInfer", b"", context)
        yield from self.stream(bodies, context)

    # --- what answers ---------------------------------------------------------------------------

    def identity(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        """Each input under its output's name, raw or typed as it came."""
        request = pb.ModelInferRequest.FromString(body)
        if request.model_name != self.model.name:
            text = f"Request for unknown model: '{request.model_name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, text)
        answer = pb.ModelInferResponse(
            model_name=request.model_name,
            model_version=request.model_version or self.model.versions[-1],
            id=request.id,
            raw_output_contents=request.raw_input_contents,
        )
        for tensor, spec in zip(request.inputs, self.model.outputs, strict=True):
            output = answer.outputs.add(
                name=spec.name, datatype=tensor.datatype, shape=tensor.shape
            )
            if tensor.HasField("contents"):
                output.contents.CopyFrom(tensor.contents)
        return answer.SerializeToString()

    def identity_stream(
        self, bodies: Iterator[bytes], context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """``identity`` for each element, in Triton's wrapping."""
        for body in bodies:
            answer = pb.ModelInferResponse.FromString(self.identity(body, context))
            yield pb.ModelStreamInferResponse(infer_response=answer).SerializeToString()


@dataclass
class Hanging:
    """An ``infer`` that answers nothing until it is let go; sees when its call is cancelled."""

    upstream: Upstream
    entered: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, body: bytes, context: grpc.ServicerContext) -> bytes:
        def ended() -> None:
            self.cancelled.set()
            self.let_go.set()

        if not context.add_callback(ended):
            ended()
        self.entered.set()
        self.let_go.wait(PATIENCE_S)
        return self.upstream.identity(body, context)


def remote_variant(address: str, **runtime: Any) -> VariantConfig:
    """A ``remote`` variant of a model that is called ``here``; on the server it is ``there``."""
    variant = {
        "name": "v", "version": "2", "roles": ["serving"],
        **{key: runtime.pop(key) for key in ("inputs", "outputs") if key in runtime},
        "runtime": {
            "kind": "remote", "address": address, "model_name": "there", "connect_timeout_s": 10,
            **runtime,
        },
    }  # fmt: skip
    return ModelConfig.model_validate({"name": "here", "variants": [variant]}).variants[0]


def request(
    rows: int = 1,
    *,
    model: str = "here",
    version: str = "2",
    raw: bytes | None = None,
    **names: str,
) -> pb.ModelInferRequest:
    """A request for ``Model``'s defaults, as a client of the sidecar would send it."""
    message = pb.ModelInferRequest(model_name=model, model_version=version, **names)
    message.inputs.add(name="x", datatype="FP32", shape=[rows, 4])
    message.raw_input_contents.append(raw if raw is not None else bytes(range(16)) * rows)
    return message


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class UpstreamProcess:
    """The server in a process of its own, which can be killed and started again on its port."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.upstream", str(self.port)],
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line != "ready\n":
            self.kill()
            message = f"the upstream process did not start (it said {line!r})"
            raise AssertionError(message)

    def signal(self, number: int) -> None:
        """Send it a signal; it is not waited for."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL: connections are reset, nothing is said."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main(arguments: Sequence[str]) -> None:
    """Serve on a port until killed. A request with the id ``hang`` is never answered."""
    upstream = Upstream(address=f"127.0.0.1:{arguments[0]}")

    def infer(body: bytes, context: grpc.ServicerContext) -> bytes:
        if pb.ModelInferRequest.FromString(body).id == "hang":
            threading.Event().wait(PATIENCE_S)
        return upstream.identity(body, context)

    upstream.infer = infer
    print("ready", flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main(sys.argv[1:])
