"""A client by hand: HTTP/2 frames that no gRPC library would send (headers, and never a body)."""

from __future__ import annotations

import socket
import struct
from typing import Self

_HEADERS, _SETTINGS, _PING, _GOAWAY = 1, 4, 6, 7
_END_HEADERS, _ACK = 4, 1


class SlowClient:
    """Opens streams with headers only, and reads what comes."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        self._buffer = b""
        self._next = 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def open_streams(self, count: int, path: str) -> None:
        """Open streams that announce a request and send none."""
        block = b"".join(
            # HPACK, literal without indexing, new name, no Huffman: lengths below 127 are a byte.
            bytes([0, len(name)]) + name + bytes([len(value)]) + value
            for name, value in (
                (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()),
                (b":authority", b"test"), (b"content-type", b"application/grpc"),
                (b"te", b"trailers"),
            )
        )  # fmt: skip
        frames = []
        for _ in range(count):
            frames.append(_frame(_HEADERS, _END_HEADERS, self._next, block))
            self._next += 2
        self._socket.sendall(b"".join(frames))

    def refused(self) -> int:
        """Streams that the server has ended, once it has seen all that was sent."""
        self._socket.sendall(_frame(_PING, 0, 0, b"barriers"))
        ended: set[int] = set()
        while True:
            kind, flags, stream, _ = self._read()
            if kind == _PING and flags & _ACK:
                return len(ended)
            if kind == _GOAWAY:
                message = "the server closed the connection"
                raise AssertionError(message)
            if kind == _HEADERS:
                ended.add(stream)

    def _read(self) -> tuple[int, int, int, bytes]:
        while len(self._buffer) < 9 or len(self._buffer) < 9 + self._length():
            data = self._socket.recv(65536)
            assert data, "the server closed the connection"
            self._buffer += data
        length = self._length()
        kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
        payload, self._buffer = self._buffer[9 : 9 + length], self._buffer[9 + length :]
        return kind, flags, stream, payload

    def _length(self) -> int:
        return int.from_bytes(self._buffer[:3], "big")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload
