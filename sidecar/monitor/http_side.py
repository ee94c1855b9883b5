"""The monitor's HTTP listener, put together: whoever has something to answer adds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sidecar.clock import Clock
from sidecar.config import SidecarConfig
from sidecar.monitor.view_rollback import RollbackView

if TYPE_CHECKING:
    from starlette.routing import BaseRoute

    from sidecar.monitor.http import MonitorHttp

_GRACE_S = 1.0


class HttpSide:
    """``start`` once, ``close`` once; where `monitor.http` is not set, nothing is.

    Attributes:
        routes: what is answered besides; set before ``start``.
    """

    def __init__(self, config: SidecarConfig, clock: Clock) -> None:
        self._intervals = {model.name: model.rollback.interval_s for model in config.models}
        self._clock = clock
        self.routes: list[BaseRoute] = []
        self._show: Callable[[str], Sequence[RollbackView]] | None = None
        self._server: MonitorHttp | None = None

    def show(self, views: Callable[[str], Sequence[RollbackView]]) -> None:
        """Say where a model's pairs of versions are to be had; before, all is inconclusive."""
        self._show = views

    def _views(self, model: str) -> Sequence[RollbackView]:
        return () if self._show is None else self._show(model)

    def start(self, address: str | None) -> dict[str, str]:
        """Listen; returns ``{"http": address}`` with the real port, or nothing.

        Raises:
            ConfigError: it cannot be listened on.
        """
        if address is None:
            return {}
        from sidecar.monitor import http_verdict
        from sidecar.monitor.http import MonitorHttp

        verdict = http_verdict.routes(self._views, self._intervals, self._clock)
        self._server = MonitorHttp(address, [*verdict, *self.routes])
        return {"http": self._server.start()}

    def close(self) -> None:
        """Let requests in flight end, and close."""
        if self._server is not None:
            self._server.stop(_GRACE_S)
