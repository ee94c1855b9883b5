"""One life of the mirror child's process, as the monitor holds it: spawned, spoken to, ended."""

from __future__ import annotations

import logging
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import psutil

from sidecar.frames import Bytes, Frame, Receiver, send
from sidecar.monitor import mirror_protocol as protocol

logger = logging.getLogger("sidecar.monitor.mirror")

_POLL_S = 0.05
_SEND_TIMEOUT_S = 30


class Link:
    """A child that was just spawned (never forked: the parent has threads).

    Args:
        page_fd: of the shared page, which the child inherits.
        started_ns: monotonic.
    """

    def __init__(self, page_fd: int, started_ns: int) -> None:
        self.started_ns = started_ns
        self._frames: queue.SimpleQueue[Frame | None] = queue.SimpleQueue()
        self._channel, theirs = socket.socketpair()
        # A child that does not read (stopped by a signal, say) must not hold the monitor.
        timeout = struct.pack("ll", _SEND_TIMEOUT_S, 0)
        self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "sidecar.monitor.mirror_child", str(theirs.fileno()),
                    str(page_fd),
                ],
                pass_fds=(theirs.fileno(), page_fd),
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except BaseException:
            self._channel.close()
            raise
        finally:
            theirs.close()
        threading.Thread(target=self._read, name="mirror-reader", daemon=True).start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def send(self, kind: int, fields: Mapping[str, Any], parts: Sequence[Bytes] = ()) -> bool:
        """Send a frame; ``False``: it is gone, or does not read."""
        try:
            send(self._channel, kind, fields, parts)
        except OSError:
            return False
        return True

    def next(self) -> Frame | Literal["none", "ended"]:
        """Wait a moment for a frame: one, ``none`` yet, or it has ``ended``."""
        try:
            frame = self._frames.get(timeout=_POLL_S)
        except queue.Empty:
            return "none"
        return "ended" if frame is None else frame

    def how_it_ended(self) -> str:
        """For people, of one that has closed its channel."""
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            return "it closed its channel"
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def was_killed(self) -> bool:
        """Whether it was ended from outside, as a signal tells that no library raises by itself."""
        return self._process.poll() in {-signal.SIGKILL, -signal.SIGTERM}

    def resident_bytes(self) -> int:
        """Its memory; 0 when it is gone."""
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return 0

    def cpu_s(self) -> float:
        """Processor time it has used, seconds; 0 when it is gone and waited for."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def kill(self) -> None:
        """End it at once; from any thread."""
        if self._process.poll() is None:
            self._process.kill()

    def close(self) -> None:
        """End it, and free what is held."""
        self.kill()
        self._process.wait()
        self._channel.close()

    def _read(self) -> None:
        receiver = Receiver(self._channel, max_bytes=protocol.FRAME_BYTES_MAX)
        try:
            while (frame := receiver.receive()) is not None:
                self._frames.put(frame)
        except (ValueError, OSError) as error:
            # Cut off in the middle of a frame, by its death; or garbage, which is no better.
            logger.debug("the mirror child's channel ended: %s", error)
        self._frames.put(None)
