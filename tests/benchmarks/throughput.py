"""Throughput and latency against a bare server; workers; large tensors; batching."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from tests.benchmarks import tools
from tests.benchmarks.tools import Row

_SMALL = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)


def tiny_model(rounds: int) -> list[Row]:
    """Requests a second with 16 in flight, and p50 with one, against the bare server."""
    with tempfile.TemporaryDirectory() as folder:
        model = tools.mlp(Path(folder) / "m.onnx")
        message = tools.request(_SMALL)

        def load(address: str, requests: int = 6000) -> float:
            return tools.h2load(address, message, requests=requests, connections=4, streams=4)

        best, best_rate = 1, 0.0
        for threads in (1, 2, 3, 4, 8):
            with tools.bare(model, threads) as address:
                load(address, 1000)
                rate = statistics.median(load(address, 3000) for _ in range(3))
            if rate > best_rate:
                best, best_rate = threads, rate
        with tools.sidecar(model) as ours, tools.bare(model, best) as bare:
            load(ours, 2000)
            load(bare, 2000)
            mine, theirs, ratio = tools.alternate(rounds, lambda: load(ours), lambda: load(bare))
            latency = _latency_ratio(ours, bare, message, rounds)
    throughput = Row(
        "throughput, tiny ONNX model, 16 in flight, against a bare grpcio server",
        ">= 0.90",
        f"{ratio:.2f}",
        ratio >= 0.90,
        f"{mine:.0f} against {theirs:.0f} requests/s (bare server's best: {best} threads)",
    )
    return [throughput, latency]


def _latency_ratio(ours: str, bare: str, message, rounds: int) -> Row:
    def p50(address: str) -> float:
        with tools.channel(address) as channel:
            call = tools.stub(channel)
            for _ in range(100):
                call(message)
            times = []
            for _ in range(1000):
                start = time.perf_counter()
                call(message)
                times.append(time.perf_counter() - start)
        return statistics.median(times) * 1e6

    mine, theirs, ratio = tools.alternate(rounds, lambda: p50(ours), lambda: p50(bare))
    return Row(
        "p50 at one in flight, against the same",
        "<= 1.15",
        f"{ratio:.2f}",
        ratio <= 1.15,
        f"{mine:.0f} against {theirs:.0f} us",
    )


def workers(rounds: int) -> list[Row]:
    """Two workers against one: on a model of about 1 ms of CPU, and on the tiny one."""
    with tempfile.TemporaryDirectory() as folder:
        # Many small layers: arithmetic, not memory. With large weights the workers' copies fight
        # for the cache, and what is measured is that.
        millisecond = tools.mlp(Path(folder) / "ms.onnx", (128,) * 41)
        tiny = tools.mlp(Path(folder) / "tiny.onnx")
        data = np.random.default_rng(0).normal(size=(56, 128)).astype(np.float32)
        return [
            _two_workers(
                "two workers against one, 16 connections, a model of about 1 ms",
                ">= 1.15", 1.15, millisecond, tools.request(data), 2000, rounds,
            ),
            _two_workers(
                "the same on the tiny model", "-", 0.0, tiny, tools.request(_SMALL), 6000, rounds
            ),
        ]  # fmt: skip


def _two_workers(
    what: str, target: str, least: float, model: Path, message, requests: int, rounds: int
) -> Row:
    def load(address: str) -> float:
        return tools.h2load(address, message, requests=requests, connections=16, streams=1)

    with tools.sidecar(model, workers=2) as two, tools.sidecar(model, workers=1) as one:
        execute_ms = _execute_ms(one, message)
        load(two)
        load(one)
        mine, theirs, ratio = tools.alternate(rounds, lambda: load(two), lambda: load(one))
        start, before = time.perf_counter(), one.cpu_s()
        load(one)
        cores = (one.cpu_s() - before) / (time.perf_counter() - start)
    detail = (
        f"{mine:.0f} against {theirs:.0f} requests/s; one execution takes {execute_ms:.2f} ms, "
    )
    detail += f"and one worker alone keeps {cores:.2f} cores busy"
    return Row(what, target, f"{ratio:.2f}", ratio >= least, detail)


def _execute_ms(address: str, message) -> float:
    from sidecar.protocol.pb import inference_pb2 as pb

    with tools.channel(address) as channel:
        for _ in range(50):
            tools.stub(channel)(message)
        statistics_call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelStatistics",
            request_serializer=pb.ModelStatisticsRequest.SerializeToString,
            response_deserializer=pb.ModelStatisticsResponse.FromString,
        )
        row = statistics_call(pb.ModelStatisticsRequest(name="m")).model_stats[0]
    return row.inference_stats.compute_infer.ns / row.inference_stats.compute_infer.count / 1e6


def large(rounds: int) -> list[Row]:
    """4 MiB in and 4 MiB out: against the bare server, and shared memory against raw."""
    array = np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        model = tools.identity(Path(folder) / "m.onnx")
        message = tools.request(array)

        def rate(address: str, body=message, count: int = 60) -> float:
            with tools.channel(address) as channel:
                call = tools.stub(channel)
                for _ in range(5):
                    call(body)
                start = time.perf_counter()
                for _ in range(count):
                    call(body)
                return count / (time.perf_counter() - start)

        with tools.sidecar(model) as ours, tools.bare(model, 2) as bare:
            mine, theirs, ratio = tools.alternate(rounds, lambda: rate(ours), lambda: rate(bare))
            with _regions(ours, array) as shared:
                fast, slow, gain = tools.alternate(
                    rounds, lambda: rate(ours, shared), lambda: rate(ours)
                )
    return [
        Row(
            "4 MiB tensor in and out, against the bare server",
            ">= 0.85",
            f"{ratio:.2f}",
            ratio >= 0.85,
            f"{mine:.0f} against {theirs:.0f} requests/s",
        ),
        Row(
            "the same in shared memory, against raw",
            ">= 2.5",
            f"{gain:.2f}",
            gain >= 2.5,
            f"{fast:.0f} against {slow:.0f} requests/s",
        ),
    ]


class _regions:  # noqa: N801 - a context manager
    """Input and output of ``array``'s size in shared memory, registered; gives the request."""

    def __init__(self, address: str, array: np.ndarray) -> None:
        self._address, self._array = address, array
        self._paths: list[Path] = []

    def __enter__(self):
        from sidecar.protocol.pb import inference_pb2 as pb

        message = pb.ModelInferRequest(model_name="m")
        with tools.channel(self._address) as channel:
            register = channel.unary_unary(
                "/inference.GRPCInferenceService/SystemSharedMemoryRegister",
                request_serializer=pb.SystemSharedMemoryRegisterRequest.SerializeToString,
                response_deserializer=pb.SystemSharedMemoryRegisterResponse.FromString,
            )
            for name in ("in", "out"):
                path = Path(f"/dev/shm/sidecar-bench-{os.getpid()}-{name}")
                path.write_bytes(self._array.tobytes())
                self._paths.append(path)
                register(
                    pb.SystemSharedMemoryRegisterRequest(
                        name=name, key=f"/{path.name}", byte_size=self._array.nbytes
                    )
                )
        tensor = message.inputs.add(name="x", datatype="FP32", shape=self._array.shape)
        output = message.outputs.add(name="y")
        for place, name in ((tensor, "in"), (output, "out")):
            place.parameters["shared_memory_region"].string_param = name
            place.parameters["shared_memory_byte_size"].int64_param = self._array.nbytes
        return message

    def __exit__(self, *_: object) -> None:
        for path in self._paths:
            path.unlink()


