"""The monitor's gRPC service: ``MonitorView`` for whoever asks, on a listener of its own.

Read-only. Threads and streams are few and bounded: whoever is one too many is refused at once, and
a reader that is slow holds back only its own stream.
"""

from __future__ import annotations

import base64
import bisect
import hmac
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection

from sidecar.errors import (
    ConfigError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    Problem,
    RequestError,
    SidecarError,
    UnauthenticatedError,
)
from sidecar.health import HealthServicer
from sidecar.monitor.deep.view import DriftReports
from sidecar.monitor.routing import RouteConflictError
from sidecar.monitor.rows import EvidenceRow
from sidecar.monitor.view import MonitorView
from sidecar.monitor.view_messages import to_message
from sidecar.protocol.pb import monitor_pb2 as pb
from sidecar.protocol.status import client_message, status_of

logger = logging.getLogger(__name__)

SERVICE: str = pb.DESCRIPTOR.services_by_name["Monitor"].full_name
#: In the trailing metadata of every error that comes from the monitor itself.
SAID = "x-sidecar-monitor"

#: Streams of verdicts at a time; each holds a thread.
WATCHERS_MAX = 16
#: Calls that wait for a deep drift run; each holds a thread for minutes.
REPORTS_MAX = 2
#: A page over this is not sent: clients take messages of 64 MiB.
_PAGE_BYTES_MAX = 48 * 2**20
#: Threads for everything else.
_OTHER_THREADS = 6
#: How often an idle stream looks whether anybody is still there.
_IDLE_S = 1.0
_PAGE, _PAGE_MAX = 1000, 10_000
_CASES, _CASES_MAX = 100, 1000
_CODES = {code.name: code for code in grpc.StatusCode}


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the service that another part of the monitor brings.

    Attributes:
        request: the class of its request message.
        call: takes a parsed request, returns a message; ``RequestError`` becomes its status.
        changes: needs the admin token, where one is configured.
    """

    request: Any
    call: Callable[[Any], Any]
    changes: bool = False


class MonitorServer:
    """The listener. ``start`` once, ``stop`` once.

    Args:
        methods: name → a method beside those that ``view`` and ``reports`` answer; what nobody
            brings is UNIMPLEMENTED.
        admin_token: calls that change something need ``authorization: Bearer TOKEN``; ``None``:
            whoever reaches the listener may.
        reports: makes drift reports on request; ``None``: no model is watched for drift.
    """

    def __init__(
        self,
        view: MonitorView,
        *,
        watchers_max: int = WATCHERS_MAX,
        reports: DriftReports | None = None,
        methods: Mapping[str, Method] | None = None,
        admin_token: str | None = None,
    ) -> None:
        threads = watchers_max + REPORTS_MAX + _OTHER_THREADS
        self._health = HealthServicer()
        self._stopping = threading.Event()
        self._server = grpc.server(
            futures.ThreadPoolExecutor(threads, thread_name_prefix="monitor-grpc"),
            maximum_concurrent_rpcs=threads,
            options=[
                ("grpc.so_reuseport", 0),  # a second monitor must fail, not take half the calls
                ("grpc.max_send_message_length", -1),
                # `sidecar watch` pings, to see a machine that has gone without a word.
                ("grpc.http2.min_ping_interval_without_data_ms", 5000),
                ("grpc.keepalive_permit_without_calls", 1),
            ],
        )
        servicer = _Servicer(view, watchers_max, self._stopping, reports)
        handler = servicer.handler(methods or {}, admin_token)
        self._server.add_generic_rpc_handlers((handler,))
        self._health.add_to_server(self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        self.set_serving(serving=True)

    def start(self, address: str) -> str:
        """Listen on ``host:port`` or ``unix:path``; return the same with the real port.

        Raises:
            ConfigError: it is in use, or not an address of this machine.
        """
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            what = f"cannot listen on {address}: it is in use, or not an address of this machine"
            raise ConfigError("monitor", [Problem("monitor.grpc", what)]) from None
        self._server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def set_serving(self, *, serving: bool) -> None:
        """Set what ``grpc.health.v1`` answers."""
        statuses = health_pb2.HealthCheckResponse
        for name in ("", SERVICE):
            self._health.set(name, statuses.SERVING if serving else statuses.NOT_SERVING)

    def stop(self, grace_s: float) -> None:
        """End streams, let calls in flight end for so long, and close."""
        self.set_serving(serving=False)
        self._stopping.set()
        self._server.stop(grace_s).wait()
        self._health.close()


class _Servicer:
    """The methods; every one takes a parsed request and returns or yields messages."""

    def __init__(
        self,
        view: MonitorView,
        watchers_max: int,
        stopping: threading.Event,
        reports: DriftReports | None,
    ) -> None:
        self._view = view
        self._reports = reports
        self._waiting = threading.BoundedSemaphore(REPORTS_MAX)
        self._watchers_max = watchers_max
        self._watchers = threading.BoundedSemaphore(watchers_max)
        self._stopping = stopping

    def handler(self, methods: Mapping[str, Method], admin_token: str | None) -> Any:
        """Return the service for ``grpc.Server.add_generic_rpc_handlers``."""
        unary: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "GetStatus": (pb.GetStatusRequest, self._status),
            "GetEvidence": (pb.GetEvidenceRequest, self._evidence),
            "ListCertificates": (pb.ListCertificatesRequest, self._certificates),
            "ListCases": (pb.ListCasesRequest, self._cases),
            "Drift": (pb.DriftRequest, self._drift),
            "DriftReport": (pb.DriftReportRequest, self._drift_report),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(_unary(kind, method))
            for name, (kind, method) in unary.items()
        }
        for name, method in methods.items():
            token = admin_token if method.changes else None
            handle = _unary(method.request, method.call, token)
            handlers[name] = grpc.unary_unary_rpc_method_handler(handle)
        handlers["WatchVerdicts"] = grpc.unary_stream_rpc_method_handler(self._watch)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    def _model(self, name: str) -> str | None:
        """Return a request's model, ``None`` for all.

        Raises:
            NotFoundError: it is not watched; the message names those that are.
        """
        if not name:
            return None
        known = [model.model for model in self._view.status().models]
        if name not in known:
            message = f"no model {name!r} is watched; there is {', '.join(known) or 'none'}"
            raise NotFoundError(message)
        return name

    def _status(self, _request: pb.GetStatusRequest) -> pb.MonitorStatus:
        return to_message(self._view.status())  # type: ignore[no-any-return]

    def _evidence(self, request: pb.GetEvidenceRequest) -> pb.GetEvidenceResponse:
        size = _bounded("page_size", request.page_size, _PAGE, _PAGE_MAX)
        rows = sorted(self._view.evidence(self._model(request.model)), key=_place)
        begin = 0
        if request.page_token:
            begin = bisect.bisect_right(rows, _decode_token(request.page_token), key=_place)
        page = rows[begin : begin + size]
        more = begin + size < len(rows)
        return pb.GetEvidenceResponse(
            rows=[to_message(row) for row in page],
            next_page_token=_encode_token(_place(page[-1])) if more else "",
        )

    def _certificates(self, request: pb.ListCertificatesRequest) -> pb.ListCertificatesResponse:
        found = self._view.certificates(self._model(request.model))
        return pb.ListCertificatesResponse(certificates=[to_message(one) for one in found])

    def _cases(self, request: pb.ListCasesRequest) -> pb.ListCasesResponse:
        limit = _bounded("limit", request.limit, _CASES, _CASES_MAX)
        found = self._view.cases(self._model(request.model), limit)
        return pb.ListCasesResponse(cases=[to_message(one) for one in found])

    def _drift(self, request: pb.DriftRequest) -> pb.DriftResponse:
        # A model without a candidate is in no status, and may still be watched for drift.
        found = self._view.drift()
        chosen = [one for one in found if request.model in {"", one.model}]
        if request.model and not chosen:
            known = ", ".join(one.model for one in found) or "none"
            message = f"no model {request.model!r} is watched for drift; there is {known}"
            raise NotFoundError(message)
        return pb.DriftResponse(models=[to_message(one) for one in chosen])

    def _drift_report(self, request: pb.DriftReportRequest) -> pb.DriftReportResponse:
        if self._reports is None:
            message = "no model is watched for drift here"
            raise NotFoundError(message)
        if not self._waiting.acquire(blocking=False):
            message = f"{REPORTS_MAX} calls wait for a drift report, which is the most; try again "
            message += "when they are done"
            raise OverloadedError(message)
        try:
            report = self._reports.run_now(request.model, html=request.html)
        finally:
            self._waiting.release()
        response = pb.DriftReportResponse(report=to_message(report))
        if request.send and report.path_html:
            response.page = _page(Path(report.path_html))
        return response

    # --- the stream -------------------------------------------------------------------------------

    def _watch(self, body: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        try:
            request = _parse(pb.WatchVerdictsRequest, body)
            model = self._model(request.model)
            if not self._watchers.acquire(blocking=False):
                message = f"{self._watchers_max} streams of verdicts are open, which is the most"
                raise OverloadedError(message)
            if not context.add_callback(self._watchers.release):  # the caller has gone already
                self._watchers.release()
                return
            # A generator is advanced when its last message has gone out, so a slow reader stops
            # its own loop, and no queue grows for it: what it misses, the view no longer has.
            for response in self._responses(request, model, context):
                yield response.SerializeToString()
        except Exception as error:  # noqa: BLE001 - the last stop before gRPC
            caught: Exception = error
        else:
            return
        _abort(context, caught)

    def _responses(
        self, request: pb.WatchVerdictsRequest, model: str | None, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchVerdictsResponse]:
        status = self._view.status()
        asked = request.after_seq if request.HasField("after_seq") else status.last_seq
        counted_anew = asked > status.last_seq
        after = 0 if counted_anew else asked
        yield pb.WatchVerdictsResponse(
            watching=pb.Watching(
                incarnation=status.incarnation, after_seq=after, counted_anew=counted_anew
            )
        )
        while context.is_active() and not self._stopping.is_set():
            for event in self._view.wait_events(after, _IDLE_S):
                if event.seq > after + 1:
                    yield pb.WatchVerdictsResponse(missed=event.seq - after - 1)
                after = event.seq
                if model is None or event.model == model:
                    yield pb.WatchVerdictsResponse(event=to_message(event))


def _page(path: Path) -> bytes:
    """A report's page; empty where it is gone already, or too large."""
    try:
        return path.read_bytes() if path.stat().st_size <= _PAGE_BYTES_MAX else b""
    except OSError:
        return b""


