"""Several replicas as real processes: gateways, monitors, one PostgreSQL, one Kubernetes API.

Each replica is ``sidecar serve`` in a folder of its own: a gateway that answers real requests, its
monitor, and the mirror that runs both versions. The new version mixes up its classes, so every pair
of answers is another flip. The Deployment is the test's own; that the pods are not rolled with it
is of no matter here: what is counted is who changes it, and how often.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import yaml
from onnx import helper

from sidecar.clock import SystemClock
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import monitor_pb2 as mpb
from tests.monitor.actions.clusters import NAME, deploy, template
from tests.support import models
from tests.support.alert_receiver import AlertReceiver
from tests.support.kubernetes_api import KubernetesApi
from tests.support.ports import free_addresses

SERVICE = "inference.GRPCInferenceService"
MODEL = "m"
NEW_IMAGE, OLD_IMAGE = "m:2", "m:1"
#: Failures that are kept with what is known of them; further ones are only counted.
_FAILURES_MAX = 1000
_CLOCK = SystemClock()
_CHANNEL = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that got no answer.

    Attributes:
        replica: the number of the one that was asked.
        at_s: when it had failed, Unix time, as the replicas' logs have it.
        code, details: what gRPC says.
        took_s: from when it was sent.
        answered: requests that this replica had answered before.
    """

    replica: int
    at_s: float
    code: str
    details: str
    took_s: float
    answered: int


def scores(folder: Path, name: str, shift: int) -> Path:
    """x FP32 [-1, 4] → y FP32 [-1, 4]: the same, or its columns moved by ``shift``."""
    order = np.roll(np.arange(4), shift)
    weights = np.eye(4, dtype=np.float32)[:, order]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    io = [("x", "FP32", ["batch", 4])], [("y", "FP32", ["batch", 4])]
    return models.save(folder, name, models.onnx_model([node], *io, [("w", weights)]))


def until(check: Callable[[], Any], what: str, *, within_s: float = 120) -> Any:
    """Poll until ``check`` gives something true; return that."""
    deadline = time.monotonic() + within_s
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.05)
    return result


