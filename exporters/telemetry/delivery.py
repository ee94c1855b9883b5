"""Sending one slice: attempts, back-off, deadlines; and what is known of the backend meanwhile.

A sender makes one attempt and says how it went; everything about trying again is here, so that all
backends are treated alike.
"""

from __future__ import annotations

import logging
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Protocol, TypeVar

from exporters.telemetry.settings import Signal

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 15.0
#: A server that asks for more patience than this does not get it.
ASKED_RETRY_MAX_S = 60.0
_MESSAGE_MAX = 500


class SendError(Exception):
    """An attempt failed.

    Attributes:
        reason: a word for the counter (``refused``, ``garbage``); of what can be tried again it is
            ``retries``, for when it no longer is.
        retry: whether the same may succeed later.
        after_s: how long the server wants to be left alone, if it said so.
    """

    def __init__(
        self, reason: str, message: str, *, retry: bool, after_s: float | None = None
    ) -> None:
        super().__init__(" ".join(message.split())[:_MESSAGE_MAX])
        self.reason, self.retry, self.after_s = reason, retry, after_s


@dataclass(frozen=True, slots=True)
class Sent:
    """The backend took it. ``rejected`` items of it were not wanted, for the reason ``message``."""

    rejected: int = 0
    message: str = ""


class Sender(Protocol):
    """One way to one backend, for one signal. Used by one thread; ``close`` comes from another."""

    def send(self, payload: bytes, timeout_s: float) -> Sent:
        """Make one attempt, which takes no longer than ``timeout_s``. Raises SendError."""
        ...

    def close(self) -> None:
        """End an attempt in progress, and let everything go. May be called twice."""
        ...


@dataclass(slots=True)
class Outcome:
    """What became of a slice: how many were taken, and of the others why not."""

    exported: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a backend: ``error`` is the last failure's text, empty while all is well."""

    up: bool
    error: str = ""


class Delivery:
    """Sends slices to one backend, one after the other, for one thread.

    Args:
        signal: which one, for messages.
        sender: makes the attempts.
        timeout_s: of one attempt.
        retry_s: how long a slice is tried again.
        name: of the backend, for messages.
    """

    def __init__(
        self, signal: Signal, sender: Sender, *, timeout_s: float, retry_s: float, name: str
    ) -> None:
        self._signal, self._sender, self._name = signal, sender, name
        self._timeout_s, self._retry_s = timeout_s, retry_s
        self._closing = threading.Event()
        self._deadline = float("inf")
        # Goes on over slices: a backend that is down is not hammered by each new one.
        self._backoff_s = FIRST_RETRY_S
        self._random = random.Random()  # noqa: S311  # spreads attempts, guards nothing
        self.state = State(up=True)

    def close(self, deadline: float) -> None:
        """From now on nothing is waited for beyond ``deadline`` (monotonic seconds)."""
        self._deadline = deadline
        self._closing.set()

    def deliver(self, payload: bytes, count: int) -> Outcome:
        """Send ``payload``, which holds ``count`` items; never raises."""
        give_up = monotonic() + self._retry_s
        while True:
            left = self._deadline - monotonic()
            if left <= 0:
                return Outcome(dropped=Counter({"shutdown": count}))
            try:
                sent = self._sender.send(payload, min(self._timeout_s, left))
            except SendError as error:
                self._failed(error)
                if not error.retry:
                    return Outcome(dropped=Counter({error.reason: count}))
                pause = self._pause(error)
                if self._closing.is_set() or monotonic() + pause >= min(give_up, self._deadline):
                    reason = "shutdown" if self._closing.is_set() else error.reason
                    # Also when it is given up: the next slice must not start at once.
                    self._closing.wait(min(pause, LAST_RETRY_S))
                    return Outcome(dropped=Counter({reason: count}))
                self._closing.wait(pause)
            except Exception as error:  # noqa: BLE001  # a bug of a library must not end the thread
                self._failed(SendError("refused", f"{type(error).__name__}: {error}", retry=False))
                return Outcome(dropped=Counter({"refused": count}))
            else:
                return self._took(sent, count)

    def encode_and_deliver(
        self, items: Sequence[T], encode: Callable[[Sequence[T]], bytes]
    ) -> Outcome:
        """Send ``items``; one that cannot be encoded is dropped, and takes no other with it."""
        try:
            payload = encode(items)
        except Exception as error:  # noqa: BLE001  # whatever a library raises for a bad value
            if len(items) == 1:
                logger.warning(
                    "%s: cannot encode: %s: %s", self._signal, type(error).__name__, error
                )
                return Outcome(dropped=Counter({"invalid": 1}))
            # By halves: finds the bad one without a request for each of the good ones.
            half = len(items) // 2
            first = self.encode_and_deliver(items[:half], encode)
            second = self.encode_and_deliver(items[half:], encode)
            return Outcome(first.exported + second.exported, first.dropped + second.dropped)
        return self.deliver(payload, len(items))

    def _pause(self, error: SendError) -> float:
        pause = self._backoff_s * self._random.uniform(0.8, 1.2)
        self._backoff_s = min(2 * self._backoff_s, LAST_RETRY_S)
        if error.after_s is not None:
            pause = max(pause, min(error.after_s, ASKED_RETRY_MAX_S))
        return pause

    def _took(self, sent: Sent, count: int) -> Outcome:
        self._backoff_s = FIRST_RETRY_S
        # A backend may claim to have rejected more than it was sent, or less than nothing.
        rejected = max(0, min(sent.rejected, count))
        if not self.state.up:
            logger.info("%s: %s takes them again", self._signal, self._name)
        text = f"{rejected} were rejected: {sent.message}" if rejected else ""
        if text and text != self.state.error:
            logger.warning("%s: %s: %s", self._signal, self._name, text[:_MESSAGE_MAX])
        self.state = State(up=True, error=text[:_MESSAGE_MAX])
        return Outcome(count - rejected, Counter({"rejected": rejected} if rejected else {}))

    def _failed(self, error: SendError) -> None:
        """Remember; say it once for each change, not for each attempt."""
        if self.state.up and not self._closing.is_set():
            logger.warning("%s are not taken by %s: %s", self._signal, self._name, error)
        self.state = State(up=False, error=str(error))
