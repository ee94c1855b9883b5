"""The monitor's side of one deep run's process: spawned, watched, ended, and what it left.

A child that hangs, dies, takes too much or sends garbage is that run's failure, said in words; it
is never an exception of the monitor's.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import Any, Literal

import psutil

from sidecar.clock import Clock
from sidecar.frames import Frame, Receiver, send
from sidecar.monitor.deep import protocol
from sidecar.monitor.deep.job import Job
from sidecar.monitor.deep.results import GarbageError, checked

#: Behind the monitor and its mirrors (10), before nothing.
NICE = 15
#: Evidently 0.7 takes 280 MB to import. A limit on what comes after must not be met by that; an
#: import beyond this is none that is known.
IMPORT_BYTES_MAX = 2**30
_POLL_S = 0.05
_SEND_TIMEOUT_S = 30
_TAIL_BYTES = 2000

Failure = Literal["", "timeout", "memory", "crash", "garbage", "refused", "stopped", "start"]


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a run.

    Attributes:
        result: as ``results.checked`` gives it; ``None``: there is none.
        page: HTML, where one was made.
        failure: empty, or how the child ended before it had done everything; with a ``result`` it
            is the page that is missing.
        message: the same for people.
        seconds: from the spawn to the end.
        peak_bytes: resident, at most, as far as it was seen.
    """

    result: dict[str, Any] | None
    page: bytes | None
    failure: Failure
    message: str
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Limits:
    """``timeout_s``: of everything, from the spawn. ``memory_max_bytes``: above its start."""

    timeout_s: float
    memory_max_bytes: int