class Replica:
    """One ``sidecar serve``; a context manager."""

    def __init__(self, folder: Path, number: int, tree: dict[str, Any]) -> None:
        self.grpc, self.monitor = free_addresses(2)
        self._folder = folder
        own = json.loads(json.dumps(tree))
        own["gateway"]["grpc"] = {"address": self.grpc}
        own["monitor"] |= {"grpc": self.monitor, "state_dir": f"state-{number}"}
        self._config = folder / f"replica-{number}.yaml"
        self._config.write_text(yaml.safe_dump(own), encoding="utf-8")
        self.log = self._config.with_suffix(".log")
        self._process: subprocess.Popen[bytes] | None = None
        self.client = MonitorClient(self.monitor, timeout_s=20)

    def __enter__(self) -> Self:
        with self.log.open("ab") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", "serve", str(self._config)],
                stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        assert self._process is not None
        for name in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, name)
        self._process.wait()

    def stop(self) -> int:
        """As a pod is stopped; returns the exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(60)

    def is_ready(self) -> bool:
        """Whether its gateway is, as a balancer asks before it sends anything."""
        with grpc.insecure_channel(self.grpc, _CHANNEL) as channel:
            ask = channel.unary_unary(
                f"/{SERVICE}/ServerReady",
                request_serializer=pb.ServerReadyRequest.SerializeToString,
                response_deserializer=pb.ServerReadyResponse.FromString,
            )
            with contextlib.suppress(grpc.RpcError):
                return bool(ask(pb.ServerReadyRequest(), timeout=5, wait_for_ready=True).ready)
        return False

    def pid(self) -> int:
        """Of the monitor; 0: it does not answer."""
        with contextlib.suppress(MonitorCallError):
            return self.client.status(5).pid
        return 0

    def evidence(self) -> dict[str, dict[tuple[str, ...], float]]:
        """Incarnation → what it has counted of this and that, over all blocks, as this replica
        knows it."""
        found: dict[str, dict[tuple[str, ...], float]] = {}
        token = ""
        with grpc.insecure_channel(self.monitor) as channel:
            ask = channel.unary_unary(
                f"/{mpb.DESCRIPTOR.services_by_name['Monitor'].full_name}/GetEvidence",
                request_serializer=mpb.GetEvidenceRequest.SerializeToString,
                response_deserializer=mpb.GetEvidenceResponse.FromString,
            )
            while True:
                page = ask(mpb.GetEvidenceRequest(page_size=10_000, page_token=token), timeout=60)
                for row in page.rows:
                    counts = found.setdefault(row.incarnation, {})
                    one = row.key
                    for cell, count in row.cells.items():
                        name = (one.candidate, one.baseline, one.output, one.metric, cell)
                        counts[name] = round(counts.get(name, 0.0) + count, 6)
                token = page.next_page_token
                if not token:
                    return found

    def view(self) -> Any:
        """The pair of versions; ``None``: it is not known yet."""
        with contextlib.suppress(MonitorCallError):
            views = self.client.rollback(MODEL)
            return views[0] if views and views[0].previous else None
        return None


class Fleet:
    """Some replicas on one database, under traffic; a context manager.

    Args:
        url: of the database.
        rate: requests in a second, to each.
        settings: of ``rollback``.
    """

    def __init__(
        self, folder: Path, url: str, *, count: int = 3, rate: float = 25.0, lease_s: float = 2.0,
        interval_s: float = 0.5, min_pairs: int = 60, **settings: Any,
    ) -> None:  # fmt: skip
        self.folder, self.url, self.rate, self.lease_s = folder, url, rate, lease_s
        self.api, self.receiver = KubernetesApi(), AlertReceiver()
        self._count = count
        self._settings = {
            "interval_s": interval_s, "min_pairs": min_pairs, "cooldown_s": 0,
            "verify_within_s": 60, "flip": {"budget": 0.01}, **settings,
        }  # fmt: skip
        self.replicas: list[Replica] = []
        self._stack = contextlib.ExitStack()
        self._stopping = threading.Event()
        self.answered = [0] * count
        self.failed = [0] * count
        self.failures: deque[Failure] = deque(maxlen=_FAILURES_MAX)
        self._quiet = threading.Event()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.api)
            stack.enter_context(self.receiver)
            deploy(self.api, template(OLD_IMAGE), template(NEW_IMAGE))
            tree = self._tree()
            for number in range(self._count):
                replica = stack.enter_context(Replica(self.folder, number, tree))
                self.replicas.append(replica)
            # A fresh replica is not ready until its monitor has written the fleet's route table. On
            # a busy machine that is later than the deadline of a request, which would have failed.
            for replica in self.replicas:
                until(replica.is_ready, "its gateway is ready", within_s=300)
            for number, _ in enumerate(self.replicas):
                thread = threading.Thread(target=self._load, args=(number,), daemon=True)
                thread.start()
                stack.callback(thread.join, 30)
            stack.callback(self._stopping.set)
            for replica in self.replicas:
                until(replica.view, "it looks at the versions", within_s=300)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _tree(self) -> dict[str, Any]:
        def variant(version: str, role: str, path: Path) -> dict[str, Any]:
            runtime = {"kind": "onnxruntime", "path": path.name}
            return {"version": version, "name": "onnx", "roles": [role], "runtime": runtime}

        file = self.api.kubeconfig(self.folder / "kubeconfig")
        kubernetes = {"kubeconfig": str(file), "context": "here", "timeout_s": 5}
        action = {"kind": "deployment", **NAME, "kubernetes": kubernetes}
        return {
            "models": [{
                "name": MODEL, "default_version": "2",
                "validation": {"outputs": {"y": {"kind": "class_scores"}}},
                "drift": {"enabled": False},
                "variants": [
                    variant("1", "previous", scores(self.folder, "one.onnx", 0)),
                    variant("2", "serving", scores(self.folder, "two.onnx", 1)),
                ],
                "rollback": {**self._settings, "action": action},
            }],
            "gateway": {"http": None, "drain": {"delay_s": 0, "timeout_s": 2}},
            "monitor": {
                "flush_s": 1, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
                "store": {
                    "url": self.url, "sync_s": 0.2, "lease_s": self.lease_s, "timeout_s": 2,
                },
            },
            "alerts": {
                "first_retry_s": 0.2, "last_retry_s": 1,
                "channels": [{"kind": "cloudevents", "url": self.receiver.url}],
            },
        }  # fmt: skip

    # --- traffic ----------------------------------------------------------------------------------

    def _load(self, number: int) -> None:
        rng = np.random.default_rng(number)
        with grpc.insecure_channel(self.replicas[number].grpc, _CHANNEL) as channel:
            infer = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            while not self._stopping.wait(1 / self.rate):
                if self._quiet.is_set():
                    continue
                request = pb.ModelInferRequest(model_name=MODEL)
                request.inputs.add(name="x", datatype="FP32").shape.extend([1, 4])
                row = rng.permutation(4).astype(np.float32)
                request.raw_input_contents.append(row.tobytes())
                began_s = time.monotonic()
                try:
                    infer(request, timeout=20, wait_for_ready=True)
                except grpc.RpcError as error:
                    self._fail(number, error, time.monotonic() - began_s)
                else:
                    self.answered[number] += 1

    def _fail(self, number: int, error: Any, took_s: float) -> None:
        self.failed[number] += 1
        self.failures.append(
            Failure(
                number, _CLOCK.now_ns() / 1e9, error.code().name, str(error.details()), took_s,
                self.answered[number],
            )
        )  # fmt: skip

    def quiet(self) -> None:
        """No further requests."""
        self._quiet.set()

    def loud(self) -> None:
        """Requests again."""
        self._quiet.clear()

    # --- who leads, and what was done -------------------------------------------------------------

    def leader(self) -> tuple[int, int]:
        """Process and fence of the row in the database."""
        import psycopg

        query = (
            "SELECT plain, fence FROM leader WHERE name = 'rollback' AND expires_ns > "
            "(extract(epoch FROM clock_timestamp()) * 1000000000)::bigint"
        )
        try:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                row = connection.execute(query).fetchone()
        except psycopg.Error:  # no tables yet, or no database just now
            row = None
        return (0, 0) if row is None else (int(json.loads(row[0])["pid"]), int(row[1]))

    def leading(self) -> Replica:
        """The replica whose monitor leads; waited for."""

        def found() -> Replica | None:
            pid, _ = self.leader()
            return next((one for one in self.replicas if pid and one.pid() == pid), None)

        replica: Replica = until(found, "somebody leads")
        return replica

    def changes(self) -> list[dict[str, Any]]:
        """Every effective change of the Deployment's template: the mark that it came with."""
        found = []
        for call in self.api.patches():
            marks = [
                json.loads(op["value"])
                for op in call.body
                if op["path"] == "/metadata/annotations/model-sidecar~1rollback"
            ]
            found += marks
        return found

    def undo(self, replica: Replica) -> None:
        """An operator takes the rollback back at a replica: the regression begins anew."""
        until(self.all_rolled_back, "all show that it is rolled back", within_s=300)
        decision = replica.client.decisions(MODEL, 1)[0]
        replica.client.undo(decision.id, by="ann", reason="once more")

    def all_rolled_back(self) -> bool:
        """Whether every replica that answers shows it, and all do."""
        views = [one.view() for one in self.replicas]
        return all(view is not None and view.state == "rolled_back" for view in views)

    def firing(self) -> int:
        """How many decisions the receiver has heard of."""
        return len({_decision(one) for one in self.alerts()})

    def counted(self) -> list[int]:
        """Pairs, as each replica shows them; -1: it does not."""
        views = [one.view() for one in self.replicas]
        return [max((h.pairs for h in v.metrics), default=0) if v else -1 for v in views]

    def is_settled(self) -> bool:
        """Whether every replica knows of every incarnation what the others know."""
        first, *others = [one.evidence() for one in self.replicas]
        return all(one == first for one in others)

    def image(self) -> str:
        """What the Deployment runs."""
        spec = self.api.get("deployments", NAME["namespace"], NAME["name"])["spec"]
        return str(spec["template"]["spec"]["containers"][0]["image"])

    def alerts(self, kind: str = "ModelRollback") -> list[dict[str, Any]]:
        """What the receiver has got of it."""
        found = [got.json for got in list(self.receiver.got)]
        return [one for one in found if kind in json.dumps(one)]


def _decision(event: dict[str, Any]) -> str:
    data = event.get("data") or {}
    return str((data.get("values") or {}).get("decision_id") or event["subject"])


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process stands still meanwhile, with whatever it was in the middle of."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
