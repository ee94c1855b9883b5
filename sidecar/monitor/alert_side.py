"""Everything about alerts in one monitor: the channels, the outbox, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from exporters.telemetry.model import Point
from sidecar.alert_channels import make_channels
from sidecar.clock import Clock
from sidecar.config_alerts import AlertsConfig
from sidecar.monitor import calls_alerts
from sidecar.monitor.measured_alerts import MeasuredAlerts
from sidecar.monitor.outbox import Outbox
from sidecar.monitor.outbox_store import OutboxTables
from sidecar.monitor.service import Method
from sidecar.monitor.store import Store


class AlertSide:
    """Puts the parts together.

    Args:
        store: the store, while it is open; alerts wait for it.
        still_stands, leads: as ``Outbox`` has them.

    Raises:
        ConfigError: a channel cannot be made as configured. MissingExtraError: its library is not
            installed.
    """

    def __init__(
        self,
        config: AlertsConfig,
        store: Callable[[], Store | None],
        clock: Clock,
        still_stands: Callable[[str], bool] = lambda _: True,
        leads: Callable[[], bool] | None = None,
    ) -> None:
        def tables() -> OutboxTables | None:
            opened = store()
            return None if opened is None else opened.part(OutboxTables)

        channels = make_channels(config)
        self.outbox = Outbox(tables, channels, config, clock, still_stands, leads=leads)
        measured = MeasuredAlerts(self.outbox.counts, self.outbox.waiting, clock.now_ns())
        self._measured = measured

    def start(self) -> None:
        """Begin to tell."""
        self.outbox.start()

    def methods(self) -> Mapping[str, Method]:
        """What the monitor's service answers of it."""
        return calls_alerts.methods(self.outbox)

    def points(self) -> Iterator[Point]:
        """Every metric of alerts."""
        return self._measured.points()

    def close(self) -> None:
        """Stop telling; bounded. What waits is told by the next life."""
        self.outbox.close()
