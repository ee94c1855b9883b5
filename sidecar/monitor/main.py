"""The monitor's process: started by the supervisor, or alone (a container of its own)."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sidecar import logs
from sidecar.children import receive_descriptors
from sidecar.clock import SystemClock
from sidecar.config import SidecarConfig, load, parse
from sidecar.control import Connection
from sidecar.errors import ConfigError, MissingExtraError, Problem, SidecarError
from sidecar.gateway.page_files import PageFiles, names_of
from sidecar.gateway.pages import Page
from sidecar.monitor import places, priority
from sidecar.monitor.health import probed
from sidecar.monitor.mirror import Stopped

if TYPE_CHECKING:
    from sidecar.monitor.monitor import Monitor

# By name: as the supervisor starts it this module is `__main__`.
logger = logging.getLogger("sidecar.monitor.main")

#: After which a process that was asked to end ends, whatever hangs in it.
_END_WITHIN_S = 8.0


def leave(code: int) -> NoReturn:
    """End this process, closed as it is: a thread that hangs in a library must not keep it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _make(
    config: SidecarConfig,
    base_dir: Path,
    source: str,
    pages: Sequence[Page] | PageFiles = (),
    serve_started_ns: int = 0,
) -> Monitor:
    try:
        from sidecar.monitor.monitor import Monitor
    except ModuleNotFoundError as error:
        message = f"the monitor needs {error.name}, which is not installed: install "
        message += "model-sidecar[monitor], or set monitor.enabled: false"
        raise MissingExtraError(message) from None
    clock = SystemClock()
    return Monitor(config, base_dir, source, clock, pages=pages, serve_started_ns=serve_started_ns)


def map_pages(descriptors: Sequence[int], config: SidecarConfig) -> list[Page]:
    """The gateway's pages, for reading only; the descriptors are closed.

    Without them nothing is told of requests, and everything else goes on.
    """
    slots = sum(len(model.variants) for model in config.models)
    pages: list[Page] = []
    try:
        pages += [Page(descriptor, slots, read_only=True) for descriptor in descriptors]
    except (OSError, ValueError) as error:
        logger.error("the gateway's counts cannot be read, and are not told: %s", error)
        for page in pages:
            page.close()
        pages.clear()
    finally:
        for descriptor in descriptors:
            os.close(descriptor)  # the mapping keeps the page
    return pages


def _be_nice(config: SidecarConfig, child_pid: int = 0) -> None:
    """Lower the priority of this process and of its mirror child; who is started later inherits it.

    Not before it is ready: where the processors are all taken, importing and loading copies at a
    low priority can take minutes, and meanwhile nothing is watched. A monitor that is started
    *again* is low from the beginning: one that fails over and over must not hold serving up.
    """
    priority.lower([pid for pid in (os.getpid(), child_pid) if pid], config.monitor.mirror.nice)


def _ask_to_stop(monitor: Monitor) -> None:
    """Begin to end; a second time, or when it takes too long, at once."""
    if monitor.stop_requested.is_set():
        leave(0)
    monitor.stop_requested.set()
    timer = threading.Timer(_END_WITHIN_S, leave, (1,))
    timer.daemon = True
    timer.start()


def run(config_path: Path) -> int:
    """Watch alone, without a supervisor; returns the exit code.

    Raises:
        SidecarError: it could not start.
    """
    config = load(config_path, reader="monitor")
    if not config.monitored:
        message = config.untold or (
            "no variant is a reference, a mirror, a previous version or a candidate, so there is "
            "nothing to compare, no model is watched for drift or has route.shares, and nothing is "
            "to be told through OpenTelemetry; give one such a role, set drift.enabled: true of a "
            "model, set telemetry, or set monitor.enabled: true"
        )
        raise ConfigError(str(config_path), [Problem("monitor", message)])
    logs.configure(config.log)
    base_dir = config_path.parent.resolve()
    health = probed(config)
    pages = PageFiles(places.pages_dir(config, base_dir), names_of(config))
    monitor = _make(config, base_dir, str(config_path), pages)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _ask_to_stop(monitor))
    try:
        bound = monitor.start(config.monitor.grpc, config.monitor.http) | health.watches()
    except Stopped:
        monitor.close()
        return 0
    except BaseException:
        monitor.close()
        raise
    _be_nice(config, monitor.child_pid)
    for row in monitor.copies():
        where = row["error"] or row["device"] or "its signature only"
        logger.info("copy of %s:%s: %s", row["model"], row["variant"], where)
    lines = [f"monitor (gRPC): {bound['grpc']}", f"samples: {bound['socket']}"]
    lines += [f"monitor (HTTP): {bound['http']}"] if "http" in bound else []
    lines += [f"monitor (health): {bound['health']}"] if "health" in bound else []
    lines += [*monitor.telling.lines(), f"ready: pid {os.getpid()}"]
    print("\n".join(lines), file=sys.stderr, flush=True)  # noqa: T201 - this is the output
    monitor.run()
    return 0


def run_supervised(control_fd: int) -> int:
    """Watch under a supervisor, and end when it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the supervisor's
    channel = socket.socket(fileno=control_fd)
    descriptors = receive_descriptors(channel)
    connection = Connection(channel)
    boot = connection.receive()
    if boot is None:
        return 1
    monitor: Monitor | None = None
    try:
        base_dir = Path(boot["base_dir"])
        config = parse(boot["tree"], source=boot["source"], base_dir=base_dir)
        logs.configure(config.log)
        health = probed(config)
        if boot["again"]:
            _be_nice(config)
        pages = map_pages(descriptors, config)
        since_ns = boot["serve_started_ns"]
        monitor = started = _make(config, base_dir, boot["source"], pages, since_ns)
        signal.signal(signal.SIGTERM, lambda *_: _ask_to_stop(started))
        threading.Thread(
            target=_watch, args=(connection, monitor), name="supervisor", daemon=True
        ).start()
        addresses = boot["addresses"]
        # After a restart: where it listened before.
        bound = monitor.start(addresses["grpc"], addresses.get("http") or config.monitor.http)
        health.watches()
    except Stopped:
        assert monitor is not None
        monitor.close()
        return 0
    except SidecarError as error:
        code = 2 if isinstance(error, ConfigError) else 1  # as the command line ends
        with contextlib.suppress(OSError):
            connection.send({"type": "failed", "message": str(error), "code": code})
        if monitor is not None:
            monitor.close()
        return code
    _be_nice(config, monitor.child_pid)
    ready = {
        "type": "ready", "addresses": bound, "copies": monitor.copies(),
        "telemetry": monitor.telling.lines(),
    }  # fmt: skip
    with contextlib.suppress(OSError):  # it is gone, which the thread that watches it sees
        connection.send(ready)
    monitor.run()
    return 0


def _watch(connection: Connection, monitor: Monitor) -> None:
    """Thread: end when the supervisor is gone."""
    while connection.receive() is not None:
        pass
    if not monitor.stop_requested.is_set():
        logger.warning("the supervisor is gone; the monitor ends")
        _ask_to_stop(monitor)


def main(arguments: list[str]) -> None:
    """``python -m sidecar.monitor.main CONTROL_FD``: how the supervisor starts it."""
    leave(run_supervised(int(arguments[0])))


if __name__ == "__main__":
    main(sys.argv[1:])
