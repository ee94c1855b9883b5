"""``sidecar serve``: starts the workers, restarts them, carries changes to all of them, ends them.

Thin on purpose: no grpc, no runtime, so that it starts at once, weighs little, and nothing that
crashes a worker can crash it. One thread, one selector; workers are spawned, never forked.
"""

from __future__ import annotations

import selectors
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from sidecar.children import Launched, how_it_ended
from sidecar.config_plain import pack
from sidecar.control import Message, encode
from sidecar.launching import discard, interrupts_held, launch
from sidecar.reserving import reserve
from sidecar.transactions import Transactions, Worker

if TYPE_CHECKING:
    from sidecar.hooks import Hooks
    from sidecar.supervised_monitor import SupervisedMonitor

#: Beside the numbers of signals, on the same socket: a hook wants the drain to begin.
_ASKED = 0
#: Drained by a hook, it waits so long for its SIGTERM: the hooks get their answers first.
STAY_S = 30.0


class Supervisor:
    """Owns the workers of one ``serve``.

    Args:
        tree: the configuration as plain values, checked already; the monitor gets this very tree,
            so that one restarted later does not read a file that was changed meanwhile.
        config: the same, typed; workers get it, as ``config_plain`` hands it on.
        source: where it came from.
        prespawned: a worker's process that was started ahead.
        alone: no monitor is started: it is in a container of its own.
    """

    def __init__(
        self,
        tree: Any,
        config: Any,
        source: Path,
        prespawned: Launched | None = None,
        *,
        alone: bool = False,
    ) -> None:
        self._prespawned = prespawned
        self._tree = tree
        self._config = config
        self._packed = pack(config)
        self._source = source
        self._selector = selectors.DefaultSelector()
        self._workers = [Worker(index) for index in range(config.gateway.workers)]
        self._pages: list[int] = []
        self._reserved: list[socket.socket] = []
        self._addresses: dict[str, str] = {}
        self._transactions = Transactions(self._workers, self._send)
        self._alone = alone
        self._monitor = self._make_monitor()
        self._hooks: Hooks | None = None
        self._hooks_address = ""
        self._announced = False
        self._stopping = False
        self._by_hook = False  # the drain was begun by one, and no signal to end has come yet
        self._stay_until_s: float | None = None  # monotonic; then it ends without that signal
        self._failed: str | None = None
        self._exit_code = 0
        self._on_ready: Callable[[dict[str, str], list[dict[str, Any]]], None] = self._announce

    # --- life -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until a signal; returns the exit code."""
        wake_read, self._wake = socket.socketpair()
        for end in (wake_read, self._wake):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        self._selector.register(wake_read, selectors.EVENT_READ, None)
        self._make_pages()
        try:
            self._addresses, self._reserved = reserve(self._config.gateway, self._source)
            self._start_hooks()
        except BaseException:
            discard(self._prespawned)
            raise
        for worker in self._workers:
            self._spawn(worker)
        self._start_monitor_ahead()
        while (
            self._serving() or (self._monitor is not None and self._monitor.alive) or self._stays()
        ):
            self._turn(wake_read)
        if self._hooks is not None:
            self._hooks.close()
        if self._failed:
            _say(f"error: {self._failed}")
        return self._exit_code

    def _turn(self, wake: socket.socket) -> None:
        """Wait for something to happen, and see to it."""
        for key, _ in self._selector.select(self._pause_s()):
            if key.data is None:
                self._on_signals(wake.recv(64))
            elif isinstance(key.data, Worker):
                self._on_readable(key.data)
            else:
                key.data.on_readable()  # the monitor
        self._reap()
        self._restart_due()
        self._transactions.expire()
        if self._monitor is not None:
            self._monitor.tick()
            if not self._serving():  # the last to go: it hears of all that was answered
                self._monitor.stop()
        if self._hooks is not None and not self._serving() and self._stay_until_s is None:
            self._stay_until_s = monotonic() + STAY_S
            self._hooks.over()

    def _serving(self) -> bool:
        return any(worker.wanted for worker in self._workers)

    def _stays(self) -> bool:
        """Drained by a hook: until the signal comes that follows it, so that hooks are answered."""
        return self._by_hook and (self._stay_until_s is None or monotonic() < self._stay_until_s)

    def _start_hooks(self) -> None:
        if self._config.gateway.hooks is None:
            return
        from sidecar.hooks import Hooks
        from sidecar.monitor.places import hooks_path

        gateway = self._config.gateway
        self._hooks = Hooks(lambda: self._wake.send(bytes([_ASKED])), gateway.drain)
        path = hooks_path(self._config, self._source.parent.resolve())
        self._hooks_address = self._hooks.start(gateway.hooks, path)

    def _make_monitor(self) -> SupervisedMonitor | None:
        if self._alone or not self._config.monitored:
            return None
        from sidecar.supervised_monitor import SupervisedMonitor

        address = self._config.monitor.grpc
        return SupervisedMonitor(self._tree, self._source, address, self._selector, launch, _say)

    def _start_monitor_ahead(self) -> None:
        """Where replicas share their routes, a fresh pod's workers wait for the table that the
        monitor writes; else it is started when they are ready, and takes nothing from them."""
        if self._monitor is None or self._config.monitor.store is None:
            return
        from sidecar.monitor.places import routes_path

        if not routes_path(self._config, self._source.parent.resolve()).exists():
            self._monitor.start()

    def _make_pages(self) -> None:
        from sidecar.gateway.page_files import names_of, open_pages
        from sidecar.gateway.pages import create_page

        config = self._config
        names = names_of(config)
        if self._alone and config.monitored:
            from sidecar.monitor.places import pages_dir

            folder = pages_dir(config, self._source.parent.resolve())
            self._pages = open_pages(folder, names, len(self._workers))
        else:
            self._pages = [create_page(len(names)) for _ in self._workers]
        if self._monitor is not None:
            self._monitor.pages = self._pages

    def _spawn(self, worker: Worker) -> None:
        launched = self._prespawned or launch()
        self._prespawned = None
        channel = worker.adopt(launched)
        self._selector.register(channel, selectors.EVENT_READ, worker)
        own_page_first = [self._pages[worker.index]]
        own_page_first += [fd for i, fd in enumerate(self._pages) if i != worker.index]
        boot = {
            "type": "boot",
            "index": worker.index,
            "config": self._packed,
            "base_dir": str(self._source.parent.resolve()),
            "pages": len(own_page_first),
            "addresses": self._addresses,
            "state": self._transactions.state(),
            # Who starts answers probes before it has loaded anything; beside others that serve it
            # does not, for it would say of them that they are not ready.
            "early_health": not any(other.ready for other in self._workers),
        }
        try:
            socket.send_fds(channel, [b"p"], own_page_first)
        except OSError:
            self._close_channel(worker)
        self._send(worker, boot)
        self._transactions.join(worker)

    # --- events ---------------------------------------------------------------------------------

    def _pause_s(self) -> float | None:
        due = [w.restart_at_s for w in self._workers if w.restart_at_s is not None]
        pauses = [max(0.0, min(due) - monotonic())] if due else []
        if (expires_s := self._transactions.pause_s()) is not None:
            pauses.append(expires_s)
        if self._monitor is not None and (pause_s := self._monitor.pause_s()) is not None:
            pauses.append(pause_s)
        if self._by_hook and self._stay_until_s is not None:
            pauses.append(max(0.0, self._stay_until_s - monotonic()))
        return min(pauses, default=None)

    def _on_signals(self, numbers: bytes) -> None:
        """What was asked: by signals, and by a hook (``_ASKED``).

        SIGTERM asks for a drain, and never cuts one: kubelet, when it is itself started again,
        sends it once more, and after the grace period comes SIGKILL anyway. Who means it presses
        Ctrl-C: then what is in flight is dropped.
        """
        for number in numbers:
            if number == _ASKED:
                self._by_hook = self._by_hook or not self._stopping
            elif number in (signal.SIGTERM, signal.SIGINT):
                self._by_hook = False
            else:
                continue
            cut = number == signal.SIGINT and self._stopping
            if cut or not self._stopping:
                self._stop(signal.SIGKILL if cut else signal.SIGTERM)
            if cut and self._monitor is not None:
                self._monitor.stop(at_once=True)

    def _stop(self, number: int) -> None:
        self._stopping = True
        if self._hooks is not None:
            self._hooks.begun()
        for worker in self._workers:
            worker.restart_at_s = None
            if worker.process is not None:
                # Before it is ready it has nothing to drain, and handles no signal yet.
                worker.process.send_signal(number if worker.ready else signal.SIGKILL)

    def _on_readable(self, worker: Worker) -> None:
        if worker.channel is None:  # closed by what was handled before it, in the same round
            return
        try:
            data = worker.channel.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._close_channel(worker)
            return
        try:
            messages = worker.decoder.feed(data)
        except ValueError as error:
            # What a worker sends, be it by a fault in it, must not end the others.
            _say(f"worker {worker.index} sent what cannot be read ({error}); it is ended")
            assert worker.process is not None
            worker.process.kill()
            self._close_channel(worker)
            return
        for message in messages:
            self._on_message(worker, message)

    def _on_message(self, worker: Worker, message: Message) -> None:
        match message["type"]:
            case "ready":
                worker.set_ready()
                worker.copies = message["copies"]
                # A port that was 0 stays what it became, also for a worker that is restarted.
                self._addresses = message["addresses"]
                if not self._announced and all(w.ready for w in self._workers):
                    self._announced = True
                    self._on_ready(self._addresses, worker.copies)
                    if self._monitor is not None and not self._stopping:
                        self._monitor.start()
                elif self._announced and worker.process is not None:
                    _say(f"worker {worker.index} is ready again, pid {worker.process.pid}")
            case "failed":
                self._on_failed(message["message"], message["code"])
            case "call":
                self._transactions.begin(worker, message)
            case "prepared":
                self._transactions.on_prepared(worker, message)
            case "committed":
                self._transactions.on_committed(worker, message["txn"])

    def _on_failed(self, text: str, code: int) -> None:
        """A worker could not start. The first time that ends everything: a config that cannot be
        served must be seen at once. Later the others serve, and go on; this one is tried again."""
        if self._announced:
            _say(text)
        elif not self._stopping:
            self._failed, self._exit_code = text, code
            self._stop(signal.SIGTERM)

    def _announce(self, addresses: dict[str, str], copies: list[dict[str, Any]]) -> None:
        from sidecar.announce import announce

        pids = [w.process.pid for w in self._workers if w.process is not None]
        exchanges = None
        if self._monitor is not None:
            from sidecar.monitor.places import socket_path

            exchanges = socket_path(self._config, self._source.parent.resolve())
        if self._hooks is not None:
            addresses = {**addresses, "hooks": self._hooks_address}
        announce(addresses, copies, workers=len(self._workers), pids=pids, exchanges=exchanges)
        if self._config.untold:
            _say(self._config.untold)

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.process is None or (code := worker.process.poll()) is None:
                continue
            if worker.channel is not None:  # its last words may still be in the pipe
                self._drain_channel(worker)
            worker.process = None
            self._transactions.forget(worker)
            if self._stopping:
                continue
            lived_s = monotonic() - worker.started_s
            how = how_it_ended(code)
            if not self._announced:
                self._on_failed(f"worker {worker.index} ended while it started ({how})", 1)
                continue
            pause_s = worker.back_off()
            text = f"worker {worker.index} ended ({how}) after {lived_s:.1f} s; "
            text += f"it is started again in {pause_s:g} s"
            _say(text)

    def _drain_channel(self, worker: Worker) -> None:
        while worker.channel is not None:
            self._on_readable(worker)

    def _restart_due(self) -> None:
        for worker in self._workers:
            if worker.due():
                self._spawn(worker)

    def _send(self, worker: Worker, message: Message) -> None:
        if worker.channel is None:
            return
        try:
            worker.channel.sendall(encode(message))
        except OSError:
            self._close_channel(worker)

    def _close_channel(self, worker: Worker) -> None:
        if worker.channel is not None:
            self._selector.unregister(worker.channel)
            worker.channel.close()
            worker.channel = None
        worker.ready = False


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the supervisor's own log


def serve(config_path: Path) -> int:
    """Run ``sidecar serve``; returns the exit code.

    Raises:
        ConfigError: the configuration is wrong.
    """
    # Ahead of everything: a worker's imports take longer than reading the configuration.
    prespawned = launch()
    try:
        # Within the import of pydantic's native half a Ctrl-C would be a panic, with a traceback.
        with interrupts_held():
            from sidecar import config as configuration

        config, tree = configuration.load_with_tree(config_path)
    except BaseException:
        discard(prespawned)
        raise
    return Supervisor(tree, config, config_path, prespawned).run()
