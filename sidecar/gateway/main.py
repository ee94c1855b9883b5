"""A worker process: builds everything, serves, drains. Started by the supervisor, or alone."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
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
from sidecar.monitor.places import hooks_path, pages_dir, routes_path

if TYPE_CHECKING:
    from sidecar.config import SidecarConfig
    from sidecar.gateway.http import HttpServer
    from sidecar.gateway.logrecords import LogRecords
    from sidecar.hooks import Hooks

# By name: as the supervisor starts it this module is `__main__`, and below nothing of ours.
logger = logging.getLogger("sidecar.gateway.main")

#: How often the servers behind remote variants are asked for their readiness.
UPSTREAM_CHECK_S = 1.0
#: For what is left when all connections are gone (probes of the health listener), or cut.
_GRACE_S = 1.0
#: Drained by a hook, it waits so long for its SIGTERM: the hooks get their answers first.
STAY_S = 30.0
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

    def start_health(self, addresses: dict[str, str]) -> None:
        """Answer probes on the plaintext listener, if there is to be one: alive, not ready.

        Before the models are loaded: in a pod, the server behind a remote variant may be started
        only after this process has passed its start-up probe.
        """
        self._grpc.start_health(addresses)

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
        serving = self.gateway.server_ready() and not self.stop_requested.is_set()
        self._grpc.set_serving(serving=serving)
        # If not before: beside other workers, who listens for probes must be ready.
        return bound | self._grpc.start_health(addresses)

    def _repeat(self, transaction: str, command: dict[str, Any]) -> None:
        try:
            self.gateway.changes.prepare(transaction, command)
            self.gateway.changes.commit(transaction)
        except RequestError as error:
            # A client has removed its shared-memory object since, most likely. That is no reason
            # to serve nobody: requests that name it will be told.
            logger.warning("what was changed before cannot be repeated: %s", error)

    def run(self, on_drain: Callable[[], None] | None = None) -> None:
        """Watch over readiness until asked to stop, then drain; ``on_drain`` is told before."""
        while not self.stop_requested.wait(UPSTREAM_CHECK_S):
            self.gateway.check_upstreams()
            self._grpc.set_serving(serving=self.gateway.server_ready())
        if on_drain is not None:
            on_drain()
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


class _Alone:
    """A worker without a supervisor: its signals and its hooks, and when it may end.

    SIGTERM begins a drain, and never cuts one: kubelet, when it is itself started again, sends it
    once more, and after the grace period comes SIGKILL anyway. Who means it presses Ctrl-C.
    """

    def __init__(self, worker: Worker, config: SidecarConfig, base_dir: Path) -> None:
        self._worker = worker
        self._ready = threading.Event()
        self._told = threading.Event()
        self._hooks: Hooks | None = None
        self._hooks_address = ""
        if config.gateway.hooks is not None:
            from sidecar.hooks import Hooks

            self._hooks = Hooks(self._on_hook, config.gateway.drain)
            path = hooks_path(config, base_dir)
            self._hooks_address = self._hooks.start(config.gateway.hooks, path)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        # Before it is ready there is nothing to drain.
        cut = number == signal.SIGINT and self._worker.stop_requested.is_set()
        if cut or not self._ready.is_set():
            leave(0)
        self._told.set()
        self._worker.stop_requested.set()

    def _on_hook(self) -> None:
        self._worker.stop_requested.set()
        if not self._ready.is_set() and self._hooks is not None:
            self._hooks.over()  # it was never ready, so that nobody sends it anything

    def ready(self) -> dict[str, str]:
        """All is loaded; returns where hooks are answered, to be said with the other addresses."""
        self._ready.set()
        return {"hooks": self._hooks_address} if self._hooks is not None else {}

    def run(self) -> None:
        """Serve, drain, and stay until the hooks have their answers."""
        self._worker.run(on_drain=self._hooks.begun if self._hooks is not None else None)
        if self._hooks is not None:
            self._hooks.over()
            if not self._told.is_set():  # a hook began it: the signal follows
                self._told.wait(STAY_S)
            self._hooks.close()


def run(config: SidecarConfig, config_path: Path) -> NoReturn:
    """Serve alone, without a supervisor (a container of its own), and end the process.

    Args:
        config: what ``config_path`` says, for one worker.
        config_path: the file; paths in the configuration are relative to its folder.

    Raises:
        SidecarError: it could not start.
    """
    base_dir = config_path.parent.resolve()
    logs.configure(config.log)
    worker = Worker(config, own_pages(config, base_dir), _cores())
    addresses = _addresses(config)
    worker.start_health(addresses)
    alone = _Alone(worker, config, base_dir)
    worker.follow_routes(base_dir)
    worker.mirror(base_dir, 0)
    bound = worker.start(addresses, []) | alone.ready()
    from sidecar.announce import announce

    exchanges = None if worker.gateway.tap is None else worker.gateway.tap.path
    announce(bound, worker.copies(), workers=1, pids=[os.getpid()], exchanges=exchanges)
    if config.untold:
        logger.warning(config.untold)
    alone.run()
    leave(0)


def own_pages(config: SidecarConfig, base_dir: Path) -> list[Page] | None:
    """Of a worker without a supervisor: its page in a file, where a monitor may read it."""
    if not config.monitored:
        return None
    from sidecar.gateway.page_files import names_of, open_pages

    [descriptor] = open_pages(pages_dir(config, base_dir), names_of(config), 1)
    return [Page(descriptor, len(slots_of(config)), owner=True)]


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
        if boot["early_health"]:
            worker.start_health(boot["addresses"])
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
