"""Frames between processes of this machine: a few JSON fields, and bytes that are never joined.

Used by gateway → monitor and by monitor ↔ mirror child, over Unix stream sockets. Nothing in a
frame is executed or unpickled; what cannot be read raises ``ValueError``, and the connection is to
be closed.

Layout, little-endian::

    "MSF" version:u8  kind:u8  0:u8  parts:u16  json_bytes:u32
    part sizes: u64 each; the highest bit: the part lies in a memfd that came with the frame
    JSON (an object), then the parts that are in the stream, in order

A large part goes as a memfd: through the stream it would move in pieces of the socket's buffer, a
few hundred kilobytes each, with two processes taking turns. The reader copies it and closes it at
once; mapping it would save that copy, and let a sender that truncates it end the reader by SIGBUS.
"""

from __future__ import annotations

import array
import json
import math
import os
import socket
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sidecar.errors import InvalidRequestError
from sidecar.protocol.arrays import split_bytes
from sidecar.protocol.datatypes import BY_NAME, of_array
from sidecar.protocol.encode import raw_bytes
from sidecar.runtimes.base import Array

Bytes = bytes | memoryview

VERSION = 1
#: Parts over this go as a memfd.
MEMFD_OVER = 256 * 1024
#: In one frame; the kernel passes at most 253 descriptors at once.
PARTS_MAX = 4096
MEMFDS_MAX = 128
_MAGIC = b"MSF" + bytes([VERSION])
_HEAD = struct.Struct("<4sBBHI")
_IN_MEMFD = 1 << 63
#: The kernel takes at most 1024 buffers at once.
_BUFFERS_MAX = 1024
#: Read ahead: many small frames in one call. The rest of a large one is read into its own buffer.
_CHUNK = 64 * 1024
_FD_BYTES = array.array("i").itemsize
#: A frame over what was allowed, or with a size that cannot be, is never allocated for.
_JSON_MAX = 2**20


@dataclass(slots=True)
class Frame:
    """One frame.

    Attributes:
        kind: what it means is the channel's business; 0 to 255.
        fields: JSON values.
        parts: the bytes, each a buffer of its own, read-only.
    """

    kind: int
    fields: dict[str, Any]
    parts: list[Bytes]


# --- sending --------------------------------------------------------------------------------------


def send(
    sock: socket.socket,
    kind: int,
    fields: Mapping[str, Any],
    parts: Sequence[Bytes] = (),
    *,
    memfd_over: int = MEMFD_OVER,
) -> int:
    """Send one frame whole; returns its size in bytes. One thread at a time.

    Args:
        sock: a connected Unix stream socket that blocks (it may have a timeout; a send that ran
            into it leaves half a frame, so that the connection must be closed).
        kind: 0 to 255.
        fields: JSON values.
        parts: contiguous buffers; they must not change until this returns.
        memfd_over: parts larger than this many bytes go as a memfd.

    Raises:
        OSError: the other side is gone, or no memory or descriptor is left.
        ValueError: too many parts, or fields that are no JSON.
    """
    return send_many(sock, ((kind, fields, parts),), memfd_over=memfd_over)


def send_many(
    sock: socket.socket,
    frames: Sequence[tuple[int, Mapping[str, Any], Sequence[Bytes]]],
    *,
    memfd_over: int = MEMFD_OVER,
) -> int:
    """As ``send``, for several small frames with one system call."""
    buffers: list[Bytes] = []
    sent = 0
    for kind, fields, parts in frames:
        descriptors: list[int] = []
        try:
            mine = _encode(kind, fields, parts, memfd_over, descriptors)
            if descriptors:  # they travel with the first byte of their own frame
                sent += _send_all(sock, buffers, ())
                buffers = []
                sent += _send_all(sock, mine, descriptors)
                sent += sum(len(part) for part in parts if len(part) > memfd_over)
            else:
                buffers += mine
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
    return sent + _send_all(sock, buffers, ())


