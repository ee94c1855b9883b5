"""The client's part for alerts."""

from __future__ import annotations

from typing import Any

import grpc

from sidecar.monitor.service import SERVICE
from sidecar.monitor.view_messages import from_message
from sidecar.monitor.view_rollback import Delivery
from sidecar.protocol.pb import monitor_pb2 as pb


class AlertCalls:
    """A part of ``MonitorClient``, which gives it a connection."""

    _channel: Any

    def _failed(self, error: Any, timeout_s: float | None = None) -> Exception:
        raise NotImplementedError

    def test_alerts(
        self, channel: str = "", *, token: str = "", timeout_s: float
    ) -> list[Delivery]:
        """Have a test alert sent through one channel, or (empty) all; returns what each said.

        Args:
            token: the admin token, where the monitor asks for one.

        Raises:
            MonitorCallError: no answer, no such channel, another token.
        """
        call = self._channel.unary_unary(
            f"/{SERVICE}/TestAlerts",
            request_serializer=pb.TestAlertsRequest.SerializeToString,
            response_deserializer=pb.TestAlertsResponse.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        try:
            answer = call(
                pb.TestAlertsRequest(channel=channel), timeout=timeout_s, metadata=metadata
            )
        except grpc.RpcError as error:
            raise self._failed(error, timeout_s) from None
        return [from_message(one, Delivery) for one in answer.deliveries]
