"""The demo's last act: from some moment on the digits are turned, and the monitor is to notice."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sidecar.clock import Clock
from sidecar.demo.client import Client
from sidecar.demo.export import LABEL, LABELLED_FILE, VERSIONS
from sidecar.demo.load import Load, Target
from sidecar.demo.process import DRIFT_WINDOW_ROWS
from sidecar.demo.train import PIXEL_MAX, Split
from sidecar.demo.verdicts import MODEL
from sidecar.errors import SidecarError
from sidecar.monitor.client import MonitorCallError, MonitorClient
from sidecar.monitor.view_drift import DriftView
from sidecar.runtimes.base import Array

#: Degrees; by this much a person tilts a page without noticing.
TURNED_DEG = 20
LIMIT_S = 90.0
_REGISTER_TIMEOUT_S = 180
_POLL_S = 0.25
_SETTLE_S = 60.0
_CALL_TIMEOUT_S = 5.0
_SHOWN = 3
_OTHER_EXIT = "it ended with {}"


@dataclass(frozen=True, slots=True)
class Drifted:
    """What became of it.

    Attributes:
        before: the state on the digits as they are; ``windows_before``: judged until then.
        state: at the end.
        windows: judged since the digits are turned.
        after_s: seconds of turned digits until the alarm; ``None``: there was none.
        requests: turned digits sent.
        failures: of them without an answer.
        moved: columns in alarm, the highest score first, each with where it changed most.
        problem: why it could not be seen, empty otherwise.
    """

    before: str = ""
    windows_before: int = 0
    state: str = ""
    windows: int = 0
    after_s: float | None = None
    requests: int = 0
    failures: int = 0
    moved: tuple[tuple[str, str], ...] = ()
    problem: str = ""

    @property
    def is_good(self) -> bool:
        """No alarm without a cause, and one with it."""
        return self.before != "alarm" and self.state == "alarm" and not self.failures

    def in_words(self) -> list[str]:
        """The few lines that say it."""
        if self.problem:
            return [f"drift: {self.problem}"]
        calm = f"{self.windows_before} windows of {DRIFT_WINDOW_ROWS} digits as they are: "
        calm += self.before
        if self.after_s is None:
            return [f"drift: {calm}; digits turned by {TURNED_DEG}°: {self.state}, no alarm"]
        lines = [
            f"drift: {calm}; turned by {TURNED_DEG}°: alarm after {self.windows} windows "
            f"({self.after_s:.1f} s)"
        ]
        lines += [
            f"       {unit} moved{f': {where}' if where else ''}"
            for unit, where in self.moved[:_SHOWN]
        ]
        if len(self.moved) > _SHOWN:
            lines.append(f"       and {len(self.moved) - _SHOWN} more")
        return lines


def register(config: Path, output: Path) -> int:
    """Register the held-out digits as the reference, as a user would; return their number.

    Raises:
        SidecarError: with what the command said.
    """
    command = [
        "reference", str(config), "--model", MODEL, "--inputs", str(output / LABELLED_FILE),
        "--labels", LABEL, "--shuffle", "--json",
    ]  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "sidecar", *command], capture_output=True, text=True,
            timeout=_REGISTER_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        message = f"sidecar reference took longer than {_REGISTER_TIMEOUT_S} s"
        raise SidecarError(message) from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [_OTHER_EXIT.format(done.returncode)]
        message = f"the drift reference could not be registered: {said[-1]}"
        raise SidecarError(message)
    return int(json.loads(done.stdout)["rows"])


def turned(digits: Split, degrees: float = TURNED_DEG) -> Split:
    """The same digits, turned counter-clockwise about their middle; float32 [n, 1, 8, 8]."""
    from scipy import ndimage

    images: Array = ndimage.rotate(digits.images, degrees, axes=(3, 2), reshape=False, order=1)
    return replace(digits, images=np.clip(images, 0, PIXEL_MAX).astype(np.float32))


class DriftAct:
    """Sends turned digits until the monitor says that the traffic has changed.

    Args:
        monitor: address of its service.
        connect: as for ``Load``.
        say: prints a line.
    """

    def __init__(
        self,
        monitor: str,
        digits: Split,
        connect: Mapping[str, Callable[[], Client]],
        clock: Clock,
        say: Callable[[str], object],
    ) -> None:
        self._monitor, self._digits, self._connect = monitor, digits, connect
        self._clock, self._say = clock, say

    def run(self, in_flight: int) -> Drifted:
        """Do it; what keeps it from being seen is a ``problem``, never an exception."""
        with MonitorClient(self._monitor, timeout_s=_CALL_TIMEOUT_S) as client:
            try:
                self._settle(client)
                before = _look(client)
                if before.state == "not_watched":
                    return Drifted(problem=before.message)
                return self._watch(client, before, in_flight)
            except MonitorCallError as error:
                return Drifted(problem=f"the monitor did not answer: {error}")

    def _settle(self, client: MonitorClient) -> None:
        """Until the monitor has worked off the digits as they are: it may be seconds behind."""
        give_up_ns = self._clock.monotonic_ns() + int(_SETTLE_S * 1e9)
        pause = threading.Event()
        while self._clock.monotonic_ns() < give_up_ns:
            if client.status().coverage.queue_bytes == 0:
                return
            pause.wait(_POLL_S)

    def _watch(self, client: MonitorClient, before: DriftView, in_flight: int) -> Drifted:
        start_ns = self._clock.monotonic_ns()
        seen = before
        load = Load(
            [Target(MODEL, VERSIONS[-1], "onnx")], turned(self._digits), self._connect,
            in_flight=in_flight, seconds=0, limit_s=LIMIT_S, clock=self._clock,
            is_enough=lambda: seen.state == "alarm",
        )  # fmt: skip
        load.start()
        try:
            told = before.windows
            while not load.wait(_POLL_S):
                seen = _look(client)
                if seen.windows != told:
                    told = seen.windows
                    self._say(f"  turned digits: window {told - before.windows}: {seen.state}")
        finally:
            load.stop()
        (tally,) = load.snapshot().values()
        alarmed = seen.state == "alarm"
        moved = [unit for unit in seen.units if unit.state == "alarm"]
        moved.sort(key=lambda unit: -unit.score)
        return Drifted(
            before=before.state,
            windows_before=before.windows,
            state=seen.state,
            windows=seen.windows - before.windows,
            after_s=(self._clock.monotonic_ns() - start_ns) / 1e9 if alarmed else None,
            requests=sum(tally.requests.values()),
            failures=tally.failures,
            moved=tuple((unit.unit, unit.detail) for unit in moved),
        )


def _look(client: MonitorClient) -> DriftView:
    (view,) = client.drift(MODEL)
    return view
