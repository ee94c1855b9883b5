"""The protocol's HTTP routes: what each URL does. The server they run in is ``http.py``.

The event loop reads and writes sockets and nothing else: bodies are decompressed, parsed, inferred
and encoded on the work pool, calls that may wait run on small pools of their own (a load that takes
minutes must not hold up statistics, and neither may hold up health).
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable, Mapping
from time import monotonic_ns
from typing import TYPE_CHECKING, Any

from google.protobuf.message import Message
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from sidecar.errors import (
    CancelledError,
    InvalidRequestError,
    RequestError,
    UnauthenticatedError,
)
from sidecar.gateway import http_control as control
from sidecar.gateway import sticky
from sidecar.gateway.api import Backend
from sidecar.gateway.http_body import (
    DisconnectedError,
    RefusedError,
    Reservation,
    accepted_encoding,
    check_encoding,
    decompress,
    read_body,
)
from sidecar.gateway.http_call import (
    Call,
    Handler,
    Inference,
    Reply,
    Threads,
    error_reply,
    json_reply,
)
from sidecar.gateway.http_protocol import HttpLimits
from sidecar.gateway.tracing import Traced, context_of
from sidecar.protocol.json_codec import Envelope
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.status import client_message, http_status

if TYPE_CHECKING:
    from sidecar.config import GatewayConfig, HttpConfig

logger = logging.getLogger(__name__)

#: Longer or unprintable ids are replaced by ours: they end up in logs and file names.
_REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class HttpApp:
    """The routes, over a backend. ``asgi`` is what the server runs."""

    def __init__(
        self,
        config: GatewayConfig,
        http: HttpConfig,
        backend: Backend,
        limits: HttpLimits,
    ) -> None:
        self._backend = backend
        self._default_timeout_s = config.default_timeout_s
        self._max_bytes = http.max_body_bytes
        self._stall_s = limits.body_stall_s
        self._reads = Threads("http-read", threads=4, pending_max=128)
        self._changes = Threads("http-admin", threads=2, pending_max=16)
        #: Answer ``Connection: close``, so that clients come back to another replica.
        self.draining = False
        self.asgi = Starlette(
            routes=self._routes(), exception_handlers={HTTPException: self._no_route}
        )
        self.asgi.router.redirect_slashes = False

    def close(self) -> None:
        """Start no further control calls."""
        self._reads.close()
        self._changes.close()

    # --- every call -----------------------------------------------------------------------------

    async def serve(self, handler: Handler, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a handler and send what it answers; its errors become status codes here."""
        headers = dict(scope["headers"])
        sent_id = headers.get(b"x-request-id", b"")
        # An id is needed for every request; one from the client joins our records with theirs.
        request_id = sent_id.decode() if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        call = Call(scope, receive, headers, scope["path_params"], request_id)
        try:
            reply = await handler(call)
        except DisconnectedError:
            return
        except RefusedError as error:
            reply = error_reply(error.status, str(error), error.headers)
        except RequestError as error:
            reply = _error_reply(error)
        except asyncio.CancelledError:
            # The time to drain is over. The answer is the last thing this task does.
            reply = error_reply(503, "the server stopped before the answer was ready")
        except Exception as error:
            traced = {"trace": context_of(call.trace)} if isinstance(call.trace, Traced) else None
            logger.exception("request %s failed", request_id, extra=traced)
            reply = error_reply(http_status(error), client_message(error))
        await self._send(reply, request_id, send)

    async def _send(self, reply: Reply, request_id: str, send: Send) -> None:
        length = sum(map(len, reply.parts))
        headers = [
            (b"content-type", reply.content_type),
            (b"content-length", b"%d" % length),
            (b"x-request-id", request_id.encode("ascii")),
            *reply.headers,
        ]
        if self.draining:
            headers.append((b"connection", b"close"))
        start = {"type": "http.response.start", "status": reply.status, "headers": headers}
        await send(start)
        # Piece by piece: joining them would copy every tensor once more.
        for part in reply.parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _no_route(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{error.detail}: {request.method} {request.url.path[:200]}"
        reply = error_reply(error.status_code, message)
        response = Response(b"".join(reply.parts), error.status_code, error.headers)
        response.headers["content-type"] = "application/json"
        if self.draining:
            response.headers["connection"] = "close"
        return response

    # --- inference ------------------------------------------------------------------------------

    async def _infer(self, call: Call) -> Reply:
        began, made = monotonic_ns(), list[Inference]()
        if (tracing := self._backend.tracing) is not None:
            call.trace = tracing.begin(*call.context)
        try:
            return await self._infer_on(call, made)
        except BaseException as error:
            if not any(inference.reached for inference in made):  # else the core has counted it
                ns = monotonic_ns() - began
                self._backend.count_failure(
                    "http", _in_our_words(error), ns, call.trace,
                    model=call.model[0], request_id=call.request_id,
                )  # fmt: skip
            raise

    async def _infer_on(self, call: Call, made: list[Inference]) -> Reply:
        encoding = check_encoding(call.headers.get(b"content-encoding", b"").decode("latin-1"))
        json_bytes = call.size(b"inference-header-content-length")
        name, version = call.model
        with Reservation(self._backend) as reservation:
            body = await self._body(call, reservation)
            keys = self._backend.sticky
            envelope = Envelope(
                name,
                version,
                call.request_id,
                json_bytes=json_bytes,
                traceparent=call.traceparent,
                received_ns=monotonic_ns(),
                point=sticky.of_headers(keys, name, call.headers) if keys else None,
            )

            def undo(packed: bytes) -> bytes:
                return decompress(packed, encoding, self._max_bytes, reservation)

            pack = accepted_encoding(call.headers.get(b"accept-encoding", b"").decode("latin-1"))
            inference = Inference(
                self._backend, body, envelope, undo, self._default_timeout_s, pack, call.trace
            )
            made.append(inference)
            del body  # the work drops it as soon as it is decompressed
            self._backend.submit(inference)
            encoded = await inference.answer(call.receive)
        reply = Reply(parts=encoded.parts)
        if encoded.encoding:
            reply.headers += ((b"content-encoding", encoded.encoding.encode("ascii")),)
        if encoded.json_bytes is not None:
            length = b"%d" % encoded.json_bytes
            reply.headers += ((b"inference-header-content-length", length),)
            reply.content_type = b"application/octet-stream"
        return reply

    async def _body(self, call: Call, reservation: Reservation) -> bytes:
        return await read_body(
            call.receive,
            call.size(b"content-length") if b"transfer-encoding" not in call.headers else None,
            max_bytes=self._max_bytes,
            stall_s=self._stall_s,
            reservation=reservation,
        )

    # --- health and metadata --------------------------------------------------------------------

    async def _live(self, _call: Call) -> Reply:
        live = self._backend.server_live()
        return json_reply({"live": live}, 200 if live else 503)

    async def _ready(self, _call: Call) -> Reply:
        # 503, as KServe answers, not Triton's 400: a probe or a balancer reads 400 as "the request
        # is wrong" and 503 as "not here, not now". Clients of both only look for 200.
        ready = self._backend.server_ready()
        return json_reply({"ready": ready}, 200 if ready else 503)

    async def _metadata(self, _call: Call) -> Reply:
        return json_reply(self._backend.server_metadata())

    async def _model_ready(self, call: Call) -> Reply:
        ready = await self._reads.run(self._backend.model_ready, *call.model)
        body = {"name": call.model[0], "ready": ready}
        return json_reply(body, 200 if ready else 503)

    async def _model_metadata(self, call: Call) -> Reply:
        message = await self._reads.run(self._backend.model_metadata, *call.model)
        return json_reply(control.message_to_json(message))

    async def _model_config(self, call: Call) -> Reply:
        message = await self._reads.run(self._backend.model_config, *call.model)
        return json_reply(control.message_to_json(message))

    async def _statistics(self, call: Call) -> Reply:
        message = await self._reads.run(self._backend.statistics, *call.model)
        return json_reply(control.message_to_json(message, fill=True))

    # --- control --------------------------------------------------------------------------------

    def _admin(
        self,
        method: str,
        make: Callable[[control.Object, Mapping[str, str]], Message],
        answer: Callable[[Any], Any] | None = None,
        *,
        changes: bool = True,
    ) -> Handler:
        """A handler for one control call: JSON → message → backend → JSON (or an empty body)."""

        async def handler(call: Call) -> Reply:
            body = b""
            with Reservation(self._backend) as reservation:
                if call.scope["method"] == "POST":
                    body = await self._body(call, reservation)

                def work() -> Reply:
                    request = make(control.parse_object(body), call.path)
                    response = self._backend.admin(method, request, call.token)
                    return Reply() if answer is None else json_reply(answer(response))

                reads = not changes or call.scope["method"] == "GET"
                threads = self._reads if reads else self._changes
                return await threads.run(work)

        return handler

    def _routes(self) -> list[Route]:
        get = self._get
        post = self._post
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        routes = [post(f"{model}/infer", self._infer) for model in models]
        routes += [
            get("/v2/health/live", self._live),
            get("/v2/health/ready", self._ready),
            get("/v2", self._metadata),
            get("/v2/models/stats", self._statistics),
        ]
        for model in models:
            routes += [
                get(f"{model}/ready", self._model_ready),
                get(f"{model}/config", self._model_config),
                get(f"{model}/stats", self._statistics),
                get(model, self._model_metadata),
            ]
        return routes + self._repository_routes() + self._region_routes() + self._setting_routes()

    def _repository_routes(self) -> list[Route]:
        post = self._post
        index = self._admin(
            "RepositoryIndex", control.index_request, control.index_answer, changes=False
        )
        load = self._admin("RepositoryModelLoad", control.load_request)
        unload = self._admin("RepositoryModelUnload", control.unload_request)
        routes: list[Route] = []
        for prefix in ("/v2/repository", "/v2/repository/{repository}"):
            routes += [
                post(f"{prefix}/index", index),
                post(f"{prefix}/models/{{model}}/load", load),
                post(f"{prefix}/models/{{model}}/unload", unload),
            ]
        return routes

    def _region_routes(self) -> list[Route]:
        routes: list[Route] = []
        kinds: tuple[tuple[str, str, Any, Any, Any], ...] = (
            (
                "SystemSharedMemory",
                "/v2/systemsharedmemory",
                control.system_register_request,
                pb.SystemSharedMemoryStatusRequest,
                pb.SystemSharedMemoryUnregisterRequest,
            ),
            (
                "CudaSharedMemory",
                "/v2/cudasharedmemory",
                control.cuda_register_request,
                pb.CudaSharedMemoryStatusRequest,
                pb.CudaSharedMemoryUnregisterRequest,
            ),
        )
        for kind, prefix, register, status_type, unregister_type in kinds:
            by_name = _by_name(status_type)
            status = self._admin(f"{kind}Status", by_name, control.regions_answer, changes=False)
            unregister = self._admin(f"{kind}Unregister", _by_name(unregister_type))
            region = f"{prefix}/region/{{region}}"
            routes += [
                self._get(f"{prefix}/status", status),
                self._get(f"{region}/status", status),
                self._post(f"{region}/register", self._admin(f"{kind}Register", register)),
                self._post(f"{prefix}/unregister", unregister),
                self._post(f"{region}/unregister", unregister),
            ]
        return routes

    def _setting_routes(self) -> list[Route]:
        trace = self._admin("TraceSetting", control.trace_request, control.trace_answer)
        log = self._admin("LogSettings", control.log_request, control.log_answer)
        routes: list[Route] = []
        for path, handler in (
            ("/v2/logging", log),
            ("/v2/trace/setting", trace),
            ("/v2/models/{model}/trace/setting", trace),
        ):
            routes.append(Route(path, _Endpoint(self, handler), methods=["GET", "POST"]))
        return routes

    def _get(self, path: str, handler: Handler) -> Route:
        return Route(path, _Endpoint(self, handler), methods=["GET"])

    def _post(self, path: str, handler: Handler) -> Route:
        return Route(path, _Endpoint(self, handler), methods=["POST"])


def _in_our_words(error: BaseException) -> BaseException:
    """What only HTTP has, as an error that every transport has: for who counts them."""
    if isinstance(error, DisconnectedError):
        return CancelledError()
    return InvalidRequestError() if isinstance(error, RefusedError) else error


def _error_reply(error: RequestError) -> Reply:
    # 401 asks for credentials; 403 says that those given are not enough.
    asks = isinstance(error, UnauthenticatedError)
    headers = ((b"www-authenticate", b"Bearer"),) if asks else ()
    return error_reply(http_status(error), client_message(error), headers)


def _by_name(kind: Any) -> Callable[[control.Object, Mapping[str, str]], Message]:
    def make(_document: control.Object, path: Mapping[str, str]) -> Message:
        message: Message = kind(name=path.get("region", ""))
        return message

    return make


class _Endpoint:
    """A handler as an ASGI application: starlette then adds nothing of its own around it."""

    def __init__(self, app: HttpApp, handler: Handler) -> None:
        self._app = app
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app.serve(self._handler, scope, receive, send)
