"""Servers as an operator starts them, clients on sockets, models that misbehave on request.

Every server listens on 127.0.0.1 with port 0, in a session of its own, so that whatever it left
behind can be found and is ended with it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import numpy as np
import psutil
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc

from sidecar.protocol.pb import inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
READY_WITHIN_S = 120
ENDED_WITHIN_S = 60
LOCAL = "127.0.0.1:0"
_LABELS = {"gRPC": "grpc", "HTTP": "http", "health (gRPC, plaintext)": "health",
           "admin (gRPC)": "admin"}  # fmt: skip


def can_connect(address: str) -> bool:
    """Whether anybody listens there."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=20).close()
    except ConnectionRefusedError:
        return False
    return True


def until(check: Callable[[], Any], what: str, *, within_s: float = 60) -> Any:
    """Poll until ``check`` gives something true; return that."""
    deadline = time.monotonic() + within_s
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.01)
    return result


# --- servers --------------------------------------------------------------------------------------


@dataclass
class Server:
    """A running ``sidecar``."""

    process: subprocess.Popen[bytes]
    log: Path
    pids: list[int] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait(self, within_s: float = ENDED_WITHIN_S) -> int:
        """The exit code; the whole tree must be gone with it."""
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            message = f"it did not end within {within_s} s; its log:\n{self.text}"
            raise AssertionError(message) from None
        until(lambda: not self.left(), f"processes were left behind: {self.left()}")
        return code

    def left(self) -> list[int]:
        """Processes of its session that live."""
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) == self.process.pid and (
                    process.status() != psutil.STATUS_ZOMBIE
                ):
                    left.append(process.pid)
        return left

    def kill(self) -> None:
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def write(
    folder: Path, models: list[dict], *, name: str = "sidecar.yaml", log: Any = None, **gateway: Any
) -> Path:
    """A config; unless said otherwise ports are free ones and a drain is short."""
    tree = {
        "grpc": {"address": LOCAL},
        "http": {"address": LOCAL},
        "drain": {"delay_s": 0, "timeout_s": 2},
    }
    for key, value in gateway.items():
        old = tree.get(key)
        tree[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    path = folder / name
    document = {"models": models, "gateway": tree, **({"log": log} if log else {})}
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return path


def launch(config: Path, command: str = "serve") -> Server:
    """Start without waiting."""
    log = config.with_suffix(f".{time.monotonic_ns()}.log")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", command, str(config)],
            stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Server(process, log)


def await_ready(server: Server) -> Server:
    """Wait until it says that it is ready, and read where."""

    def said() -> Any:
        code = server.process.poll()
        assert code is None, f"it ended with exit code {code}; its log:\n{server.text}"
        return re.search(r"^ready: .*pid ([\d, ]+)$", server.text, re.MULTILINE)

    found = until(said, "the server is ready", within_s=READY_WITHIN_S)
    server.pids = [int(pid) for pid in found.group(1).split(",")]
    for line in server.text.splitlines():
        label, colon, address = line.partition(": ")
        if colon and label in _LABELS:
            server.addresses[_LABELS[label]] = address
    return server


@contextlib.contextmanager
def running(config: Path, command: str = "serve") -> Iterator[Server]:
    """A ready server, ended at the end, whatever it does."""
    server = launch(config, command)
    try:
        yield await_ready(server)
    finally:
        server.kill()


# --- clients --------------------------------------------------------------------------------------


class Client:
    """One connection, and the service's methods on it by name."""

    def __init__(self, address: str, credentials: Any = None) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 50),
            ("grpc.min_reconnect_backoff_ms", 50),
        ]
        self.channel = (
            grpc.insecure_channel(address, options)
            if credentials is None
            else grpc.secure_channel(address, credentials, options)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.channel.close()

    def stub(self, method: str) -> Any:
        return self.channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(pb, f"{method}Response").FromString,
        )

    def call(self, method: str, request: Any = None, **options: Any) -> Any:
        """Call a method; ``request``: its message, or its fields."""
        if request is None or isinstance(request, dict):
            request = getattr(pb, f"{method}Request")(**(request or {}))
        return self.stub(method)(request, **{"timeout": 60, "wait_for_ready": True, **options})

    def infer(self, model: str, value: Any, **options: Any) -> pb.ModelInferResponse:
        return self.call("ModelInfer", request(model, value), **options)

    def stream(self, requests: Any, **options: Any) -> Any:
        return self.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )(requests, **{"timeout": 60, "wait_for_ready": True, **options})

    def health(self, **options: Any) -> str:
        answer = health_pb2_grpc.HealthStub(self.channel).Check(
            health_pb2.HealthCheckRequest(), **{"timeout": 20, "wait_for_ready": True, **options}
        )
        return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)

    def statistics(self, model: str, version: str = "1") -> Any:
        rows = self.call("ModelStatistics", {"name": model, "version": version}).model_stats
        return rows[0]

    def worker(self, model: str, value: Any) -> str:
        """Which worker this connection leads to: identities that it makes begin with its own."""
        _, call = self.stub("ModelInfer").with_call(request(model, value), timeout=60)
        metadata = dict(call.trailing_metadata())
        return str(metadata["x-request-id"]).partition("-")[0]


