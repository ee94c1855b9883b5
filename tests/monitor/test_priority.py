"""Every thread of a process goes down, and none comes up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sidecar.monitor.priority import lower

CHILD = """
import threading
threads = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(3)]
for thread in threads:
    thread.start()
print("here", flush=True)
input()
"""


def levels(pid):
    return {
        os.getpriority(os.PRIO_PROCESS, int(entry.name))
        for entry in Path(f"/proc/{pid}/task").iterdir()
    }


def test_all_threads_go_down_and_none_comes_up():
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert child.stdout.readline() == b"here\n"
        assert len(list(Path(f"/proc/{child.pid}/task").iterdir())) == 4
        base = os.getpriority(os.PRIO_PROCESS, 0)
        lower([child.pid], base + 3)
        assert levels(child.pid) == {base + 3}
        lower([child.pid], base)
        assert levels(child.pid) == {base + 3}
    finally:
        child.communicate(b"\n", timeout=60)


def test_a_process_that_is_gone_is_nothing():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(60)
    lower([child.pid, 0], 19)
