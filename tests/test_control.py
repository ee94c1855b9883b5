"""The control channel: frames in any pieces, in any order, from any thread."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.control import MAX_COMMAND_BYTES, MAX_FRAME_BYTES, Connection, Decoder, encode

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MESSAGES = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=6)


@given(MESSAGES, st.data())
def test_frames_arrive_whole_however_they_are_cut(messages, data):
    stream = b"".join(map(encode, messages))
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=12).map(sorted))
    pieces = [
        stream[start:end] for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True)
    ]
    decoder = Decoder()
    assert [message for piece in pieces for message in decoder.feed(piece)] == messages


def test_a_frame_that_is_announced_too_long_is_refused_before_it_is_read():
    decoder = Decoder()
    with pytest.raises(ValueError, match=f"the limit is {MAX_FRAME_BYTES}"):
        decoder.feed((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))


def test_the_longest_frame_is_taken():
    text = "x" * (MAX_FRAME_BYTES - len('{"text": ""}'))
    frame = encode({"text": text})
    assert len(frame) == MAX_FRAME_BYTES + 4
    decoder = Decoder()
    assert decoder.feed(frame[:-1]) == []
    assert decoder.feed(frame[-1:]) == [{"text": text}]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"{}{}"])
def test_what_is_not_json_is_refused(body):
    with pytest.raises(ValueError, match=r"."):
        Decoder().feed(len(body).to_bytes(4, "big") + body)


def test_a_command_fits_into_the_channels_buffer():
    """Or the supervisor could wait for a worker that does not read because it is starting."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        ours.sendall(encode({"type": "prepare", "command": "x" * MAX_COMMAND_BYTES}))


def test_many_threads_may_send_over_one_connection():
    ours, theirs = socket.socketpair()
    sender, receiver = Connection(ours), Connection(theirs)

    def send(thread: int) -> None:
        for number in range(50):
            sender.send({"thread": thread, "number": number, "padding": "p" * 3000})

    threads = [threading.Thread(target=send, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    received = [receiver.receive() for _ in range(300)]
    for thread in threads:
        thread.join()
    sender.close()
    assert receiver.receive() is None
    receiver.close()
    for thread in range(6):
        assert [m["number"] for m in received if m["thread"] == thread] == list(range(50))


def test_closing_ends_a_receive_that_waits_and_sending_to_nobody_is_an_error():
    ours, theirs = socket.socketpair()
    mine, other = Connection(ours), Connection(theirs)
    got: list[object] = []
    waiting = threading.Thread(target=lambda: got.append(other.receive()))
    waiting.start()
    other.close()
    waiting.join(10)
    assert got == [None]
    with pytest.raises(BrokenPipeError):
        mine.send({"text": "nobody hears it"})
    mine.close()
