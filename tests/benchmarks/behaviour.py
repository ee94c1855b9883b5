"""Restarts without a failed request, health while busy, start-up and memory."""

from __future__ import annotations

import signal
import statistics
import tempfile
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
from grpc_health.v1 import health_pb2

from sidecar.protocol.pb import inference_pb2 as pb
from tests.benchmarks import tools
from tests.benchmarks.throughput import in_flight
from tests.benchmarks.tools import Row


def restarts(count: int) -> list[Row]:
    """SIGTERM under load, again and again; long-lived channels straight to the server.

    Clients wait for a server (``wait_for_ready``): between two servers there is none. What is
    counted is every call that ends with any error.
    """
    failures: list[str] = []
    done = [0] * 8
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as folder:
        model = tools.mlp(Path(folder) / "m.onnx")
        port = tools.free_port()
        config = tools.config(Path(folder), model, port=port, grpc={"max_connection_age_s": 1})
        message = tools.request(np.ones((1, 32), np.float32))

        def client(index: int) -> None:
            with tools.channel(f"127.0.0.1:{port}") as channel:
                call = tools.stub(channel)
                while not stop.is_set():
                    try:
                        call(message, timeout=60, wait_for_ready=True)
                        done[index] += 1
                    except grpc.RpcError as error:
                        failures.append(f"{error.code().name}: {error.details()}")

        process = tools.start(config)
        threads = [threading.Thread(target=client, args=(index,)) for index in range(len(done))]
        for thread in threads:
            thread.start()
        for _ in range(count):
            threading.Event().wait(0.3)
            process.send_signal(signal.SIGTERM)
            process.communicate()
            process = tools.start(config)
        stop.set()
        for thread in threads:
            thread.join()
        process.send_signal(signal.SIGTERM)
        process.communicate()
    detail = f"{sum(done)} answered" + (f"; first failure: {failures[0]}" if failures else "")
    return [
        Row(
            f"SIGTERM under load, {count} restarts, long-lived channels: failed requests",
            "0",
            str(len(failures)),
            not failures,
            detail,
        )
    ]


def health(rounds: int) -> list[Row]:
    """The slowest health check while every inference thread is busy and every stream is open."""
    with tempfile.TemporaryDirectory() as folder:
        model = tools.mlp(Path(folder) / "m.onnx", (256, 2048, 2048, 2048, 10))
        message = tools.request(np.ones((16, 256), np.float32))
        limits = {"admission": {"max_streams": 16}}
        with tools.sidecar(model, **limits) as address:
            stop = threading.Event()
            threads = in_flight(address, message, 32, stop)
            with tools.channel(address) as channel:
                streams = [_open_stream(channel, message) for _ in range(16)]
                check = channel.unary_unary(
                    "/grpc.health.v1.Health/Check",
                    request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                    response_deserializer=health_pb2.HealthCheckResponse.FromString,
                )
                times = []
                for _ in range(20 * rounds):
                    start = time.perf_counter()
                    assert check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
                    times.append((time.perf_counter() - start) * 1e3)
                for stream in streams:
                    stream.cancel()
                stop.set()
                for thread in threads:
                    thread.join()
    p50, worst = statistics.median(times), max(times)
    p99 = sorted(times)[int(len(times) * 0.99)]
    return [
        Row(
            "health Check while every stream and inference thread is busy, p99",
            "<= 100 ms",
            f"{p99:.0f} ms",
            p99 <= 100,
            f"p50 {p50:.1f} ms, worst {worst:.1f} ms of {len(times)}; 32 in flight, 16 streams",
        )
    ]


def _open_stream(channel: grpc.Channel, message):
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    hold = threading.Event()

    def requests():
        yield message
        hold.wait()

    stream = call(requests())
    next(stream)
    stream.add_done_callback(lambda _: hold.set())
    return stream


def start_up(rounds: int) -> list[Row]:
    """Seconds from the command to its ready line; memory of gateway and tree then."""
    seconds, gateway_mb, tree_mb = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        model = tools.mlp(Path(folder) / "m.onnx")
        for _ in range(rounds):
            config = tools.config(Path(folder), model, port=tools.free_port())
            start = time.perf_counter()
            process = tools.start(config)
            seconds.append(time.perf_counter() - start)
            parent = psutil.Process(process.pid)
            children = parent.children(recursive=True)
            sizes = [child.memory_info().rss / 2**20 for child in children]
            gateway_mb.append(max(sizes))
            tree_mb.append(sum(sizes) + parent.memory_info().rss / 2**20)
            process.send_signal(signal.SIGTERM)
            process.communicate()
    took, memory = statistics.median(seconds), statistics.median(gateway_mb)
    return [
        Row("start to ready, ONNX", "<= 1 s", f"{took:.2f} s", took <= 1.0),
        Row(
            "memory of the gateway then",
            "<= 100 MB",
            f"{memory:.0f} MiB",
            memory * 2**20 <= 100e6,
            f"whole tree {statistics.median(tree_mb):.0f} MiB (shared pages counted twice)",
        ),
    ]
