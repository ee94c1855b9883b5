"""What operators may do: freeze, approve, and take back. Each is durable when it returns.

At any monitor of those that share a store: it is written there, and the leader goes on with it. Who
loses the race against the leader (or another operator) looks again, and tries again or is told.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

from sidecar.errors import ConflictError, InvalidRequestError, NotFoundError, UnavailableError
from sidecar.monitor.actions.base import Action, Outcome
from sidecar.monitor.rollback import decisions, states
from sidecar.monitor.rollback.actor import request
from sidecar.monitor.rollback.book import Book
from sidecar.monitor.rollback.decisions import ActionState, Decision, Kind
from sidecar.monitor.rollback.desk import Desk
from sidecar.monitor.rollback.states import State
from sidecar.monitor.rollback.store import ALL, Change

logger = logging.getLogger("sidecar.monitor.rollback")

_WHO_MAX, _WHY_MAX = 200, 2000
#: So often an operator's word is written again over what somebody else wrote meanwhile.
_ATTEMPTS = 5


class Operators:
    """Any thread.

    Args:
        models: those that are checked.
        actions: model → what can be undone; those that only observe are not in it.
        wake: something may be there to do.
    """

    def __init__(
        self,
        book: Book,
        desk: Desk,
        models: tuple[str, ...],
        actions: Mapping[str, Action],
        wake: Callable[[], None],
    ) -> None:
        self._book = book
        self._desk = desk
        self._models = models
        self._actions = actions
        self._wake = wake
        self._undoing = threading.Lock()

    def freeze(self, model: str, *, frozen: bool, by: str, reason: str) -> None:
        """Let nobody but operators act on a model (empty: on any), or end that.

        Raises:
            NotFoundError, InvalidRequestError, ConflictError, UnavailableError.
        """
        _check(by, reason)
        if model != ALL and model not in self._models:
            known = ", ".join(self._models) or "none"
            message = f"no model {model!r} is checked; there is {known}"
            raise NotFoundError(message)
        self._book.freeze(model, frozen=frozen, by=by, reason=reason)
        logger.warning(
            "%s %s by %s: %s", model or "all models", "frozen" if frozen else "unfrozen", by,
            reason or "no reason given",
        )  # fmt: skip
        self._wake()

    def approve(self, name: str, *, by: str, reason: str) -> Decision:
        """Have an action done that waits, or that was blocked or failed.

        Raises:
            NotFoundError: no such decision. ConflictError: there is nothing to approve.
            UnavailableError: the store does not take it.
        """
        _check(by, reason)
        for _ in range(_ATTEMPTS):
            if self._approve(name, by, f": {reason}" if reason else ""):
                self._wake()
                return self._book.decision(name)
        raise ConflictError(_lost(name))

    def _approve(self, name: str, by: str, why: str) -> bool:
        """Once; ``False``: somebody else was sooner, look again."""
        with self._book.held():
            before = self._book.decision(name)
            may = {
                ActionState.WAITING, ActionState.PENDING, ActionState.BLOCKED, ActionState.FAILED,
            }  # fmt: skip
            if before.resolved_ns is not None or before.action_state not in may:
                message = f"{name} has no action that waits: it is {before.action_state}"
                message += f" ({before.action_text})" if before.action_text else ""
                raise ConflictError(message)
            after = replace(
                before, action_state=str(ActionState.PENDING), approved_by=by,
                action_text=f"Approved by {by}{why}.", blocked_alert="",
            )  # fmt: skip
            change = Change()
            if before.blocked_alert:
                now_ns = self._book.now_ns()
                change.resolved = [decisions.blocked_alert_of(before, ended_ns=now_ns)]
                standing = self._book.standing(before.pair)
                change.standings = {
                    before.pair: states.to(standing, State.REGRESSED, after.action_text, now_ns)
                }
            done = self._book.move(before, after, change, operator=True)
            if not done and self._book.trouble:
                message = f"{name} was not changed: {self._book.trouble}"
                raise UnavailableError(message)
            return done

    def undo(self, name: str, *, by: str, reason: str) -> Decision:
        """Take a rollback back, or close a decision; the pair is judged from then on.

        Raises:
            NotFoundError: no such decision. ConflictError: it is closed, or is being acted on.
            UnavailableError: what was done cannot be taken back now; the message says why.
        """
        _check(by, reason)
        if not self._undoing.acquire(blocking=False):
            message = "another decision is being taken back; try again when that is done"
            raise ConflictError(message)
        try:
            return self._undo(name, by, f": {reason}" if reason else "")
        finally:
            self._undoing.release()

    def _undo(self, name: str, by: str, why: str) -> Decision:
        for _ in range(_ATTEMPTS):
            with self._book.held():  # with what is new
                decision = self._book.decision(name)
            text, state = self._undone(decision, by, why)
            if self._desk.close_decision(decision, text, state):
                logger.warning("%s: decision %s: %s", decision.pair.model, name, text)
                self._wake()
                return self._book.decision(name)
            if self._book.trouble:
                message = f"{name} could not be closed: {self._book.trouble}"
                raise UnavailableError(message)
        raise ConflictError(_lost(name))

    def _undone(self, decision: Decision, by: str, why: str) -> tuple[str, ActionState]:
        """What is to be said of it, and how far its action is then; taken back, where it was done
        (which is safe to do again)."""
        name = decision.id
        if decision.action_state in {ActionState.ACTING, ActionState.VERIFYING}:
            message = f"{name} is being acted on right now: {decision.action_text or 'wait'}"
            raise ConflictError(message)
        if decision.action_state == ActionState.DONE:
            said = self._take_back(decision)
            text, state = f"Undone by {by}{why}. {said}", ActionState.UNDONE
        elif decision.resolved_ns is not None:
            message = f"{name} is closed already: {decision.action_text}"
            raise ConflictError(message)
        else:
            text, state = f"Closed by {by}{why}.", ActionState.NONE
        if decision.kind == Kind.BLOCKED:
            text += " The two versions still cannot be compared."
        return text, state

    def _take_back(self, decision: Decision) -> str:
        action = self._actions.get(decision.pair.model)
        if action is None or action.kind != decision.action:
            message = (
                f"{decision.id} was done by the action {decision.action}, which is no longer "
                "configured: take it back by hand, and configure it again to close this"
            )
            raise ConflictError(message)
        try:
            result = action.undo(request(decision, self._book, operator=True))
        except Exception as error:
            logger.exception("an action failed by a fault of its own")
            message = f"it could not be undone, by a fault of the action: {error!r}"
            raise UnavailableError(message) from None
        if result.outcome not in {Outcome.DONE, Outcome.NOTHING}:
            message = f"not undone: {result.text}"
            raise UnavailableError(message)
        return result.text


def _lost(name: str) -> str:
    return f"{name} was changed by somebody else, again and again: look, then decide again"


def _check(by: str, reason: str) -> None:
    if not by.strip():
        message = "say who it is (by): decisions are kept with a name"
        raise InvalidRequestError(message)
    if len(by) > _WHO_MAX or len(reason) > _WHY_MAX:
        message = f"a name has at most {_WHO_MAX} characters, a reason {_WHY_MAX}"
        raise InvalidRequestError(message)
