"""The monitor is slow, silent, killed, or cannot start: no request fails, and none waits for it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from sidecar.config_monitor import MonitorConfig
from sidecar.gateway.tap import Tap
from tests.e2e.support import Client, Server, await_ready, floats, onnx_times, variant, write
from tests.gateway.served import Served, configure, make_models, mlp_request, model, serving
from tests.monitor.listening import Listening, until

KILLS = 20
#: A monitor that reads and says nothing, quick to start. It takes the socket's path.
READER = """
import os, socket, sys
path = sys.argv[1]
server = socket.socket(socket.AF_UNIX)
server.bind(path + ".new")
server.listen()
os.rename(path + ".new", path)
peer, _ = server.accept()
while peer.recv(65536): pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


@contextmanager
def tapped(folder: Path, path: Path, **channel: Any) -> Iterator[tuple[Served, Tap]]:
    """A gateway that samples everything."""
    config = MonitorConfig(mirror={"sample_rate": 1}, channel=channel)
    with serving(configure(folder, model("mlp"))) as up:
        gateway = up.gateway
        gateway.tap = tap = Tap(path, config, gateway.page, gateway.clock)
        tap.start()
        try:
            yield up, tap
        finally:
            tap.close()


def counts(served: Served) -> dict[str, int]:
    found = served.gateway.page.server_counters()
    return {name[4:]: n for name, n in found.items() if name.startswith("tap_") and n}


class Load(threading.Thread):
    """Sends requests until stopped."""

    def __init__(self, served: Served) -> None:
        super().__init__(daemon=True)
        self._served = served
        self._stopped = threading.Event()
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Load:  # noqa: PYI034 - nobody inherits from it
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.join(60)

    def run(self) -> None:
        message = mlp_request()
        while not self._stopped.is_set():
            try:
                self._served.infer(message)
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
            else:
                self.answered += 1

    def more(self, count: int) -> None:
        """Wait until so many more are answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal or self.failures, "requests are answered")


# --- the channel ----------------------------------------------------------------------------------


def test_a_monitor_that_does_not_read_costs_no_request(folder: Path, tmp_path: Path) -> None:
    """The connection stands, its buffer is full, and the thread that sends waits: nobody else."""
    path = tmp_path / "tap.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(path))
        silent.listen()
        with tapped(folder, path, max_bytes=300_000) as (up, tap), Load(up) as load:
            until(lambda: tap.connected, "the connection stands")
            until(lambda: counts(up).get("dropped_full", 0) > 50, "the channel is full")
            load.more(50)
            assert not load.failures
            assert tap.connected
        assert load.answered > 100
        assert not tap.connected  # it could be ended, too


def test_a_slow_monitor_gets_what_fits(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    with (
        Listening(path) as listening,
        tapped(folder, path, max_bytes=100_000) as (up, tap),
    ):
        until(lambda: tap.connected, "the connection stands")
        listening.gate.clear()
        with Load(up) as load:
            until(lambda: counts(up).get("dropped_full", 0) > 50, "the channel is full")
        listening.gate.set()
        until(lambda: settled(counts(up)), "each sample arrived, or was counted as dropped")
        found = counts(up)
        assert not load.failures
        assert found["sampled"] == load.answered
        until(lambda: len(listening.exchanges) == found["sent"], "what was sent is there")


def settled(found: dict[str, int]) -> bool:
    return found["sampled"] == sum(n for name, n in found.items() if name != "sampled")


def test_a_monitor_that_is_killed_costs_no_request(folder: Path, tmp_path: Path) -> None:
    """Twenty times, in the midst of what it is sent."""
    path = tmp_path / "tap.sock"
    with tapped(folder, path) as (up, tap), Load(up) as load:
        for _ in range(KILLS):
            reader = subprocess.Popen([sys.executable, "-I", "-S", "-c", READER, str(path)])
            try:
                until(lambda: tap.connected, "the tap has found the new monitor")
                load.more(5)
            finally:
                reader.kill()
                reader.wait()
            until(lambda: not tap.connected, "its end is noticed")
        load.more(5)
        assert not load.failures
        assert counts(up).get("dropped_lost", 0) > 0  # nothing was acknowledged
        assert "sent" not in counts(up)


def test_garbage_from_the_monitor_ends_the_connection_only(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with tapped(folder, path) as (up, tap):
            for _ in range(3):
                peer, _ = other.accept()
                with peer:
                    until(lambda: tap.connected, "the connection stands")
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    until(lambda: not tap.connected, "the connection is given up")
                    assert up.infer(mlp_request()).model_name == "mlp"


# --- its process, under the supervisor ------------------------------------------------------------

#: ``sidecar serve`` with another monitor, which has less patience.
SERVE = """
import sys
from pathlib import Path
from sidecar import supervised_monitor, supervisor
supervised_monitor.MODULE = "tests.faults.monitor_stand_in"
supervised_monitor._END_WITHIN_S = 0.5
sys.exit(supervisor.serve(Path(sys.argv[1])))
"""


@contextmanager
def serve(folder: Path, **monitor: Any) -> Iterator[Server]:
    onnx_times(folder, 2, "m.onnx")
    tree = [{"name": "m", "variants": [variant("onnx", folder / "m.onnx")]}]
    config = write(folder, tree, workers=2)
    document = yaml.safe_load(config.read_text())
    document["monitor"] = {"enabled": True, "grpc": "127.0.0.1:0", "mirror": {"sample_rate": 1}}
    document["monitor"] |= monitor
    config.write_text(yaml.safe_dump(document))
    log = folder / "serve.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(config)],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    server = Server(process, log)
    try:
        yield await_ready(server)
    finally:
        server.kill()


def monitor_pid(server: Server, starts: int = 1) -> int:
    """The monitor's process, once it has said so many times that it is ready."""

    def said() -> list[str]:
        lines = [n for n in server.text.splitlines() if n.startswith("monitor (gRPC): ")]
        return lines if len(lines) >= starts else []

    lines = until(said, "the monitor is ready")
    assert all(line.startswith("monitor (gRPC): 127.0.0.1:47110, pid ") for line in lines)
    return int(lines[-1].rpartition(" ")[2])


