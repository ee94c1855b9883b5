"""Our server as a process of its own, as an operator starts it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.clients import certificates, models
from tests.support.ports import free_addresses

COMMAND = [sys.executable, "-m", "sidecar", "serve"]
READY_WITHIN_S = 120
STOPPED_WITHIN_S = 60
TOKEN = "a token of the client tests"


@dataclass
class Server:
    """A running server; ``target`` is what ``scripts/harness.py`` takes."""

    process: subprocess.Popen[bytes]
    log: Path
    target: dict[str, Any]

    def stop(self) -> None:
        """SIGTERM must end it by itself, with exit code 0."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            code = f"none within {STOPPED_WITHIN_S} s of SIGTERM"
        assert code == 0, f"exit code {code}; the end of its log:\n{self.tail()}"

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def start(kind: str, folder: Path) -> Server:
    """Start one of the kinds of server below and wait until it is ready.

    ``open``: plain, all calls open. ``workers``: two worker processes, mapped shared memory.
    ``tls``: TLS and an admin token. ``mutual``: TLS with client certificates, and a
    listener of its own for the calls that change things.
    """
    grpc_address, http_address, health_address, admin_address = free_addresses(4)
    target: dict[str, Any] = {"grpc": grpc_address, "http": http_address, "health": health_address}
    gateway: dict[str, Any] = {
        "grpc": {"address": grpc_address},
        "http": {"address": http_address},
        "health": health_address,
        "drain": {"delay_s": 0, "timeout_s": 10},
    }
    if kind == "workers":
        gateway |= {"workers": 2, "shared_memory": {"access": "map"}}
        target |= {"workers": 2, "access": "map"}
    elif kind in ("tls", "mutual"):
        files = certificates.write(folder)
        tls = {"certificate": str(files.server), "key": str(files.server_key)}
        target["ca"] = str(files.ca)
        if kind == "mutual":
            tls["client_ca"] = str(files.ca)
            gateway["admin"] = {"address": admin_address}
            target |= {"certificate": str(files.client), "key": str(files.client_key)}
            target["admin"] = admin_address
        else:
            gateway["admin"] = {"token": TOKEN}
            target["token"] = TOKEN
        gateway["grpc"]["tls"] = gateway["http"]["tls"] = tls
    config = folder / "sidecar.yaml"
    config.write_text(json.dumps({"models": models.build_all(folder), "gateway": gateway}))
    return _launch(config, target)


def _launch(config: Path, target: dict[str, Any]) -> Server:
    log = config.with_suffix(".log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*COMMAND, str(config)],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT,
        )  # fmt: skip
    server = Server(process, log, target)
    try:
        _wait_until_serving(server)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return server


def _wait_until_serving(server: Server) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    request = health_pb2.HealthCheckRequest()
    with grpc.insecure_channel(server.target["health"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            code = server.process.poll()
            assert code is None, f"it ended with exit code {code}; its log:\n{server.tail()}"
            late = time.monotonic() > deadline
            assert not late, f"not ready within {READY_WITHIN_S} s; its log:\n{server.tail()}"
            try:
                # wait_for_ready retries the connection, so this loop does not spin.
                answer = stub.Check(request, timeout=1, wait_for_ready=True)
            except grpc.RpcError:
                continue
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                return
