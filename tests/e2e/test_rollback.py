"""A worse version, taken back: real processes and requests, the route, the alert, the commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from onnx import helper

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.support import LOCAL, SERVICE, running, until
from tests.e2e.test_monitor import calling, monitor_of, status
from tests.support import models

# A monitor has the lowest priority: on a busy machine it starts, and compares, when others rest.
pytestmark = pytest.mark.timeout(900)

TOKEN = "let-me-in"


def scores(folder: Path, name: str, shift: int) -> Path:
    """x FP32 [-1, 4] → y FP32 [-1, 4]: the same, or its columns moved by ``shift``."""
    order = np.roll(np.arange(4), shift)
    weights = np.eye(4, dtype=np.float32)[:, order]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    io = [("x", "FP32", ["batch", 4])], [("y", "FP32", ["batch", 4])]
    return models.save(folder, name, models.onnx_model([node], *io, [("w", weights)]))


@pytest.fixture
def config(tmp_path: Path) -> Path:
    def variant(version: str, roles: list[str], path: Path) -> dict[str, Any]:
        runtime = {"kind": "onnxruntime", "path": path.name}
        return {"version": version, "name": "onnx", "roles": roles, "runtime": runtime}

    tree = {
        "models": [
            {
                "name": "m",
                "default_version": "2",
                "validation": {"outputs": {"y": {"kind": "class_scores"}}},
                "variants": [
                    variant("1", ["previous"], scores(tmp_path, "one.onnx", 0)),
                    variant("2", ["serving"], scores(tmp_path, "two.onnx", 1)),
                ],
                "rollback": {
                    "interval_s": 0.2, "verify_within_s": 120, "approve": True,
                    "flip": {"budget": 0.01}, "action": {"kind": "switch"},
                },
            }
        ],
        "gateway": {
            "grpc": {"address": LOCAL}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
            "admin": {"token": TOKEN},
        },
        "monitor": {
            "grpc": LOCAL, "flush_s": 0.2, "mirror": {"sample_rate": 1.0, "cpu_share": 1.0},
        },
    }  # fmt: skip
    path = tmp_path / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def send(channel: grpc.Channel, rng: np.random.Generator) -> int:
    """One row; which class it is said to be, of what it is."""
    x = rng.permutation(4).astype(np.float32)[None]
    request = pb.ModelInferRequest(model_name="m")
    request.inputs.add(name="x", datatype="FP32").shape.extend([1, 4])
    request.raw_input_contents.append(x.tobytes())
    answer = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )(request, timeout=30)
    found = np.frombuffer(answer.raw_output_contents[0], np.float32)
    return int(found.argmax() == x.argmax())


def sidecar(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "sidecar", *arguments],
        capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "SIDECAR_ADMIN_TOKEN": ""},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def pair(monitor: str) -> Any:
    code, text = sidecar("rollback", "status", monitor, "--json", "--timeout", "60")
    assert code == 0, text
    [found] = json.loads(text)
    return found


def test_a_worse_version_is_told_approved_switched_and_undone(config: Path):
    rng = np.random.default_rng(0)
    with running(config) as server:
        monitor = monitor_of(server)
        with calling(server.addresses["grpc"]) as channel:

            def state_is(*wanted: str) -> Any:
                for _ in range(20):
                    send(channel, rng)
                found = pair(monitor)
                return found if found["state"] in wanted else None

            found = until(lambda: state_is("regressed"), "it is found to be worse", within_s=300)
            decision = found["decision"]
            assert decision["metric"] == "flip"
            assert decision["action_state"] == "waiting"
            assert "m:2/onnx is worse than m:1/onnx at changed answers" in decision["text"]
            code, text = sidecar("rollback", "status", monitor, "--check")
            assert code == 1
            assert "regressed" in text
            assert f"sidecar rollback approve {decision['id']}" in text.replace("\n", " ")
            code, text = sidecar("status", monitor)
            assert "rollback regressed  2/onnx beside 1/onnx" in text

            code, text = sidecar("rollback", "approve", decision["id"], monitor, "--by", "ann")
            assert code == 1
            assert "UNAUTHENTICATED" in text
            code, text = sidecar(
                "rollback", "approve", decision["id"], monitor, "--by", "ann", "--token", TOKEN
            )
            assert code == 0, text
            until(lambda: state_is("rolled_back"), "it is rolled back, and seen", within_s=300)
            assert sum(send(channel, rng) for _ in range(50)) == 50, "version 1 answers"
            code, text = sidecar("rollback", "history", monitor)
            assert "switch: done" in text
            assert "ModelRollback to log: sent" in text

            # Who comes next remembers: the route and the decision are on disk.
            os.kill(status(monitor).pid, signal.SIGKILL)
            monitor = until(lambda: monitor_of(server, after=1), "a monitor is back")
            until(lambda: state_is("rolled_back"), "it remembers", within_s=300)
            assert sum(send(channel, rng) for _ in range(50)) == 50

            code, text = sidecar(
                "rollback", "undo", decision["id"], monitor, "--by", "ann", "--reason",
                "the new order is right", "--token", TOKEN,
            )  # fmt: skip
            assert code == 0, text
            assert "Undone by ann: the new order is right." in text.replace("\n", " ")
            until(lambda: not any(send(channel, rng) for _ in range(20)), "version 2 answers again")


def test_frozen_it_looks_and_tells_and_touches_nothing(config: Path):
    tree = yaml.safe_load(config.read_text())
    tree["models"][0]["rollback"]["approve"] = False
    del tree["gateway"]["admin"]
    config.write_text(yaml.safe_dump(tree))
    rng = np.random.default_rng(0)
    with running(config) as server:
        monitor = monitor_of(server)
        with calling(server.addresses["grpc"]) as channel:
            code, text = sidecar("rollback", "freeze", monitor, "--by", "ann", "--reason", "demo")
            assert code == 0, text
            found = None

            def waits() -> Any:
                nonlocal found
                for _ in range(20):
                    send(channel, rng)
                found = pair(monitor)
                return found["decision"] and found["decision"]["action_state"] == "waiting"

            until(waits, "it waits for the freeze to end", within_s=300)
            assert found["frozen_text"] == "by ann: demo"
            assert not any(send(channel, rng) for _ in range(20)), "version 2 still answers"
            code, text = sidecar("rollback", "unfreeze", monitor, "--by", "ann")
            assert "no longer frozen" in text
            until(
                lambda: sum(send(channel, rng) for _ in range(20)) == 20, "version 1 answers",
                within_s=300,
            )  # fmt: skip