class DeepProcess:
    """One child, for one job. ``run`` once; ``stop`` ends it, from any thread."""

    def __init__(self, job: Job, limits: Limits, clock: Clock) -> None:
        self._job = job
        self._limits = limits
        self._clock = clock
        self._started_ns = clock.monotonic_ns()
        self._stopped = threading.Event()
        self._frames: queue.SimpleQueue[Frame | str] = queue.SimpleQueue()
        self._result: dict[str, Any] | None = None
        self._page: bytes | None = None
        self._note = ""
        self._peak = 0
        self._memory_max = IMPORT_BYTES_MAX

    def stop(self) -> None:
        """End it soon; ``run`` then returns."""
        self._stopped.set()

    def run(self) -> Ran:
        """Spawn it (never fork: this process has threads), wait, and end it whatever it does."""
        try:
            said = os.memfd_create("sidecar-deep-said", os.MFD_CLOEXEC)
        except OSError as error:
            return self._not_started(error)
        try:
            return self._run(said)
        finally:
            os.close(said)

    def _run(self, said: int) -> Ran:
        channel, theirs = socket.socketpair()
        # A child that does not read (stopped by a signal, say) must not hold this thread.
        timeout = struct.pack("ll", _SEND_TIMEOUT_S, 0)
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        try:
            process = self._spawn(theirs, said)
        except OSError as error:
            channel.close()
            return self._not_started(error)
        finally:
            theirs.close()
        # It ends with the channel, which is not later than the child's end.
        reader = threading.Thread(target=self._read, args=(channel,), daemon=True)
        reader.start()
        try:
            failure, message = self._watch(channel, process)
        finally:
            process.kill()
            process.wait()
            reader.join()
            channel.close()
        if failure == "crash":
            message += _last_words(said)
        return self._ran(failure, message)

    def _spawn(self, theirs: socket.socket, said: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                sys.executable, "-m", "sidecar.monitor.deep.child", str(theirs.fileno()),
                str(NICE),
            ],
            pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, stdout=said, stderr=said,
        )  # fmt: skip

    def _read(self, channel: socket.socket) -> None:
        receiver = Receiver(channel, max_bytes=protocol.ANSWER_BYTES_MAX)
        last = ""
        try:
            while (frame := receiver.receive()) is not None:
                self._frames.put(frame)
        except (ValueError, OSError) as error:
            last = str(error)
        finally:
            receiver.close()
        self._frames.put(last)

    def _watch(
        self, channel: socket.socket, process: subprocess.Popen[bytes]
    ) -> tuple[Failure, str]:
        """Until it has ended, or has to be; returns how."""
        resident = psutil.Process(process.pid) if psutil.pid_exists(process.pid) else None
        while True:
            try:
                frame = self._frames.get(timeout=_POLL_S)
            except queue.Empty:
                frame = None
            if isinstance(frame, str):
                return self._ended(process, frame)
            if frame is not None and (found := self._take(channel, frame)) is not None:
                return found
            if self._stopped.is_set():
                return "stopped", "it was ended, because the monitor ends"
            if (taken := _resident_bytes(resident)) > self._memory_max:
                return "memory", self._too_much(taken)
            self._peak = max(self._peak, taken)
            if self._seconds() > self._limits.timeout_s:
                limit = f"{self._limits.timeout_s:g} s (drift.deep.timeout_s)"
                return "timeout", f"it had not ended after {limit}, and was ended"

    def _take(self, channel: socket.socket, frame: Frame) -> tuple[Failure, str] | None:
        """A frame; returns how the run ends by it, ``None``: it goes on."""
        try:
            if frame.kind == protocol.READY:
                start = min(int(frame.fields["memory_bytes"]), IMPORT_BYTES_MAX)
                self._memory_max = start + self._limits.memory_max_bytes
                fields, parts = self._job.to_frame()
                send(channel, protocol.RUN, fields, parts, memfd_over=protocol.MEMFD_OVER)
            elif frame.kind == protocol.RESULT:
                self._result = checked(self._job, json.loads(bytes(frame.parts[0])))
            elif frame.kind == protocol.PAGE and "error" in frame.fields:
                self._note = f"no page was made: {frame.fields['error']}"
            elif frame.kind == protocol.PAGE:
                self._page = bytes(frame.parts[0])
            elif frame.kind == protocol.FAILED:
                return "refused", str(frame.fields["text"])
            else:
                return "garbage", f"it sent a frame of kind {frame.kind}, which there is not"
        except OSError:
            return None  # it is gone, as the reader tells next
        except (GarbageError, ValueError, LookupError, TypeError, RecursionError) as error:
            return "garbage", f"it sent what cannot be read: {error}"
        return None

    def _ended(self, process: subprocess.Popen[bytes], garbage: str) -> tuple[Failure, str]:
        if garbage and "ended within" not in garbage:
            return "garbage", f"it sent what cannot be read: {garbage}"
        try:
            code = process.wait(_SEND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return "crash", "it closed its channel and went on"
        if code == 0 and self._result is not None:
            return "", self._note
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        if code == -signal.SIGKILL:
            how += ": killed from outside, perhaps for want of memory"
        return "crash", f"it ended itself ({how})"

    def _too_much(self, taken: int) -> str:
        if self._memory_max == IMPORT_BYTES_MAX:
            return f"importing Evidently took {taken >> 20} MiB, and it was ended"
        start = (self._memory_max - self._limits.memory_max_bytes) >> 20
        return (
            f"it took {taken >> 20} MiB, which is over the {self._limits.memory_max_bytes >> 20} "
            f"MiB above its start ({start} MiB) that drift.deep.memory_max_bytes allows, and was "
            "ended"
        )

    def _not_started(self, error: OSError) -> Ran:
        return self._ran("start", f"its process could not be started: {error.strerror}")

    def _seconds(self) -> float:
        return (self._clock.monotonic_ns() - self._started_ns) / 1e9

    def _ran(self, failure: Failure, message: str) -> Ran:
        return Ran(self._result, self._page, failure, message, self._seconds(), self._peak)


def _resident_bytes(process: psutil.Process | None) -> int:
    try:
        return 0 if process is None else int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _last_words(said: int) -> str:
    """The last line that it wrote to its outputs; of a traceback that is the error."""
    size = os.fstat(said).st_size
    text = os.pread(said, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode("utf-8", "replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f": {lines[-1]}" if lines else ""
