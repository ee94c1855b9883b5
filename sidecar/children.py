"""A process that the supervisor starts, talks to over a channel, and starts again when it ends."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import monotonic

from sidecar.control import Decoder

Launched = tuple[subprocess.Popen[bytes], socket.socket]

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
#: So many descriptors go with one message (the kernel takes 253), which says whether more come.
_DESCRIPTORS_MAX = 128
_MORE, _LAST = b"+", b"."
#: One that was ready for so long gets a fresh back-off.
HEALTHY_AFTER_S = 60.0


@dataclass(kw_only=True)
class Child:
    """One process and this side of its control channel.

    Attributes:
        channel: closed and ``None`` before the process is gone, or with it.
        ready: it has said so.
        restart_at_s: monotonic; ``None``: no start is due.
    """

    process: subprocess.Popen[bytes] | None = None
    channel: socket.socket | None = None
    decoder: Decoder = field(default_factory=Decoder)
    ready: bool = False
    started_s: float = 0.0
    ready_s: float | None = None
    backoff_s: float = FIRST_BACKOFF_S
    restart_at_s: float | None = None

    @property
    def wanted(self) -> bool:
        """It runs, or will."""
        return self.process is not None or self.restart_at_s is not None

    def adopt(self, launched: Launched) -> socket.socket:
        """Take over a process that was just started; returns its channel."""
        self.process, self.channel = launched
        self.decoder = Decoder()
        self.started_s, self.restart_at_s, self.ready_s = monotonic(), None, None
        self.ready = False
        return self.channel

    def set_ready(self) -> None:
        """It has said that it is."""
        self.ready, self.ready_s = True, monotonic()

    def back_off(self) -> float:
        """It has ended: set when it is to be started again; returns in how many seconds."""
        now_s = monotonic()
        if self.ready_s is not None and now_s - self.ready_s > HEALTHY_AFTER_S:
            self.backoff_s = FIRST_BACKOFF_S
        pause_s = self.backoff_s
        self.restart_at_s = now_s + pause_s
        self.backoff_s = min(2 * pause_s, MAX_BACKOFF_S)
        return pause_s

    def due(self) -> bool:
        """Whether it is to be started now."""
        return self.restart_at_s is not None and monotonic() >= self.restart_at_s


def send_descriptors(channel: socket.socket, descriptors: Sequence[int]) -> None:
    """Hand open files to a child, before anything else is sent to it; ours stay open.

    Raises:
        OSError: it is gone, or takes nothing.
    """
    at = 0
    while len(descriptors) - at > _DESCRIPTORS_MAX:
        socket.send_fds(channel, [_MORE], descriptors[at : at + _DESCRIPTORS_MAX])
        at += _DESCRIPTORS_MAX
    if at < len(descriptors):
        socket.send_fds(channel, [_LAST], descriptors[at:])
    else:
        channel.sendall(_LAST)


def receive_descriptors(channel: socket.socket) -> list[int]:
    """What ``send_descriptors`` sends; nothing of it when the other side is gone meanwhile.

    They are the caller's to close, and no child's of ours.
    """
    received: list[int] = []
    while True:
        more, descriptors, _, _ = socket.recv_fds(channel, 1, _DESCRIPTORS_MAX)
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        received += descriptors
        if more != _MORE:
            return received


def how_it_ended(code: int) -> str:
    """A process's exit code, in words."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
