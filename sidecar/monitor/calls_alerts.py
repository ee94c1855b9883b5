"""The monitor's calls about alerts."""

from __future__ import annotations

from typing import Any

from sidecar.monitor.outbox import Outbox
from sidecar.monitor.service import Method
from sidecar.monitor.view_messages import to_message
from sidecar.protocol.pb import monitor_pb2 as pb


def methods(outbox: Outbox) -> dict[str, Method]:
    """Name → method, for ``MonitorServer``."""

    def test_alerts(request: Any) -> Any:
        tried = outbox.test(request.channel)
        return pb.TestAlertsResponse(deliveries=[to_message(one) for one in tried])

    # It changes nothing here, but people are woken by it.
    return {"TestAlerts": Method(pb.TestAlertsRequest, test_alerts, changes=True)}
