"""The real monitor, harmed in every way, beside a gateway that must not notice."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import yaml
from onnx import helper
from typing_extensions import override

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.support import LOCAL, SERVICE, launch, running, until
from tests.e2e.test_monitor import calling, is_connected, monitor_of, status
from tests.monitor import naughty
from tests.monitor.test_priority import levels
from tests.support import models

# A monitor has the lowest priority: on a busy machine it starts, and compares, when others rest.
pytestmark = pytest.mark.timeout(900)

#: What the serving version answers at once, and the one before counts to for ever.
ENDLESS = 2**60
EXECUTING_CPU_S = 0.3


def configure(folder: Path, **monitor: Any) -> Path:
    """Version 2 gives back n; version 1 counts to n, which is the same, but may take its time."""
    node = helper.make_node("Identity", ["n"], ["y"])
    io = [("n", "INT64", [1])], [("y", "INT64", [1])]
    same = models.save(folder, "same.onnx", models.onnx_model([node], *io))
    naughty.endless(folder)

    def variant(version: str, name: str, role: str, path: str) -> dict[str, Any]:
        runtime = {"kind": "onnxruntime", "path": path}
        return {"version": version, "name": name, "roles": [role], "runtime": runtime}

    tree = {
        "models": [
            {
                "name": "count",
                "variants": [
                    variant("1", "slow", "previous", "endless.onnx"),
                    variant("2", "ref", "reference", same.name),
                    variant("2", "onnx", "serving", same.name),
                ],
            }
        ],
        "gateway": {
            "grpc": {"address": LOCAL}, "http": None, "drain": {"delay_s": 0, "timeout_s": 2},
        },
        "monitor": {
            "grpc": LOCAL, "flush_s": 0.2,
            "mirror": {"sample_rate": 1.0, "cpu_share": 1.0, "timeout_s": 600}, **monitor,
        },
    }  # fmt: skip
    path = folder / "sidecar.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


class Load(threading.Thread):
    """Sends until it is left; ``failures`` are all that did not go well."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._address = address
        self._left = threading.Event()
        self.answered = 0
        self.failures: list[str] = []

    def __enter__(self) -> Load:  # noqa: PYI034 - nobody inherits from it
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self.join(60)

    @override
    def run(self) -> None:
        with calling(self._address) as channel:
            while not self._left.wait(0.005):
                try:
                    send(channel, self.answered % 50)
                except grpc.RpcError as error:
                    self.failures.append(f"{error.code().name}: {error.details()}")
                else:
                    self.answered += 1

    def more(self, count: int) -> None:
        """Wait until so many more were answered."""
        goal = self.answered + count
        until(lambda: self.answered >= goal or self.failures, "they are answered", within_s=150)


def send(channel: grpc.Channel, number: int) -> None:
    request = pb.ModelInferRequest(model_name="count")
    request.inputs.add(name="n", datatype="INT64").shape.extend([1])
    request.raw_input_contents.append(np.array([number]).tobytes())
    answer = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )(request, timeout=30)
    assert np.frombuffer(answer.raw_output_contents[0], np.int64).tolist() == [number]


def versions(monitor: str) -> Any:
    [model] = status(monitor).models
    [pair] = [pair for pair in model.pairs if pair.purpose == "versions"]
    return pair


def comparing(monitor: str, more: int = 10) -> None:
    """Wait until so many more pairs were compared."""
    goal = versions(monitor).compared + more
    until(lambda: versions(monitor).compared >= goal, "it compares", within_s=150)


def end_what_runs(monitor: str, number: int, done: Any) -> None:
    """Signal the mirror child while it runs, until that has had an effect.

    It is busy from when it is sent a batch. Ended before it executes any of it, it would be an
    error of nobody's; what it does before that takes far less than this much of a processor.
    """
    busy: dict[int, float] = {}

    def tried() -> Any:
        found = status(monitor)
        if done(found):
            return found
        pid = found.child.pid
        if found.child.state != "busy":
            busy.clear()
            return None
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            used_s = sum(psutil.Process(pid).cpu_times()[:2])
            if used_s - busy.setdefault(pid, used_s) > EXECUTING_CPU_S:
                os.kill(pid, number)
                busy.clear()
        return None

    until(tried, "the child was ended while it ran", within_s=150)


