"""Admission: bounds on requests, bytes and streams in flight; refusing never waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sidecar.errors import OverloadedError
from sidecar.gateway.pages import Page

if TYPE_CHECKING:
    from sidecar.config import AdmissionConfig


class Admission:
    """Counts what is in flight in this worker; what goes over a bound is refused and counted.

    Requests are counted before their body is read, so memory is bounded by ``max_requests`` times
    the message limit from the first byte on, and by ``max_bytes`` once bodies are complete.
    """

    def __init__(self, config: AdmissionConfig, page: Page) -> None:
        self.max_requests = config.max_requests
        self.max_bytes = config.max_bytes
        self.max_streams = config.max_streams
        self._page = page
        self._lock = threading.Lock()
        self.requests = 0
        self.bytes = 0
        self.streams = 0

    def enter_request(self) -> None:
        """Count a request in.

        Raises:
            OverloadedError: as many as allowed are in flight.
        """
        with self._lock:
            if self.requests < self.max_requests:
                self.requests += 1
                return
        self._page.add_server("refused_requests")
        text = f"{self.max_requests} requests are in flight, which is the limit; retry later"
        raise OverloadedError(text)

    def enter_bytes(self, nbytes: int) -> None:
        """Count a body in. A single body over the bound is let in alone, or it never could be.

        Raises:
            OverloadedError: the bodies in flight hold as many bytes as allowed.
        """
        with self._lock:
            if self.bytes == 0 or self.bytes + nbytes <= self.max_bytes:
                self.bytes += nbytes
                return
        self._page.add_server("refused_bytes")
        text = f"requests in flight hold {self.max_bytes} bytes, which is the limit; retry later"
        raise OverloadedError(text)

    def leave_request(self, nbytes: int) -> None:
        """Count a request and its body out."""
        with self._lock:
            self.requests -= 1
            self.bytes -= nbytes

    def enter_stream(self) -> None:
        """Count a stream in.

        Raises:
            OverloadedError: as many as allowed are open.
        """
        with self._lock:
            if self.streams < self.max_streams:
                self.streams += 1
                return
        self._page.add_server("refused_streams")
        text = f"{self.max_streams} streams are open, which is the limit; retry later"
        raise OverloadedError(text)

    def leave_stream(self) -> None:
        """Count a stream out."""
        with self._lock:
            self.streams -= 1

    @contextmanager
    def admit(self, nbytes: int, *, requests: int = 1) -> Iterator[None]:
        """Around a request whose size is known when it is admitted (HTTP, streams)."""
        if requests:
            self.enter_request()
        try:
            self.enter_bytes(nbytes)
        except OverloadedError:
            if requests:
                with self._lock:
                    self.requests -= 1
            raise
        try:
            yield
        finally:
            with self._lock:
                self.requests -= requests
                self.bytes -= nbytes

    def idle(self) -> bool:
        """Nothing is in flight."""
        return self.requests == 0 and self.streams == 0