def batching(rounds: int) -> list[Row]:
    """Dynamic batching on a model whose weights outweigh its arithmetic, 32 in flight."""
    with tempfile.TemporaryDirectory() as folder:
        model = tools.mlp(Path(folder) / "m.onnx", (512, 4096, 4096, 10))
        message = tools.request(np.ones((1, 512), np.float32))

        def load(address: str) -> float:
            return tools.h2load(address, message, requests=1500, connections=4, streams=8)

        joined = {"batching": {"max_size": 32, "max_delay_ms": 2}}
        with tools.sidecar(model, entry=joined) as batched, tools.sidecar(model) as single:
            load(batched)
            load(single)
            mine, theirs, ratio = tools.alternate(
                rounds, lambda: load(batched), lambda: load(single)
            )
    return [
        Row(
            "dynamic batching, 32 in flight, against none",
            ">= 2",
            f"{ratio:.2f}",
            ratio >= 2,
            f"{mine:.0f} against {theirs:.0f} requests/s",
        )
    ]


def in_flight(address: str, message, count: int, stop: threading.Event) -> list[threading.Thread]:
    """Keep ``count`` requests in flight until ``stop``."""

    def work() -> None:
        with tools.channel(address) as channel:
            call = tools.stub(channel)
            while not stop.is_set():
                call(message, timeout=60)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads
