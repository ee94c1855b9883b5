"""Open files handed to a child: all of them, whole, and nobody else's."""

from __future__ import annotations

import os
import socket

import pytest

from sidecar.children import receive_descriptors, send_descriptors


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 256, 300])
def test_all_arrive_in_order_and_what_is_sent_next_stays_in_the_channel(ends, tmp_path, count):
    ours, theirs = ends
    files: list[int] = []
    try:
        files += (os.open(tmp_path / f"{n}", os.O_CREAT | os.O_RDWR) for n in range(count))
        send_descriptors(ours, files)
        ours.sendall(b"next")
        received = receive_descriptors(theirs)
        try:
            assert [os.fstat(fd).st_ino for fd in received] == [os.fstat(f).st_ino for f in files]
            assert not any(os.get_inheritable(fd) for fd in received)
        finally:
            for descriptor in received:
                os.close(descriptor)
        assert theirs.recv(16) == b"next"
        for descriptor in files:
            os.fstat(descriptor)  # ours stay open
    finally:
        for descriptor in files:
            os.close(descriptor)


def test_a_supervisor_that_is_gone_is_no_endless_wait(ends):
    ours, theirs = ends
    ours.close()
    assert receive_descriptors(theirs) == []
