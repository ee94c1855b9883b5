"""``sidecar serve`` and ``sidecar gateway`` as processes: what they print, how they end."""

from __future__ import annotations

import os
import re
import signal
import socket

import grpc
import httpx
import numpy as np
import psutil
import pytest

from tests.e2e.support import Client, await_ready, fails, launch, running, until, variant, write
from tests.support import models

MLP_INPUT = np.zeros((1, 32), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("serve")
    models.onnx_mlp(made)
    return made


@pytest.fixture
def mlp(folder):
    return [{"name": "mlp", "variants": [variant("onnx", folder / "mlp.onnx")]}]


def test_it_says_what_it_serves_where_and_when_it_is_ready_and_ends_with_0(folder, mlp):
    second = variant("int8", folder / "mlp.onnx", version="2", roles=("serving", "fallback"))
    mlp[0]["variants"].append(second)
    with running(write(folder, mlp, health="127.0.0.1:0")) as server:
        assert re.search(
            r"mlp +1/onnx +serving +onnxruntime +cpu +[\d.]+ KiB$", server.text, re.MULTILINE
        )
        assert re.search(
            r"mlp +2/int8 \(default\) +serving, fallback +onnx", server.text, re.MULTILINE
        )
        assert set(server.addresses) == {"grpc", "http", "health"}
        assert server.text.rstrip().splitlines()[-1].startswith("ready: 1 worker, pid ")
        [worker] = server.pids
        assert psutil.Process(worker).ppid() == server.process.pid
        with Client(server.addresses["grpc"]) as client:
            assert client.infer("mlp", MLP_INPUT).model_version == "2"
            assert client.health() == "SERVING"
        with Client(server.addresses["health"]) as client:
            assert client.health() == "SERVING"
            with fails(grpc.StatusCode.UNIMPLEMENTED):
                client.call("ServerLive")
        assert (
            httpx.get(f"http://{server.addresses['http']}/v2/health/ready", timeout=60).status_code
            == 200
        )
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.text


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_ctrl_c_in_a_drain_ends_it_at_once(folder, mlp, command):
    config = write(folder, mlp, drain={"delay_s": 600, "timeout_s": 900})
    with running(config, command) as server:
        server.signal()
        until(lambda: "draining" in server.text, "the drain has begun")
        server.signal(signal.SIGINT)
        server.wait(within_s=60)
        assert "Traceback" not in server.text


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_a_second_sigterm_does_not_cut_the_drain(folder, mlp, command):
    """kubelet sends it again when it is itself restarted; the drain has its own time limit."""
    config = write(folder, mlp, drain={"delay_s": 1, "timeout_s": 60})
    with running(config, command) as server:
        server.signal()
        until(lambda: "draining" in server.text, "the drain has begun")
        server.signal()
        assert server.wait(within_s=60) == 0
        assert "drained in" in server.text


def test_ctrl_c_reaches_the_whole_group_and_drains(folder, mlp):
    with running(write(folder, mlp, workers=2)) as server:
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.wait() == 0
        assert "Traceback" not in server.text
        assert "KeyboardInterrupt" not in server.text
        assert server.text.count("drained in") == 2


def test_ctrl_c_while_it_starts_leaves_nothing_behind(folder, mlp):
    server = launch(write(folder, mlp))
    try:
        until(lambda: len(server.left()) == 2, "the worker was spawned")
        os.killpg(server.process.pid, signal.SIGINT)
        assert server.wait(within_s=60) in (0, 130, -signal.SIGINT)
        assert "sidecar.gateway.main" not in server.text  # no worker's own traceback
    finally:
        server.kill()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_one_clear_message(folder, mlp, workers):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for listener in ("grpc", "http"):
            config = write(folder, mlp, workers=workers, **{listener: {"address": address}})
            server = launch(config)
            try:
                assert server.wait() == 2
                assert server.text.count(address) == 1
                assert f"gateway.{listener}" in server.text
                assert len(re.findall(r"^error: ", server.text, re.MULTILINE)) == 1
                assert "Traceback" not in server.text
            finally:
                server.kill()


@pytest.mark.parametrize("command", ["serve", "gateway"])
def test_a_corrupt_artifact_is_one_clear_message(folder, command):
    (folder / "bad.onnx").write_bytes((folder / "mlp.onnx").read_bytes()[:700])
    config = write(folder, [{"name": "bad", "variants": [variant("onnx", folder / "bad.onnx")]}])
    server = launch(config, command)
    try:
        assert server.wait() == 1
        assert "bad.onnx" in server.text
        assert len([line for line in server.text.splitlines() if "error" in line.lower()]) == 1
        assert "Traceback" not in server.text
    finally:
        server.kill()


def test_a_worker_that_crashes_while_it_starts_ends_everything(folder):
    """A native crash gives no message, so that trying for ever would show nobody what is wrong."""
    (folder / "crash_factory.py").write_text(
        "import os, signal\ndef make():\n    os.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    import torch

    torch.save({"factor": torch.tensor(1.0)}, folder / "crash.pth")
    made = variant(
        "torch", folder / "crash.pth", kind="pytorch", format="state_dict",
        factory="crash_factory:make", factory_path=str(folder),
    )  # fmt: skip
    for side in ("inputs", "outputs"):
        made[side] = [{"name": side, "datatype": "FP32", "shape": [-1]}]
    server = launch(write(folder, [{"name": "crash", "variants": [made]}]))
    try:
        assert server.wait() == 1
        assert "worker 0 ended while it started (signal 11)" in server.text
    finally:
        server.kill()


def test_unix_sockets_also_after_a_worker_was_killed(folder, mlp, tmp_path):
    paths = {name: f"unix:{tmp_path}/{name}.sock" for name in ("grpc", "http", "health")}
    config = write(
        folder, mlp, grpc={"address": paths["grpc"]}, http={"address": paths["http"]},
        health=paths["health"],
    )  # fmt: skip
    with running(config) as server:
        assert server.addresses == paths
        os.kill(server.pids[0], signal.SIGKILL)
        until(lambda: "worker 0 is ready again" in server.text, "the worker is back")
        with Client(paths["grpc"]) as client:
            assert client.infer("mlp", MLP_INPUT).outputs[0].shape == [1, 10]
        with Client(paths["health"]) as client:
            assert client.health() == "SERVING"
        transport = httpx.HTTPTransport(uds=f"{tmp_path}/http.sock")
        with httpx.Client(transport=transport, timeout=60) as http:
            assert http.get("http://localhost/v2/health/live").status_code == 200
        server.signal()
        assert server.wait() == 0


def test_the_gateway_alone(folder, mlp):
    with running(write(folder, mlp), "gateway") as server:
        assert server.pids == [server.process.pid]
        with Client(server.addresses["grpc"]) as client:
            assert client.infer("mlp", MLP_INPUT).outputs[0].shape == [1, 10]
            # A change needs no supervisor.
            client.call("RepositoryModelUnload", {"model_name": "mlp"})
            with fails(grpc.StatusCode.NOT_FOUND):
                client.infer("mlp", MLP_INPUT)
        server.signal()
        assert server.wait() == 0
    with running(write(folder, mlp, drain={"delay_s": 600, "timeout_s": 900}), "gateway") as server:
        server.signal(signal.SIGINT)
        until(lambda: "draining" in server.text, "the drain has begun")
        server.signal(signal.SIGINT)
        server.wait(within_s=60)


def test_the_workers_drain_when_the_supervisor_is_killed(folder, mlp):
    with running(write(folder, mlp, workers=2)) as server:
        workers = list(server.pids)
        server.signal(signal.SIGKILL)
        server.process.wait()
        until(lambda: not server.left(), f"the workers {workers} end")
        assert server.text.count("drained in") == 2
        assert "Traceback" not in server.text


def test_a_second_sidecar_on_the_same_port_fails_instead_of_sharing_it(folder, mlp):
    with running(write(folder, mlp, workers=2)) as server:
        config = write(
            folder, mlp, name="second.yaml", workers=2,
            grpc={"address": server.addresses["grpc"]},
        )  # fmt: skip
        second = launch(config)
        try:
            assert second.wait() == 2
        finally:
            second.kill()
        assert await_ready(server).process.poll() is None
