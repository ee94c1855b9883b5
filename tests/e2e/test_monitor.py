"""A monitor beside a gateway: real processes, real requests, evidence at the end."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import sqlite3
from pathlib import Path

import grpc
import numpy as np
import onnx
import psutil
import pytest
import yaml
from onnx import numpy_helper

from sidecar.protocol.pb import inference_pb2 as pb
from sidecar.protocol.pb import monitor_pb2 as mpb
from tests.e2e.support import LOCAL, SERVICE, Server, await_ready, launch, running, until
from tests.support import models

# A monitor has the lowest priority: on a busy machine it starts, and compares, when others rest.
pytestmark = pytest.mark.timeout(900)

MONITOR = mpb.DESCRIPTOR.services_by_name["Monitor"].full_name
#: Enough for a certificate at 1 % with nothing wrong (344), and some.
REQUESTS = 400


def perturbed(folder: Path, path: Path) -> Path:
    """The same network with wrong weights: a conversion that went wrong."""
    model = onnx.load(path)
    rng = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        weights = numpy_helper.to_array(tensor)
        weights = weights + rng.normal(size=weights.shape, scale=0.05).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(weights, tensor.name))
    return models.save(folder, "wrong.onnx", model)


@pytest.fixture
def config(tmp_path):
    mlp = models.onnx_mlp(tmp_path)
    wrong = perturbed(tmp_path, mlp)

    def variant(version, name, roles, path):
        runtime = {"kind": "onnxruntime", "path": path.name}
        return {"version": version, "name": name, "roles": roles, "runtime": runtime}

    tree = {
        "models": [
            {
                "name": "mlp",
                "variants": [
                    variant("1", "onnx", ["previous"], mlp),
                    variant("2", "ref", ["reference"], mlp),
                    variant("2", "wrong", ["mirror"], wrong),
                    variant("2", "strange", ["mirror"], mlp),
                    variant("2", "onnx", ["serving"], mlp),
                ],
            }
        ],
        "gateway": {
            "grpc": {"address": LOCAL}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
        },
        "monitor": {
            "grpc": LOCAL, "flush_s": 0.2, "cases": {"inputs": "keep"},
            "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
        },
    }  # fmt: skip
    # Its file is another model's, with another input: it loads, and cannot be compared.
    other = models.onnx_identity(tmp_path, "FP32", ("batch", 3))
    tree["models"][0]["variants"][3]["runtime"]["path"] = other.name
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@contextlib.contextmanager
def calling(address: str):
    with grpc.insecure_channel(address) as channel:
        yield channel


def status(address: str) -> mpb.MonitorStatus:
    with calling(address) as channel:
        call = channel.unary_unary(
            f"/{MONITOR}/GetStatus",
            request_serializer=mpb.GetStatusRequest.SerializeToString,
            response_deserializer=mpb.MonitorStatus.FromString,
        )
        return call(mpb.GetStatusRequest(), timeout=30)


def send(address: str, count: int, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    with calling(address) as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        for number in range(count):
            rows = 1 + number % 3
            request = pb.ModelInferRequest(model_name="mlp")
            request.inputs.add(name="x", datatype="FP32").shape.extend([rows, 32])
            x = rng.normal(size=(rows, 32)).astype(np.float32)
            request.raw_input_contents.append(x.tobytes())
            call(request, timeout=30)


def monitor_of(server: Server, *, after: int = 0) -> str:
    """Where the monitor listens, once it has said so (``after`` that many earlier times)."""

    def said():
        found = re.findall(r"^monitor \(gRPC\): ([^\s,]+)", server.text, re.MULTILINE)
        return found[after] if len(found) > after else None

    return until(said, "the monitor is ready", within_s=150)


def is_connected(server: Server, *, times: int = 1) -> None:
    text = "mirroring to the monitor"
    until(lambda: server.text.count(text) >= times, "the gateway has found it", within_s=150)


def send_until_compared(gateway: str, monitor: str, count: int) -> mpb.MonitorStatus:
    """Send until so many were compared: under pressure the sample may rightly shrink."""
    sent = 0

    def compared():
        nonlocal sent
        found = status(monitor)
        if found.coverage.compared < count:
            send(gateway, 50, seed=sent)
            sent += 50
            return None
        return found

    return until(compared, f"{count} were compared", within_s=150)


def pair(found: mpb.MonitorStatus, candidate: str) -> mpb.PairStatus:
    [model] = found.models
    return next(p for p in model.pairs if (p.candidate, p.purpose) == (candidate, "certificate"))


def written(config: Path) -> int:
    """Requests of the serving variant that the store on disk knows of."""
    path = config.parent / "sidecar-state" / "monitor.sqlite3"
    query = "SELECT cells FROM evidence WHERE candidate = 'mlp:2/onnx' AND metric = 'disagrees'"
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return sum(int(json.loads(cells)["n"]) for (cells,) in database.execute(query))


def test_serve_watches_and_a_killed_monitor_goes_on_where_it_was(config):
    with running(config) as server:
        monitor = monitor_of(server)
        is_connected(server)
        found = send_until_compared(server.addresses["grpc"], monitor, REQUESTS)
        equal, wrong, strange = (
            pair(found, f"mlp:2/{name}") for name in ("onnx", "wrong", "strange")
        )
        [output] = equal.outputs
        assert output.requests >= REQUESTS
        assert (output.rate, output.invalid) == (0, 0)
        assert 1.5 * output.requests < output.rows < 2.5 * output.requests  # they have 1 to 3
        certified = until(
            lambda: (
                pair(status(monitor), "mlp:2/onnx").verdict == mpb.VERDICT_PASS
                and pair(status(monitor), "mlp:2/onnx")
            ),
            "it is certified",
        )
        assert certified.outputs[0].certificate.bound < 0.01
        [output] = wrong.outputs
        assert output.requests >= REQUESTS
        assert output.rate == 1
        assert output.worst["sqnr_db"] < 40
        assert "input 'x' has the shape [-1, 3]" in strange.blocked
        until(
            lambda: pair(status(monitor), "mlp:2/wrong").verdict == mpb.VERDICT_FAIL,
            "the wrong one has failed",
        )
        assert output.noise.requests > 0
        assert output.noise.rate == 0
        [versions] = [p for p in found.models[0].pairs if p.purpose == "versions"]
        assert versions.compared >= REQUESTS
        assert dict(versions.errors) == {"candidate": 0, "baseline": 0}
        assert versions.p50_ms["candidate"] > 0

        # Killed without warning, it comes back with what it knew; the gateway never noticed.
        until(lambda: status(monitor).last_seq >= 2, "both verdicts were told")
        before = status(monitor)
        counted = pair(before, "mlp:2/onnx").outputs[0].requests
        until(lambda: written(config) >= counted, "it was written")
        psutil.Process(before.pid).send_signal(signal.SIGKILL)
        send(server.addresses["grpc"], 20)
        again = monitor_of(server, after=1)
        is_connected(server, times=2)
        known = status(again).coverage.compared  # by the one that was killed, nearly all of it
        after = send_until_compared(server.addresses["grpc"], again, known + 50)
        assert after.coverage.compared >= counted
        assert after.incarnation != before.incarnation
        assert pair(after, "mlp:2/onnx").outputs[0].requests >= counted + 50
        assert pair(after, "mlp:2/onnx").verdict == mpb.VERDICT_PASS
        server.signal()
        assert server.wait() == 0
    shards = list((config.parent / "sidecar-state" / "cases" / "shards").iterdir())
    assert shards


def test_a_monitor_of_its_own_beside_a_gateway_of_its_own(config):
    gateway, monitor = launch(config, "gateway"), None
    try:
        await_ready(gateway)
        monitor = launch(config, "monitor")
        await_ready(monitor)
        is_connected(gateway)
        send_until_compared(gateway.addresses["grpc"], monitor_of(monitor), 30)
        found = status(monitor_of(monitor))
        counted = pair(found, "mlp:2/onnx").outputs[0].requests
        assert found.coverage.received >= counted >= 30
        assert found.pid == monitor.pids[0]
        assert found.state == "running"
        monitor.signal()
        assert monitor.wait() == 0
        send(gateway.addresses["grpc"], 5)  # nobody misses it
        gateway.signal()
        assert gateway.wait() == 0
    finally:
        gateway.kill()
        if monitor is not None:
            monitor.kill()
    # What it had counted was written before it ended.
    with running(config, "monitor") as again:
        assert pair(status(monitor_of(again)), "mlp:2/onnx").outputs[0].requests >= counted


def test_a_config_with_nothing_to_compare_is_said(tmp_path):
    models.onnx_mlp(tmp_path)
    path = tmp_path / "sidecar.yaml"
    runtime = {"kind": "onnxruntime", "path": "mlp.onnx"}
    variant = {"version": "1", "name": "onnx", "roles": ["serving"], "runtime": runtime}
    tree = {"models": [{"name": "mlp", "variants": [variant]}]}
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    server = launch(path, "monitor")
    try:
        assert server.wait() == 2
        assert "nothing to compare" in server.text
    finally:
        server.kill()