def _encode(
    kind: int,
    fields: Mapping[str, Any],
    parts: Sequence[Bytes],
    memfd_over: int,
    descriptors: list[int],
) -> list[Bytes]:
    """The buffers of a frame; new memfds are put into ``descriptors``, the caller's to close."""
    if len(parts) > PARTS_MAX:
        text = f"a frame of {len(parts)} parts; at most {PARTS_MAX} are taken"
        raise ValueError(text)
    document = json.dumps(fields, separators=(",", ":")).encode()
    if len(document) > _JSON_MAX:
        text = f"a frame with {len(document)} bytes of fields; at most {_JSON_MAX} are taken"
        raise ValueError(text)
    sizes: list[int] = []
    inline: list[Bytes] = []
    for part in parts:
        size = part.nbytes if isinstance(part, memoryview) else len(part)
        if size > memfd_over and len(descriptors) < MEMFDS_MAX:
            descriptors.append(_memfd(part))
            sizes.append(size | _IN_MEMFD)
        else:
            sizes.append(size)
            if size:
                inline.append(part)
    head = _HEAD.pack(_MAGIC, kind, 0, len(parts), len(document))
    return [b"".join((head, struct.pack(f"<{len(sizes)}Q", *sizes), document)), *inline]


def _memfd(part: Bytes) -> int:
    descriptor = os.memfd_create("sidecar-frame", os.MFD_CLOEXEC)
    try:
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _send_all(sock: socket.socket, buffers: list[Bytes], descriptors: Sequence[int]) -> int:
    total = 0
    ancillary: Any = []
    if descriptors:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
        ancillary = [rights]
    views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
    at = 0
    while at < len(views):
        sent = sock.sendmsg(views[at : at + _BUFFERS_MAX], ancillary)
        ancillary = []
        total += sent
        while at < len(views) and sent >= len(views[at]):
            sent -= len(views[at])
            at += 1
        if sent:
            views[at] = views[at][sent:]
    return total


# --- receiving ------------------------------------------------------------------------------------


