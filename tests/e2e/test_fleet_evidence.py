"""Three replicas on one PostgreSQL: gateways, monitors, and the sum of what they count."""

from __future__ import annotations

import contextlib
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sidecar.monitor.pool_store import POOL
from sidecar.protocol.pb import monitor_pb2 as mpb
from tests.e2e.support import LOCAL, await_ready, launch, until
from tests.e2e.test_monitor import (
    MONITOR,
    calling,
    is_connected,
    monitor_of,
    send,
    send_until_compared,
    status,
)
from tests.support import models

# On a busy machine each of them takes its time.
pytestmark = pytest.mark.timeout(900)

WITHIN_S = 200
Sums = dict[str, Counter[tuple[str, str]]]


class Replica:
    """A gateway and its monitor, as the containers of a pod."""

    def __init__(self, folder: Path, model: Path, url: str) -> None:
        folder.mkdir()
        variants = [
            {"version": version, "name": "onnx", "roles": [role],
             "runtime": {"kind": "onnxruntime", "path": str(model)}}
            for version, role in (("1", "previous"), ("2", "serving"))
        ]  # fmt: skip
        tree = {
            "models": [{"name": "mlp", "default_version": "2", "variants": variants}],
            "gateway": {
                "grpc": {"address": LOCAL}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
            },
            "monitor": {
                "grpc": LOCAL, "flush_s": 0.2, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
                "store": {"url": url, "sync_s": 0.2, "timeout_s": 2, "route_wait_s": 0},
            },
        }  # fmt: skip
        self._config = folder / "sidecar.yaml"
        self._config.write_text(yaml.safe_dump(tree), encoding="utf-8")
        self.monitor = launch(self._config, "monitor")
        self.gateway = launch(self._config, "gateway")
        self._connected = 0

    def ready(self) -> None:
        await_ready(self.gateway)
        await_ready(self.monitor)
        self._connected += 1
        is_connected(self.gateway, times=self._connected)

    @property
    def address(self) -> str:
        return monitor_of(self.monitor)

    def compare(self, more: int) -> None:
        """Send until so many more are compared than were, over all lives."""
        count = status(self.address).coverage.compared + more
        send_until_compared(self.gateway.addresses["grpc"], self.address, count)

    def kill_monitor(self) -> None:
        os.kill(self.monitor.pids[0], signal.SIGKILL)
        self.monitor.kill()
        self.monitor = launch(self._config, "monitor")

    def sums(self) -> Sums:
        """Incarnation → what it has counted of the pair of versions, as this one knows it."""
        with calling(self.address) as channel:
            call = channel.unary_unary(
                f"/{MONITOR}/GetEvidence",
                request_serializer=mpb.GetEvidenceRequest.SerializeToString,
                response_deserializer=mpb.GetEvidenceResponse.FromString,
            )
            rows = call(mpb.GetEvidenceRequest(model="mlp"), timeout=30).rows
        found: Sums = {}
        for row in rows:
            if row.incarnation == POOL:  # blocks joined over replicas: the leader's, when it may
                continue
            counted = found.setdefault(row.incarnation, Counter())
            counted.update({(row.key.metric, name): n for name, n in row.cells.items()})
        return found

    def close(self) -> None:
        for server in (self.gateway, self.monitor):
            with contextlib.suppress(AssertionError):
                server.kill()


@pytest.fixture
def fleet(tmp_path: Path, database_url: str) -> Iterator[list[Replica]]:
    model = models.onnx_mlp(tmp_path)
    replicas: list[Replica] = []
    try:
        replicas += [Replica(tmp_path / f"pod-{n}", model, database_url) for n in range(3)]
        for replica in replicas:
            replica.ready()
        yield replicas
    finally:
        for replica in replicas:
            replica.close()


def own(replica: Replica) -> str:
    return status(replica.address).incarnation


def agreed(fleet: list[Replica], lives: set[str]) -> Sums:
    """Wait until all know the same of these lives, and each of itself what the others know."""

    def look() -> Sums | None:
        found = [replica.sums() for replica in fleet]
        same = all(one == found[0] and set(one) == lives for one in found)
        return found[0] if same else None

    return until(look, "all replicas have the same evidence", within_s=WITHIN_S)


def test_evidence_is_the_sum_of_what_all_have_counted(fleet, postgres_server):
    lives = {own(replica) for replica in fleet}
    assert len(lives) == 3
    for number, replica in enumerate(fleet):
        replica.compare(20 + 10 * number)
    before = agreed(fleet, lives)
    for replica in fleet:
        cells = before[own(replica)]
        counted = sum(cells[("error", name)] for name in ("n11", "n10", "n01", "n00"))
        assert counted == status(replica.address).coverage.compared
    shown = until(
        lambda: (found := status(fleet[0].address).store) and len(found.replicas) == 3 and found,
        "three are alive", within_s=WITHIN_S,
    )  # fmt: skip
    assert shown.shared_ok
    assert set(shown.replicas) == lives
    assert "sidecar@" not in shown.shared

    dead = own(fleet[0])
    fleet[0].kill_monitor()
    fleet[0].ready()
    lives.add(own(fleet[0]))
    fleet[0].compare(20)
    fleet[1].compare(20)
    after = agreed(fleet, lives)
    assert after[dead] == before[dead], "nothing of the dead one is lost, or counted again"

    postgres_server.stop(how=signal.SIGQUIT)
    try:
        send(fleet[1].gateway.addresses["grpc"], 10, seed=7)  # no request fails
        until(lambda: not status(fleet[1].address).store.shared_ok, "it is said", within_s=WITHIN_S)
    finally:
        postgres_server.start()
    fleet[2].compare(20)
    last = agreed(fleet, lives)
    assert all(last[life].total() >= cells.total() for life, cells in after.items())
    assert last[own(fleet[2])].total() > after[own(fleet[2])].total()
    fleet[2].monitor.signal()
    assert fleet[2].monitor.wait() == 0
    assert agreed(fleet[:2], lives) == last
    until(
        lambda: len(status(fleet[0].address).store.replicas) == 2, "it has left", within_s=WITHIN_S
    )
