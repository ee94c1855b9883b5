"""The client's part for alerts."""

from __future__ import annotations

from sidecar.monitor.client_calls import Calls
from sidecar.monitor.view_messages import from_message
from sidecar.monitor.view_rollback import Delivery
from sidecar.protocol.pb import monitor_pb2 as pb


class AlertCalls(Calls):
    """A part of ``MonitorClient``."""

    def test_alerts(
        self, channel: str = "", *, token: str = "", timeout_s: float
    ) -> list[Delivery]:
        """Have a test alert sent through one channel, or (empty) all; returns what each said.

        Args:
            token: the admin token, where the monitor asks for one.

        Raises:
            MonitorCallError: no answer, no such channel, another token.
        """
        request = pb.TestAlertsRequest(channel=channel)
        answer = self._ask("TestAlerts", request, pb.TestAlertsResponse, token, timeout_s)
        return [from_message(one, Delivery) for one in answer.deliveries]
