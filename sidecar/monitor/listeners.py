"""Where the monitor answers: its gRPC service, and HTTP where that is configured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from sidecar.clock import Clock
from sidecar.config import SidecarConfig
from sidecar.monitor.deep.view import DriftReports
from sidecar.monitor.http_side import HttpSide
from sidecar.monitor.label_intake import LabelSink
from sidecar.monitor.service import Method, MonitorServer
from sidecar.monitor.view import MonitorView
from sidecar.monitor.view_rollback import RollbackView

_GRACE_S = 0.2


class Listeners:
    """``start`` once; then ``refuse`` and ``stop``, each harmless where nothing was started.

    Args:
        view: what is shown; ``reports``: makes drift reports.
        methods: of the gRPC service, beside those of ``view``.
        labels: takes labels over HTTP; ``pairs``: a model's pairs of versions, for its verdict.
    """

    def __init__(
        self,
        config: SidecarConfig,
        view: MonitorView,
        reports: DriftReports,
        methods: Mapping[str, Method],
        labels: LabelSink,
        pairs: Callable[[str], Sequence[RollbackView]],
        clock: Clock,
    ) -> None:
        self._config = config
        self._view, self._reports, self._methods = view, reports, methods
        self._labels = labels
        self._server: MonitorServer | None = None
        self._http = HttpSide(config, clock)
        self._http.show(pairs)

    def start(self, grpc_address: str, http_address: str | None) -> dict[str, str]:
        """Listen; returns the real addresses, by ``grpc`` and ``http``.

        Raises:
            ConfigError: an address is in use, or the admin token cannot be read.
        """
        token = self._config.gateway.admin.read_token()
        self._server = MonitorServer(
            self._view, reports=self._reports, methods=self._methods, admin_token=token
        )
        bound = {"grpc": self._server.start(grpc_address)}
        if http_address is not None:
            from sidecar.monitor import http_labels  # starlette, for who wants it

            self._http.routes += http_labels.routes(self._labels, token)
            bound |= self._http.start(http_address)
        return bound

    def refuse(self) -> None:
        """Not serving any more: said to who asks for health; HTTP ends."""
        if self._server is not None:
            self._server.set_serving(serving=False)
        self._http.close()

    def stop(self) -> None:
        """Close."""
        if self._server is not None:
            self._server.stop(_GRACE_S)
