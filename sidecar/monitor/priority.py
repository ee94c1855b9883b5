"""The priority of processes: on Linux it belongs to each thread, and new ones inherit it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

#: A thread that is made while this looks is seen by the next look; a few are always enough.
_LOOKS_MAX = 10


def lower(pids: Iterable[int], nice: int) -> None:
    """Lower every thread of these processes to ``nice`` (0 to 19), never raise one.

    Processes and threads that are gone, or may not be changed, are left as they are.
    """
    for pid in pids:
        done: set[int] = set()
        for _ in range(_LOOKS_MAX):
            threads = _threads(pid) - done
            if not threads:
                break
            for thread in threads:
                _lower_one(thread, nice)
            done |= threads


def _threads(pid: int) -> set[int]:
    try:
        return {int(entry.name) for entry in Path(f"/proc/{pid}/task").iterdir()}
    except OSError:
        return set()


def _lower_one(thread: int, nice: int) -> None:
    try:
        if os.getpriority(os.PRIO_PROCESS, thread) < nice:
            os.setpriority(os.PRIO_PROCESS, thread, nice)
    except OSError:
        return
