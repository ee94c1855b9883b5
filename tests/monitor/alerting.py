"""An outbox on a real store and a real receiver, stepped by hand, with clocks that are set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from exporters.alerts import alertmanager, cloudevents
from exporters.alerts.alert import Alert, Channel, Severity
from exporters.alerts.base import Common
from sidecar.config_alerts import AlertsConfig
from sidecar.monitor.outbox import Outbox
from sidecar.monitor.outbox_store import OutboxTables
from sidecar.monitor.store import Store
from sidecar.monitor.view_rollback import Delivery
from tests.support.alert_receiver import NOON_NS


class TwoClocks:
    """Wall and monotonic time, each set by the test."""

    def __init__(self) -> None:
        self.wall_ns, self.mono_ns = NOON_NS, 10**9

    def now_ns(self) -> int:
        return self.wall_ns

    def monotonic_ns(self) -> int:
        return self.mono_ns

    def advance(self, seconds: float) -> None:
        self.wall_ns += int(seconds * 1e9)
        self.mono_ns += int(seconds * 1e9)

    def jump(self, seconds: float) -> None:
        """Somebody sets the wall clock."""
        self.wall_ns += int(seconds * 1e9)


def webhook(url: str, name: str = "hook", *, least: Severity = Severity.INFO) -> Channel:
    common = Common(name, least, timeout_s=20)
    return cloudevents.make(common, url=url, headers={}, source="test")


def manager(url: str, name: str = "am") -> Channel:
    common = Common(name, timeout_s=20)
    return alertmanager.make(common, url=url, headers={}, resend_s=60, labels={})


class Desk:
    """A store in ``folder`` with an outbox; a context manager."""

    def __init__(
        self,
        folder: Path,
        *channels: Channel,
        clock: TwoClocks | None = None,
        still_stands: Callable[[str], bool] = lambda _: True,
        **settings: Any,
    ) -> None:
        self.clock = clock or TwoClocks()
        self.store = Store.open(folder, self.clock)
        self.tables = self.store.part(OutboxTables)
        config = AlertsConfig(**settings)
        self.outbox = Outbox(lambda: self.tables, channels, config, self.clock, still_stands)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.outbox.close()
        self.store.close()

    def put(self, *alerts: Alert) -> None:
        with self.tables.writing() as connection:
            self.outbox.put(connection, alerts)

    def resolve(self, alert: Alert) -> None:
        with self.tables.writing() as connection:
            self.outbox.resolve(connection, alert)

    def step(self, seconds: float = 0.0) -> None:
        """So much later, every channel is told what is due."""
        self.clock.advance(seconds)
        for sender in self.outbox.senders:
            while sender.step():
                pass

    def run(self, seconds: float, *, every_s: float = 1.0) -> None:
        """The same, over and over."""
        for _ in range(round(seconds / every_s)):
            self.step(every_s)

    def of(self, alert: str = "d-17") -> list[Delivery]:
        return self.outbox.deliveries([alert])

    @property
    def state(self) -> str:
        """Of the one delivery of the usual alert."""
        [one] = self.of()
        return one.state

    def count(self, outcome: str, channel: str = "hook") -> int:
        return self.outbox.counts()[channel, outcome]