def _unary(
    kind: Any, method: Callable[[Any], Any], token: str | None = None
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            if token is not None:
                check_token(dict(context.invocation_metadata()).get("authorization"), token)
            answer: bytes = method(_parse(kind, body)).SerializeToString()
        except Exception as error:  # noqa: BLE001 - the last stop before gRPC
            caught: Exception = error
        else:
            return answer
        return _abort(context, caught)

    return handle


def check_token(authorization: str | bytes | None, token: str) -> None:
    """Let a call through that brought the admin token.

    Args:
        authorization: the call's header.

    Raises:
        UnauthenticatedError: it came without one. PermissionDeniedError: with another one.
    """
    if authorization is None:
        message = "this call changes something: it needs `authorization: Bearer TOKEN`"
        raise UnauthenticatedError(message)
    given = authorization.encode() if isinstance(authorization, str) else authorization
    if not hmac.compare_digest(given, f"Bearer {token}".encode()):
        message = "the admin token is another one"
        raise PermissionDeniedError(message)


def _parse(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError:
        message = f"the body is not a {kind.DESCRIPTOR.name} (protobuf cannot decode it)"
        raise InvalidRequestError(message) from None


def _abort(context: grpc.ServicerContext, error: Exception) -> bytes:
    """End a call with the status and message of an error; always raises."""
    # So that what the monitor says can be told from a monitor that is not there (UNAVAILABLE).
    context.set_trailing_metadata(((SAID, "1"),))
    if isinstance(error, RouteConflictError):  # it is there, but not as the caller knows it
        context.abort(grpc.StatusCode.ABORTED, client_message(error))
    elif isinstance(error, RequestError):
        context.abort(_CODES[status_of(error).grpc], client_message(error))
    elif isinstance(error, SidecarError):  # the store: it says itself what is wrong
        context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    else:
        logger.error("a call failed by a fault of the monitor", exc_info=error)
        context.abort(grpc.StatusCode.INTERNAL, client_message(error))
    raise AssertionError  # abort has raised


def _bounded(name: str, value: int, default: int, largest: int) -> int:
    if value == 0:
        return default
    if not 0 < value <= largest:
        message = f"{name} is {value}; it must be between 1 and {largest}, or 0 for {default}"
        raise InvalidRequestError(message)
    return value


#: Where a row stands in the order of pages: rows come and go between two of them, keys stay.
_Place = tuple[Any, ...]


def _place(row: EvidenceRow) -> _Place:
    key = row.key
    return (
        key.model, key.candidate, key.baseline, key.output, key.metric, key.policy, key.block,
        row.incarnation,
    )  # fmt: skip


def _encode_token(place: _Place) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


def _decode_token(token: str) -> _Place:
    try:
        place = tuple(json.loads(base64.urlsafe_b64decode(token)))
    except (ValueError, TypeError):
        place = ()
    kinds = [type(part) for part in place]
    if kinds != [*[str] * 6, int, str]:
        message = "page_token is not one that this service gave"
        raise InvalidRequestError(message)
    return place
