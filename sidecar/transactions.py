"""Changes that must reach every worker: two phases, one change at a time, in one order.

Used by the supervisor's one thread; nothing here waits.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from sidecar.children import Child
from sidecar.control import Message

Command = dict[str, Any]

#: A worker may build an engine while it prepares. One that takes longer hangs, and must not hold up
#: every later change: this one is given up, and nothing has changed.
PREPARE_WITHIN_S = 1800.0


@dataclass
class Worker(Child):
    """One worker process and this side of its control channel."""

    index: int
    copies: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Transaction:
    """One change on its way to all workers."""

    number: int
    command: Command
    origin: Worker
    channel: socket.socket | None  # of the process that asked: a successor must not get its answer
    call: int
    taking_part: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    expires_s: float | None = None  # monotonic; ``None``: not begun, or past what may hang
    committing: bool = False
    failure: Message | None = None


class Transactions:
    """The queue of changes, and what a worker that starts later must repeat.

    Args:
        workers: all of them. Whoever runs takes part, also while it still starts: it answers when
            it is ready, for a change that went around it would be lost in it. Who does not run
            starts with what ``state`` says.
        send: sends a message to a worker; never raises.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        send: Callable[[Worker, Message], None],
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._clock = clock
        self._workers = workers
        self._send = send
        self._queue: deque[Transaction] = deque()
        self._state: dict[str, Command] = {}
        self._numbers = 0

    def state(self) -> list[Command]:
        """The commands that bring a fresh worker to where the others are."""
        return list(self._state.values())

    def begin(self, worker: Worker, message: Message) -> None:
        """A worker asks for a change."""
        self._numbers += 1
        self._queue.append(
            Transaction(self._numbers, message["command"], worker, worker.channel, message["call"])
        )
        if len(self._queue) == 1:
            self._prepare()

    def _prepare(self) -> None:
        """One change at a time, in order: each worker sees the same sequence."""
        while self._queue:
            running = [worker for worker in self._workers if worker.channel is not None]
            for worker in running:
                self._include(worker)
            if running:
                self._queue[0].expires_s = self._clock() + PREPARE_WITHIN_S
                return
            self._queue.popleft()  # whoever asked has ended, too

    def join(self, worker: Worker) -> None:
        """A worker was just started with ``state``, which lacks a change that is under way."""
        if self._queue and not self._queue[0].committing:
            self._include(worker)

    def _include(self, worker: Worker) -> None:
        transaction = self._queue[0]
        transaction.taking_part.add(worker.index)
        transaction.waiting.add(worker.index)
        number, command = str(transaction.number), transaction.command
        self._send(worker, {"type": "prepare", "txn": number, "command": command})

    def on_prepared(self, worker: Worker, message: Message) -> None:
        """A worker has done what may fail, or it failed."""
        transaction = self._current(message["txn"])
        if transaction is None:
            return
        transaction.waiting.discard(worker.index)
        if not message["ok"] and transaction.failure is None:
            transaction.failure = message
        self._advance(transaction)

    def on_committed(self, worker: Worker, number: str) -> None:
        """A worker has changed."""
        transaction = self._current(number)
        if transaction is not None:
            transaction.waiting.discard(worker.index)
            self._advance(transaction)

    def _current(self, number: str) -> Transaction | None:
        if self._queue and str(self._queue[0].number) == number:
            return self._queue[0]
        return None

    def forget(self, worker: Worker) -> None:
        """A worker that died holds up no change: its successor starts with the new state."""
        if self._queue:
            self._queue[0].taking_part.discard(worker.index)
            self._queue[0].waiting.discard(worker.index)
            self._advance(self._queue[0])

    def pause_s(self) -> float | None:
        """In how many seconds ``expire`` has something to do; ``None``: not by itself."""
        if not self._queue or self._queue[0].expires_s is None:
            return None
        return max(0.0, self._queue[0].expires_s - self._clock())

    def expire(self) -> None:
        """Give up a change that some worker has not prepared in time.

        It reads the ``abort`` when it goes on, if ever; until then it serves what it has.
        """
        if self.pause_s() != 0.0:
            return
        transaction = self._queue[0]
        missing = ", ".join(str(index) for index in sorted(transaction.waiting))
        text = f"worker {missing} did not prepare the change within {PREPARE_WITHIN_S:g} s; "
        text += "nothing was changed"
        transaction.waiting.clear()
        if transaction.failure is None:
            transaction.failure = {"error": text, "kind": "UnavailableError"}
        self._advance(transaction)

    def _advance(self, transaction: Transaction) -> None:
        if transaction.waiting:
            return
        number = str(transaction.number)
        if transaction.failure is None and not transaction.committing:
            transaction.committing = True
            transaction.expires_s = None
            self._remember(transaction.command)
            # Only who prepared can commit; who started since then has it in its state.
            transaction.waiting = set(transaction.taking_part)
            for index in sorted(transaction.taking_part):
                self._send(self._workers[index], {"type": "commit", "txn": number})
            if transaction.waiting:
                return
        result: Message = {"type": "result", "call": transaction.call, "ok": True}
        if transaction.failure is not None:
            for worker in self._workers:
                self._send(worker, {"type": "abort", "txn": number})
            failure = transaction.failure
            result |= {"ok": False, "error": failure["error"], "kind": failure["kind"]}
        if transaction.origin.channel is transaction.channel:
            self._send(transaction.origin, result)
        self._queue.popleft()
        self._prepare()

    def _remember(self, command: Command) -> None:
        """Keep what a worker that starts later must repeat: the net effect, not the history."""
        match command["op"]:
            case "load" | "unload":
                key = f"model:{command['model']}"
                self._state.pop(key, None)
                if command["op"] == "unload":
                    self._state[key] = command
            case "shm_register":
                self._state[f"shm:{command['name']}"] = command
            case "shm_unregister":
                for key in [k for k in self._state if k.startswith("shm:")]:
                    if command["name"] in ("", key.removeprefix("shm:")):
                        del self._state[key]
            case "trace" | "log" as op:
                for name, value in command["settings"].items():
                    one = {**command, "settings": {name: value}}
                    self._state[f"{op}:{command.get('model', '')}:{name}"] = one
