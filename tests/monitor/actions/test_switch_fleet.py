"""The switch over three replicas: real gateways; heartbeats and routes in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.clock import SystemClock
from sidecar.config_monitor import StoreConfig
from sidecar.gateway.aside import Aside
from sidecar.gateway.route_follower import RouteFollower
from sidecar.gateway.tap import Tap
from sidecar.monitor import places
from sidecar.monitor.actions import build
from sidecar.monitor.actions.base import Outcome, Request
from sidecar.monitor.channel import ExchangeListener
from sidecar.monitor.events import EventLog
from sidecar.monitor.fleet_side import evidence_of, fleet_side
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.routing_side import RoutingSide
from tests.gateway.served import FunctionRuntime, configure, make_models, model, request, serving
from tests.gateway.served import variant as a_variant
from tests.monitor.actions.clusters import config as action_config
from tests.monitor.listening import until

ROW = np.ones((1, 3), np.float32)
WITHIN_S = 120


class Pod:
    """A gateway, and the part of its monitor that routes are about."""

    def __init__(self, folder: Path, models: Path, url: str, stack: ExitStack) -> None:
        tree = model(
            "m", a_variant("any", "1", "previous"), a_variant("any", "2"), default_version="2"
        )
        settings = StoreConfig.model_validate({"url": url, "sync_s": 0.1, "timeout_s": 5})
        plain = configure(models, tree)
        monitor = plain.monitor.model_copy(update={"store": settings, "state_dir": folder})
        self.config = plain.model_copy(update={"monitor": monitor})
        self.served = stack.enter_context(serving(self.config))
        clock = SystemClock()
        evidence = evidence_of(settings, clock)
        keeper = Keeper(folder, evidence, EventLog(clock), clock, shared=settings)
        assert keeper.open()
        stack.callback(keeper.close)
        self.side = RoutingSide(self.config, models, evidence, clock, lambda: keeper.shared)
        self.routes = self.side.routes
        fleet = fleet_side(settings, keeper, clock)
        assert fleet is not None
        self.side.join(fleet)
        self.fleet = fleet
        fleet.start()
        stack.callback(fleet.close)
        self._connect(folder, models, stack)

    def _connect(self, folder: Path, models: Path, stack: ExitStack) -> None:
        gateway = self.served.gateway
        listener = ExchangeListener(
            folder / "tap.sock", lambda _: None, max_exchange_bytes=2**20, rate=0,
            routes=self.side.workers,
        )  # fmt: skip
        listener.start()
        stack.callback(listener.close)
        path = places.routes_path(self.config, models)
        follower = RouteFollower(path, gateway.registry, gateway.page, WITHIN_S)
        tap = Tap(folder / "tap.sock", self.config.monitor, gateway.page, gateway.clock, 0)
        tap.aside = Aside(gateway.registry, gateway.page, follower)
        follower.on_change = tap.aside.changed
        tap.start()
        stack.callback(tap.close)
        follower.start()
        stack.callback(follower.stop)

    def breaks(self, version: str, *, broken: bool = True) -> None:
        copy = self.served.gateway.registry.entry("m").held[version]

        def run(inputs: Any) -> Any:
            if broken:
                text = "its weights are gone"
                raise RuntimeError(text)
            return [inputs["x"]]

        copy.runtime = FunctionRuntime(run, copy.runtime.signature)

    def ask(self, count: int = 10) -> set[str]:
        return {self.served.infer(request("m", {"x": ROW})).model_version for _ in range(count)}


@pytest.fixture
def pods(tmp_path: Path, database_url: str) -> Iterator[list[Pod]]:
    make_models(tmp_path)
    with ExitStack() as stack:
        made = []
        for name in "abc":
            (tmp_path / name).mkdir()
            made.append(Pod(tmp_path / name, tmp_path, database_url, stack))

        def all_heard() -> bool:
            views = [pod.routes.route("m") for pod in made]
            return all(view.applied == view.replicas_applied == 3 for view in views)

        until(all_heard, "all have heard of all", WITHIN_S)
        yield made


def asked(fence: int = 7) -> Request:
    return Request(
        decision_id="d-1", model="m", new="m:2/onnx", previous="m:1/onnx", new_version="2",
        previous_version="1", fence=fence, reason="worse at changed answers",
    )  # fmt: skip


@pytest.mark.timeout(600)
def test_one_replica_whose_copy_fails_blocks_and_then_all_switch(pods):
    leader, other, third = pods
    switch = build(action_config(kind="switch"), leader.routes, "m", SystemClock())
    third.breaks("1")
    checked = switch.check(asked())
    assert checked.outcome is Outcome.BLOCKED
    assert "version 1 does not answer at the copies that would serve it: replica " in checked.text
    assert third.fleet.replicas.incarnation[:8] in checked.text
    assert other.fleet.replicas.incarnation[:8] not in checked.text
    assert {version for pod in pods for version in pod.ask()} == {"2"}

    third.breaks("1", broken=False)
    checked = switch.check(asked())
    assert checked.outcome is Outcome.DONE, checked.text
    assert "answers at every worker of every replica: m:1 answers at 3 workers of 3 replicas" in (
        checked.text
    )
    performed = switch.perform(asked())
    assert performed.outcome is Outcome.DONE, performed.text
    until(lambda: all(pod.ask() == {"1"} for pod in pods), "all follow", WITHIN_S)

    def verified() -> Any:
        for pod in pods:
            pod.ask()
        result = switch.verify(asked())
        return result if result.outcome is not Outcome.RETRY else None

    seen = until(verified, "it is seen in the traffic of all", WITHIN_S)
    assert seen.outcome is Outcome.DONE, seen.text
    assert "3 of 3 workers apply revision 1, at 3 of 3 replicas" in seen.text

    # Whoever leads next finds what was done, by its own view of the table.
    heir = build(action_config(kind="switch"), other.routes, "m", SystemClock())
    assert heir.perform(asked(8)).outcome is Outcome.DONE
    assert other.routes.route("m").revision == 1
    assert heir.undo(asked(8)).outcome is Outcome.DONE
    until(lambda: all(pod.ask() == {"2"} for pod in pods), "all follow", WITHIN_S)
    until(lambda: leader.routes.route("m").revision == 2, "the first one as well", WITHIN_S)
    assert switch.perform(asked()).outcome is Outcome.BLOCKED, "an operator undid it"


@pytest.mark.timeout(600)
def test_two_leaders_make_one_change(pods):
    actions = [
        build(action_config(kind="switch"), pod.routes, "m", SystemClock()) for pod in pods[:2]
    ]
    assert [one.check(asked(at)).outcome for at, one in enumerate(actions)] == [Outcome.DONE] * 2
    outcomes = [one.perform(asked(at)).outcome for at, one in enumerate(actions)]
    assert outcomes[0] is Outcome.DONE
    # The second has read its table before or after: it is told, or finds it done.
    assert outcomes[1] in {Outcome.DONE, Outcome.RETRY}
    until(lambda: actions[1].perform(asked(1)).outcome is Outcome.DONE, "it finds it", WITHIN_S)
    until(lambda: all(pod.routes.route("m").replicas_applied == 3 for pod in pods), "all", WITHIN_S)
    assert {pod.routes.route("m").revision for pod in pods} == {1}
