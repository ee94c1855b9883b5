"""Timing records: bounded, oldest first, never waiting; identities that are unique."""

from __future__ import annotations

import threading

import pytest

from sidecar.gateway.pages import Page, Timing, create_page
from sidecar.gateway.timing import RequestIds, TimingBuffer, TimingRecord


@pytest.fixture
def page():
    return Page(create_page(1), 1, owner=True)


def record(number: int) -> TimingRecord:
    return TimingRecord(str(number), "", "m:1/v", 0, 1, Timing(), "OK", 2, 3)


def test_when_it_is_full_the_oldest_go_and_are_counted(page):
    buffer = TimingBuffer(4, page)
    for number in range(10):
        buffer.append(record(number))
    assert len(buffer) == 4
    assert [r.request_id for r in buffer.take(3)] == ["6", "7", "8"]
    assert [r.request_id for r in buffer.take(3)] == ["9"]
    assert buffer.take(3) == []
    assert page.server_counters()["timing_dropped"] == 6


def test_what_is_appended_is_taken_or_counted_as_dropped(page):
    buffer = TimingBuffer(64, page)
    taken: list[TimingRecord] = []
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            taken.extend(buffer.take(16))

    taker = threading.Thread(target=take)
    taker.start()
    writers = [
        threading.Thread(target=lambda: [buffer.append(record(n)) for n in range(3000)])
        for _ in range(4)
    ]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    taker.join()
    taken.extend(buffer.take(10_000))
    assert len(taken) + page.server_counters()["timing_dropped"] == 12_000


def test_identities_differ_over_threads_and_processes():
    ids, made = RequestIds(), []

    def make() -> None:
        made.extend([ids.make() for _ in range(2000)])

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 8000
    assert len({text.partition("-")[0] for text in made}) == 1
    assert RequestIds().make() not in made
