"""Timing records: one for each request, kept in a bounded buffer until somebody takes them.

The path appends and never waits. The trace file takes them; with nobody taking, the oldest go, and
are counted. (Spans are made of other records, of sampled requests alone: see ``tracing.py``.)
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from typing import NamedTuple

from sidecar.gateway.pages import Page, Timing


class TimingRecord(NamedTuple):
    """One request, as it was.

    Attributes:
        request_id: our identity of it.
        traceparent: the W3C header as received, or ``""``.
        variant: ``model:version/name``.
        start_ns, end_ns: on the monotonic clock.
        timing: the stages.
        outcome: ``"OK"`` or the kind of error.
        bytes_in, bytes_out: sizes on the wire.
    """

    request_id: str
    traceparent: str
    variant: str
    start_ns: int
    end_ns: int
    timing: Timing
    outcome: str
    bytes_in: int
    bytes_out: int


class TimingBuffer:
    """A bounded buffer of records; appending is one operation on a deque, which needs no lock."""

    def __init__(self, capacity: int, page: Page) -> None:
        self._records: deque[TimingRecord] = deque()
        self._capacity = capacity
        self._page = page

    def append(self, record: TimingRecord) -> None:
        """Keep a record; when full, the oldest goes and is counted as dropped."""
        if len(self._records) >= self._capacity:
            try:
                self._records.popleft()
            except IndexError:  # somebody took them meanwhile
                pass
            else:
                self._page.add_server("timing_dropped")
        self._records.append(record)

    def take(self, most: int) -> list[TimingRecord]:
        """Remove and return the oldest records, at most so many."""
        taken: list[TimingRecord] = []
        while len(taken) < most:
            try:
                taken.append(self._records.popleft())
            except IndexError:
                break
        return taken

    def __len__(self) -> int:
        return len(self._records)


class RequestIds:
    """Identities for requests that come without one: unique over workers and restarts."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._numbers = itertools.count(1)  # next() is one step; `+= 1` is two, and threads race

    def make(self) -> str:
        """A new identity."""
        return f"{self._prefix}-{next(self._numbers):x}"
