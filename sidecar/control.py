"""The control channel between the supervisor and its workers: framed JSON on a socket pair.

A call that changes state must have reached every worker before it answers, so the worker that got
it asks the supervisor, which runs it on all of them in two phases: everybody *prepares* (and may
refuse), then everybody *commits* (which cannot fail). This module is shared by both sides and
imports nothing heavy: the supervisor stays thin.

Messages (each has ``type``)::

    supervisor → worker   boot {index, config, base_dir, pages, addresses, state, early_health}
                          prepare {txn, command} · commit {txn} · abort {txn}
                          result {call, ok | error, kind}
    worker → supervisor   ready {addresses, copies} · failed {message, code}
                          call {call, command} · prepared {txn, ok | error, kind}
                          committed {txn}
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from typing import Any

Message = dict[str, Any]

#: A command is a few names and settings. What does not fit into the channel's buffer could make the
#: supervisor wait for a worker that is busy starting.
MAX_COMMAND_BYTES = 64 * 2**10
#: A frame is small: settings and names. More is a fault of ours.
MAX_FRAME_BYTES = 16 * 2**20
_LENGTH = struct.Struct(">I")


def encode(message: Message) -> bytes:
    """One frame: a 4-byte big-endian length, then JSON."""
    body = json.dumps(message).encode()
    return _LENGTH.pack(len(body)) + body


class Decoder:
    """Frames out of a byte stream that arrives in any pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Add bytes; return the messages that are complete now.

        Raises:
            ValueError: a frame is longer than ``MAX_FRAME_BYTES``, or not JSON.
        """
        self._buffer += data
        messages: list[Message] = []
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                text = f"a control frame of {length} bytes; the limit is {MAX_FRAME_BYTES}"
                raise ValueError(text)
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(json.loads(self._buffer[_LENGTH.size : end]))
            del self._buffer[:end]
        return messages


class Connection:
    """A blocking end of the channel; ``send`` may be called from any thread."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._decoder = Decoder()
        self._pending: list[Message] = []
        self._lock = threading.Lock()

    def send(self, message: Message) -> None:
        """Send a message whole.

        Raises:
            OSError: the other side is gone.
        """
        with self._lock:
            self._socket.sendall(encode(message))

    def receive(self) -> Message | None:
        """Wait for the next message; ``None`` when the other side is gone."""
        while not self._pending:
            try:
                data = self._socket.recv(65536)
            except OSError:
                return None
            if not data:
                return None
            self._pending += self._decoder.feed(data)
        return self._pending.pop(0)

    def close(self) -> None:
        """Close; a ``receive`` under way returns ``None``."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