class Receiver:
    """Frames out of a connected Unix stream socket. One thread at a time.

    Args:
        sock: blocking; with a timeout ``receive`` raises ``TimeoutError`` and may be called again.
        max_bytes: of one frame, parts in memfds included; a larger one is garbage.
    """

    def __init__(self, sock: socket.socket, *, max_bytes: int) -> None:
        self._socket = sock
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def receive(self) -> Frame | None:
        """Wait for the next frame; ``None``: the other side is gone.

        Raises:
            ValueError: garbage, another version, too large, or cut short.
            TimeoutError: the socket's timeout was over; nothing is lost.
        """
        head = self._need(_HEAD.size)
        if head is None:
            if self._buffer:
                message = "the connection ended within a frame"
                raise ValueError(message)
            return None
        magic, kind, zero, count, json_bytes = _HEAD.unpack_from(head)
        if magic != _MAGIC or zero:
            _refuse_magic(magic)
        if count > PARTS_MAX or json_bytes > _JSON_MAX:
            message = f"a frame of {count} parts and {json_bytes} bytes of fields"
            raise ValueError(message)
        start = _HEAD.size + 8 * count
        self._need_all(start)
        sizes = struct.unpack_from(f"<{count}Q", self._buffer, _HEAD.size)
        total = start + json_bytes + sum(size & ~_IN_MEMFD for size in sizes)
        if total > self._max_bytes:
            message = f"a frame of {total} bytes; at most {self._max_bytes} are taken"
            raise ValueError(message)
        at = start + json_bytes
        self._need_all(at + sum(size for size in sizes if not size & _IN_MEMFD))
        fields = _fields(bytes(self._buffer[start:at]))
        parts: list[Bytes] = []
        for size in sizes:
            if size & _IN_MEMFD:
                parts.append(self._read_memfd(size & ~_IN_MEMFD))
            else:
                # A copy of its own: a small part must not keep a large buffer alive.
                parts.append(bytes(memoryview(self._buffer)[at : at + size]))
                at += size
        del self._buffer[:at]
        return Frame(kind, fields, parts)

    @property
    def buffered(self) -> bool:
        """Whether bytes of further frames have been read already."""
        return len(self._buffer) > 0

    def close(self) -> None:
        """Close descriptors that came and belong to no frame; the socket is its owner's."""
        while self._descriptors:
            os.close(self._descriptors.popleft())

    def _need_all(self, size: int) -> None:
        if self._need(size) is None:
            message = "the connection ended within a frame"
            raise ValueError(message)

    def _need(self, size: int) -> bytearray | None:
        """Have so many bytes in the buffer; ``None``: the connection ended before."""
        while len(self._buffer) < size:
            wanted = max(size - len(self._buffer), _CHUNK)
            room = socket.CMSG_SPACE(MEMFDS_MAX * _FD_BYTES)
            try:
                data, ancillary, _, _ = self._socket.recvmsg(wanted, room, socket.MSG_CMSG_CLOEXEC)
            except TimeoutError:
                raise
            except OSError:
                return None
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors = array.array("i")
                    descriptors.frombytes(payload[: len(payload) // _FD_BYTES * _FD_BYTES])
                    self._descriptors.extend(descriptors)
            if len(self._descriptors) > 2 * MEMFDS_MAX:
                message = "descriptors keep coming that belong to no frame"
                raise ValueError(message)
            if not data:
                return None
            self._buffer += data
        return self._buffer

    def _read_memfd(self, size: int) -> bytes:
        if not self._descriptors:
            message = "a part is said to be in a memfd, but none came with it"
            raise ValueError(message)
        descriptor = self._descriptors.popleft()
        try:
            found = os.fstat(descriptor).st_size
            data = os.pread(descriptor, size, 0) if found == size else b""
        except OSError as error:
            message = f"what came for a part of {size} bytes is no memfd ({error.strerror})"
            raise ValueError(message) from None
        finally:
            os.close(descriptor)
        if len(data) != size:
            message = f"a memfd of {found} bytes for a part of {size}"
            raise ValueError(message)
        return data


def _refuse_magic(magic: bytes) -> None:
    if magic[:3] == _MAGIC[:3]:
        message = f"a frame of version {magic[3]}; this process speaks {VERSION}: both ends must "
        message += "be of one installation"
        raise ValueError(message)
    message = f"not a frame: it begins with {magic!r}"
    raise ValueError(message)


def _fields(text: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        message = f"a frame's fields are no JSON ({error})"
        raise ValueError(message) from None
    if type(fields) is not dict:
        message = "a frame's fields are no JSON object"
        raise ValueError(message)
    return fields


# --- arrays ---------------------------------------------------------------------------------------


def pack_arrays(arrays: Mapping[str, Array]) -> tuple[list[dict[str, Any]], list[Bytes]]:
    """Arrays as JSON values and parts, one each, in order; contiguous numeric ones as views.

    BYTES (object arrays of ``bytes`` or ``str``) and BF16 too; nothing is pickled.

    Raises:
        ValueError: a dtype that the protocol does not have; names the array.
    """
    specs: list[dict[str, Any]] = []
    parts: list[Bytes] = []
    for name, value in arrays.items():
        try:
            datatype = of_array(value).name
        except KeyError:
            message = f"array {name!r} is of {value.dtype}, which the protocol does not have"
            raise ValueError(message) from None
        specs.append({"name": name, "datatype": datatype, "shape": list(value.shape)})
        parts.append(raw_bytes(value.astype(object) if datatype == "BYTES" else value))
    return specs, parts


def unpack_arrays(specs: Sequence[Mapping[str, Any]], parts: Sequence[Bytes]) -> dict[str, Array]:
    """The other way; numeric arrays are read-only views of the parts, BYTES are ``bytes``.

    Raises:
        ValueError: specs and parts contradict each other.
    """
    if len(specs) != len(parts):
        message = f"{len(specs)} arrays are declared, {len(parts)} parts are there"
        raise ValueError(message)
    arrays: dict[str, Array] = {}
    for spec, part in zip(specs, parts, strict=True):
        try:
            name, shape = str(spec["name"]), tuple(int(size) for size in spec["shape"])
            datatype = BY_NAME[spec["datatype"]]
        except (KeyError, TypeError, ValueError):
            message = f"not an array's description: {spec!r}"
            raise ValueError(message) from None
        if any(size < 0 for size in shape):
            message = f"array {name!r} has the shape {list(shape)}"
            raise ValueError(message)
        if datatype.item_bytes:
            arrays[name] = np.frombuffer(part, datatype.numpy).reshape(shape)
            continue
        try:
            arrays[name] = split_bytes(part, math.prod(shape), name).reshape(shape)
        except InvalidRequestError as error:
            raise ValueError(str(error)) from None
    return arrays
