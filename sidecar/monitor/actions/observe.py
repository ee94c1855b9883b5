"""Decide and tell, and touch nothing."""

from __future__ import annotations

from sidecar.monitor.actions.base import Outcome, Request, Result

_TEXT = "the action is `observe`: nothing is changed, somebody has to"


class ObserveAction:
    """Nothing."""

    kind = "observe"

    def check(self, request: Request) -> Result:
        """There is nothing to be done."""
        return Result(Outcome.NOTHING, _TEXT)

    perform = verify = undo = check
