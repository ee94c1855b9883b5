"""Carries decisions out, step by step, each step durable before the next.

::

    waiting ⇄ pending → acting → verifying → done
       ↘         ↘         ↘         ↘
        (an operator closes it)    blocked, failed: an alert; an operator may have it tried again

On a thread of its own: an API server that hangs stops no check. Only the leader acts; what an
earlier one (or an earlier life of this process) had begun is gone on with: ``acting`` may have
happened or not, and every action is such that doing it again is safe. Who ceases to lead in the
middle of a step changes nothing any more, and what it writes of it is not taken.

Guards, before anything is touched: nobody has frozen the model; approval, where it is asked for; no
other action within the cool-down; the pair is fresh (somebody still compares); and the action's own
check: the previous version is there, and answers at the very place that would serve.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from exporters.alerts.alert import Alert
from sidecar.clock import Clock
from sidecar.config_rollback import RollbackConfig
from sidecar.monitor.actions.base import Action, Outcome, Request, Result
from sidecar.monitor.rollback import decisions, states
from sidecar.monitor.rollback.book import Book
from sidecar.monitor.rollback.decisions import ActionState, Decision, PairId
from sidecar.monitor.rollback.states import State
from sidecar.monitor.rollback.store import Change

logger = logging.getLogger("sidecar.monitor.rollback")

#: How often decisions that are open are looked at.
TICK_S = 0.5
_JOIN_S = 2.0


class Actor:
    """``start``, then ``wake`` whenever there may be something to do, then ``close``.

    Args:
        settings: model → its settings.
        actions: model → what is done; models that only observe are not in it.
        stale: why a pair is not fresh enough to act on; empty: it is.
    """

    def __init__(
        self,
        book: Book,
        settings: Callable[[str], RollbackConfig],
        actions: dict[str, Action],
        stale: Callable[[PairId], str],
        clock: Clock,
    ) -> None:
        self._book = book
        self._settings = settings
        self._actions = actions
        self._stale = stale
        self._clock = clock
        self._woken = threading.Event()
        self._stopping = threading.Event()
        #: Decision → monotonic, since when its present step goes on in this life.
        self._since: dict[tuple[str, str], int] = {}
        self._thread = threading.Thread(target=self._run, name="rollback-actor", daemon=True)

    # --- life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Look now."""
        self._woken.set()

    def close(self) -> None:
        """Begin nothing further; what is under way is left (a restart goes on with it)."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(_JOIN_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait(TICK_S if self._book.has_open else None)
            self._woken.clear()
            self.tick()

    def tick(self) -> None:
        """One step of every open decision. Never raises."""
        self._book.take_over()
        if not self._book.leads:
            self._since.clear()  # the next term's patience is its own
        for decision in self._book.open():
            if self._stopping.is_set():
                return
            try:
                self.advance(decision)
            except Exception:
                logger.exception("decision %s could not be gone on with", decision.id)

    # --- the steps --------------------------------------------------------------------------------

    def advance(self, decision: Decision) -> None:
        """One step of one decision."""
        action = self._actions.get(decision.pair.model)
        if action is None or action.kind != decision.action:
            self._stop(
                decision, ActionState.BLOCKED,
                f"The action {decision.action} is no longer configured for this model.",
            )  # fmt: skip
            return
        if decision.action_state in {ActionState.WAITING, ActionState.PENDING}:
            self._begin(decision, action)
        elif decision.action_state == ActionState.ACTING:
            self._perform(decision, action)
        elif decision.action_state == ActionState.VERIFYING:
            self._verify(decision, action)

    def _begin(self, decision: Decision, action: Action) -> None:
        held = self.holds(decision)
        if held:
            self._wait(decision, held)
            return
        result = _call(action.check, request(decision, self._book))
        decision = _with_seen(decision, result)
        if result.outcome is Outcome.BLOCKED or self._is_late(decision, "check", result):
            self._stop(decision, ActionState.BLOCKED, f"Not done: {_sentence(result.text)}")
            return
        if result.outcome is Outcome.NOTHING:
            self._done(decision, result)
            return
        if result.outcome is Outcome.RETRY:
            self._say(decision, ActionState.PENDING, f"Not yet: {_sentence(result.text)}")
            return
        with self._book.lock:
            # A freeze may have come while the target was asked.
            held = self.holds(decision)
            if held:
                self._wait(decision, held)
                return
            acting = replace(
                decision, action_state=str(ActionState.ACTING),
                action_text=_sentence(result.text), performed_ns=self._clock.now_ns(),
                performed_mono_ns=self._clock.monotonic_ns(), performed_in=self._book.life,
            )  # fmt: skip
            if not self._book.move(decision, acting):
                return  # not durable, or somebody else's by now: nothing is touched
            decision = self._book.decision(decision.id)
        self._since.pop((decision.id, "check"), None)
        self._perform(decision, action)

    def _perform(self, decision: Decision, action: Action) -> None:
        frozen = self._book.frozen(decision.pair.model)
        if frozen and not decision.approved_by:
            # It may have been done before the freeze came: that is looked at, and no more.
            result = _call(action.verify, request(decision, self._book))
            if result.outcome is Outcome.DONE:
                self._done(decision, result)
            return
        if not self._book.leads:
            return
        result = _call(action.perform, request(decision, self._book))
        decision = _with_seen(decision, result)
        if result.outcome is Outcome.BLOCKED:
            self._stop(decision, ActionState.BLOCKED, f"Not done: {_sentence(result.text)}")
        elif self._is_late(decision, "perform", result):
            self._stop(decision, ActionState.FAILED, f"Not done: {_sentence(result.text)}")
        elif result.outcome is Outcome.NOTHING:
            self._done(decision, result)
        elif result.outcome is Outcome.RETRY:
            self._say(decision, ActionState.ACTING, f"Trying: {_sentence(result.text)}")
        else:
            self._since.pop((decision.id, "perform"), None)
            self._say(decision, ActionState.VERIFYING, _sentence(result.text))

    def _verify(self, decision: Decision, action: Action) -> None:
        result = _call(action.verify, request(decision, self._book))
        if result.outcome in {Outcome.DONE, Outcome.NOTHING}:
            self._done(decision, result)
        elif result.outcome is Outcome.BLOCKED or self._is_late(decision, "verify", result):
            said = f"It was done, but does not show in the traffic: {_sentence(result.text)}"
            self._stop(decision, ActionState.BLOCKED, said)

    def _is_late(self, decision: Decision, step: str, result: Result) -> bool:
        """Whether a step has been tried again for too long; in this life, by the clock that never
        goes back."""
        key = decision.id, step
        if result.outcome is not Outcome.RETRY:
            self._since.pop(key, None)
            return False
        now_ns = self._clock.monotonic_ns()
        since_ns = self._since.setdefault(key, now_ns)
        within_s = self._settings(decision.pair.model).verify_within_s
        return now_ns - since_ns >= within_s * 1e9

    # --- guards -----------------------------------------------------------------------------------

    def holds(self, decision: Decision) -> str:
        """Why it waits, as a sentence; empty: nothing holds it back."""
        model = decision.pair.model
        settings = self._settings(model)
        frozen = self._book.frozen(model)
        if not decision.approved_by:
            if frozen is not None:
                why = f": {frozen.reason}" if frozen.reason else ""
                return f"Frozen by {frozen.by}{why}."
            if settings.approve:
                return f"It waits for `sidecar rollback approve {decision.id}`."
            left_s = self._book.cooling_s(model, settings.cooldown_s)
            if left_s > 0:
                return (
                    f"The model was acted on less than {settings.cooldown_s:g} s ago "
                    "(rollback.cooldown_s): it waits until that is over."
                )
        stale = self._stale(decision.pair)
        return f"It waits for a fresh pair: {_sentence(stale)}" if stale else ""

    def _wait(self, decision: Decision, held: str) -> None:
        self._say(decision, ActionState.WAITING, held)

    # --- what came of it --------------------------------------------------------------------------

    def _say(self, decision: Decision, state: ActionState, text: str) -> None:
        kept = self._book.get(decision.id)
        is_kept = kept is not None and kept.seen == decision.seen
        if is_kept and decision.action_state == state and decision.action_text == text:
            return
        after = replace(decision, action_state=str(state), action_text=text)
        self._book.move(decision, after)

    def _stop(self, decision: Decision, state: ActionState, text: str) -> None:
        """It cannot go on by itself: said, told, and left to a person."""
        with self._book.lock:
            now_ns = self._clock.now_ns()
            blocked = f"{decision.pair.model}:{decisions.Kind.BLOCKED}:{now_ns}"
            text = (
                f"{text} A person must look; `sidecar rollback approve {decision.id}` tries again."
            )
            after = replace(
                decision, action_state=str(state), action_text=text, blocked_alert=blocked
            )
            standing = self._book.standing(decision.pair)
            to = states.to(standing, State.BLOCKED, text, now_ns)
            self._book.move(
                decision, after,
                Change(
                    standings={decision.pair: to}, firing=[decisions.blocked_alert_of(after)]
                ),
            )  # fmt: skip
            logger.error("%s: %s", decision.pair.model, text)

    def _done(self, decision: Decision, result: Result) -> None:
        with self._book.lock:
            now_ns = self._clock.now_ns()
            text = f"{_sentence(result.text)} It is never undone by itself."
            after = replace(
                decision, state=str(State.ROLLED_BACK), action_state=str(ActionState.DONE),
                action_text=text, resolved_ns=now_ns,
            )  # fmt: skip
            standing = self._book.standing(decision.pair)
            to = states.to(standing, State.ROLLED_BACK, text, now_ns)
            change = Change({decision.pair: to}, resolved=ended(after, now_ns))
            if self._book.move(decision, after, change):
                self._since.pop((decision.id, "verify"), None)
                logger.warning("%s: rolled back: %s", decision.pair.model, text)


def ended(decision: Decision, now_ns: int) -> list[Alert]:
    """The resolved states of all its alerts."""
    found = [decisions.alert_of(decision, ended_ns=now_ns)]
    if decision.blocked_alert:
        found.append(decisions.blocked_alert_of(decision, ended_ns=now_ns))
    return found


def request(decision: Decision, book: Book, *, operator: bool = False) -> Request:
    """What an action is asked with; the fence is the one that the store has now.

    Args:
        operator: one asks for it, whose word counts at any monitor.
    """
    pair = decision.pair
    current = book.get(decision.id) or decision
    return Request(
        decision_id=decision.id, model=pair.model, new=pair.new_short,
        previous=pair.previous_short, new_version=pair.new_short.partition("/")[0],
        previous_version=pair.previous_short.partition("/")[0], fence=current.fence,
        reason=decision.text, seen=current.seen,
        leads=lambda: operator or book.is_term(current.fence),
    )  # fmt: skip


def _with_seen(decision: Decision, result: Result) -> Decision:
    """With what was seen first at the target; written with whatever is written of it next."""
    return decision if decision.seen else replace(decision, seen=result.seen)


def _call(step: Callable[[Request], Result], asked: Request) -> Result:
    """A fault of an action is one that is tried again, and blocks in the end."""
    try:
        return step(asked)
    except Exception as error:
        logger.exception("an action failed by a fault of its own")
        return Result(Outcome.RETRY, f"the action failed by a fault of its own ({error!r})")


def _sentence(text: str) -> str:
    text = text.strip()
    return text if not text or text[-1] in ".!?" else f"{text}."
