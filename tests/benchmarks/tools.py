"""What the benchmarks share: servers as processes, load by h2load, medians of alternated rounds."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import onnx
import psutil
import yaml
from onnx import TensorProto, helper, numpy_helper

from sidecar.protocol.pb import inference_pb2 as pb

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass
class Row:
    """One line of the table."""

    what: str
    target: str
    measured: str
    met: bool
    detail: str = ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def mlp(path: Path, sizes: tuple[int, ...] = (32, 64, 10), seed: int = 0) -> Path:
    """A multi-layer perceptron ``x [n, sizes[0]] → y [n, sizes[-1]]``, FP32."""
    rng = np.random.default_rng(seed)
    nodes, weights, last = [], [], "x"
    for index, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        weight = (rng.normal(size=(rows, columns)) / np.sqrt(rows)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{index}"))
        final = index == len(sizes) - 2
        out = "y" if final else f"h{index}"
        nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [out]))
        if not final:
            nodes.append(helper.make_node("Relu", [out], [f"r{index}"]))
            last = f"r{index}"
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", sizes[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", sizes[-1]])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def identity(path: Path) -> Path:
    """``y = x + 0``: cheap, whatever the size (an Identity node would be optimized away)."""
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "m"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def request(array: np.ndarray, model: str = "m") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name=model)
    message.inputs.add(name="x", datatype="FP32", shape=array.shape)
    message.raw_input_contents.append(array.tobytes())
    return message


@contextlib.contextmanager
def bare(model: Path, threads: int) -> Iterator[str]:
    """The baseline as a process; gives its address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.bare_server", str(port), str(threads)]
    process = subprocess.Popen([*command, str(model)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield f"127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def config(folder: Path, model: Path, *, port: int, **settings: object) -> Path:
    """A config that serves ``model`` as ``m``; ``settings`` are merged over it."""
    entry: dict[str, object] = {
        "name": "m",
        "variants": [
            {
                "name": "onnx",
                "version": "1",
                "roles": ["serving"],
                "runtime": {"kind": "onnxruntime", "path": str(model)},
            }
        ],
    }
    entry.update(settings.pop("entry", {}))  # type: ignore[call-overload]
    gateway: dict[str, object] = {
        "grpc": {"address": f"127.0.0.1:{port}"},
        "http": {"address": f"127.0.0.1:{free_port()}"},
        "drain": {"delay_s": 0},
    }
    for key, value in settings.items():
        gateway[key] = {**gateway.get(key, {}), **value} if isinstance(value, dict) else value  # type: ignore[dict-item]
    path = folder / f"config-{port}.yaml"
    path.write_text(yaml.safe_dump({"models": [entry], "gateway": gateway}))
    return path


def start(path: Path, command: str = "serve") -> subprocess.Popen[str]:
    """``sidecar serve`` as a process, ready."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", command, str(path)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("ready"):
            return process
    message = f"the server did not start: exit code {process.wait()}"
    raise RuntimeError(message)


class Address(str):  # noqa: SLOT000 - a handful of them
    """A server's address, which knows whose it is."""

    pid: int

    def cpu_s(self) -> float:
        """CPU seconds of its process tree so far."""
        parent = psutil.Process(self.pid)
        tree = [parent, *parent.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in tree)


@contextlib.contextmanager
def sidecar(model: Path, **settings: object) -> Iterator[Address]:
    """Ours as a process; gives its gRPC address."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = start(config(Path(folder), model, port=port, **settings))
        try:
            address = Address(f"127.0.0.1:{port}")
            address.pid = process.pid
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGINT)
            process.communicate()


def h2load(
    address: str, message: pb.ModelInferRequest, *, requests: int, connections: int, streams: int
) -> float:
    """Requests a second. h2load counts gRPC errors as successes: answers are checked apart."""
    if shutil.which("h2load") is None:
        message_text = "h2load is missing: apt-get install nghttp2-client"
        raise RuntimeError(message_text)
    check(address, message)
    with tempfile.NamedTemporaryFile() as body:
        data = message.SerializeToString()
        body.write(b"\0" + struct.pack(">I", len(data)) + data)
        body.flush()
        output = subprocess.run(
            [
                "h2load", "-n", str(requests), "-c", str(connections), "-m", str(streams),
                "-H", "content-type: application/grpc", "-H", "te: trailers", "-d", body.name,
                f"http://{address}{METHOD}",
            ],
            check=True, capture_output=True, text=True, timeout=300,
        ).stdout  # fmt: skip
    found = re.search(r"([\d.]+) req/s", output)
    done = re.search(r"(\d+) 2xx", output)
    assert found, output
    assert done, output
    assert int(done.group(1)) == requests, output
    return float(found.group(1))


def stub(channel: grpc.Channel):
    return channel.unary_unary(
        METHOD,
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )


def channel(address: str) -> grpc.Channel:
    return grpc.insecure_channel(
        address,
        options=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )


def check(address: str, message: pb.ModelInferRequest) -> None:
    with channel(address) as open_channel:
        answer = stub(open_channel)(message, timeout=10, wait_for_ready=True)
        assert len(answer.raw_output_contents) == 1


def alternate(
    rounds: int, first: Callable[[], float], second: Callable[[], float]
) -> tuple[float, float, float]:
    """Measure both sides in turns; (median of first, of second, median of the ratios by round)."""
    ones, twos = [], []
    for number in range(rounds):
        # The order alternates too: whoever comes second meets a warmer, or a busier, machine.
        for side in (0, 1) if number % 2 == 0 else (1, 0):
            (ones if side == 0 else twos).append(first() if side == 0 else second())
    ratios = [one / two for one, two in zip(ones, twos, strict=True)]
    return statistics.median(ones), statistics.median(twos), statistics.median(ratios)
