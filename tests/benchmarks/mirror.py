"""What mirroring costs the requests, how much of it is really compared, and a killed monitor.

"On" and "off" are two servers of the same models: with a monitor that takes 10 % of the requests,
and without one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import yaml

from sidecar.monitor.client import MonitorClient
from sidecar.monitor.view import Coverage
from tests.benchmarks import tools
from tests.benchmarks.tools import Row

_RATE = 0.1
_SMALL = np.random.default_rng(0).normal(size=(1, 32)).astype(np.float32)
_KILLS = 20
_CLIENTS = 4
#: ``python -c``: a part of the system by itself, as in a container of its own.
_ALONE = """
import sys
from pathlib import Path
from sidecar.{part}.main import run
sys.exit(run(Path(sys.argv[1])))
"""


@dataclass
class Running:
    """A server, and its monitor's address (``""``: none)."""

    address: str
    monitor: str
    log: Path

    def coverage(self) -> Coverage:
        with MonitorClient(self.monitor, timeout_s=20) as client:
            return client.status().coverage


def _config(folder: Path, model: Path, *, monitored: bool) -> tuple[Path, str]:
    """Version 1 serves; the same model again is the reference that it is compared with."""
    name = "on" if monitored else "off"
    port = tools.free_port()
    artifact = {"kind": "onnxruntime", "path": str(model)}
    variants = [
        {"name": "onnx", "version": "1", "roles": ["serving"], "runtime": artifact},
        {"name": "truth", "version": "1", "roles": ["reference"], "runtime": artifact},
    ]
    tree: dict[str, Any] = {
        "models": [{"name": "m", "variants": variants}],
        "gateway": {
            "grpc": {"address": f"127.0.0.1:{port}"}, "http": None, "drain": {"delay_s": 0},
        },
        "monitor": {
            "enabled": monitored,
            "state_dir": str(folder / f"state-{name}"),
            "grpc": f"127.0.0.1:{tools.free_port()}",
            "mirror": {"sample_rate": _RATE},
        },
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path, f"127.0.0.1:{port}"


@contextlib.contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as sink:
        process = subprocess.Popen([sys.executable, *command], stderr=sink)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_line(process: subprocess.Popen[bytes], log: Path, start: str) -> str:
    """The rest of the first line that begins so."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith(start):
                return line.removeprefix(start).strip()
        threading.Event().wait(0.02)
    message = f"no line {start!r}; it said:\n{log.read_text(errors='replace')}"
    raise RuntimeError(message)


@contextlib.contextmanager
def serving(folder: Path, model: Path, *, monitored: bool) -> Iterator[Running]:
    config, address = _config(folder, model, monitored=monitored)
    log = config.with_suffix(".log")
    with _process(["-m", "sidecar", "serve", str(config)], log) as process:
        await_line(process, log, "ready: ")
        monitor = ""
        if monitored:
            monitor = await_line(process, log, "monitor (gRPC): ").partition(",")[0]
        yield Running(address, monitor, log)


def mirroring(rounds: int) -> list[Row]:
    """Throughput and p99 with 10 % mirrored, against none; the share that is compared; kills."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = tools.mlp(folder / "tiny.onnx")
        # Many small layers: about a millisecond of arithmetic, as in ``throughput.workers``.
        millisecond = tools.mlp(folder / "ms.onnx", (128,) * 41)
        data = np.random.default_rng(0).normal(size=(56, 128)).astype(np.float32)
        rows = _cost(folder, tiny, tools.request(_SMALL), 8000, rounds, "a tiny model", judged=True)
        rows += _cost(
            folder, millisecond, tools.request(data), 2500, rounds, "a model of about 1 ms",
            judged=False,
        )  # fmt: skip
        return [*rows, _kills(folder, tiny)]


def _cost(
    folder: Path, model: Path, message: Any, requests: int, rounds: int, what: str, *, judged: bool
) -> list[Row]:
    """The rows of one model. ``judged``: the targets are about it; else it is reported."""

    def load(address: str) -> float:
        return tools.h2load(address, message, requests=requests, connections=4, streams=4)

    place = Path(tempfile.mkdtemp(dir=folder))  # logs and evidence of one model alone
    with (
        serving(place, model, monitored=True) as on,
        serving(place, model, monitored=False) as off,
    ):
        load(on.address)
        load(off.address)
        before = _settled(on)
        mine, theirs, ratio = tools.alternate(
            rounds, lambda: load(on.address), lambda: load(off.address)
        )
        after = _settled(on)
        half = theirs / 2
        p99_on, p99_off, p99_ratio = tools.alternate(
            rounds, lambda: p99_ms(on.address, message, half),
            lambda: p99_ms(off.address, message, half),
        )  # fmt: skip
    sampled = after.sampled - before.sampled
    compared = after.compared - before.compared
    share = compared / sampled if sampled else 0.0
    of_all = sampled / (requests * rounds)
    lost = {
        reason: count - before.dropped.get(reason, 0)
        for reason, count in after.dropped.items()
        if count > before.dropped.get(reason, 0)
    }
    coverage = f"{sampled} sampled ({of_all:.1%} of the requests), {compared} compared"
    if lost:
        coverage += f", dropped {lost}"
    return [
        Row(
            f"throughput, {what}, saturated, {_RATE:.0%} mirrored against off",
            ">= 0.85" if judged else "-",
            f"{ratio:.2f}",
            not judged or ratio >= 0.85,
            f"{mine:.0f} against {theirs:.0f} requests/s",
        ),
        Row(
            f"share of the sampled pairs that is compared, {what}, saturated",
            ">= 0.80" if judged else "-",
            f"{share:.2f}",
            not judged or share >= 0.80,
            coverage,
        ),
        Row(
            f"p99 at half load, {what}, {_RATE:.0%} mirrored against off",
            "<= 1.15" if judged else "-",
            f"{p99_ratio:.2f}",
            not judged or p99_ratio <= 1.15,
            f"{p99_on:.2f} against {p99_off:.2f} ms at {half:.0f} requests/s",
        ),
    ]


def _settled(running: Running) -> Coverage:
    """The monitor's coverage when what was sampled has been worked off, or nothing moves."""
    last = running.coverage()
    quiet = 0
    while quiet < 5:  # the counts of the gateway come once a second
        threading.Event().wait(0.5)
        now = running.coverage()
        quiet = quiet + 1 if (now.sampled, now.compared) == (last.sampled, last.compared) else 0
        last = now
    return last


def p99_ms(address: str, message: Any, rate: float) -> float:
    """Of requests that are sent at an even rate, over four connections, for some seconds."""
    data = message.SerializeToString()
    with tempfile.TemporaryDirectory() as name:
        body, log = Path(name) / "body", Path(name) / "log"
        body.write_bytes(b"\0" + struct.pack(">I", len(data)) + data)
        subprocess.run(
            [
                "h2load", "-D", "4", "-c", "4", "-m", "16", "--rps", f"{rate / 4:.0f}",
                "-H", "content-type: application/grpc", "-H", "te: trailers", "-d", str(body),
                f"--log-file={log}", f"http://{address}{tools.METHOD}",
            ],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        times_us = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines())
    assert len(times_us) > rate  # it has kept up
    return times_us[int(len(times_us) * 0.99)] / 1e3


# --- the monitor is killed ------------------------------------------------------------------------


def _kills(folder: Path, model: Path) -> Row:
    """``kill -9`` of a monitor that runs by itself: ``serve`` would wait ever longer to restart."""
    config, address = _config(folder, model, monitored=True)
    socket_path = folder / "state-on" / "tap.sock"
    failures: list[str] = []
    done = [0] * _CLIENTS
    stop = threading.Event()
    message = tools.request(_SMALL)
    gateway_log = folder / "gateway.log"
    lived_s: list[float] = []
    with _process(["-c", _ALONE.format(part="gateway"), str(config)], gateway_log) as gateway:
        await_line(gateway, gateway_log, "ready: ")
        threads = [
            threading.Thread(target=_client, args=(address, message, stop, done, index, failures))
            for index in range(_CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for number in range(_KILLS):
            log = folder / f"monitor-{number}.log"
            with _process(["-c", _ALONE.format(part="monitor"), str(config)], log) as monitor:
                began = time.monotonic()
                await_line(monitor, log, "ready: ")
                _take_part(gateway_log, number + 1)
                threading.Event().wait(0.3)
                os.kill(monitor.pid, signal.SIGKILL)
                lived_s.append(time.monotonic() - began)
        stop.set()
        for thread in threads:
            thread.join()
    assert not socket_path.exists() or socket_path.is_socket()
    detail = f"{sum(done)} answered; it lived for {statistics.median(lived_s):.1f} s each time"
    if failures:
        detail += f"; first failure: {failures[0]}"
    what = f"kill -9 of the monitor at full load, {_KILLS} times: failed requests"
    return Row(what, "0", str(len(failures)), not failures, detail)


def _client(
    address: str, message: Any, stop: threading.Event, done: list[int], index: int,
    failures: list[str],
) -> None:  # fmt: skip
    with tools.channel(address) as channel:
        call: Callable[..., Any] = tools.stub(channel)
        while not stop.is_set():
            try:
                call(message, timeout=60)
                done[index] += 1
            except grpc.RpcError as error:
                failures.append(f"{error.code().name}: {error.details()}")


def _take_part(log: Path, times: int) -> None:
    """Wait until the gateway has found its monitor so many times."""
    deadline = time.monotonic() + 30
    while log.read_text(errors="replace").count("mirroring to the monitor") < times:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
