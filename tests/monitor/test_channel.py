"""The monitor's end of the channel: who may connect, what comes over it, and what is refused."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sidecar import frames
from sidecar.config import parse
from sidecar.monitor import channel, places
from sidecar.monitor.channel_frames import (
    ACK,
    COUNTERS,
    EXCHANGE,
    HELLO,
    LOGS,
    RATE,
    SPANS,
    pack_exchange,
    pack_logs,
    pack_spans,
)
from sidecar.monitor.channel_socket import ChannelError
from sidecar.monitor.exchange import Exchange
from sidecar.traces import SpanRecord
from tests.monitor.listening import MAX_EXCHANGE_BYTES, Listening, exchange, log, span, until


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[Listening]:
    with Listening(tmp_path / "tap.sock") as made:
        yield made


class Peer:
    """A gateway worker's end, by hand."""

    def __init__(self, path: Path, worker: int = 0, *, greet: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        with places.address_of(path) as address:
            self.socket.connect(address)
        self.socket.settimeout(30)
        self.receiver = frames.Receiver(self.socket, max_bytes=10_000)
        if greet:
            frames.send(self.socket, HELLO, {"worker": worker, "pid": 100 + worker})

    def hand(self, one: Exchange, *response: bytes) -> None:
        frames.send(self.socket, EXCHANGE, *pack_exchange(one, response or None))

    def hear(self, kind: int) -> dict[str, Any]:
        """The next frame of a kind."""
        while (frame := self.receiver.receive()) is not None:
            if frame.kind == kind:
                return frame.fields
        message = "the connection is closed"
        raise ConnectionError(message)

    def closed(self) -> bool:
        """Wait until the monitor has closed the connection."""
        while self.receiver.receive() is not None:
            pass
        return True


@contextmanager
def peer(listening: Listening, worker: int = 0, *, greet: bool = True) -> Iterator[Peer]:
    made = Peer(listening.listener.path, worker, greet=greet)
    with made.socket:
        yield made


# --- exchanges ------------------------------------------------------------------------------------


def test_an_exchange_arrives_as_it_was(listening: Listening) -> None:
    sent = exchange(
        transport="http", request_header_bytes=3, response_header_bytes=4, variant="ü:1/x"
    )
    with peer(listening, worker=2) as worker:
        worker.hand(sent, b"an", b"swer")
        worker.hand(exchange(b"", outcome="ExecutionError"))
        first, second = listening.take(2)
    sent.response, sent.worker = b"answer", 102
    assert first == sent
    assert (second.request, second.response, second.outcome) == (b"", None, "ExecutionError")
    assert listening.listener.received == 2
    assert listening.listener.bytes == len(b"question") + len(b"answer")


def test_what_was_taken_is_acknowledged(listening: Listening) -> None:
    with peer(listening) as worker:
        for _ in range(50):
            worker.hand(exchange(), b"a")
        while (taken := worker.hear(ACK)["exchanges"]) < 50:
            assert taken > 0
        assert taken == 50


def test_a_fault_of_the_taker_costs_one_exchange(listening: Listening) -> None:
    listening.failure = RuntimeError("no")
    with peer(listening) as worker:
        worker.hand(exchange(), b"a")
        assert worker.hear(ACK)["exchanges"] == 1
        listening.failure = None
        worker.hand(exchange(), b"a")
        listening.take(1)


def test_spans_and_log_records_arrive_as_they_were(listening: Listening) -> None:
    spans = [span(), span(model="ü", cached=True, outcome="OverloadedError", bytes_in=2**63 - 1)]
    logs = [log(body="é"), log(attributes={"a": "b", "c": 1.5, "d": True}, traceparent="00-…")]
    with peer(listening) as worker:
        frames.send(worker.socket, SPANS, pack_spans(spans))
        frames.send(worker.socket, LOGS, pack_logs(logs))
        until(lambda: len(listening.logs) == 2, "they came")
        taken = worker.hear(ACK)
        while taken != {"exchanges": 0, "spans": 2, "logs": 2}:
            taken = worker.hear(ACK)
        worker.hand(exchange(), b"a")
        assert worker.hear(ACK) == {"exchanges": 1, "spans": 2, "logs": 2}
    assert listening.spans == spans
    assert all(isinstance(one, SpanRecord) for one in listening.spans)
    assert listening.logs == logs
    assert (listening.listener.spans, listening.listener.logs) == (2, 2)


def test_spans_that_cannot_be_taken_in_cost_themselves_only(listening: Listening) -> None:
    listening.failure = RuntimeError("no")
    with peer(listening) as worker:
        frames.send(worker.socket, SPANS, pack_spans([span()]))
        assert worker.hear(ACK) == {"exchanges": 0, "spans": 1}
        listening.failure = None
        frames.send(worker.socket, SPANS, pack_spans([span()]))
        listening.take_spans(1)


def test_who_wants_no_spans_takes_them_all_the_same(tmp_path: Path) -> None:
    """They are acknowledged: the worker must not keep them for ever."""
    listener = channel.ExchangeListener(
        tmp_path / "tap.sock", lambda _: None, max_exchange_bytes=4096, rate=1
    )
    listener.start()
    made = Peer(listener.path)
    with made.socket:
        frames.send(made.socket, SPANS, pack_spans([span()]))
        frames.send(made.socket, LOGS, pack_logs([log()]))
        while made.hear(ACK) != {"exchanges": 0, "spans": 1, "logs": 1}:
            pass
    listener.close()


def test_workers_are_told_the_rate(listening: Listening) -> None:
    with peer(listening) as one, peer(listening, 1) as two:
        assert one.hear(RATE) == {"rate": 1.0}
        until(lambda: listening.listener.workers() == 2, "both are known")
        listening.listener.set_rate(0.5)
        assert one.hear(RATE) == {"rate": 0.5}
        assert two.hear(RATE) == {"rate": 1.0}
        assert two.hear(RATE) == {"rate": 0.5}
        assert listening.listener.rate == 0.5
    until(lambda: listening.listener.workers() == 0, "they are gone")


def test_counters_are_summed_over_workers(listening: Listening) -> None:
    """A worker that takes another's place goes on in its counts, so that they replace them."""
    with peer(listening) as one, peer(listening, 1) as two:
        frames.send(one.socket, COUNTERS, {"tap_sampled": 3, "tap_sent": 1})
        frames.send(two.socket, COUNTERS, {"tap_sampled": 4, "nonsense": -1})
        expected = {"tap_sampled": 7, "tap_sent": 1}
        until(lambda: listening.listener.tap_counters() == expected, "they are summed")
    with peer(listening) as again:
        frames.send(again.socket, COUNTERS, {"tap_sampled": 5, "tap_sent": 5})
        expected = {"tap_sampled": 9, "tap_sent": 5}
        until(lambda: listening.listener.tap_counters() == expected, "they are replaced")


# --- garbage --------------------------------------------------------------------------------------


def hello_with(**fields: Any) -> tuple[Any, ...]:
    return (HELLO, {"worker": 0, "pid": 1, **fields}, ())


def spans_with(**fields: Any) -> tuple[Any, ...]:
    return (SPANS, {"spans": [span(), span(**fields)]}, ())


def log_with(**fields: Any) -> tuple[Any, ...]:
    return (LOGS, {"logs": [log(), log(**fields)]}, ())


@pytest.mark.parametrize(
    "sent",
    [
        [(EXCHANGE, {}, ())],
        [hello_with(worker="zero")],
        [hello_with(pid=None)],
        [hello_with(), (99, {}, ())],
        [hello_with(), (EXCHANGE, {}, (b"x",))],
        [hello_with(), (EXCHANGE, {"e": [1] * 13}, (b"x",))],
        [hello_with(), (EXCHANGE, {"e": list(range(12))}, (b"x",))],
        [hello_with(), (EXCHANGE, pack_exchange(exchange(), None)[0], ())],
        [hello_with(), (EXCHANGE, *pack_exchange(exchange(bytes(6 * 2**20)), None))],
        [hello_with(), (SPANS, {}, ())],
        [hello_with(), (SPANS, {"spans": [list(span())[:-1]]}, ())],
        [hello_with(), (SPANS, {"spans": {"a": 1}}, ())],
        [hello_with(), spans_with(parent_id=2**64)],
        [hello_with(), spans_with(start_ns=-1)],
        [hello_with(), spans_with(end_ns=2**63)],
        [hello_with(), spans_with(rows=1.0)],
        [hello_with(), spans_with(queue_ns=True)],
        [hello_with(), spans_with(executed=1)],
        [hello_with(), spans_with(model=None)],
        [hello_with(), (LOGS, {"logs": "x"}, ())],
        [hello_with(), (LOGS, {"logs": [{"body": "x"}]}, ())],
        [hello_with(), log_with(more=1)],
        [hello_with(), log_with(body=1)],
        [hello_with(), log_with(severity=0)],
        [hello_with(), log_with(time_ns="now")],
        [hello_with(), log_with(attributes={"a": [1]})],
        [hello_with(), log_with(attributes=None)],
    ],
)
def test_garbage_ends_its_connection_only(listening: Listening, sent: list[Any]) -> None:
    with peer(listening) as good, peer(listening, greet=False) as bad:
        frames.send_many(bad.socket, sent)
        assert bad.closed()
        until(lambda: listening.listener.garbage == 1, "it is counted")
        good.hand(exchange(), b"a")
        listening.take(1)
    assert MAX_EXCHANGE_BYTES < 6 * 2**20


def test_what_is_no_frame_at_all(listening: Listening) -> None:
    with peer(listening, greet=False) as bad:
        bad.socket.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert bad.closed()
        until(lambda: listening.listener.garbage == 1, "it is counted")
    with peer(listening, greet=False):
        pass  # who says nothing is no garbage
    with peer(listening, greet=False) as cut:
        cut.socket.sendall(b"MSF")
    until(lambda: listening.listener.garbage == 2, "half a frame is")


def test_only_this_user_may_connect(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "peer_uid", lambda _: 12345)
    with peer(listening, greet=False) as other:
        assert other.closed()
    assert listening.listener.workers() == 0


# --- the socket -----------------------------------------------------------------------------------


def test_the_socket_is_this_users_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "state" / "tap.sock"
    before = os.umask(0)
    try:
        with Listening(path):
            mode = path.stat().st_mode
            assert (stat.S_ISSOCK(mode), stat.S_IMODE(mode)) == (True, 0o600)
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(before)
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with Listening(path) as listening, peer(listening) as worker:
        worker.hand(exchange(), b"a")
        listening.take(1)


def test_one_that_listens_is_not_replaced(listening: Listening) -> None:
    with pytest.raises(ChannelError, match="another monitor listens on"):
        Listening(listening.listener.path)
    with peer(listening) as worker:
        worker.hand(exchange(), b"a")
        listening.take(1)


def test_a_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    path.write_text("mine")
    with pytest.raises(ChannelError, match="is no socket"):
        Listening(path)
    assert path.read_text() == "mine"
    with pytest.raises(ChannelError, match="cannot use the folder"):
        Listening(path / "tap.sock")


def test_a_socket_of_another_listener_is_left_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "tap.sock"
    with Listening(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
    assert path.exists()


def test_a_path_that_is_too_long_for_an_address(tmp_path: Path) -> None:
    path = tmp_path / ("long" * 20) / ("longer" * 20) / "tap.sock"
    with Listening(path) as listening, peer(listening) as worker:
        worker.hand(exchange(), b"a")
        listening.take(1)
        with pytest.raises(ChannelError, match="another monitor listens on"):
            Listening(path)
    assert not path.exists()


def test_closing_twice_is_once(tmp_path: Path) -> None:
    with Listening(tmp_path / "tap.sock") as listening:
        with peer(listening) as worker:
            until(lambda: listening.listener.workers() == 1, "it is known")
            listening.listener.close()
            assert worker.closed()
        listening.listener.close()


def test_both_sides_work_out_the_same_place(tmp_path: Path) -> None:
    def config(**monitor: Any) -> Any:
        variant = {"name": "a", "version": "1", "roles": ["serving"],
                   "runtime": {"kind": "onnxruntime", "path": "m.onnx"}}  # fmt: skip
        models = [{"name": "m", "variants": [variant]}]
        return parse({"models": models, "monitor": monitor}, base_dir=tmp_path)

    plain = config()
    assert places.state_dir(plain, tmp_path) == tmp_path / "sidecar-state"
    assert places.socket_path(plain, tmp_path) == tmp_path / "sidecar-state" / "tap.sock"
    moved = config(state_dir="here")
    assert places.socket_path(moved, tmp_path) == tmp_path / "here" / "tap.sock"
    named = config(state_dir="here", socket="/run/t.sock")
    assert places.socket_path(named, tmp_path) == Path("/run/t.sock")
