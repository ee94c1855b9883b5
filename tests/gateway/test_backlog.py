"""What waits for the monitor: bounded, in slices, and everything accounted for."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar import frames
from sidecar.gateway.backlog import Backlog, Told
from sidecar.gateway.logrecords import LogRecords
from sidecar.gateway.pages import Page, create_page
from sidecar.gateway.tracing import Traced, working_on
from sidecar.monitor.channel_frames import LOGS, SPANS, unpack_logs
from tests.monitor.listening import log, span


@pytest.fixture
def page() -> Iterator[Page]:
    descriptor = create_page(1)
    made = Page(descriptor, 1, owner=True)
    os.close(descriptor)
    yield made
    made.close()


def backlog(page: Page, **bounds: Any) -> Backlog[int]:
    known: dict[str, Any] = {"capacity": 5, "unacknowledged": 4, "slice_count": 3}
    return Backlog(page, "spans_dropped", **{**known, **bounds})


def dropped(page: Page, kind: str = "spans") -> int:
    return page.server_counters()[f"{kind}_dropped"]


def test_without_a_monitor_nothing_is_kept(page: Page) -> None:
    waits = backlog(page)
    for number in range(7):
        waits.put(number)
    assert (dropped(page), waits.empty, waits.take()) == (7, True, [])


def test_the_oldest_go_when_it_is_full(page: Page) -> None:
    waits = backlog(page)
    waits.open()
    for number in range(8):
        waits.put(number)
    assert dropped(page) == 3
    assert waits.slice_waits
    assert waits.take() == [3, 4, 5]
    assert waits.waiting
    assert not waits.slice_waits


def test_what_is_not_acknowledged_holds_up_what_follows(page: Page) -> None:
    waits = backlog(page)
    waits.open()
    for number in range(5):
        waits.put(number)
    assert (waits.take(), waits.take(), waits.take()) == ([0, 1, 2], [3], [])
    assert not waits.waiting
    waits.acknowledge(2)
    assert waits.waiting
    assert waits.take() == [4]
    waits.acknowledge(-5)
    waits.acknowledge(100)
    assert waits.empty
    assert dropped(page) == 0


def test_what_a_monitor_takes_with_it_is_counted(page: Page) -> None:
    waits = backlog(page)
    waits.open()
    for number in range(5):
        waits.put(number)
    waits.take()
    waits.acknowledge(1)
    waits.lose()
    assert (dropped(page), waits.empty) == (4, True)
    waits.put(9)
    assert dropped(page) == 5
    waits.open()
    waits.put(10)
    assert waits.take() == [10]


def test_a_slice_is_bounded_by_size_and_never_empty(page: Page) -> None:
    waits = backlog(page, slice_size=10, size=lambda one: one)
    waits.open()
    for number in (4, 6, 1, 50, 2):
        waits.put(number)
    assert waits.take() == [4, 6]
    waits.acknowledge(2)
    assert waits.take() == [1]
    assert waits.take() == [50]
    assert waits.take() == [2]


def test_many_threads_lose_nothing_unaccounted(page: Page) -> None:
    """Handed over = taken + dropped, whoever runs in between."""
    waits = backlog(page, capacity=50, unacknowledged=10**9)
    waits.open()
    threads = [
        threading.Thread(target=lambda: [waits.put(n) for n in range(2000)]) for _ in range(4)
    ]
    taken = 0
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken += len(waits.take())
    while got := waits.take():
        taken += len(got)
    assert taken + dropped(page) == 8000


def test_frames_of_what_is_told(page: Page) -> None:
    told = Told(page, spans=True, logs=True)
    assert told.spans is not None
    assert told.logs is not None
    for each in told.all:
        each.open()
    assert told.frames() == []
    told.spans.put(span())
    told.logs.put(log())
    assert told.frames() == [(SPANS, {"spans": [span()]}, ()), (LOGS, {"logs": [log()]}, ())]
    assert not told.empty
    told.acknowledge("spans", 1)
    told.acknowledge("logs", 1)
    told.acknowledge("nonsense", 1)
    assert told.empty
    assert Told(page, spans=False, logs=False).frames() == []


# --- log records ----------------------------------------------------------------------------------


@pytest.fixture
def told(page: Page) -> Iterator[Told]:
    told = Told(page, spans=False, logs=True)
    assert told.logs is not None
    told.logs.open()
    records = LogRecords(told.logs)
    records.attach()
    yield told
    working_on(None)
    records.detach()


def logged(told: Told) -> list[dict[str, Any]]:
    return [one for _, fields, _ in told.frames() for one in unpack_logs(fields)]


def test_a_log_record_with_the_trace_that_is_worked_on(told: Told) -> None:
    logger = logging.getLogger("sidecar.somewhere")
    trace = Traced(0xABC, 1, 1, "")
    working_on(trace)
    logger.warning("the %s", "end", extra={"model": "m"})
    working_on(None)
    logger.error("later")
    first, second = logged(told)
    assert (first["body"], first["severity"], first["severity_text"]) == ("the end", 13, "WARNING")
    assert first["traceparent"] == trace.traceparent
    assert first["attributes"]["model"] == "m"
    assert first["attributes"]["logger.name"] == "sidecar.somewhere"
    assert (second["body"], second["severity"], second["traceparent"]) == ("later", 17, "")
    assert first["time_ns"] <= second["time_ns"]


def test_another_thread_works_on_nothing_of_it(told: Told) -> None:
    working_on(Traced(0xABC, 1, 1, ""))
    thread = threading.Thread(target=lambda: logging.getLogger("sidecar.x").warning("there"))
    thread.start()
    thread.join()
    assert [one["traceparent"] for one in logged(told)] == [""]


@pytest.mark.parametrize(
    "name", ["sidecar.gateway.tap", "opentelemetry.x", "grpc", "exporters.telemetry.line"]
)
def test_what_sending_says_is_not_sent(told: Told, name: str) -> None:
    logging.getLogger(name).critical("the monitor is gone")
    assert logged(told) == []


def test_a_flood_is_bounded_and_so_is_each_frame(told: Told, page: Page) -> None:
    logger = logging.getLogger("sidecar.x")
    many = {f"key-{n}": "😀" * 5000 for n in range(100)}
    for _ in range(1100):
        logger.warning("😀" * 50_000, extra=many)
    assert dropped(page, "logs") == 1100 - 1024
    ours, theirs = socket.socketpair()
    with ours, theirs:
        batch = told.frames()
        sending = threading.Thread(target=frames.send_many, args=(ours, batch))
        sending.start()
        came = frames.Receiver(theirs, max_bytes=2**20).receive()
        sending.join()
    assert came is not None
    assert unpack_logs(came.fields) == batch[0][1]["logs"]
