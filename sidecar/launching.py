"""How the supervisor starts a process of ours: spawned, never forked, with a channel to it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sidecar.children import Launched

#: A worker's module.
WORKER = "sidecar.gateway.main"


def launch(module: str = WORKER) -> Launched:
    """Start a child's process: it imports what it needs, and waits to be told what to do."""
    ours, theirs = socket.socketpair()
    try:
        # The terminal's Ctrl-C reaches the whole group, and would end a worker that still imports
        # with a traceback: it inherits that SIGINT is blocked. The supervisor makes it a drain.
        with interrupts_held():
            process = subprocess.Popen(
                [sys.executable, "-m", module, str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=worker_environment(os.environ),
            )
    finally:
        theirs.close()
    return process, ours


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C wait until the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def discard(launched: Launched | None) -> None:
    """End a process that was started ahead and is not needed."""
    if launched is not None:
        process, channel = launched
        process.kill()
        process.wait()
        channel.close()


def worker_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """The workers' environment: ours, and defaults that keep a process small.

    numpy's OpenBLAS alone would start a thread and take 30 MB a core, for nothing that is on the
    request's path; glibc would keep an arena for each of many threads that do the same work. (What
    a runtime may use is a setting of the runtime.)
    """
    defaults = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "GRPC_VERBOSITY": "NONE"}
    return {**defaults, **ours}
