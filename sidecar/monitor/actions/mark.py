"""What an action writes on the object that it changes: by which decision, and what was before."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from sidecar.monitor.actions.base import Outcome, Request, Result
from sidecar.monitor.actions.cluster import MARK, CallError

_FORGET_AFTER = 10  # an annotation is no history
_REMEMBERED_MAX = 64


@dataclass(frozen=True, slots=True)
class Mark:
    """The annotation ``model-sidecar/rollback``, JSON.

    Attributes:
        before, after: of what was changed (names of ReplicaSets, percents of traffic).
        taken_back: what was ever rolled back from, the latest last: none of it is a way back.
        undone: an operator took it back.
    """

    decision: str
    fence: int
    new: str
    previous: str
    before: str
    after: str
    taken_back: list[str] = field(default_factory=list)
    undone: bool = False

    def text(self) -> str:
        """As it is written."""
        return json.dumps(asdict(self), separators=(",", ":"))


def read_mark(document: dict[str, Any]) -> Mark | None:
    """An object's mark; ``None``: it has none, or what somebody else wrote there."""
    text = (document["metadata"].get("annotations") or {}).get(MARK)
    if text is None:
        return None
    try:
        mark = Mark(**json.loads(text))
    except (TypeError, ValueError, RecursionError):
        return None
    texts = (mark.decision, mark.new, mark.previous, mark.before, mark.after)
    readable = (
        all(isinstance(one, str) for one in texts)
        and isinstance(mark.taken_back, list)
        and all(isinstance(one, str) for one in mark.taken_back)
        and type(mark.fence) is int
        and type(mark.undone) is bool
    )
    return mark if readable else None


def make_mark(request: Request, before: str, after: str, old: Mark | None) -> Mark:
    """The mark of a change that is about to be made; it keeps what the one before knew."""
    taken = [one for one in (old.taken_back if old else []) if one not in {before, after}]
    taken = [*taken, before][-_FORGET_AFTER:]
    return Mark(
        request.decision_id, request.fence, request.new, request.previous, before, after, taken
    )


def undo_mark(mark: Mark, request: Request) -> Mark:
    """The mark of an operator's undoing."""
    kept = [one for one in mark.taken_back if one != mark.before]
    return replace(mark, undone=True, fence=request.fence, taken_back=kept)


def done_before(mark: Mark | None, request: Request) -> Result | None:
    """What is to be said where this decision has acted already; ``None``: it has not.

    An object carries no history, so an earlier decision's mark is lost with the next one's: that a
    decision acts once is held by whoever keeps the decisions, and this is the second lock.
    """
    if mark is None or mark.decision != request.decision_id:
        return None
    if mark.undone:
        text = f"decision {mark.decision} was done, and an operator undid it: it is not done again"
        return Result(Outcome.BLOCKED, text)
    if mark.fence > request.fence:
        text = f"decision {mark.decision} has a later owner (fence {mark.fence}, ours is "
        return Result(Outcome.BLOCKED, f"{text}{request.fence}), who has acted: we do nothing")
    text = f"decision {mark.decision} has made this change before"
    return Result(Outcome.DONE, text, {"before": mark.before, "after": mark.after})


class Remembered:
    """What each decision first saw, so that it acts on that and nothing else. Bounded.

    Whoever keeps the decision keeps this with it (``told``), for whoever leads next: here it lives
    as long as the process.

    And what may be done once more. A decision that has acted is checked again only because an
    operator approved it after somebody had set its change back: then, and only in the same process,
    it is no repetition.
    """

    def __init__(self) -> None:
        self._seen: dict[str, str] = {}
        self._again: dict[str, None] = {}

    def allow_again(self, request: Request) -> None:
        """It was checked, and found set back."""
        self._again[request.decision_id] = None
        while len(self._again) > _REMEMBERED_MAX:
            del self._again[next(iter(self._again))]

    def may_again(self, request: Request) -> bool:
        """Whether it was."""
        return request.decision_id in self._again

    def acted(self, request: Request) -> None:
        """It was done."""
        self._again.pop(request.decision_id, None)

    def hold(self, request: Request, seen: str, what: Callable[[str, str], str]) -> None:
        """Keep what is seen first, and refuse what is another one later.

        Args:
            what: says in words that the first has become the second.

        Raises:
            CallError: it is another one: the decision was not made about it.
        """
        first = request.seen or self._seen.get(request.decision_id) or seen
        self._seen[request.decision_id] = first
        while len(self._seen) > _REMEMBERED_MAX:
            del self._seen[next(iter(self._seen))]
        if first != seen:
            text = f"{what(first, seen)} since this was decided: the decision is not about it"
            raise CallError(Outcome.BLOCKED, text)

    def told(self, request: Request, result: Result) -> Result:
        """The result, with what the decision first saw."""
        return replace(result, seen=self._seen.get(request.decision_id, request.seen))
