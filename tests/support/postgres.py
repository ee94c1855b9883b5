"""A real PostgreSQL server on loopback, in a folder of its own, for tests and benchmarks.

It refuses to run as root: then it runs as the user ``postgres``, whom Debian's package makes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_port

_READY_WITHIN_S = 60.0


def binaries() -> Path | None:
    """The folder of the newest server that is installed; ``None``: there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=_major)
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).parent if on_path else None


def _major(path: Path) -> int:
    name = path.parents[1].name
    return int(name) if name.isdigit() else 0


class PostgresServer:
    """One server; ``start`` and ``stop`` any number of times, the data stay."""

    def __init__(self, folder: Path) -> None:
        found = binaries()
        assert found is not None, "PostgreSQL is not installed (Debian: apt install postgresql)"
        self._bin = found
        self._folder = folder
        self._data = folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._as = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self._as:
            shutil.chown(folder, "postgres")
        self._call("initdb", "-D", str(self._data), "-U", "sidecar", "-A", "trust", "-E", "UTF8",
                   "--no-sync", "--locale=C")  # fmt: skip

    def _call(self, name: str, *arguments: str) -> None:
        done = subprocess.run(
            [*self._as, str(self._bin / name), *arguments], capture_output=True, text=True,
            check=False, cwd=self._folder,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr

    def url(self, database: str = "postgres") -> str:
        """As ``monitor.store.url`` takes it."""
        return f"postgresql://sidecar@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Returns when it answers."""
        log = (self._folder / "log").open("ab")
        self._process = subprocess.Popen(
            [*self._as, str(self._bin / "postgres"), "-D", str(self._data), "-p", str(self.port),
             "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
             "-c", "max_connections=200"],
            stdout=log, stderr=log, cwd=self._folder,
        )  # fmt: skip
        log.close()
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline:
            ready = subprocess.run(
                [str(self._bin / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"],
                check=False,
            )
            if ready.returncode == 0:
                return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.05)
        raise AssertionError((self._folder / "log").read_text())

    def make(self, database: str) -> str:
        """Make an empty database; returns its URL."""
        import psycopg

        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')  # type: ignore[call-overload]
        return self.url(database)

    def _postmaster(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split("\n", 1)[0])

    def stop(self, *, how: signal.Signals = signal.SIGINT) -> None:
        """``SIGINT``: cut all connections; ``SIGQUIT``: as if it crashed. Idempotent."""
        if self._process is None:
            return
        if self._process.poll() is None:
            os.kill(self._postmaster(), how)
        self._process.wait(_READY_WITHIN_S)
        self._process = None

    def pause(self) -> None:
        """Let every process of it stand still: connections stay, and nobody answers."""
        self._signal_all(signal.SIGSTOP)

    def resume(self) -> None:
        """The inverse of ``pause``."""
        assert self._process is not None
        # ``runuser`` stands still with what it has started, and would never hear of its end.
        self._process.send_signal(signal.SIGCONT)
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        import psutil

        parent = psutil.Process(self._postmaster())
        for process in (parent, *parent.children(recursive=True)):
            process.send_signal(number)


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server in a folder of its own, which goes with it."""
    folder = Path(tempfile.mkdtemp(prefix="sidecar-postgres-"))
    try:
        server = PostgresServer(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
