"""Rollback checks through the real service, on digits: processes, sockets, labels, a switch.

What the simulation says of the statistics, said of the whole: a worse version is served by default,
found out on mirrored pairs, and taken back while clients go on.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from onnx import helper, numpy_helper

from sidecar.demo import export
from sidecar.demo.client import CallFailedError, GrpcClient
from sidecar.demo.export import INPUT, OUTPUT
from sidecar.demo.process import ServeProcess
from sidecar.demo.train import Split
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.label_intake import Label
from sidecar.monitor.view_rollback import RollbackView
from tests.benchmarks.tools import Row, free_port

MODEL = "digits"
INTERVAL_S = 0.5
#: Of one run without a change.
UNCHANGED_REQUESTS = 20_000
_IN_FLIGHT = 2
_LIMIT_S = 240.0
_POLL_S = 0.1


@dataclass
class Ended:
    """What came of one run."""

    view: RollbackView
    requests: int
    failures: int
    answers: list[tuple[int, str]] = field(default_factory=list)  # wall ns, version


def rollback_service(rounds: int) -> list[Row]:
    """Each round is one life of a server for each case."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        digits = export.prepare(folder, lambda _: None).hold_out
        shutil.copyfile(folder / "digits-2.onnx", folder / "same.onnx")
        slow_down(folder / "digits-2.onnx", folder / "slow.onnx")
        runs = Runs(folder, digits)
        worse = [runs.changed(export.WORSE_FILE, labels=True) for _ in range(rounds)]
        flips = [runs.changed(export.WORSE_FILE, flip={"budget": 0.01}) for _ in range(rounds)]
        slow = [runs.changed("slow.onnx", calibration={"rate": 1.0}) for _ in range(rounds)]
        same = [runs.unchanged() for _ in range(rounds)]
    return [
        switching(worse),
        detecting("accuracy, one digit mislabelled (labels)", "accuracy", worse),
        detecting("flips, budget 1 %", "flip", flips),
        slower(slow),
        false_alarms(same),
    ]


def switching(ended: list[Ended]) -> Row:
    """From the decision until clients have the previous version."""
    took, failed, requests = [], 0, 0
    for one in ended:
        assert one.view.decision is not None
        decided_ns = one.view.decision.wall_ns
        last_new_ns = max(at for at, version in one.answers if version == "3")
        took.append((last_new_ns - decided_ns) / 1e9)
        failed += one.failures
        requests += one.requests
    slowest = max(took)
    return Row(
        "regressed to switched: the last answer of the worse version after the decision",
        "≤ one interval + 1 s", f"{slowest:.2f} s", slowest <= INTERVAL_S + 1 and not failed,
        f"{len(ended)} runs, median {np.median(took):.2f} s, checks each {INTERVAL_S:g} s; "
        f"{failed} of {requests:,} requests failed",
    )  # fmt: skip


def detecting(what: str, metric: str, ended: list[Ended]) -> Row:
    """Pairs until the decision, over the bound at the same α·w."""
    pairs, ratios = [], []
    for one in ended:
        decision = one.view.decision
        assert decision is not None
        harm = next(harm for harm in one.view.metrics if harm.metric == metric)
        b, c = harm.new_only / harm.pairs, harm.previous_only / harm.pairs
        pairs.append(decision.pairs)
        ratios.append(decision.pairs / (harm.threshold_act / growth(metric, b, c)))
    return Row(
        f"pairs to the decision, over the bound: {what}", "–", f"{np.median(ratios):.2f}", True,
        f"{sorted(pairs)} pairs in {len(ended)} runs, looked at each {INTERVAL_S:g} s",
    )  # fmt: skip


def growth(metric: str, b: float, c: float) -> float:
    """Information of one pair against the hypothesis, in nats."""
    if metric == "flip":
        budget = 0.01
        return b * math.log(b / budget) + (1 - b) * math.log((1 - b) / (1 - budget))
    share = b / (b + c)
    other = (1 - share) * math.log(2 * (1 - share)) if share < 1 else 0.0
    return (b + c) * (share * math.log(2 * share) + other)


def slower(ended: list[Ended]) -> Row:
    """A version with more to compute; latency acts only once it is calibrated."""
    decided = [one.view.decision for one in ended]
    acted = [d for d in decided if d is not None and d.metric == "latency"]
    held = {h.held for one in ended for h in one.view.metrics if h.metric == "latency" and h.held}
    return Row(
        "runs in which a slower version was taken back by its latency", f"{len(ended)}",
        f"{len(acted)}", len(acted) == len(ended),
        f"pairs: {[d.pairs for d in acted]}; " + ("; ".join(sorted(held)) or "calibrated first"),
    )  # fmt: skip


def false_alarms(ended: list[Ended]) -> Row:
    """The same version twice."""
    told = [one.view.state for one in ended if one.view.state not in {"ok", "insufficient"}]
    pairs = [max(harm.pairs for harm in one.view.metrics) for one in ended]
    return Row(
        f"runs of {UNCHANGED_REQUESTS:,} requests with nothing changed that alarmed", "≤ 5 %",
        f"{len(told)} of {len(ended)}", not told,
        f"pairs compared: {pairs}; failed requests: {sum(one.failures for one in ended)} {told}",
    )  # fmt: skip


