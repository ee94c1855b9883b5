"""A worker, or a client, is killed under load: the others go on, and nothing is forgotten."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import shared_memory
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.support import (
    Client,
    one_channel_a_worker,
    onnx_times,
    request,
    running,
    until,
    variant,
    write,
)

WORKERS = 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("crash")
    onnx_times(made, 2, "m.onnx")
    onnx_times(made, 3, "other.onnx")
    return made


def config_of(folder: Path, name: str = "crash.yaml") -> Path:
    tree = [
        {"name": name, "variants": [variant("onnx", folder / f"{name}.onnx")]}
        for name in ("m", "other")
    ]
    return write(folder, tree, name=name, workers=WORKERS, grpc={"max_connection_age_s": 3600})


@pytest.fixture(scope="module")
def server(folder):
    with running(config_of(folder)) as started:
        yield started
        started.signal()
        assert started.wait() == 0
        assert "Traceback" not in started.text


def workers_of(server) -> list[int]:
    """The worker processes, found as an operator would: the supervisor's children."""
    supervisor = psutil.Process(server.process.pid)
    with suppress(psutil.NoSuchProcess):
        return [p.pid for p in supervisor.children() if p.status() != psutil.STATUS_ZOMBIE]
    return []


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED, f"{pid} is stopped")


def alive(pid: int) -> bool:
    """Its first thread may be over before the others are, and with them its sockets."""
    process = psutil.Process(pid)
    return process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1


def state(client: Client) -> str:
    """Of the model that is unloaded and loaded here."""
    return {m.name: m.state for m in client.call("RepositoryIndex").models}["other"]


def the_one_that_answers(clients: list[Client]) -> Client:
    """Of two, where the other's worker is stopped."""
    lives = [client.stub("ServerLive").future(pb.ServerLiveRequest()) for client in clients]
    until(lambda: any(live.done() for live in lives), "one of them answers")
    return next(c for c, live in zip(clients, lives, strict=True) if live.done())


def let_pass(client: Client) -> None:
    """Give a call that was sent before time to get from its worker to the supervisor."""
    for _ in range(50):
        client.call("ServerLive")


def gone(pid: int) -> bool:
    try:
        return not alive(pid)
    except psutil.NoSuchProcess:
        return True


def kill_and_await(server, pid: int, when_gone: Callable[[], object] = lambda: None) -> None:
    """Kill a worker and wait until a successor is ready."""
    back = server.text.count("is ready again")
    os.kill(pid, signal.SIGKILL)
    until(lambda: gone(pid), "it is dead")
    when_gone()
    until(lambda: server.text.count("is ready again") == back + 1, "a successor is ready")
    assert len(workers_of(server)) == WORKERS


