"""Frames between processes: what is sent arrives, and garbage is refused without harm."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import frames
from sidecar.frames import Receiver, pack_arrays, send, send_many, unpack_arrays
from sidecar.protocol.datatypes import BY_NAME

MAX_BYTES = 2**26


@contextlib.contextmanager
def pair(max_bytes: int = MAX_BYTES) -> Iterator[tuple[socket.socket, Receiver]]:
    ours, theirs = socket.socketpair()
    receiver = Receiver(theirs, max_bytes=max_bytes)
    with ours, theirs:
        yield ours, receiver
        receiver.close()


def open_memfds() -> int:
    """Of those that frames make; other threads of this process may open what they like."""
    found = 0
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += "memfd:sidecar-frame" in str(link.readlink())
    return found


def refused(data: bytes, max_bytes: int = MAX_BYTES) -> str:
    with pair(max_bytes) as (sock, receiver):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller looks at the text
            receiver.receive()
    return str(caught.value)


# --- frames ---------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(0, 3000), max_size=20),
    memfd_over=st.integers(0, 3000),
    kind=st.integers(0, 255),
    fields=st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans()),
)
@settings(max_examples=50, deadline=None)
def test_what_is_sent_arrives(
    sizes: list[int], memfd_over: int, kind: int, fields: dict[str, Any]
) -> None:
    parts = [os.urandom(size) for size in sizes]
    with pair() as (sock, receiver):
        send(sock, kind, fields, parts, memfd_over=memfd_over)
        frame = receiver.receive()
        assert frame is not None
        assert (frame.kind, frame.fields, frame.parts) == (kind, fields, parts)
        sock.shutdown(socket.SHUT_WR)
        assert receiver.receive() is None


def test_many_frames_in_one_call_with_and_without_memfds() -> None:
    parts: list[list[frames.Bytes]] = [[b"a"], [bytes(400_000), b"b"], [], [memoryview(b"cd")]]
    with pair() as (sock, receiver):
        sent = send_many(sock, [(n, {"n": n}, p) for n, p in enumerate(parts)])
        got = [receiver.receive() for _ in parts]
    assert sent > 400_000
    assert [f.parts for f in got if f] == [[b"a"], [bytes(400_000), b"b"], [], [b"cd"]]
    assert [f.fields["n"] for f in got if f] == [0, 1, 2, 3]


def test_more_large_parts_than_descriptors_may_travel() -> None:
    """What is beyond goes through the stream; the reader must run for it to fit."""
    parts: list[frames.Bytes] = [bytes([n % 256]) * 10 for n in range(200)]
    with pair() as (sock, receiver):
        send(sock, 1, {}, parts, memfd_over=5)
        frame = receiver.receive()
    assert frame is not None
    assert frame.parts == parts


def test_a_large_frame_through_a_small_buffer() -> None:
    data = os.urandom(3_000_000)
    with pair() as (sock, receiver):
        thread = threading.Thread(
            target=send, args=(sock, 7, {}, [data[:5], data]), kwargs={"memfd_over": 2**30}
        )
        thread.start()
        frame = receiver.receive()
        thread.join()
    assert frame is not None
    assert frame.parts == [data[:5], data]


def test_a_timeout_loses_nothing() -> None:
    with pair() as (sock, receiver):
        receiver._socket.settimeout(0.01)
        whole = bytearray()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            send(ours, 9, {"a": 1}, [b"xyz"])
            whole += theirs.recv(1000)
        for byte in whole[:-1]:
            sock.sendall(bytes([byte]))
        with pytest.raises(TimeoutError):
            receiver.receive()
        assert receiver.buffered
        sock.sendall(whole[-1:])
        frame = receiver.receive()
        assert frame is not None
        assert frame.parts == [b"xyz"]
        assert not receiver.buffered


def test_no_descriptor_is_left_open() -> None:
    stray = os.memfd_create("sidecar-frame-of-nobody")
    with pair() as (sock, receiver):
        for _ in range(5):
            send(sock, 1, {}, [bytes(100)], memfd_over=10)
            receiver.receive()
        assert open_memfds() == 1
        socket.send_fds(sock, [b"MSF\x01"], [stray, stray])
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ValueError, match="ended within a frame"):
            receiver.receive()
        assert open_memfds() == 3
        receiver.close()
        assert open_memfds() == 1
    os.close(stray)


# --- garbage --------------------------------------------------------------------------------------

HEAD = struct.Struct("<4sBBHI")
MAGIC = b"MSF\x01"


@given(data=st.binary(min_size=1, max_size=200))
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused(data: bytes) -> None:
    """Random bytes are no frame, not even behind a right beginning."""
    assert refused(data)
    assert refused(MAGIC + data)


@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1))
@settings(max_examples=200, deadline=None)
def test_a_damaged_frame_harms_nobody(flips: list[tuple[int, int]]) -> None:
    """It is refused, or read as another frame (bytes of a part are anyone's)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send(ours, 3, {"a": [1, 2], "b": "c"}, [b"0123456789", b""])
        data = bytearray(theirs.recv(1000))
    for position, flip in flips:
        data[position % len(data)] ^= flip
    with pair(max_bytes=4096) as (sock, receiver), contextlib.suppress(ValueError):
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        while receiver.receive() is not None:
            pass


def test_refusals_say_what_is_wrong() -> None:
    assert "version 2" in refused(HEAD.pack(b"MSF\x02", 1, 0, 0, 2) + b"{}")
    assert "begins with" in refused(b"GET / HTTP/1.1\r\n")
    assert "no JSON object" in refused(HEAD.pack(MAGIC, 1, 0, 0, 2) + b"[]")
    assert "are no JSON" in refused(HEAD.pack(MAGIC, 1, 0, 0, 2) + b"{,")
    assert "within a frame" in refused(HEAD.pack(MAGIC, 1, 0, 0, 9) + b"{}")
    assert "none came" in refused(
        HEAD.pack(MAGIC, 1, 0, 1, 2) + struct.pack("<Q", 1 << 63 | 5) + b"{}"
    )
    assert "at most 1000" in refused(
        HEAD.pack(MAGIC, 1, 0, 1, 2) + struct.pack("<Q", 5000) + b"{}", 1000
    )
    assert "2000000 bytes of fields" in refused(HEAD.pack(MAGIC, 1, 0, 0, 2_000_000))


def test_a_promise_of_gigabytes_is_not_allocated() -> None:
    for size in (1 << 62, 1 << 63 | 1 << 62):
        data = HEAD.pack(MAGIC, 1, 0, 2, 2) + struct.pack("<2Q", size, size) + b"{}"
        assert "at most" in refused(data)


def test_a_descriptor_that_is_no_memfd_is_refused() -> None:
    data = HEAD.pack(MAGIC, 1, 0, 1, 2) + struct.pack("<Q", 1 << 63 | 5) + b"{}"
    read, write = os.pipe()
    try:
        with pair() as (sock, receiver):
            socket.send_fds(sock, [data], [read])
            with pytest.raises(ValueError, match="for a part of 5"):
                receiver.receive()
    finally:
        os.close(read)
        os.close(write)


def test_what_cannot_be_a_frame_is_not_sent() -> None:
    with pair() as (sock, _):
        with pytest.raises(ValueError, match="5000 parts"):
            send(sock, 1, {}, [b""] * 5000)
        with pytest.raises(ValueError, match="bytes of fields"):
            send(sock, 1, {"a": "x" * 2**21})


# --- arrays ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", BY_NAME.values(), ids=lambda d: d.name)
def test_arrays_of_every_datatype(datatype: Any) -> None:
    rng = np.random.default_rng(0)
    if datatype.name == "BYTES":
        values = np.array([[b"", b"\0\xff"], [b"abc", "ü".encode()]], dtype=object)
    else:
        values = rng.integers(0, 2, (3, 4)).astype(datatype.numpy)
    arrays = {"a": values, "empty": values[:0], "one": values[0, 0:1].reshape(()), "t": values.T}
    specs, parts = pack_arrays(arrays)
    with pair() as (sock, receiver):
        send(sock, 1, {"specs": specs}, parts, memfd_over=8)
        frame = receiver.receive()
    assert frame is not None
    got = unpack_arrays(frame.fields["specs"], frame.parts)
    assert list(got) == list(arrays)
    for name, array in arrays.items():
        assert (got[name].shape, got[name].dtype) == (array.shape, datatype.numpy)
        assert got[name].tobytes() == array.tobytes() or (got[name] == array).all()


def test_text_and_large_endian_arrays() -> None:
    arrays = {"t": np.array(["a", "bc"]), "b": np.arange(3, dtype=">i4")}
    specs, parts = pack_arrays(arrays)
    got = unpack_arrays(specs, parts)
    assert got["t"].tolist() == [b"a", b"bc"]
    assert got["b"].tolist() == [0, 1, 2]


def test_what_the_protocol_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="'c' is of complex128"):
        pack_arrays({"c": np.zeros(2, complex)})
    assert pack_arrays({"b": np.zeros(2, ml_dtypes.bfloat16)})[0][0]["datatype"] == "BF16"


GOOD = {"name": "a", "datatype": "FP32", "shape": [2]}


@pytest.mark.parametrize(
    ("spec", "part", "match"),
    [
        ({**GOOD, "datatype": "FP99"}, bytes(8), "description"),
        ({**GOOD, "shape": "ab"}, bytes(8), "description"),
        ({**GOOD, "shape": None}, bytes(8), "description"),
        ({**GOOD, "shape": [-1]}, bytes(8), "shape"),
        ({"name": "a"}, bytes(8), "description"),
        (GOOD, bytes(12), "reshape"),
        (GOOD, bytes(7), "buffer size"),
        ({**GOOD, "datatype": "BYTES"}, bytes(3), "promises"),
        ({**GOOD, "datatype": "BYTES"}, b"\x09\0\0\0" + bytes(4), "claims"),
    ],
)
def test_arrays_that_contradict_themselves(spec: Any, part: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        unpack_arrays([spec], [part])


def test_a_part_for_each_array() -> None:
    with pytest.raises(ValueError, match="1 arrays are declared, 2 parts"):
        unpack_arrays([GOOD], [bytes(8), b""])
