"""The demo's config file, and the sidecar that serves it as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Self

from sidecar.clock import SystemClock
from sidecar.config import environment
from sidecar.demo.export import BROKEN_FILE, OUTPUT, VERSIONS, file_name
from sidecar.demo.load import Target
from sidecar.errors import SidecarError

CONFIG_FILE = "digits.yaml"
LOG_FILE = "serve.log"
#: Where the monitor keeps its evidence: its default, beside the config.
STATE_FOLDER = "sidecar-state"
DRIFT_REFERENCE_FILE = "digits.reference.json.gz"
#: Rows of a window: a demo has a few hundred held-out digits for the reference, not thousands.
DRIFT_WINDOW_ROWS = 200
#: Model → the format that serves it.
MODELS = {"digits": "onnx", "digits-int8": "int8", "digits-torch": "pt2"}
#: torch alone takes seconds to import on a busy machine.
READY_TIMEOUT_S = 120
#: Longer than the drain of the config below.
STOP_TIMEOUT_S = 20

TARGETS = tuple(
    Target(model, version, form) for model, form in MODELS.items() for version in VERSIONS
)

_HEAD = """\
# Written by `sidecar demo`. Serve it yourself: sidecar serve {name}
models:
"""
_COMMENTS = {
    "digits": "What clients use: fp32 on ONNX Runtime, version {newest} unless they ask for\n"
    "  # another. If that fails, its PyTorch program answers, marked in the response. That\n"
    "  # program is also the truth: requests are run again on it, on int8, on a conversion that\n"
    "  # is broken on purpose, and on the version before.",
    "digits-int8": "The other formats, under names of their own so that clients can compare them.",
}
_VARIANT = """\
      - name: {form}
        version: "{version}"
        roles: [{roles}]
        runtime: {{kind: {kind}, path: {path}}}
"""
_OUTPUTS = """\
        outputs: [{{name: {name}, datatype: FP32, shape: [-1, 10]}}]  # a .pt2 does not name them
"""
_VALIDATION = """\
    validation:
      retention_class: production  # may lose at most 1 % of the answers
      outputs: {{{name}: {{kind: class_scores}}}}
"""
_DRIFT = """\
    drift:
      reference: {reference}  # `sidecar reference` made it of the held-out digits
      window_rows: {rows}
      min_rows: {rows}
      deep: {{enabled: false}}  # Evidently, a minute of a core: `sidecar drift --open` with it
"""
_GATEWAY = """\
gateway:
  grpc: {{address: "{grpc}"}}
  http: {{address: "{http}"}}
  drain: {{delay_s: 0, timeout_s: 10}}  # no balancer has to notice that a demo ends
monitor:
  grpc: "{monitor}"
  mirror: {{sample_rate: 1, cpu_share: 0.5}}  # a demo is short: all of it
  cases: {{inputs: keep}}  # digits are nobody's secret
telemetry:
  traces: {{{traces}}}
"""
#: JSON lines in the log, which the demo draws one trace of.
_TO_THE_LOG = "exporter: console, sample_ratio: 0.005"
#: Variables that name a backend: then it is told, and nothing is drawn.
_BACKENDS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_TO_A_BACKEND = "sample_ratio: 0.05"


def write_config(
    folder: Path, *, grpc_address: str, http_address: str, monitor_address: str
) -> Path:
    """Write ``digits.yaml`` beside the artifacts and return its path."""
    text = _HEAD.format(name=CONFIG_FILE)
    newest = VERSIONS[-1]
    for model, form in MODELS.items():
        if model in _COMMENTS:
            text += f"  # {_COMMENTS[model].format(newest=newest)}\n"
        text += f"  - name: {model}\n    variants:\n"
        for version in VERSIONS:
            is_previous = model == "digits" and version != newest
            text += _variant(form, version, "serving, previous" if is_previous else "serving")
        if model == "digits":
            text += _variant("pt2", newest, "fallback, reference")
            text += _variant("int8", newest, "mirror")
            text += _variant("broken", newest, "mirror")
            text += _VALIDATION.format(name=OUTPUT)
            text += _DRIFT.format(reference=DRIFT_REFERENCE_FILE, rows=DRIFT_WINDOW_ROWS)
    traces = _TO_A_BACKEND if backend() else _TO_THE_LOG
    text += _GATEWAY.format(
        grpc=grpc_address, http=http_address, monitor=monitor_address, traces=traces
    )
    path = folder / CONFIG_FILE
    path.write_text(text, encoding="utf-8")
    return path


def backend() -> str:
    """The OpenTelemetry backend that the environment names; empty: none."""
    return next(filter(None, map(environment, _BACKENDS)), "")


def _variant(form: str, version: str, roles: str) -> str:
    kind = "pytorch" if form == "pt2" else "onnxruntime"
    path = BROKEN_FILE if form == "broken" else file_name(version, form)
    text = _VARIANT.format(form=form, version=version, roles=roles, kind=kind, path=path)
    return text + (_OUTPUTS.format(name=OUTPUT) if form == "pt2" else "")


def free_addresses(count: int) -> list[str]:
    """Return ``count`` loopback addresses that nothing listens on.

    The ports are chosen before the server starts, instead of letting it choose, so that the
    config file is true for a later ``sidecar serve`` as well.
    """
    addresses: list[str] = []
    with ExitStack() as stack:  # all held until all are chosen: no port twice
        for _ in range(count):
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            listener.bind(("127.0.0.1", 0))
            addresses.append(f"127.0.0.1:{listener.getsockname()[1]}")
    return addresses


class ServeProcess:
    """``sidecar serve CONFIG`` in a process group of its own, its output in a log file.

    The group is its own so that Ctrl-C reaches the demo alone, which then stops the server in
    order. Used as a context manager, it leaves no process behind.
    """

    def __init__(self, config: Path, log: Path) -> None:
        self._config = config
        self._log_path = log
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._log = self._log_path.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "sidecar", "serve", str(self._config)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def wait_exit(self, timeout_s: float) -> bool:
        """Wait for the process to end by itself; true when it has."""
        assert self._process is not None, "not started"
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        return self._process.returncode is not None

    def wait_ready(self, is_ready: Callable[[], bool], timeout_s: float = READY_TIMEOUT_S) -> float:
        """Ask until the server is ready; return the seconds since this call.

        Raises:
            SidecarError: it ended, or was not ready in time; with the end of its log.
        """
        clock = SystemClock()
        start_ns = clock.monotonic_ns()
        while True:
            if is_ready():
                return (clock.monotonic_ns() - start_ns) / 1e9
            self.check_alive()
            if (clock.monotonic_ns() - start_ns) / 1e9 > timeout_s:
                message = f"the server was not ready after {timeout_s:.0f} s{self._log_tail()}"
                raise SidecarError(message)
            self.wait_exit(0.05)

    def check_alive(self) -> None:
        """Raise ``SidecarError``, with the end of its log, when the process has ended."""
        if self.wait_exit(0):
            assert self._process is not None
            status = self._process.returncode
            message = f"the server ended by itself (exit status {status}){self._log_tail()}"
            raise SidecarError(message)

    def stop(self) -> None:
        """Ask it to drain and end; kill what does not. Idempotent."""
        if self._process is None:
            return
        try:
            if not self.wait_exit(0):
                self._process.terminate()
                self.wait_exit(STOP_TIMEOUT_S)
        finally:
            # Also after a second Ctrl-C, and for children that outlive their parent.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            if self._log is not None:
                self._log.close()

    def _log_tail(self, lines: int = 15) -> str:
        tail = self._log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
        return f"; the end of {self._log_path}:\n" + "\n".join(f"  {line}" for line in tail)