def request(
    model: str,
    value: Any,
    *,
    version: str = "",
    name: str = "x",
    parameters: dict | None = None,
    request_id: str = "",
) -> pb.ModelInferRequest:
    """FP32 (or INT64) input ``x``: an array, or one number for a shape of [1, 1]."""
    array = np.asarray(value)
    if array.ndim == 0:
        array = array.reshape(1, 1).astype(np.float32)
    message = pb.ModelInferRequest(model_name=model, model_version=version, id=request_id)
    datatype = {"f": "FP32", "i": "INT64"}[array.dtype.kind]
    message.inputs.add(name=name, datatype=datatype, shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    for key, one in (parameters or {}).items():
        message.parameters[key].int64_param = one
    return message


def floats(response: pb.ModelInferResponse) -> list[float]:
    return np.frombuffer(response.raw_output_contents[0], np.float32).tolist()


@contextlib.contextmanager
def fails(*codes: grpc.StatusCode) -> Iterator[Any]:
    """The block must fail with one of these statuses, and tell the client no secrets."""
    holder: list[grpc.RpcError] = []
    try:
        yield holder
    except grpc.RpcError as error:
        holder.append(error)
        if error.code() not in codes:
            raise
        if "Traceback" in (error.details() or ""):
            message = f"a client was sent a stack trace: {error.details()}"
            raise AssertionError(message) from None
    else:
        message = f"it succeeded; expected was {codes}"
        raise AssertionError(message)


@contextlib.contextmanager
def one_channel_a_worker(address: str, count: int, model: str, value: Any) -> Iterator[Any]:
    """A client for each worker: connections are spread by the kernel, so open many."""
    found: dict[str, Client] = {}
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            client = stack.enter_context(Client(address))
            found.setdefault(client.worker(model, value), client)
            if len(found) == count:
                break
        assert len(found) == count
        yield list(found.values())


# --- models ---------------------------------------------------------------------------------------

#: As an input: executing takes until the test says that it is over.
HELD = 2.0**20
#: Does what its input says: sleeps for as many milliseconds, or until it is let go, or fails below
#: zero; leaves a mark for each execution. What cannot be had of an ordinary model: a time that is
#: long and costs no CPU.
SLEEPER_SOURCE = f"""
import time
from pathlib import Path

import torch


class Sleeper(torch.nn.Module):
    def __init__(self, marks):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))
        self.marks = marks

    def forward(self, x):
        value = float(x.max()) if x.numel() else 0.0
        if value:
            with Path(self.marks).open("a") as marks:
                marks.write(f"{{value:g}}\\n")
        if value < 0:
            raise RuntimeError("a secret of the model's")
        if value < {HELD}:
            time.sleep(value / 1000)
        while value >= {HELD} and Path(self.marks + ".hold").exists():
            time.sleep(0.005)
        return x * self.factor


def make(marks):
    return Sleeper(marks)
"""


def variant(
    name: str,
    path: Path,
    *,
    version: str = "1",
    roles: Sequence[str] = ("serving",),
    **runtime: Any,
) -> dict:
    """A variant's tree; ``kind`` is onnxruntime unless said otherwise."""
    return {
        "name": name, "version": version, "roles": list(roles),
        "runtime": {"kind": "onnxruntime", "path": str(path), **runtime},
    }  # fmt: skip


class Sleeper:
    """Makes variants that sleep, and reads what they have executed."""

    def __init__(self, folder: Path) -> None:
        import torch

        self.folder = folder
        self._weights = folder / "sleeper.pth"
        (folder / "sleeper_factory.py").write_text(SLEEPER_SOURCE)
        torch.save({"factor": torch.tensor(2.0)}, self._weights)

    def variant(self, name: str = "torch", **settings: Any) -> dict:
        made = variant(
            name, self._weights, kind="pytorch", format="state_dict",
            factory="sleeper_factory:make", factory_path=str(self.folder),
            factory_args={"marks": str(self.folder / f"{name}.marks")}, **settings,
        )  # fmt: skip
        made["inputs"] = [{"name": "x", "datatype": "FP32", "shape": [-1, 1]}]
        made["outputs"] = [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]
        return made

    def executed(self, name: str = "torch") -> list[str]:
        """The inputs of every execution that was begun, in order."""
        marks = self.folder / f"{name}.marks"
        return marks.read_text().split() if marks.exists() else []

    @contextlib.contextmanager
    def holding(self, name: str = "torch") -> Iterator[None]:
        """What is ``HELD`` goes on until this is left; nobody has to be quick meanwhile."""
        hold = self.folder / f"{name}.marks.hold"
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()


def onnx_times(folder: Path, factor: float, name: str) -> Path:
    """y = x × factor, [batch, 1]: which variant answered can be seen from its answer."""
    from onnx import helper

    from tests.support import models

    node = helper.make_node("Mul", ["x", "factor"], ["y"])
    tensors = [("x", "FP32", ["batch", 1])], [("y", "FP32", ["batch", 1])]
    weights = [("factor", np.array(factor, np.float32))]
    return models.save(folder, name, models.onnx_model([node], *tensors, weights))
