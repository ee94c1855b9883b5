"""The process of one deep run: imports Evidently, tests, answers, ends.

``python -m sidecar.monitor.deep.child CHANNEL_FD NICE``, spawned by ``process.py``. It has no
business on the network, gives way to everything else, and is the first to go when memory is short.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sidecar.monitor.deep import protocol

if TYPE_CHECKING:
    from sidecar.monitor.deep.job import Job

_PR_SET_PDEATHSIG = 1
#: Of the kernel's choice whom to end for want of memory, −1000 … 1000.
_OOM_SCORE = "900"
_TEXT_CHARACTERS_MAX = 2000
#: Calls by which a library would reach another machine.
_REACHING = frozenset(
    {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
)


def _stay_here(event: str, _arguments: tuple[Any, ...]) -> None:
    """Audit hook: Evidently can send usage data; a monitor's child must not, whatever is set."""
    if event in _REACHING:
        message = "a deep drift run has no business on the network"
        raise PermissionError(message)


def _be_modest(nice: int) -> None:
    with contextlib.suppress(OSError):
        os.nice(max(0, nice - os.getpriority(os.PRIO_PROCESS, 0)))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE, encoding="ascii")
    # What it writes lies in memory that is nobody's resident set: the answer, and its complaints.
    _limit(resource.RLIMIT_FSIZE, protocol.ANSWER_BYTES_MAX)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(what: int, most: int) -> None:
    hard = resource.getrlimit(what)[1]
    soft = most if hard == resource.RLIM_INFINITY else min(most, hard)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(what, (soft, soft))


def _pages(field: int) -> int:
    """Of ``/proc/self/statm``, bytes: 0 the address space, 1 the resident set."""
    text = Path("/proc/self/statm").read_text(encoding="ascii")
    return int(text.split()[field]) * resource.getpagesize()


def _answer(channel: socket.socket, job: Job) -> None:
    from sidecar.frames import send
    from sidecar.monitor.deep import stattests
    from sidecar.monitor.deep.results import page_heading, to_plain

    found = stattests.calibrate(job, time.monotonic)
    tested = stattests.judge(job, found.thresholds)
    plain = to_plain(job, tested, found)
    result = json.dumps(plain, allow_nan=False).encode()
    # Before the page, which takes longer than everything else and may not be done in time.
    send(channel, protocol.RESULT, {}, [result], memfd_over=protocol.MEMFD_OVER)
    wanted = job.options.page
    if wanted == "never" or (wanted == "on_drift" and not any(one.drifted for one in tested)):
        return
    try:
        from sidecar.monitor.deep.page import make_page

        page = make_page(job, tested, page_heading(job, plain)).encode()
    except Exception as error:  # noqa: BLE001 - the verdicts stand without a picture
        send(channel, protocol.PAGE, {"error": _described(error)})
        return
    send(channel, protocol.PAGE, {}, [page], memfd_over=protocol.MEMFD_OVER)


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:_TEXT_CHARACTERS_MAX]


def _serve(channel: socket.socket) -> None:
    from sidecar.frames import Receiver, send

    def failed(text: str) -> None:
        send(channel, protocol.FAILED, {"text": text[:_TEXT_CHARACTERS_MAX]})

    try:
        from sidecar.monitor.deep import stattests
        from sidecar.monitor.deep.job import Job
    except Exception as error:  # noqa: BLE001 - whatever an installation is broken by
        failed(f"Evidently cannot be imported ({_described(error)})")
        return
    del stattests
    send(channel, protocol.READY, {"memory_bytes": _pages(1)})
    frame = Receiver(channel, max_bytes=protocol.JOB_BYTES_MAX).receive()
    if frame is None or frame.kind != protocol.RUN:
        return
    fields: Mapping[str, Any] = frame.fields
    job = Job.from_frame(fields, frame.parts)
    # Beside the monitor's look at what is resident: a single large allocation is faster than that.
    _limit(resource.RLIMIT_AS, _pages(0) + job.options.memory_max_bytes)
    try:
        _answer(channel, job)
    except MemoryError:
        failed("it took more memory than drift.deep.memory_max_bytes allows")
    except Exception as error:  # noqa: BLE001 - a library may raise anything
        failed(_described(error))


def main(arguments: list[str]) -> None:
    """``python -m sidecar.monitor.deep.child CHANNEL_FD NICE``."""
    parent = os.getppid()
    # A test that hangs in C would never see that the monitor is gone.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before that was asked for
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's
    _be_modest(int(arguments[1]))
    sys.addaudithook(_stay_here)
    os.environ["DO_NOT_TRACK"] = "1"
    warnings.simplefilter("ignore")  # of what it tests: counted and said in the result instead
    channel = socket.socket(fileno=int(arguments[0]))
    with contextlib.suppress(OSError):  # the monitor is gone, or has ended waiting
        _serve(channel)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
