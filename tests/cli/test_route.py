"""``sidecar route``: shares as they are written, and a promotion against what checks say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sidecar.cli import run
from sidecar.cli.route import parse_shares
from sidecar.clock import SystemClock
from sidecar.config import parse
from sidecar.errors import SidecarError
from sidecar.monitor import calls_route
from sidecar.monitor.route_side import RouteSide
from sidecar.monitor.service import Method, MonitorServer
from sidecar.monitor.view_messages import to_message
from sidecar.monitor.view_rollback import CompareView, RollbackView
from sidecar.monitor.worker_routes import WorkerRoutes
from sidecar.protocol.pb import monitor_pb2 as pb
from tests.monitor.views import FakeView


def test_shares_are_read_as_they_are_written():
    assert parse_shares(["2=0.9", "3=.1", "a=b=1"]) == {"2": 0.9, "3": 0.1, "a=b": 1.0}
    for words in (["2"], ["=1"], ["2="], ["2=x"], ["2=-1"], ["2=nan"], ["2=inf"]):
        with pytest.raises(SidecarError, match="VERSION=WEIGHT"):
            parse_shares(words)
    with pytest.raises(SidecarError, match="given twice"):
        parse_shares(["2=1", "2=2"])


@contextmanager
def monitor(folder: Path, state: str) -> Iterator[tuple[str, RouteSide]]:
    """A monitor that says of version 3 what the test says."""
    variants = [
        {
            "version": version, "name": "v", "roles": [role],
            "runtime": {"kind": "onnxruntime", "path": "/m.onnx"},
        }
        for version, role in (("2", "serving"), ("3", "candidate"))
    ]  # fmt: skip
    config = parse({"models": [{"name": "m", "variants": variants}]})
    side = RouteSide(config, folder / "routes.json", WorkerRoutes(), SystemClock())
    pair = RollbackView("m", "m:3/v", "m:2/v", state, "so it was found")

    def judged(_: pb.RollbackRequest) -> pb.RollbackResponse:
        return pb.RollbackResponse(pairs=[to_message(pair)])

    methods = calls_route.methods(side, lambda *_: CompareView("m", 0.05))
    server = MonitorServer(
        FakeView(), methods={**methods, "Rollback": Method(pb.RollbackRequest, judged)}
    )
    try:
        yield server.start("127.0.0.1:0"), side
    finally:
        server.stop(0)


@pytest.mark.parametrize("state", ["insufficient", "suspect", "regressed", "blocked"])
def test_a_candidate_is_not_promoted_against_its_checks_unless_by_force(tmp_path, capsys, state):
    with monitor(tmp_path, state) as (address, side):
        promote = ["route", "promote", address, "m", "3", "--timeout", "60"]
        assert run(promote) == 1
        said = capsys.readouterr()
        assert f"version 3 is not promoted: it is {state} (so it was found)" in said.err
        assert side.route("m").revision == 0
        assert run([*promote, "--force"]) == 0
        assert side.route("m").shares == {"3": 1.0}
        assert side.route("m").reason == "promoted, by force"


def test_a_candidate_that_is_ok_is_promoted_and_what_is_not_judged_too(tmp_path, capsys):
    with monitor(tmp_path, "ok") as (address, side):
        assert run(["route", "promote", address, "m", "3", "--timeout", "60"]) == 0
        assert "m:3/v beside m:2/v: ok so it was found" in capsys.readouterr().out
        assert side.route("m").shares == {"3": 1.0}
        assert run(["route", "promote", address, "m", "2", "--timeout", "60"]) == 0
        assert "nothing is known of version 2" in capsys.readouterr().out
        assert side.route("m").shares == {"2": 1.0}
        stale = ["route", "set", address, "m", "3=1", "--expect", "1", "--timeout", "60"]
        assert run(stale) == 1
        assert "ABORTED" in capsys.readouterr().err
