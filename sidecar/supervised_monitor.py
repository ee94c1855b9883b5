"""The monitor's process as the supervisor sees it: started, told, started again, ended last.

Whatever becomes of it, serving goes on: it is started when the workers are ready, nothing waits for
it, and that it cannot start is said, and tried again.

Messages, on a channel as the workers have::

    supervisor → monitor   the workers' pages, as descriptors
                           boot {tree, source, base_dir, addresses, again, serve_started_ns}
    monitor → supervisor   ready {addresses, copies, telemetry} · failed {message}
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic, time_ns
from typing import Any

from sidecar.children import Child, Launched, how_it_ended, send_descriptors
from sidecar.control import Message, encode

#: How it is started; it is given the channel's descriptor as its argument.
MODULE = "sidecar.monitor.main"
#: Asked to end, it writes what it holds, and gives itself less than this; then it is killed.
_END_WITHIN_S = 10.0
#: It reads its configuration as soon as it runs. One that does not must not hold the workers up.
_SEND_WITHIN_S = 5.0


class SupervisedMonitor:
    """Owned by the supervisor, and called from its one thread only.

    Args:
        tree, source: as the supervisor has them.
        address: where the monitor is to listen; a port of 0 becomes a real one when it is ready,
            and stays that after a restart.
        selector: its channel is registered there, with this object as the data.
        launch: starts a process of a module.
        say: tells people.

    Attributes:
        pages: descriptors of the workers' pages: each life of the monitor gets them, to read the
            counts. They stay the supervisor's.
    """

    def __init__(
        self,
        tree: Any,
        source: Path,
        address: str,
        selector: selectors.BaseSelector,
        launch: Callable[[str], Launched],
        say: Callable[[str], None],
    ) -> None:
        self._boot: Message = {
            "type": "boot",
            "tree": tree,
            "source": str(source),
            "base_dir": str(source.parent.resolve()),
            "addresses": {"grpc": address},
            "again": False,
            "serve_started_ns": time_ns(),
        }
        self.pages: Sequence[int] = ()
        self._selector = selector
        self._launch = launch
        self._say = say
        self._child = Child()
        self._stopping = False
        self._kill_at_s: float | None = None
        self._reason: str | None = None

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._child.process is not None

    @property
    def pid(self) -> int | None:
        """Of its process, while it runs."""
        return None if self._child.process is None else self._child.process.pid

    def start(self) -> None:
        """Start it, unless it runs."""
        if self.alive or self._stopping:
            return
        self._reason = None
        try:
            channel = self._child.adopt(self._launch(MODULE))
        except OSError as error:  # no process or memory is left: serving is all the more important
            pause_s = self._child.back_off()
            self._say(f"the monitor cannot be started ({error}); again in {pause_s:g} s")
            return
        self._selector.register(channel, selectors.EVENT_READ, self)
        channel.settimeout(_SEND_WITHIN_S)
        try:
            send_descriptors(channel, self.pages)
            channel.sendall(encode(self._boot))
        except OSError:
            self._kill()
        if not self._boot["again"]:
            self._say(f"monitor: starting, pid {self.pid}; it watches once its copies are loaded")
        self._boot["again"] = True

    def pause_s(self) -> float | None:
        """In how many seconds ``tick`` has something to do; ``None``: when something happens."""
        due = [at for at in (self._child.restart_at_s, self._kill_at_s) if at is not None]
        return max(0.0, min(due) - monotonic()) if due else None

    def tick(self) -> None:
        """Notice that it has ended, start it when that is due, kill it when it does not end."""
        self._reap()
        if self._child.due():
            self._child.restart_at_s = None
            self.start()
        if self._kill_at_s is not None and monotonic() >= self._kill_at_s:
            self._kill()

    def stop(self, *, at_once: bool = False) -> None:
        """Ask it to end, and see to it that it does. May be called again."""
        first, self._stopping = not self._stopping, True
        self._child.restart_at_s = None
        if self._child.process is None:
            return
        if at_once:
            self._kill()
        elif first:
            self._child.process.terminate()
            self._kill_at_s = monotonic() + _END_WITHIN_S

    def on_readable(self) -> None:
        """Its channel has something, or is at its end."""
        channel = self._child.channel
        if channel is None:
            return
        try:
            data = channel.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._close_channel()
            return
        try:
            for message in self._child.decoder.feed(data):
                self._on_message(message)
        except (ValueError, KeyError, TypeError) as error:
            self._say(f"the monitor sent what cannot be read ({error!r}); it is ended")
            self._kill()

    def _on_message(self, message: Message) -> None:
        match message["type"]:
            case "ready":
                self._child.set_ready()
                self._boot["addresses"] = message["addresses"]
                self._say(f"monitor (gRPC): {message['addresses']['grpc']}, pid {self.pid}")
                if http := message["addresses"].get("http"):
                    self._say(f"monitor (HTTP): {http}")
                for line in message.get("telemetry", ()):
                    self._say(str(line))
            case "failed":
                self._reason = str(message["message"])

    def _reap(self) -> None:
        process = self._child.process
        if process is None or (code := process.poll()) is None:
            return
        while self._child.channel is not None:  # its last words may still be in the pipe
            self.on_readable()
        self._child.process = self._kill_at_s = None
        if self._stopping:
            return
        pause_s = self._child.back_off()
        lived_s = monotonic() - self._child.started_s
        how = self._reason or f"it ended with {how_it_ended(code)} after {lived_s:.1f} s"
        self._say(f"the monitor is down, serving goes on: {how}; started again in {pause_s:g} s")

    def _kill(self) -> None:
        self._kill_at_s = None
        if self._child.process is not None:
            self._child.process.kill()
        self._close_channel()

    def _close_channel(self) -> None:
        channel: socket.socket | None = self._child.channel
        if channel is not None:
            self._selector.unregister(channel)
            channel.close()
            self._child.channel = None
        self._child.ready = False
