"""The switch over the monitor's own route table, with a worker that follows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sidecar import route_table
from sidecar.config import SidecarConfig, parse
from sidecar.monitor.actions import build
from sidecar.monitor.actions.base import Outcome
from sidecar.monitor.channel_frames import PROBE, PROBED, ROUTED
from sidecar.monitor.route_side import RouteSide
from sidecar.monitor.routed_frames import WIDTH, ModelRouted, Probed, Routed, VersionCounts
from sidecar.monitor.worker_routes import WorkerRoutes
from tests.monitor.actions.clusters import config as action_config
from tests.monitor.actions.clusters import request
from tests.monitor.making import Clock


def served() -> SidecarConfig:
    def variant(version: str, role: str) -> dict[str, Any]:
        runtime = {"kind": "onnxruntime", "path": "m.onnx"}
        return {"version": version, "name": "onnx", "roles": [role], "runtime": runtime}

    model = {"name": "digits", "variants": [variant("2", "previous"), variant("3", "serving")]}
    return parse({"models": [model]})


class Worker:
    """A gateway worker: follows the table in its file, counts, and runs its copy when asked."""

    worker, pid = 0, 1

    def __init__(self, path: Path, workers: WorkerRoutes) -> None:
        self._path = path
        self._workers = workers
        self.counts = {"2": 0, "3": 0}
        self.healthy = True
        workers.joined(self)
        self.tell()

    def send(self, kind: int, fields: dict[str, Any]) -> None:
        assert kind == PROBE
        text = "ok" if self.healthy else "its copy has failed"
        probed = Probed(fields["id"], ok=self.healthy, text=text, ms=1.0)
        self._workers.heard(self, PROBED, probed.packed())

    def tell(self, requests: int = 0) -> None:
        raw = route_table.read(self._path)
        route = None if raw is None else route_table.parse(raw).get("digits")
        shares = {"3": 1.0} if route is None else dict(route.shares)
        for version, share in shares.items():
            self.counts[version] += round(requests * share)
        counts = {
            version: VersionCounts(0, 0, (count, *[0] * (WIDTH - 3)))
            for version, count in self.counts.items()
        }
        revision = 0 if route is None else route.revision
        model = ModelRouted(revision, shares, ["2", "3"], "", counts)
        self._workers.heard(self, ROUTED, Routed(7, "", {"digits": model}).packed())


def test_a_rollback_from_check_to_undo_and_over_a_restart(tmp_path):
    path, clock, workers = tmp_path / "routes.json", Clock(), WorkerRoutes()
    worker = Worker(path, workers)
    worker.tell(100)
    side = RouteSide(served(), path, workers, clock)
    rollback = build(action_config(kind="switch"), side, "digits", clock)

    worker.healthy = False
    checked = rollback.check(request())
    assert checked.outcome is Outcome.BLOCKED
    assert "its copy has failed" in checked.text
    worker.healthy = True
    assert rollback.check(request()).outcome is Outcome.DONE
    done = rollback.perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert rollback.verify(request()).outcome is Outcome.RETRY, "the worker has not heard of it"
    worker.tell()
    assert rollback.verify(request()).outcome is Outcome.RETRY
    worker.tell(50)
    seen = rollback.verify(request())
    assert (seen.outcome, "50 requests since: all to version 2" in seen.text) == (
        Outcome.DONE, True,
    )  # fmt: skip

    # The monitor is started again: the table is what it was, and says by which decision.
    side = RouteSide(served(), path, workers, clock)
    again = build(action_config(kind="switch"), side, "digits", clock)
    repeated = again.perform(request(fence=2))
    assert (repeated.outcome, side.route("digits").revision) == (Outcome.DONE, 1)
    assert again.undo(request(fence=2)).outcome is Outcome.DONE
    assert side.route("digits").shares == {"3": 1.0}
    assert again.perform(request(fence=2)).outcome is Outcome.BLOCKED


def test_two_monitors_make_one_change(tmp_path):
    path, clock, workers = tmp_path / "routes.json", Clock(), WorkerRoutes()
    Worker(path, workers)
    actions = [
        build(action_config(kind="switch"), RouteSide(served(), path, workers, clock), "digits",
              clock)
        for _ in range(2)
    ]  # fmt: skip
    assert [one.check(request()).outcome for one in actions] == [Outcome.DONE] * 2
    outcomes = [one.perform(request(fence=at)).outcome for at, one in enumerate(actions, 1)]
    assert outcomes == [Outcome.DONE, Outcome.DONE]
    assert RouteSide(served(), path, workers, clock).route("digits").revision == 1
