"""The queue: what is handed over while something is being sent, and from many threads."""

from __future__ import annotations

import threading
from time import monotonic

from exporters.telemetry import Bounds, Signal
from exporters.telemetry.delivery import Delivery, Sent
from exporters.telemetry.line import Line
from tests.support.otlp_receiver import PATIENCE_S, wait_for


class Kept:
    """A sender that keeps what it is sent, once it may."""

    def __init__(self, *, held: bool = False) -> None:
        self.sent: list[list[int]] = []
        self.entered, self.released = threading.Event(), threading.Event()
        if not held:
            self.released.set()

    def send(self, payload: bytes, timeout_s: float) -> Sent:
        self.entered.set()
        self.released.wait(PATIENCE_S)
        self.sent.append(list(payload))
        return Sent()

    def close(self) -> None:
        self.released.set()


def line(sender: Kept, **bounds) -> Line[int]:
    delivery = Delivery(Signal.TRACES, sender, timeout_s=9.0, retry_s=0.0, name="there")
    given = {"items": 100, "slice": 4, "delay_s": 0.0, "breath_s": 0.0, **bounds}
    return Line("a-test", bytes, delivery, Bounds(**given))


def end(it: Line[int]) -> None:
    it.close(monotonic() + PATIENCE_S)
    it.join(monotonic() + PATIENCE_S)


def test_slices_keep_the_order_and_the_size():
    sender = Kept(held=True)
    it = line(sender)
    for number in range(11):
        it.put(number)
    sender.released.set()
    end(it)
    assert [one for taken in sender.sent for one in taken] == list(range(11))
    assert max(len(taken) for taken in sender.sent) <= 4


def test_an_incomplete_slice_waits_to_be_filled_and_a_flush_does_not():
    sender = Kept()
    it = line(sender, delay_s=3600.0)
    it.put(1)
    it.put(2)
    assert it.waiting == 2
    assert it.flush(monotonic() + PATIENCE_S)
    assert sender.sent == [[1, 2]]
    for number in range(4):
        it.put(number)
    wait_for(lambda: sender.sent[1:] == [[0, 1, 2, 3]], "a full slice waits for nothing")
    end(it)


def test_a_flush_has_a_deadline():
    sender = Kept(held=True)
    it = line(sender)
    it.put(1)
    assert sender.entered.wait(PATIENCE_S)
    assert not it.flush(monotonic() + 0.01)
    sender.released.set()
    assert it.flush(monotonic() + PATIENCE_S)
    end(it)


def test_nothing_is_lost_in_silence_with_many_threads():
    sender = Kept()
    it = line(sender, items=50, slice=7)

    def hand_over() -> None:
        for number in range(2000):
            it.put(number % 256)

    threads = [threading.Thread(target=hand_over) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    end(it)
    exported, dropped = it.counts()
    assert it.handed_over == 16_000
    assert exported + dropped.total() == 16_000
    assert exported == sum(map(len, sender.sent))
    assert set(dropped) <= {"queue_full"}


def test_what_is_left_at_the_end_is_counted_once():
    sender = Kept(held=True)
    it = line(sender)
    for number in range(10):
        it.put(number)
    assert sender.entered.wait(PATIENCE_S)
    it.close(monotonic())
    it.join(monotonic())
    assert it.counts() == (0, {"shutdown": 10})
    sender.released.set()
    wait_for(lambda: sender.sent, "the attempt ends at last")
    it.join(monotonic() + PATIENCE_S)
    assert it.counts() == (0, {"shutdown": 10}), "too late to be counted again"
    assert it.waiting == 0
