"""A small client of the monitor's service: what ``sidecar status``, ``watch`` and the demo use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import grpc
from typing_extensions import override

from sidecar.errors import SidecarError
from sidecar.monitor.client_alerts import AlertCalls
from sidecar.monitor.client_labels import LabelCalls
from sidecar.monitor.client_rollback import RollbackCalls
from sidecar.monitor.client_route import RouteCalls
from sidecar.monitor.deep.view import DeepReport
from sidecar.monitor.service import SAID, SERVICE
from sidecar.monitor.view import MonitorStatus, VerdictEvent
from sidecar.monitor.view_drift import DriftView
from sidecar.monitor.view_messages import from_message
from sidecar.protocol.pb import monitor_pb2 as pb

#: A status names every model, pair and output; a monitor of thousands of them stays far below.
_MESSAGE_BYTES_MAX = 64 * 2**20


class MonitorCallError(SidecarError):
    """The monitor could not be reached, or refused a call; says where and what to do.

    Attributes:
        code: the gRPC status name.
        is_gone: nobody answers now; trying again later makes sense.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
        self.is_gone = code in {"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"}


class MonitorClient(AlertCalls, LabelCalls, RollbackCalls, RouteCalls):
    """One connection. A context manager; ``close`` ends a stream that another thread reads.

    Args:
        address: ``host:port`` or ``unix:path``.
        timeout_s: how long one call may take.

    Raises:
        MonitorCallError: the address has another form.
    """

    def __init__(self, address: str, *, timeout_s: float) -> None:
        if "//" in address or ":" not in address:
            message = f"{address} is not the address of a monitor; write host:port"
            raise MonitorCallError(message, "INVALID_ARGUMENT")
        self.address = address
        self._timeout_s = timeout_s
        self._channel: Any = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
                # A monitor that restarts is back in seconds; gRPC would wait up to minutes.
                ("grpc.initial_reconnect_backoff_ms", 200),
                ("grpc.max_reconnect_backoff_ms", 1000),
                # Despite its name: how long one attempt to connect may take.
                ("grpc.min_reconnect_backoff_ms", 5000),
                # A machine that has gone without a word is noticed on an idle stream.
                ("grpc.keepalive_time_ms", 10_000),
                ("grpc.keepalive_timeout_ms", 5000),
                ("grpc.http2.max_pings_without_data", 0),
            ],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def status(self, timeout_s: float | None = None) -> MonitorStatus:
        """Ask how things are.

        Raises:
            MonitorCallError: no answer.
        """
        answer = self._ask("GetStatus", pb.GetStatusRequest(), pb.MonitorStatus, "", timeout_s)
        return from_message(answer, MonitorStatus)

    def drift(self, model: str = "") -> list[DriftView]:
        """Ask how the traffic of one model, or (empty) of all, compares with its reference.

        Raises:
            MonitorCallError: no answer, or the model is not watched for drift.
        """
        answer = self._ask("Drift", pb.DriftRequest(model=model), pb.DriftResponse)
        return [from_message(one, DriftView) for one in answer.models]

    def drift_report(
        self, model: str = "", *, html: bool = True, send: bool = False, timeout_s: float
    ) -> tuple[DeepReport, bytes]:
        """Let the monitor run its deep drift tests now; returns what came of it, and the page.

        Args:
            model: empty: the only one that has such runs.
            html: make Evidently's page.
            send: send it too; else, and where it is too large, the page is empty.
            timeout_s: for the whole run, minutes perhaps.

        Raises:
            MonitorCallError: no answer, no such model, or too many ask at once.
        """
        request = pb.DriftReportRequest(model=model, html=html, send=send)
        answer = self._ask("DriftReport", request, pb.DriftReportResponse, "", timeout_s)
        return from_message(answer.report, DeepReport), answer.page

    def watch(self, after_seq: int) -> Iterator[pb.Watching | VerdictEvent | int]:
        """Yield what a stream of verdicts says, until it ends.

        First where it begins; then events; a number before an event: so many are missing there.

        Raises:
            MonitorCallError: it could not begin, or broke off.
        """
        call = self._channel.unary_stream(
            f"/{SERVICE}/WatchVerdicts",
            request_serializer=pb.WatchVerdictsRequest.SerializeToString,
            response_deserializer=pb.WatchVerdictsResponse.FromString,
        )
        try:
            for response in call(pb.WatchVerdictsRequest(after_seq=after_seq)):
                what = response.WhichOneof("what")
                if what == "event":
                    yield from_message(response.event, VerdictEvent)
                elif what is not None:
                    yield getattr(response, what)
        except grpc.RpcError as error:
            raise self._failed(error) from None

    @override
    def _failed(self, error: Any, timeout_s: float | None = None) -> MonitorCallError:
        code: str = error.code().name
        if code == "UNAVAILABLE" and SAID not in dict(error.trailing_metadata() or ()):
            message = (
                f"no monitor answers at {self.address}: is it running, and is this its "
                "monitor.grpc?"
            )
        elif code == "DEADLINE_EXCEEDED":
            message = f"{self.address} has not answered within {timeout_s or self._timeout_s:g} s"
        elif code == "UNIMPLEMENTED":
            message = (
                f"{self.address} answers, but it is no monitor; the gateway listens on another "
                "address than monitor.grpc"
            )
        else:
            message = f"{self.address}: {code}: {error.details()}"
        return MonitorCallError(message, code)

    def close(self) -> None:
        """Close the connection; streams end."""
        self._channel.close()
