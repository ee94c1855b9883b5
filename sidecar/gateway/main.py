"""A worker process: builds everything, serves, drains. Started by the supervisor, or alone."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from sidecar import config_plain, logs
from sidecar.control import Connection
from sidecar.errors import ConfigError, RequestError, SidecarError
from sidecar.gateway import listener, tracing
from sidecar.gateway.changes import SupervisedControl
from sidecar.gateway.core import Gateway
from sidecar.gateway.grpc_server import GrpcServers
from sidecar.gateway.pages import Page
from sidecar.gateway.registry import slots_of
from sidecar.gateway.route_follower import RouteFollower
from sidecar.gateway.tracefile import TraceWriter
from sidecar.gateway.tracing import Tracing
from sidecar.monitor.places import routes_path

if TYPE_CHECKING:
    from sidecar.config import SidecarConfig
    from sidecar.gateway.http import HttpServer
    from sidecar.gateway.logrecords import LogRecords

# By name: as the supervisor starts it this module is `__main__`, and below nothing of ours.
logger = logging.getLogger("sidecar.gateway.main")

#: How often the servers behind remote variants are asked for their readiness.
UPSTREAM_CHECK_S = 1.0
#: For what is left when all connections are gone (probes of the health listener), or cut.
_GRACE_S = 1.0
#: As the configuration bounds ``gateway.workers``: a page of each comes over the channel.
MAX_WORKERS = 256


class Worker:
    """One gateway process: listeners around a core, and the order in which they stop."""

    def __init__(self, config: SidecarConfig, pages: list[Page] | None, cores: int) -> None:
        self.config = config
        self.gateway = Gateway(config, pages, cores=cores)
        self.stop_requested = threading.Event()
        self._grpc = GrpcServers(self.gateway, config.gateway)
        self._http: HttpServer | None = None
        self._trace = TraceWriter(config.gateway.trace, self.gateway)
        self._grpc_addresses: list[str] = []
        self._logs: LogRecords | None = None
        self._routes: RouteFollower | None = None

    def follow_routes(self, base_dir: Path) -> None:
        """Read the route table, before anything is loaded and served by another one.

        Args:
            base_dir: the folder of the config's file.
        """
        path = routes_path(self.config, base_dir)
        store = self.config.monitor.store if self.config.monitored else None
        wait_s = None if store is None else store.route_wait_s
        self._routes = RouteFollower(path, self.gateway.registry, self.gateway.page, wait_s)
        self._routes.look()

    def mirror(self, base_dir: Path, index: int) -> None:
        """Hand the monitor a sample of what is answered, spans and log records, as configured.

        Args:
            base_dir: the folder of the config's file.
            index: this worker's, among those of one ``serve``.
        """
        config, wanted = self.config, self.config.tracing
        if not (config.monitored or wanted["on"] or wanted["logs"]):
            return  # and nothing is imported for it
        from sidecar.gateway.aside import Aside
        from sidecar.gateway.backlog import Told
        from sidecar.gateway.tap import Tap
        from sidecar.monitor.places import socket_path
        from sidecar.monitor.sampled import sampled_models

        gateway = self.gateway
        told = Told(gateway.page, spans=wanted["on"], logs=wanted["logs"])
        if told.spans is not None:
            gateway.tracing = Tracing(wanted, told.spans, gateway.clock)
            logs.follow(tracing.current)
        gateway.tap = Tap(
            socket_path(config, base_dir), config.monitor, gateway.page, gateway.clock, index,
            sampled_models(config), told,
        )  # fmt: skip
        aside = gateway.tap.aside = Aside(gateway.registry, gateway.page, self._routes)
        if self._routes is not None:
            self._routes.on_change = aside.changed
        if told.logs is not None:
            from sidecar.gateway.logrecords import LogRecords

            self._logs = LogRecords(told.logs)
            self._logs.attach()
        gateway.tap.start()

    def start(self, addresses: dict[str, str], state: list[dict[str, Any]]) -> dict[str, str]:
        """Load the models, repeat what was changed at run time, listen; return real addresses.

        Readiness is true only after that: no traffic meets a model that is not warm.
        """
        unloaded = frozenset(c["model"] for c in state if c["op"] == "unload")
        self.gateway.load_all(skip=unloaded)
        for number, command in enumerate(state):
            if command["op"] != "unload":
                self._repeat(f"boot-{number}", command)
        self.gateway.check_upstreams()
        if self._routes is not None:
            self._routes.await_table(self.stop_requested)
        bound = self._grpc.start(addresses)
        self._grpc_addresses = [bound[name] for name in ("grpc", "admin") if name in bound]
        if self.config.gateway.http is not None:
            from sidecar.gateway.http import HttpServer  # 3 MB, for who wants it

            self._http = HttpServer(self.config.gateway, self.gateway)
            bound["http"] = self._http.start(addresses["http"])
        self._trace.start()
        if self._routes is not None:
            self._routes.start()
        # What lives now lives on: keeping it out of every later collection saves its walk.
        gc.collect()
        gc.freeze()
        self._grpc.set_serving(serving=self.gateway.server_ready())
        return bound

    def _repeat(self, transaction: str, command: dict[str, Any]) -> None:
        try:
            self.gateway.changes.prepare(transaction, command)
            self.gateway.changes.commit(transaction)
        except RequestError as error:
            # A client has removed its shared-memory object since, most likely. That is no reason
            # to serve nobody: requests that name it will be told.
            logger.warning("what was changed before cannot be repeated: %s", error)

    def run(self) -> None:
        """Watch over readiness until asked to stop, then drain."""
        while not self.stop_requested.wait(UPSTREAM_CHECK_S):
            self.gateway.check_upstreams()
            self._grpc.set_serving(serving=self.gateway.server_ready())
        self.drain()

    def drain(self) -> None:
        """Stop so that no request fails.

        Readiness goes first, so that balancers send elsewhere, while everything is still accepted
        (``drain.delay_s``). Then nobody new gets in, and the connections that exist, which keep
        sending whatever readiness says, are each asked to go when they reach
        ``max_connection_age``. The server is stopped when none is left, or the time is over.
        """
        drain = self.config.gateway.drain
        clock = self.gateway.clock
        start = clock.monotonic_ns()
        end = start + int(max(drain.timeout_s, drain.delay_s) * 1e9)
        pause = threading.Event()
        self.gateway.draining = True
        self._grpc.set_serving(serving=False)
        if self._http is not None:
            self._http.drain()
        logger.info("draining: not ready any more; accepting for another %g s", drain.delay_s)
        pause.wait(drain.delay_s)
        try:
            listener.stop_listening(self._grpc_addresses)
        except OSError:  # no file descriptors left, say: then they are closed with the server
            logger.exception("the listeners could not be closed ahead")
        while (open_now := self._connections()) > 0:
            if clock.monotonic_ns() >= end:
                logger.warning("draining took too long: %d connections are cut", open_now)
                break
            pause.wait(0.05)
        if self._http is not None:
            self._http.stop(timeout_s=max(_GRACE_S, (end - clock.monotonic_ns()) / 1e9))
        self._grpc.stop(_GRACE_S)
        self._trace.stop()
        if self._routes is not None:
            self._routes.stop()
        if self._logs is not None:
            self._logs.detach()
        self.gateway.close()
        logger.info("drained in %.1f s", (clock.monotonic_ns() - start) / 1e9)

    def _connections(self) -> int:
        try:
            return listener.connections(self._grpc_addresses)
        except OSError:
            return 1  # not known: the drain's time limit decides

    def copies(self) -> list[dict[str, Any]]:
        """What is loaded, for people."""
        rows: list[dict[str, Any]] = []
        for name, entry in self.gateway.registry.entries.items():
            for copy in entry.loaded:
                placement = copy.runtime.placement
                rows.append(
                    {
                        "model": name,
                        "variant": copy.config.key,
                        "kind": copy.config.runtime.kind,
                        "roles": list(copy.config.roles),
                        "default": copy.version == entry.default_version
                        and copy.version in entry.serving
                        and entry.serving[copy.version] is copy,
                        "device": placement.device,
                        "memory_bytes": placement.memory_bytes,
                        "details": dict(placement.details),
                    }
                )
        return rows


def _addresses(config: SidecarConfig) -> dict[str, str]:
    gateway = config.gateway
    addresses = {"grpc": gateway.grpc.address}
    if gateway.http is not None:
        addresses["http"] = gateway.http.address
    if gateway.health is not None:
        addresses["health"] = gateway.health
    if gateway.admin.address is not None:
        addresses["admin"] = gateway.admin.address
    return addresses


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def leave(code: int) -> NoReturn:
    """End this process, drained as it is.

    Not an ordinary exit: that waits for threads, and a runtime's thread that hangs in a library
    must not keep a drained process alive.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run(config_path: Path) -> NoReturn:
    """Serve alone, without a supervisor (a container of its own), and end the process.

    Raises:
        SidecarError: it could not start.
    """
    from sidecar.config import load

    config = load(config_path)
    logs.configure(config.log)
    worker = Worker(config, None, _cores())
    worker.follow_routes(config_path.parent.resolve())
    worker.mirror(config_path.parent.resolve(), 0)
    ready = threading.Event()

    def on_signal(*_: object) -> None:
        # Before it is ready there is nothing to drain; a second signal means it.
        if not ready.is_set() or worker.stop_requested.is_set():
            leave(0)
        worker.stop_requested.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    bound = worker.start(_addresses(config), [])
    ready.set()
    from sidecar.announce import announce

    exchanges = None if worker.gateway.tap is None else worker.gateway.tap.path
    announce(bound, worker.copies(), workers=1, pids=[os.getpid()], exchanges=exchanges)
    if config.untold:
        logger.warning(config.untold)
    worker.run()
    leave(0)


