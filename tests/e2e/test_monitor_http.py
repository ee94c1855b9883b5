"""The monitor's HTTP listener in a real process: announced, asked, and on the same port again."""

from __future__ import annotations

import os
import re
import signal

import httpx
import pytest
import yaml

from tests.e2e.support import LOCAL, Server, await_ready, launch, running, until
from tests.support import models

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def config(tmp_path):
    path = models.onnx_identity(tmp_path, "FP32", ("batch", 3))

    def variant(version: str, *roles: str) -> dict:
        runtime = {"kind": "onnxruntime", "path": path.name}
        return {"version": version, "name": "onnx", "roles": list(roles), "runtime": runtime}

    tree = {
        "models": [{"name": "same", "variants": [variant("1", "previous"),
                                                 variant("2", "serving")]}],
        "gateway": {
            "grpc": {"address": LOCAL}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
        },
        "monitor": {"grpc": LOCAL, "http": LOCAL},
    }  # fmt: skip
    file = tmp_path / "sidecar.yaml"
    file.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return file


def announced(server: Server, times: int = 1) -> list[str]:
    def found() -> list[str]:
        return re.findall(r"monitor \(HTTP\): (\S+)", server.text)

    until(lambda: len(found()) >= times, f"announced {times} times", within_s=300)
    return found()


def test_it_answers_beside_a_gateway_and_after_a_restart(config):
    server = await_ready(launch(config))
    try:
        (address,) = announced(server)
        url = f"http://{address}/v1/rollback/same"
        document = httpx.get(url, timeout=60).json()
        # Nobody has asked anything yet: no pair, no evidence, no pass.
        assert (document["verdict"], document["pairs"]) == ("inconclusive", 0)
        assert httpx.get(f"{url}r", timeout=60).status_code == 404
        pid = int(re.findall(r"monitor: starting, pid (\d+)", server.text)[0])
        os.kill(pid, signal.SIGKILL)
        assert announced(server, 2) == [address, address]
        assert httpx.get(url, timeout=60).status_code == 200
    finally:
        server.signal()
        server.wait()
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, timeout=60)


def test_alone_it_says_its_address(config):
    with running(config, "monitor") as server:
        (address,) = announced(server)
        assert httpx.get(f"http://{address}/healthz", timeout=60).json() == {"status": "ok"}
