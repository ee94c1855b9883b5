"""What waits for a batch: groups of requests that may be joined, and which goes next.

No threads and no clock here: the batcher holds its lock and says what time it is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.gateway.workpool import Waiter
from sidecar.runtimes.base import Array


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One request's share of a batch.

    Attributes:
        outputs: the outputs asked for, in that order. Views of the batch's outputs: whoever keeps
            one for long copies it, or it keeps the whole batch alive.
        queue_ns: from joining the queue until its batch was formed.
        execute_ns: from then on: joining, executing, splitting.
    """

    outputs: list[Array]
    queue_ns: int
    execute_ns: int


class Request:
    """One request on its way through the batcher.

    Attributes:
        weight: how much of a batch's size it takes.
        due_ns: it waits for company until then.
        taken: no longer in the queue.
        pooled: ``waiter`` is the pool's.
        result, error: one of them is set before the waiting thread is woken.
    """

    __slots__ = (
        "deadline_ns", "due_ns", "error", "group", "inputs", "is_cancelled", "outputs", "pooled",
        "queued_ns", "result", "rows", "taken", "waiter", "weight", "woken",
    )  # fmt: skip

    def __init__(
        self,
        inputs: dict[str, Array],
        outputs: Sequence[str],
        rows: int,
        weight: int,
        deadline_ns: int | None = None,
        is_cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.rows = rows
        self.weight = weight
        self.deadline_ns = deadline_ns
        self.is_cancelled = is_cancelled
        self.queued_ns = 0
        self.due_ns = 0
        self.group: _Group
        self.taken = False
        self.waiter: Waiter
        self.pooled = False
        self.woken = False
        self.result: BatchResult | None = None
        self.error: BaseException | None = None


class _Group:
    """Requests that may be joined, oldest first; never empty while it is in the queue."""

    __slots__ = ("key", "requests", "weight")

    def __init__(self, key: object) -> None:
        self.key = key
        self.requests: deque[Request] = deque()
        self.weight = 0


class BatchQueue:
    """Groups of waiting requests. Not thread-safe.

    Args:
        max_size: weight of one batch at most; a single request of more goes alone.

    Attributes:
        size: requests that wait.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        self._groups: dict[object, _Group] = {}
        self.size = 0

    def add(self, request: Request, key: object) -> bool:
        """Queue a request behind those with an equal key.

        Returns:
            Whether ``take`` may answer differently from now on: its group is new, or is full.
        """
        group = self._groups.get(key)
        new = group is None
        if group is None:
            group = self._groups[key] = _Group(key)
        request.group = group
        group.requests.append(request)
        group.weight += request.weight
        self.size += 1
        return new or group.weight >= self._max_size

    def remove(self, request: Request) -> None:
        """Take one request out, from wherever it stands."""
        request.group.requests.remove(request)
        self._removed(request)

    def take(self, now_ns: int, *, at_once: bool = False) -> tuple[list[Request], int | None]:
        """The next batch, or when to ask again.

        A group whose oldest request is due goes before one that is full, so that a stream of full
        batches of one shape does not starve a single request of another; among equals, the one
        whose oldest request has waited longest.

        Args:
            at_once: as if all were due.

        Returns:
            The oldest requests of that group that fit into one batch; or nothing, and the time at
            which the first group is due (``None``: nothing waits).
        """
        due: _Group | None = None
        full: _Group | None = None
        next_ns: int | None = None
        for group in self._groups.values():
            head = group.requests[0]
            if at_once or head.due_ns <= now_ns:
                if due is None or head.queued_ns < due.requests[0].queued_ns:
                    due = group
            elif group.weight >= self._max_size:
                if full is None or head.queued_ns < full.requests[0].queued_ns:
                    full = group
            elif next_ns is None or head.due_ns < next_ns:
                next_ns = head.due_ns
        chosen = due or full
        if chosen is None:
            return [], next_ns
        return self._take_from(chosen), None

    def _take_from(self, group: _Group) -> list[Request]:
        batch: list[Request] = []
        room = self._max_size
        requests = group.requests
        while requests and (not batch or requests[0].weight <= room):
            request = requests.popleft()
            room -= request.weight
            batch.append(request)
            self._removed(request)
        return batch

    def _removed(self, request: Request) -> None:
        group = request.group
        request.taken = True
        group.weight -= request.weight
        self.size -= 1
        if not group.requests:
            del self._groups[group.key]

    def drain(self) -> list[Request]:
        """Take everything out."""
        requests = [request for group in self._groups.values() for request in group.requests]
        for request in requests:
            request.taken = True
        self._groups.clear()
        self.size = 0
        return requests
