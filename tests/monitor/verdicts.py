"""A monitor's HTTP listener with pairs of versions to show, on a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from sidecar.monitor.http import MonitorHttp
from sidecar.monitor.http_verdict import routes
from sidecar.monitor.view_rollback import DecisionView, HarmView, RollbackView
from tests.monitor.making import Clock

INTERVAL_S = 10.0


def harm(metric: str = "error", pairs: int = 5000, log_e: float = 1.0, **more: Any) -> HarmView:
    fields: dict[str, Any] = {
        "metric": metric, "pairs": pairs, "new_only": 3.0, "previous_only": 2.0, "log_e": log_e,
        "threshold": 4.0, "log_e_act": log_e, "threshold_act": 6.0, "may_act": True,
        "text": "errors: 3 by the new version alone, 2 by the previous one alone",
    }  # fmt: skip
    return HarmView(**{**fields, **more})


def decision(metric: str = "error") -> DecisionView:
    return DecisionView("d-1", "digits", "3/onnx", "2/onnx", "regressed", 5, metric=metric)


def pair(state: str = "ok", **more: Any) -> RollbackView:
    """Version 3 beside version 2, checked just now (`Clock` begins at one second)."""
    fields: dict[str, Any] = {
        "model": "digits", "new": "3/onnx", "previous": "2/onnx", "state": state,
        "text": f"it is {state}", "checked_wall_ns": 10**9, "metrics": [harm()],
    }  # fmt: skip
    return RollbackView(**{**fields, **more})


class Shown:
    """What the monitor has to show; ``client`` asks over HTTP."""

    def __init__(self) -> None:
        self.pairs: list[RollbackView] = []
        self.clock = Clock()
        self.client: httpx.Client

    def get(self, path: str = "/v1/rollback/digits") -> httpx.Response:
        return self.client.get(path)

    def verdict(self, query: str = "") -> str:
        response = self.get(f"/v1/rollback/digits{query}")
        assert response.status_code == 200, response.text
        return str(response.json()["verdict"])

    def hook(self, hook: str, **metadata: str) -> int:
        """As Flagger calls: any 2xx is yes."""
        body = {
            "name": "digits", "namespace": "shop", "phase": "Progressing", "checksum": "85d557f47b",
            "metadata": {"model": "digits", **metadata},
        }  # fmt: skip
        return self.client.post(f"/v1/flagger/{hook}", json=body).status_code


@contextmanager
def showing() -> Iterator[Shown]:
    shown = Shown()
    handlers = routes(lambda _model: list(shown.pairs), {"digits": INTERVAL_S}, shown.clock)
    server = MonitorHttp("127.0.0.1:0", handlers)
    shown.client = httpx.Client(base_url=f"http://{server.start()}", timeout=60, verify=False)
    try:
        yield shown
    finally:
        shown.client.close()
        server.stop(1)
