"""What an action must be able to do. Decisions are written before any of this is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Request:
    """One decision's wish.

    Attributes:
        decision_id: stable over retries and restarts: what a repeated action is known by.
        model: its name; ``new`` and ``previous``: ``version/name`` of the pair.
        new_version, previous_version: as the protocol has them.
        fence: grows with each owner of the decision; an action that carries an older one is stale.
        reason: in words, for whoever looks at the object that was changed.
        seen: what the decision first saw at its target (a ReplicaSet's name, say), as a ``Result``
            of it said; empty: nothing yet.
        leads: whether the owner still is one. To be asked after the object was read, and before it
            is changed by compare-and-swap: what a later owner has done meanwhile then makes the
            change stale, however late it comes.
    """

    decision_id: str
    model: str
    new: str
    previous: str
    new_version: str
    previous_version: str
    fence: int
    reason: str
    seen: str = ""
    leads: Callable[[], bool] = field(default=lambda: True, compare=False, repr=False)


class Outcome(StrEnum):
    """What came of an attempt."""

    DONE = "done"  #: the change was made (or had been made by this decision before)
    NOTHING = "nothing"  #: there is nothing to do: it is as wanted already, or only observed
    RETRY = "retry"  #: somebody else changed it meanwhile, or nobody answers: try again
    BLOCKED = "blocked"  #: it may not be done, or cannot: a person must look


@dataclass(frozen=True, slots=True)
class Result:
    """``text`` says in words what happened, and why; ``details`` are facts for the history.

    ``seen``: what this decision first saw at its target, to be kept with it; empty: nothing.
    """

    outcome: Outcome
    text: str
    details: dict[str, str] = field(default_factory=dict)
    seen: str = ""


#: What an action says that was begun by somebody who decides no more.
DEPOSED = Result(Outcome.RETRY, "another monitor decides by now, and goes on with this")


class Action(Protocol):
    """One kind of action, made of its configuration. Each call may take seconds, none raises what
    it can say in a ``Result``; repeating any of them is safe."""

    kind: str

    def check(self, request: Request) -> Result:
        """May it be done now: is the target there and healthy, have we the right? Changes nothing.

        DONE means yes.
        """
        ...

    def perform(self, request: Request) -> Result:
        """Do it: compare and swap, dry run first where the API has one."""
        ...

    def verify(self, request: Request) -> Result:
        """Does it show? RETRY: not yet."""
        ...

    def undo(self, request: Request) -> Result:
        """Take it back, on an operator's word only."""
        ...