def test_whatever_becomes_of_the_monitor_no_request_fails(tmp_path: Path) -> None:
    """Its child dies of a segmentation fault and is killed; it is stopped, and killed, itself."""
    with running(configure(tmp_path)) as server:
        gateway, monitor = server.addresses["grpc"], monitor_of(server)
        is_connected(server)
        with Load(gateway) as load:
            load.more(20)
            comparing(monitor)
        # Alone, so that it is sure what the child dies on.
        with calling(gateway) as channel:
            send(channel, ENDLESS)
        end_what_runs(monitor, signal.SIGSEGV, lambda found: found.coverage.set_aside)
        found = until(
            lambda: versions(monitor).errors["baseline"] and versions(monitor), "it is counted",
            within_s=150,
        )  # fmt: skip
        # That version's error, and nobody else's.
        assert dict(found.errors) == {"candidate": 0, "baseline": 1}
        with Load(gateway) as load:
            comparing(monitor)
            os.kill(status(monitor).child.pid, signal.SIGKILL)
            load.more(20)
            comparing(monitor)
            before = status(monitor)
            assert before.child.restarts >= 2
            assert before.last_seq >= 1  # the crash was told
            os.kill(before.pid, signal.SIGSTOP)
            load.more(50)
            os.kill(before.pid, signal.SIGCONT)
            comparing(monitor)
            psutil.Process(before.pid).kill()
            load.more(50)
            again = monitor_of(server, after=1)
            is_connected(server, times=2)
            comparing(again)
            assert not load.failures
        after = status(again)
        assert after.coverage.sampled >= before.coverage.sampled  # it knows of what was before it
        assert after.coverage.compared <= after.coverage.received <= after.coverage.sampled
        assert versions(again).errors["baseline"] == 1
        server.signal()
        assert server.wait() == 0


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A monitor whose store and whose cases' index are garbage; its folder and its address."""
    folder = tmp_path_factory.mktemp("damaged")
    cases = folder / "sidecar-state" / "cases"
    cases.mkdir(parents=True)
    (cases / "index.parquet").write_bytes(b"garbage" * 100)
    (cases.parent / "monitor.sqlite3").write_bytes(b"garbage" * 1000)
    with running(configure(folder), "monitor") as server:
        yield cases.parent, monitor_of(server)


def test_damaged_files_are_kept_aside_and_said_by_the_status(damaged: tuple[Path, str]) -> None:
    state, monitor = damaged
    store = status(monitor).store
    assert store.ok
    assert "the store was damaged" in store.message
    assert "index.parquet.corrupt" in store.message
    assert (state / "cases" / "index.parquet.corrupt").read_bytes() == b"garbage" * 100
    [aside] = state.glob("monitor.sqlite3.damaged-*")
    assert aside.read_bytes() == b"garbage" * 1000


def test_a_second_monitor_on_one_store_goes_on_without_and_says_so(
    damaged: tuple[Path, str],
) -> None:
    state, _ = damaged
    tree = yaml.safe_load((state.parent / "sidecar.yaml").read_text())
    tree["monitor"]["socket"] = str(state.parent / "other.sock")
    other = state.parent / "other.yaml"
    other.write_text(yaml.safe_dump(tree))
    with running(other, "monitor") as server:
        store = status(monitor_of(server)).store
        assert not store.ok
        assert "in use by process" in store.message
        assert "no cases are kept" in store.message
        server.signal()
        assert server.wait() == 0


def test_a_folder_that_cannot_be_made_costs_what_it_would_have_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = configure(
        tmp_path, state_dir=str(tmp_path / "file"), socket=str(tmp_path / "tap.sock")
    )
    with running(config) as server:
        monitor = monitor_of(server)
        is_connected(server)
        with Load(server.addresses["grpc"]) as load:
            comparing(monitor)
            assert not load.failures
        for pid in (status(monitor).pid, status(monitor).child.pid):
            assert min(levels(pid)) >= 10  # ready, it is out of the way: each of its threads
        store = status(monitor).store
        assert not store.ok
        assert "cannot be used" in store.message
        server.signal()
        assert server.wait() == 0


def test_a_missing_extra_is_said_and_serving_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "sqlalchemy"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text('raise ModuleNotFoundError("no", name="sqlalchemy")\n')
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(broken.parent), *sys.path]))
    config = configure(tmp_path)
    alone = launch(config, "monitor")
    try:
        assert alone.wait() == 1
        assert "install model-sidecar[monitor]" in alone.text
    finally:
        alone.kill()
    with running(config) as server:
        text = "the monitor is down, serving goes on: "
        until(lambda: text in server.text, "it is said", within_s=150)
        assert "install model-sidecar[monitor]" in server.text
        with calling(server.addresses["grpc"]) as channel:
            send(channel, 3)
        server.signal()
        assert server.wait() == 0
    assert "Traceback" not in server.text