def test_it_is_started_after_the_workers_and_ended_after_them(tmp_path: Path) -> None:
    """It comes back after a kill, at the same address, and hears of all that is answered."""
    state = tmp_path / "sidecar-state"
    with serve(tmp_path) as server, Client(server.addresses["grpc"]) as client:
        assert f"samples for the monitor: {state / 'tap.sock'}" in server.text
        first = monitor_pid(server)
        os.kill(first, signal.SIGKILL)
        until(lambda: "the monitor is down" in server.text, "it is said")
        (state / "workers").unlink(missing_ok=True)
        assert floats(client.infer("m", 3)) == [6]
        second = monitor_pid(server, starts=2)
        assert second != first
        assert "the monitor is down, serving goes on: it ended with signal 9" in server.text
        workers = state / "workers"
        until(lambda: workers.exists() and workers.read_text() == "2", "both have found it")
        for _ in range(30):
            client.infer("m", 1)
        server.signal()
        assert server.wait() == 0
    assert (state / "received").read_text() == "30"
    assert "Traceback" not in server.text


def test_one_that_cannot_start_or_end_is_only_a_nuisance(tmp_path: Path) -> None:
    state = tmp_path / "sidecar-state"
    state.mkdir()
    (state / "cannot-start").touch()
    (state / "will-not-end").touch()
    with serve(tmp_path) as server, Client(server.addresses["grpc"]) as client:
        text = "the monitor is down, serving goes on: an extra is missing; started again in "
        until(lambda: text + "0.5 s" in server.text, "it is said")
        assert floats(client.infer("m", 3)) == [6]
        (state / "sends-garbage").touch()
        (state / "cannot-start").unlink()
        until(lambda: "the monitor sent what cannot be read" in server.text, "that, too")
        (state / "sends-garbage").unlink()
        monitor_pid(server)
        assert floats(client.infer("m", 3)) == [6]
        server.signal()
        assert server.wait() == 0
    assert not (state / "received").exists()
    assert "Traceback" not in server.text


def test_without_one_nothing_is_started(tmp_path: Path) -> None:
    with serve(tmp_path, enabled=False) as server, Client(server.addresses["grpc"]) as client:
        assert floats(client.infer("m", 3)) == [6]
        assert len(server.left()) == 3  # the supervisor and two workers
        server.signal()
        assert server.wait() == 0
    assert "monitor" not in server.text
    assert not (tmp_path / "sidecar-state").exists()