def run_supervised(control_fd: int) -> int:
    """Serve under a supervisor, which says over the control channel what to serve and where."""
    # The terminal's Ctrl-C reaches the whole group; the supervisor turns it into a drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=control_fd)
    started, page_fds, _, _ = socket.recv_fds(channel, 1, MAX_WORKERS)
    connection = Connection(channel)
    boot = connection.receive() if started else None
    if boot is None:
        return 1  # the configuration was wrong, and the supervisor has said so
    try:
        base_dir = Path(boot["base_dir"])
        config: SidecarConfig = config_plain.unpack(boot["config"])
        logs.configure(config.log)
        slots = len(slots_of(config))
        pages = [Page(fd, slots, owner=index == 0) for index, fd in enumerate(page_fds)]
        worker = Worker(config, pages, _cores())
        worker.follow_routes(base_dir)
        worker.mirror(base_dir, boot["index"])
        signal.signal(signal.SIGTERM, lambda *_: worker.stop_requested.set())
        control = SupervisedControl(connection, worker.gateway.changes, worker.stop_requested.set)
        worker.gateway.control = control
        bound = worker.start(boot["addresses"], boot["state"])
    except SidecarError as error:
        code = 2 if isinstance(error, ConfigError) else 1  # as the command line ends
        connection.send({"type": "failed", "message": str(error), "code": code})
        return code
    connection.send({"type": "ready", "addresses": bound, "copies": worker.copies()})
    control.start()
    worker.run()
    return 0


def main(arguments: list[str]) -> None:
    """``python -m sidecar.gateway.main CONTROL_FD``: how the supervisor starts a worker."""
    code = run_supervised(int(arguments[0]))
    leave(code)


if __name__ == "__main__":
    main(sys.argv[1:])