class Load(threading.Thread):
    """Sends requests over one connection until stopped."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._stopped = threading.Event()
        self.answered = 0
        self.failures: list[str] = []

    def run(self) -> None:
        with Client(self._address) as client:
            while not self._stopped.is_set():
                try:
                    client.infer("m", 1)
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                else:
                    self.answered += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join(90)


def counted(client: Client) -> int:
    return client.statistics("m").inference_stats.success.count


def test_the_other_worker_goes_on_and_no_count_is_lost(server):
    address = server.addresses["grpc"]
    with Client(address) as probe:
        before = counted(probe)
    loads = [Load(address) for _ in range(6)]
    for load in loads:
        load.start()
    until(lambda: all(load.answered > 20 for load in loads), "load is on all connections")
    early: list[int] = []
    kill_and_await(
        server, workers_of(server)[0],
        lambda: early.extend(len(load.failures) for load in loads),
    )  # fmt: skip
    answered = [load.answered for load in loads]
    until(
        lambda: all(load.answered > n + 20 for load, n in zip(loads, answered, strict=True)),
        "every connection is answered again",
    )
    for load in loads:
        load.stop()
    failures = [failure for load in loads for failure in load.failures]
    # What was in flight in the killed process is lost; one request a connection at most, once its
    # sockets are gone. Until then, on a busy machine a while, who comes back may get to it again.
    late = [len(load.failures) - n for load, n in zip(loads, early, strict=True)]
    assert max(late) <= 1
    assert all(failure.startswith("UNAVAILABLE") for failure in failures)
    assert "ended (signal 9)" in server.text
    total = sum(load.answered for load in loads)
    with Client(address) as client:
        counts = until(lambda: (n := counted(client) - before) >= total and n, "all are counted")
    # A request may have been counted whose answer died with the process.
    assert total <= counts <= total + len(failures)


def test_a_successor_repeats_what_was_changed(server):
    address = server.addresses["grpc"]
    kept, gone = (shared_memory.SharedMemory(create=True, size=64) for _ in range(2))
    try:
        with Client(address) as client:
            for name, region in (("kept", kept), ("gone", gone)):
                client.call(
                    "SystemSharedMemoryRegister",
                    {"name": name, "key": region.name, "byte_size": 64},
                )
            client.call("RepositoryModelUnload", {"model_name": "other"})
            log = pb.LogSettingsRequest()
            log.settings["log_warning"].bool_param = True
            log.settings["log_verbose_level"].uint32_param = 1
            client.call("LogSettings", log)
            trace = pb.TraceSettingRequest(model_name="m")
            trace.settings["trace_rate"].value.append("3")
            client.call("TraceSetting", trace)
        # Clients forget to unregister what they remove. That must not stop a worker from starting.
        gone.unlink()
        for pid in workers_of(server):
            kill_and_await(server, pid)
        with one_channel_a_worker(address, WORKERS, "m", 1) as clients:
            for client in clients:
                index = {m.name: m.state for m in client.call("RepositoryIndex").models}
                assert index == {"m": "READY", "other": "UNAVAILABLE"}
                assert client.call("ServerReady").ready
                assert set(client.call("SystemSharedMemoryStatus").regions) == {"kept"}
                assert client.call("LogSettings").settings["log_verbose_level"].uint32_param == 1
                settings = client.call("TraceSetting", {"model_name": "m"}).settings
                assert list(settings["trace_rate"].value) == ["3"]
            clients[0].call("SystemSharedMemoryUnregister")
            clients[0].call("RepositoryModelLoad", {"model_name": "other"})
            assert all(client.infer("other", 1) for client in clients)
    finally:
        for region in (kept, gone):
            region.close()
        kept.unlink()


def test_a_change_while_a_worker_starts_is_not_lost_in_it(server):
    """It was started with the state from before the change, and must have it when it is ready."""
    address = server.addresses["grpc"]
    log = pb.LogSettingsRequest()
    log.settings["log_verbose_level"].uint32_param = 0
    known = set(workers_of(server))
    back = server.text.count("is ready again")
    os.kill(min(known), signal.SIGKILL)
    successor = until(lambda: set(workers_of(server)) - known, "a successor is started")
    assert server.text.count("is ready again") == back  # it imports for a while yet
    with Client(address) as client:
        client.call("RepositoryModelUnload", {"model_name": "other"})
        client.call("LogSettings", log)
    until(lambda: server.text.count("is ready again") == back + 1, f"{successor} is ready")
    with one_channel_a_worker(address, WORKERS, "m", 1) as clients:
        for client in clients:
            index = {m.name: m.state for m in client.call("RepositoryIndex").models}
            assert index["other"] == "UNAVAILABLE"
            assert client.call("LogSettings").settings["log_verbose_level"].uint32_param == 0
        clients[0].call("RepositoryModelLoad", {"model_name": "other"})


def test_a_worker_that_starts_amid_a_change_has_it(server):
    """The change was asked for before it was started, and is decided after."""
    address = server.addresses["grpc"]
    known, back = workers_of(server), server.text.count("is ready again")
    with one_channel_a_worker(address, WORKERS, "m", 1) as clients:
        stopped, victim = known
        stop(stopped)
        try:
            client = the_one_that_answers(clients)
            asked = pb.RepositoryModelUnloadRequest(model_name="other")
            call = client.stub("RepositoryModelUnload").future(asked)
            let_pass(client)
            os.kill(victim, signal.SIGKILL)
            until(lambda: set(workers_of(server)) - set(known), "a successor is started")
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert call.code() == grpc.StatusCode.UNAVAILABLE
    until(lambda: server.text.count("is ready again") == back + 1, "it is ready")
    with one_channel_a_worker(address, WORKERS, "m", 1) as clients:
        assert len({state(client) for client in clients}) == 1
        clients[0].call("RepositoryModelLoad", {"model_name": "other"})


def test_a_worker_that_dies_together_with_a_change_does_not_take_the_supervisor(server):
    """The supervisor finds a worker's end and another's call in one round of its loop."""
    address = server.addresses["grpc"]
    for victim in sorted(workers_of(server)):
        back = server.text.count("is ready again")
        with one_channel_a_worker(address, WORKERS, "m", 1) as clients:
            stop(victim)
            asking = the_one_that_answers(clients)
            stop(server.process.pid)
            try:
                asked = pb.RepositoryModelUnloadRequest(model_name="other")
                call = asking.stub("RepositoryModelUnload").future(asked, timeout=60)
                let_pass(asking)
                os.kill(victim, signal.SIGKILL)
                until(lambda victim=victim: not alive(victim), "it is dead")
            finally:
                os.kill(server.process.pid, signal.SIGCONT)
            assert call.code() is grpc.StatusCode.OK
        until(lambda back=back: server.text.count("is ready again") == back + 1, "it is back")
        with one_channel_a_worker(address, WORKERS, "m", 1) as clients:
            assert {state(client) for client in clients} == {"UNAVAILABLE"}
            clients[0].call("RepositoryModelLoad", {"model_name": "other"})
            assert all(client.infer("other", 1) for client in clients)


def test_a_successor_that_cannot_start_is_tried_again_while_the_other_serves(tmp_path):
    sound = onnx_times(tmp_path, 2, "m.onnx").read_bytes()
    onnx_times(tmp_path, 3, "other.onnx")
    # A server of its own: the pauses between attempts grow with each crash.
    with running(config_of(tmp_path)) as server:
        (tmp_path / "m.onnx").write_bytes(sound[:40])
        os.kill(workers_of(server)[0], signal.SIGKILL)
        until(lambda: "m.onnx" in server.text, "the successor has failed")
        with Client(server.addresses["grpc"]) as client:
            assert client.infer("m", 1).model_version == "1"
        assert server.process.poll() is None
        (tmp_path / "m.onnx").write_bytes(sound)
        until(lambda: "is ready again" in server.text, "it was tried again")
        assert len(workers_of(server)) == WORKERS
        assert "Traceback" not in server.text


def test_clients_that_vanish_leave_nothing_behind(server):
    """Connections cut in the middle of calls, over gRPC and HTTP."""
    address = server.addresses["grpc"]
    for _ in range(30):
        client = Client(address)
        calls = [client.stub("ModelInfer").future(request("m", 1)) for _ in range(20)]
        client.channel.close()
        assert all(call.done() for call in calls)
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1]}]}
    url = f"http://{server.addresses['http']}/v2/models/m/infer"
    for _ in range(10):
        with suppress(httpx.TimeoutException):
            httpx.post(url, json=body, timeout=0.001)
    with Client(address) as client:
        assert client.infer("m", 1).model_version == "1"
    assert httpx.post(url, json=body, timeout=60).status_code == 200