def slow_down(source: Path, target: Path, times: int = 12) -> None:
    """The same answers, with products of 256 columns beside them that count for nothing."""
    model = onnx.load(source)
    graph = model.graph
    rng = np.random.default_rng(0)
    (output,) = (one.name for one in graph.output)
    for node in graph.node:
        node.output[:] = ["quick_" + output if name == output else name for name in node.output]
    square = rng.normal(0, 1 / 16, (256, 256)).astype(np.float32)
    graph.initializer.extend([
        numpy_helper.from_array(rng.normal(0, 1, (10, 256)).astype(np.float32), "widen"),
        numpy_helper.from_array(square, "square"),
        numpy_helper.from_array(np.zeros((256, 10), np.float32), "nothing"),
    ])  # fmt: skip
    graph.node.append(helper.make_node("MatMul", ["quick_" + output, "widen"], ["wide0"]))
    for step in range(times):
        product = helper.make_node("MatMul", [f"wide{step}", "square"], [f"product{step}"])
        squashed = helper.make_node("Tanh", [f"product{step}"], [f"wide{step + 1}"])
        graph.node.extend([product, squashed])
    graph.node.append(helper.make_node("MatMul", [f"wide{times}", "nothing"], ["zero"]))
    graph.node.append(helper.make_node("Add", ["quick_" + output, "zero"], [output]))
    onnx.checker.check_model(model)
    onnx.save(model, target)


class Runs:
    """Servers of one folder, one at a time."""

    def __init__(self, folder: Path, digits: Split) -> None:
        self._folder, self._digits = folder, digits

    def changed(self, new: str, *, labels: bool = False, **rollback: Any) -> Ended:
        """Until it is rolled back, and then for 500 requests."""
        return self._run(new, labels=labels, until="rolled_back", rollback=rollback)

    def unchanged(self) -> Ended:
        """For so many requests."""
        return self._run("same.onnx", labels=True, until="", rollback={"flip": {"budget": 0.01}})

    def _run(self, new: str, *, labels: bool, until: str, rollback: Mapping[str, Any]) -> Ended:
        state = self._folder / "state"
        shutil.rmtree(state, ignore_errors=True)
        ports = {name: f"127.0.0.1:{free_port()}" for name in ("grpc", "http", "monitor")}
        config = self._write(ports, new, labels, rollback)
        with (
            ServeProcess(config, self._folder / "serve.log") as server,
            MonitorClient(ports["monitor"], timeout_s=20) as monitor,
        ):
            server.wait_ready(lambda: _pair(monitor) is not None)
            clients = Clients(ports["grpc"], self._digits)
            clients.start()
            try:
                view = self._follow(monitor, clients, labels=labels, until=until)
            finally:
                clients.stop()
        return Ended(view, len(clients.answers) + clients.failures, clients.failures,
                     clients.answers)  # fmt: skip

    def _write(
        self, ports: dict[str, str], new: str, labels: bool, rollback: Mapping[str, Any]
    ) -> Path:
        def variant(version: str, file: str, role: str) -> dict[str, Any]:
            runtime = {"kind": "onnxruntime", "path": file}
            return {"name": "onnx", "version": version, "roles": [role], "runtime": runtime}

        model: dict[str, Any] = {
            "name": MODEL,
            "variants": [variant("2", "digits-2.onnx", "previous"), variant("3", new, "serving")],
            "validation": {"outputs": {OUTPUT: {"kind": "class_scores"}}},
            "drift": {"enabled": False},
            "rollback": {"interval_s": INTERVAL_S, "action": {"kind": "switch"}, **rollback},
        }
        if labels:
            model["labels"] = {}  # fmt: skip
        tree = {
            "models": [model],
            "gateway": {"grpc": {"address": ports["grpc"]}, "http": {"address": ports["http"]},
                        "drain": {"delay_s": 0, "timeout_s": 10}},
            "monitor": {"grpc": ports["monitor"], "state_dir": "state",
                        "mirror": {"sample_rate": 1, "cpu_share": 0.6}},
        }  # fmt: skip
        path = self._folder / "service.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    def _follow(
        self, monitor: MonitorClient, clients: Clients, *, labels: bool, until: str
    ) -> RollbackView:
        deadline_s = time.monotonic() + _LIMIT_S
        pause, after = threading.Event(), None
        while time.monotonic() < deadline_s:
            pause.wait(_POLL_S)
            while labels and (told := clients.take()):
                monitor.put_labels(MODEL, told, timeout_s=20)
            view = _pair(monitor)
            assert view is not None
            done = len(clients.answers)
            if until and view.state == until:
                after = after or done
                if done >= after + 500:
                    break
            if not until and done >= UNCHANGED_REQUESTS:
                break
        pause.wait(3)  # what is still on its way is counted, too
        view = _pair(monitor)
        assert view is not None
        return view


class Clients:
    """Two at a time, without a pause."""

    def __init__(self, address: str, digits: Split) -> None:
        self._address, self._digits = address, digits
        self._turn = itertools.count()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._labels: list[Label] = []
        self.answers: list[tuple[int, str]] = []
        self.failures = 0
        self._threads = [threading.Thread(target=self._send) for _ in range(_IN_FLIGHT)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def take(self) -> list[Label]:
        """At most so many labels that were not taken yet."""
        with self._lock:
            taken, self._labels = self._labels[:500], self._labels[500:]
        return taken

    def _send(self) -> None:
        with GrpcClient(self._address) as client:
            while not self._stop.is_set():
                digit = next(self._turn) % len(self._digits.labels)
                identity = uuid.uuid4().hex
                image = self._digits.images[digit : digit + 1]
                metadata = {"x-request-id": identity}
                try:
                    answer = client.infer(MODEL, {INPUT: image}, metadata=metadata)
                except CallFailedError:
                    self.failures += 1
                    continue
                label = Label(MODEL, identity, (int(self._digits.labels[digit]),))
                with self._lock:
                    self.answers.append((time.time_ns(), answer.model_version))
                    self._labels.append(label)


def _pair(monitor: MonitorClient) -> RollbackView | None:
    try:
        return next(iter(monitor.rollback(MODEL)), None)
    except MonitorCallError as error:
        if error.is_gone:
            return None
        raise
