"""Keeps a few requests in flight over each transport, and counts what comes back.

Every transport sends every held-out digit to every variant, again and again, a digit a request;
variants take turns, so that all of them see the same moments of the machine.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sidecar.clock import Clock
from sidecar.demo.client import CallFailedError, Client
from sidecar.demo.export import INPUT
from sidecar.demo.train import Split
from sidecar.errors import SidecarError
from sidecar.runtimes.base import Array

#: Latencies kept for the percentiles, per variant and transport: bounds what a long run keeps.
LATENCIES_MAX = 20_000
#: Then the load stops: a server that fails everything would otherwise be asked forever.
FAILURES_MAX = 50

NOT_ANSWERED = -1


@dataclass(frozen=True, slots=True)
class Target:
    """One variant as a client reaches it; ``label`` as the project writes variants."""

    model: str
    version: str
    form: str

    @property
    def label(self) -> str:
        return f"{self.model}:{self.version}/{self.form}"


@dataclass(slots=True)
class Tally:
    """What one variant answered.

    Attributes:
        scores: float32 ``[digits, 10]``; the latest answer to each digit, NaN before the first.
        requests: transport → answers.
        latencies_ns: transport → the latest end-to-end latencies.
        failures: requests without an answer.
        differences: answers that differ from an earlier one to the same digit. One variant gives
            one answer, whatever the transport: anything but 0 is a fault.
    """

    scores: Array
    requests: dict[str, int]
    latencies_ns: dict[str, deque[int]]
    failures: int = 0
    differences: int = 0

    def answers(self) -> Array:
        """Return int64 ``[digits]``: the answer to each digit, ``NOT_ANSWERED`` before it came."""
        answered = ~np.isnan(self.scores).any(axis=1)
        best: Array = np.full(len(self.scores), NOT_ANSWERED)
        best[answered] = self.scores[answered].argmax(axis=1)
        return best


@dataclass(slots=True)
class _Turn:
    """Hands out a transport's work: variants in turn, then the next digit."""

    targets: int
    digits: int
    step: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> tuple[int, int, int]:
        """Return ``(step, target, digit)``."""
        with self.lock:
            step = self.step
            self.step += 1
        return step, step % self.targets, step // self.targets % self.digits


class Load:
    """The senders.

    Args:
        targets: the variants.
        hold_out: what is sent.
        connect: transport name → makes a client; each sender has its own.
        in_flight: senders per transport.
        seconds: the least time to send; each transport also completes one pass over all digits
            and variants, so that accuracy is always over all of them.
        limit_s: the most time, whatever is complete.
        is_enough: asked once all that is sent; sending goes on until it says so.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        hold_out: Split,
        connect: Mapping[str, Callable[[], Client]],
        *,
        in_flight: int,
        seconds: float,
        limit_s: float,
        clock: Clock,
        is_enough: Callable[[], bool] = lambda: True,
    ) -> None:
        self._is_enough = is_enough
        self.targets = tuple(targets)
        self.hold_out = hold_out
        self.first_error: str | None = None
        self._connect = connect
        self._in_flight = in_flight
        self._seconds_ns, self._limit_ns = int(seconds * 1e9), int(limit_s * 1e9)
        self._clock = clock
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._fault: BaseException | None = None
        self._start_ns = self._end_ns = clock.monotonic_ns()
        count = len(hold_out.labels)
        self.tallies = {target: _empty_tally(count, connect) for target in self.targets}

    def start(self) -> None:
        """Begin sending."""
        self._start_ns = self._end_ns = self._clock.monotonic_ns()
        for transport, connect in self._connect.items():
            turn = _Turn(len(self.targets), len(self.hold_out.labels))
            for number in range(self._in_flight):
                thread = threading.Thread(
                    target=self._send,
                    args=(transport, connect, turn),
                    name=f"demo-{transport}-{number}",
                    daemon=True,
                )
                self._threads.append(thread)
                thread.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the senders, at most so long; true when all are done.

        Raises:
            SidecarError: a sender broke (not: a request failed, which is counted).
        """
        deadline_ns = self._clock.monotonic_ns() + int(timeout_s * 1e9)
        for thread in self._threads:
            thread.join(max(0.0, (deadline_ns - self._clock.monotonic_ns()) / 1e9))
        if self._fault is not None:
            message = f"the demo's client broke: {self._fault}"
            raise SidecarError(message) from self._fault
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """End sending after the requests in flight. Idempotent."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def elapsed_s(self) -> float:
        """Seconds from the start to the latest answer."""
        return (self._end_ns - self._start_ns) / 1e9

    def snapshot(self) -> dict[Target, Tally]:
        """Return copies of all tallies, taken at one moment."""
        with self._lock:
            return {
                target: Tally(
                    tally.scores.copy(),
                    dict(tally.requests),
                    {name: deque(values) for name, values in tally.latencies_ns.items()},
                    tally.failures,
                    tally.differences,
                )
                for target, tally in self.tallies.items()
            }

    def _send(self, transport: str, connect: Callable[[], Client], turn: _Turn) -> None:
        try:
            client = connect()
            try:
                while self._send_one(transport, client, turn):
                    pass
            finally:
                client.close()
        except BaseException as error:  # noqa: BLE001 - told by wait(), on the caller's thread
            self._fault = error
            self._stop.set()

    def _send_one(self, transport: str, client: Client, turn: _Turn) -> bool:
        """Send the next digit; false when there is no more to do."""
        step, which, digit = turn.take()
        elapsed_ns = self._clock.monotonic_ns() - self._start_ns
        complete = step >= turn.targets * turn.digits and elapsed_ns >= self._seconds_ns
        complete = complete and self._is_enough()
        if self._stop.is_set() or complete or elapsed_ns >= self._limit_ns:
            return False
        target = self.targets[which]
        image = self.hold_out.images[digit : digit + 1]
        start_ns = self._clock.monotonic_ns()
        try:
            answer = client.infer(target.model, {INPUT: image}, version=target.version)
        except CallFailedError as error:
            self._record_failure(target, error)
            return True
        end_ns = self._clock.monotonic_ns()
        scores = next(iter(answer.outputs.values()))[0]
        self._record(target, transport, digit, scores, end_ns - start_ns)
        return True

    def _record(
        self, target: Target, transport: str, digit: int, scores: Array, took_ns: int
    ) -> None:
        with self._lock:
            tally = self.tallies[target]
            earlier = tally.scores[digit]
            if not np.isnan(earlier[0]) and earlier.argmax() != scores.argmax():
                tally.differences += 1
            tally.scores[digit] = scores
            tally.requests[transport] += 1
            tally.latencies_ns[transport].append(took_ns)
            self._end_ns = self._clock.monotonic_ns()

    def _record_failure(self, target: Target, error: CallFailedError) -> None:
        with self._lock:
            self.tallies[target].failures += 1
            if self.first_error is None:
                self.first_error = f"{target.label}: {error}"
            if sum(tally.failures for tally in self.tallies.values()) >= FAILURES_MAX:
                self._stop.set()


def _empty_tally(digits: int, transports: Mapping[str, object]) -> Tally:
    return Tally(
        scores=np.full((digits, 10), np.nan, np.float32),
        requests=dict.fromkeys(transports, 0),
        latencies_ns={name: deque(maxlen=LATENCIES_MAX) for name in transports},
    )
