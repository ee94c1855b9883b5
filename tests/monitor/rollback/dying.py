"""A process that decides to roll back, and is killed at a moment that the test names."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from typing_extensions import override

from sidecar.monitor.rollback.store import RollbackTables
from tests.monitor.rollback.bench import Bench, Clock, Lever


class FileLever(Lever):
    """One whose position and calls lie in a folder, for processes to share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._is_made = False
        super().__init__()
        self._is_made = True

    @property
    def at(self) -> str:
        path = self._folder / "lever"
        return path.read_text() if path.exists() else "new"

    @at.setter
    def at(self, value: str) -> None:
        if self._is_made:  # where it is, it stays over restarts
            (self._folder / "lever").write_text(value)
            with (self._folder / "moved").open("a") as file:
                file.write(f"{value}\n")

    @override
    def perform(self, request):
        if self.at == "previous":  # as every action: by the decision it knows that it was done
            self._called("perform", request)
            return super().verify(request)
        return super().perform(request)

    @property
    def moves(self) -> list[str]:
        path = self._folder / "moved"
        return path.read_text().split() if path.exists() else []


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, gap: str) -> None:
    lever = FileLever(folder)
    bench = Bench(folder / "state", Clock(), lever)
    lever.dies = lambda step: die() if step == gap else None
    if gap == "deciding":  # the decision and the alerts are written, and not committed
        write = bench.outbox.put

        def put(connection, alerts):
            write(connection, alerts)
            die()

        bench.outbox.put = put
    if gap == "verified":
        move = RollbackTables._move

        def moving(self, connection, before, after):
            made = move(self, connection, before, after)
            if after.action_state == "done":
                die()
            return made

        RollbackTables._move = moving
    bench.pairs(2000, new_only=60)
    bench.evidence.flush(bench.store)
    bench.check()
    if gap == "decided":
        die()
    bench.act(4)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
