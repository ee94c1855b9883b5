"""What observing costs the requests: traces, all metrics and logs over OTLP, against none of it.

Each side is a server of its own: "off" has no monitor at all, the others tell a backend that takes
everything (``otlp_sink``), or one that nobody answers for.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import yaml

from tests.benchmarks import tools
from tests.benchmarks.mirror import await_line, p99_ms
from tests.benchmarks.tools import Row

_SMALL = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
_REQUESTS = 8000
_CLIENTS = 4
_DEAD_S = 8.0


@contextlib.contextmanager
def sink() -> Iterator[tuple[str, dict[str, int]]]:
    """A backend that takes everything: its endpoint, and (afterwards) the bytes by signal."""
    port, told = tools.free_port(), dict[str, int]()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.otlp_sink", str(port)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"
        yield f"http://127.0.0.1:{port}", told
    finally:
        process.terminate()
        told.update(json.loads(process.communicate(timeout=30)[0]))


@contextlib.contextmanager
def hanging() -> Iterator[str]:
    """A backend that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


class Served:
    """A running server."""

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process, self.address = process, address
        self.ended_after_s = 0.0

    def stop(self) -> None:
        """SIGTERM; how long it took is kept."""
        if self.ended_after_s:
            return
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.ended_after_s = time.monotonic() - began


@contextlib.contextmanager
def serving(folder: Path, model: Path, name: str, telemetry: dict[str, Any]) -> Iterator[Served]:
    """``sidecar serve`` with such a telemetry; no monitor where it is empty."""
    port = tools.free_port()
    tree: dict[str, Any] = {
        "models": [
            {
                "name": "m",
                "variants": [
                    {
                        "name": "onnx", "version": "1", "roles": ["serving"],
                        "runtime": {"kind": "onnxruntime", "path": str(model)},
                    }
                ],
            }
        ],
        "gateway": {
            "grpc": {"address": f"127.0.0.1:{port}"}, "http": None, "drain": {"delay_s": 0},
        },
        "monitor": {
            "enabled": bool(telemetry), "state_dir": str(folder / f"state-{name}"),
            "grpc": f"127.0.0.1:{tools.free_port()}",
        },
        "telemetry": telemetry,
    }  # fmt: skip
    config, log = folder / f"{name}.yaml", folder / f"{name}.log"
    config.write_text(yaml.safe_dump(tree))
    with log.open("wb") as sink_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "serve", str(config)], stderr=sink_file
        )
    served = Served(process, f"127.0.0.1:{port}")
    try:
        await_line(process, log, "ready: ")
        if telemetry:
            await_line(process, log, "monitor (gRPC): ")
        yield served
    finally:
        served.stop()


def told_to(endpoint: str, ratio: float) -> dict[str, Any]:
    """All signals over OTLP/gRPC; metrics often, so that a round has some in it."""
    return {
        "exporter": "otlp-grpc", "endpoint": endpoint,
        "traces": {"sample_ratio": ratio}, "metrics": {"interval_s": 5},
    }  # fmt: skip


def observing(rounds: int) -> list[Row]:
    """Throughput and p99 with telemetry on, against off; and with a backend that is dead."""
    message = tools.request(_SMALL)

    def load(served: Served) -> float:
        return tools.h2load(served.address, message, requests=_REQUESTS, connections=4, streams=4)

    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, sink() as (endpoint, _):
        folder = Path(name)
        model = tools.mlp(folder / "tiny.onnx")
        with serving(folder, model, "off", {}) as off:
            load(off)
            for ratio, least, what in ((0.01, 0.95, "1 % of traces"), (1.0, 0.88, "every trace")):
                with serving(folder, model, f"on-{ratio}", told_to(endpoint, ratio)) as on:
                    load(on)
                    mine, theirs, share = tools.alternate(
                        rounds, lambda on=on: load(on), lambda: load(off)
                    )
                    rows.append(
                        Row(
                            f"throughput, tiny model, {what} and all metrics told, against off",
                            f">= {least}", f"{share:.2f}", share >= least,
                            f"{mine:.0f} against {theirs:.0f} requests/s",
                        )
                    )  # fmt: skip
                    if ratio == 1.0:
                        rows.append(_half_load(on, off, message, theirs / 2, rounds))
        rows += _dead(folder, model, message, endpoint, rounds)
    return rows


def _half_load(on: Served, off: Served, message: Any, rate: float, rounds: int) -> Row:
    p99_on, p99_off, ratio = tools.alternate(
        rounds,
        lambda: p99_ms(on.address, message, rate),
        lambda: p99_ms(off.address, message, rate),
    )
    return Row(
        "p99 at half load, every trace told, against off", "<= 1.3", f"{ratio:.2f}", ratio <= 1.3,
        f"{p99_on:.2f} against {p99_off:.2f} ms at {rate:.0f} requests/s",
    )  # fmt: skip


def _dead(folder: Path, model: Path, message: Any, live: str, rounds: int) -> list[Row]:
    """A backend that hangs for the whole run, against one that takes everything."""
    with (
        hanging() as silent,
        serving(folder, model, "dead", told_to(silent, 1.0)) as dead,
        serving(folder, model, "live", told_to(live, 1.0)) as alive,
    ):
        rate = 0.5 * tools.h2load(
            alive.address, message, requests=_REQUESTS, connections=4, streams=4
        )
        p99_dead, p99_live, ratio = tools.alternate(
            rounds,
            lambda: p99_ms(dead.address, message, rate),
            lambda: p99_ms(alive.address, message, rate),
        )
        answered, failures = _ask(dead.address, message)
        dead.stop()
    what = "backend dead for the whole run"
    return [
        Row(f"{what}: failed requests", "0", str(len(failures)), not failures,
            f"{answered} answered" + (f"; first failure: {failures[0]}" if failures else "")),
        Row(f"{what}, against a live one: p99 at half load", "<= 1.15", f"{ratio:.2f}",
            ratio <= 1.15, f"{p99_dead:.2f} against {p99_live:.2f} ms at {rate:.0f} requests/s"),
        Row(f"{what}: from SIGTERM to the end", "<= 5 s", f"{dead.ended_after_s:.1f} s",
            dead.ended_after_s <= 5),
    ]  # fmt: skip


def _ask(address: str, message: Any) -> tuple[int, list[str]]:
    """Answers looked at, for some seconds: h2load counts gRPC errors as successes."""
    failures: list[str] = []
    done = [0] * _CLIENTS
    deadline = time.monotonic() + _DEAD_S

    def client(index: int) -> None:
        with tools.channel(address) as channel:
            call = tools.stub(channel)
            while time.monotonic() < deadline:
                try:
                    call(message, timeout=60)
                    done[index] += 1
                except grpc.RpcError as error:
                    failures.append(f"{error.code().name}: {error.details()}")

    threads = [threading.Thread(target=client, args=(index,)) for index in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done), failures
