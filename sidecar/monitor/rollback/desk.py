"""The scheduled check: every pair of versions is looked at, and what follows is decided.

Only the leader decides; the others look, so that any of them can show what is counted, and go on
from there when it comes to lead. Counts are in memory; only who decides waits for the store. What
takes its time (the actions, the alerts) goes by what was decided, on threads of its own.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from sidecar.clock import Clock
from sidecar.monitor import harms
from sidecar.monitor.rollback import checks, decisions, states
from sidecar.monitor.rollback.actor import ended
from sidecar.monitor.rollback.book import Book
from sidecar.monitor.rollback.checks import Calibration, Look
from sidecar.monitor.rollback.counts import Counted, Reset, Sides
from sidecar.monitor.rollback.decisions import ActionState, Decision, Kind, PairId
from sidecar.monitor.rollback.states import Reached, Standing, State
from sidecar.monitor.rollback.store import Change
from sidecar.monitor.rollback.traffic import Fresh, Served, Traffic
from sidecar.monitor.rollback.watched import BLOCKED, LOOKS_SHOWN, Sources, Watched, identity_of
from sidecar.monitor.rows import EvidenceKey

logger = logging.getLogger("sidecar.monitor.rollback")


class Desk:
    """Checks; ``check`` is called by one thread, everything else by any.

    Args:
        rate: share of requests that are to be mirrored.
        told: is handed each new decision.
    """

    def __init__(
        self,
        sources: Sources,
        book: Book,
        clock: Clock,
        *,
        rate: float,
        told: Callable[[Decision], None] = lambda _: None,
    ) -> None:
        self._from = sources
        self._book = book
        self._clock = clock
        self._told = told
        self._counted = Counted(sources.evidence)
        self._watched: dict[PairId, Watched] = {}
        self._served: dict[str, Served] = {}
        self.fresh = Fresh(clock, rate)
        self._checked_ns: dict[str, int] = {}

    # --- one check --------------------------------------------------------------------------------

    def check(self, model: str | None = None) -> None:
        """Look at every pair (of a model, or of all), and decide, where this monitor leads."""
        with self._book.lock:
            traffic = self._from.traffic()
            self.fresh.note(traffic)
            self._watch()
            self._counted.refresh(self._sides())
            changed: dict[PairId, Standing] = {}
            for watched in self._watched.values():
                if model in {None, watched.id.model}:
                    self._look_at(watched, changed)
            if changed and not self._book.write(Change(standings=changed)):
                self._note(changed)
            self._check_served(traffic)
            if self._book.leads:
                self._resolve()
            for name in self._from.models if model is None else (model,):
                self._checked_ns[name] = self._clock.now_ns()

    def _note(self, standings: Mapping[PairId, Standing]) -> None:
        """The store has not taken them: remembered all the same, but where somebody else has
        written meanwhile, or leads."""
        if self._book.trouble and (self._book.leads or not self._book.is_shared):
            for pair, standing in standings.items():
                self._book.note(pair, standing)

    def checked_ns(self, model: str) -> int | None:
        """Wall clock, when a model was last looked at."""
        return self._checked_ns.get(model)

    def _watch(self) -> None:
        """The pairs of the plans as they are now."""
        found: dict[PairId, Watched] = {}
        for model, plan in list(self._from.plans.items()):
            config = self._from.models.get(model)
            if config is None:
                continue
            for pair in plan.pairs:
                if pair.purpose == "versions":
                    name = PairId(model, pair.candidate, pair.baseline, identity_of(pair))
                    known = self._watched.get(name)
                    found[name] = known or Watched(config, pair, name)
                    found[name].pair = pair
        self._watched = found

    def _sides(self) -> Iterable[Sides]:
        for one in self._watched.values():
            if not one.pair.blocked:
                yield one.id.model, one.id.new, one.id.previous
                yield one.id.model, one.id.previous, one.id.previous

    def _look_at(self, watched: Watched, changed: dict[PairId, Standing]) -> None:
        name, settings = watched.id, watched.config.rollback
        standing = self._book.standing(name)
        if watched.pair.blocked:
            if self._book.leads:
                self._block(watched, standing)
            return
        look = watched.look = self._look(watched, standing)
        best = max((h.log_e / h.threshold for h in look.harms), default=0.0)
        # Another one each time: somebody may be looking at it.
        watched.log_es = deque([*watched.log_es, best], LOOKS_SHOWN)
        is_own = not self.fresh.knows(name) and self._is_own(name)
        self.fresh.saw(name, look.pairs, standing.pair_ns, is_own=is_own)
        watched.stale = self.fresh.is_stale(name, settings.stale_after_s)
        if not self._book.leads and self._book.is_shared:
            return
        after, reached = states.step(
            standing, look, min_pairs=settings.min_pairs, stale=watched.stale,
            now_ns=self._clock.now_ns(),
        )  # fmt: skip
        if reached is not None and self._decide(watched, after, reached):
            return
        if after != standing:
            changed[name] = after
        self._check_stale(watched)

    def _is_own(self, name: PairId) -> bool:
        """Whether this life has counted pairs of it."""
        sides = name.model, name.new, name.previous
        blocks = self._counted.series(sides).get((harms.ERROR, "", name.identity), {})
        keys = (EvidenceKey(*sides, "", harms.ERROR, name.identity, block) for block in blocks)
        return any(self._from.evidence.own_cells(key) for key in keys)

    def _look(self, watched: Watched, standing: Standing) -> Look:
        """Judge, or take the last look where nothing was counted since."""
        model, new, previous = watched.id.model, watched.id.new, watched.id.previous
        sides, beside = (model, new, previous), (model, previous, previous)
        budget = self._from.budget(watched.id.identity)
        revisions = self._counted.revision(sides), self._counted.revision(beside)
        seen = (*revisions, budget, standing.reset)
        if watched.look is not None and watched.seen == seen:
            return watched.look
        watched.seen = seen
        key = EvidenceKey(model, previous, previous, "", harms.CALIBRATION, watched.id.identity)
        calibration = Calibration(
            {s: b for s, b in self._counted.series(beside).items() if s[2] == key.policy},
            self._from.evidence.cells(key),
        )
        return checks.look(
            watched.config, watched.pair, self._counted.series(sides), calibration,
            budget=budget, since=standing.reset,
        )  # fmt: skip

    # --- deciding ---------------------------------------------------------------------------------

    def _decide(self, watched: Watched, standing: Standing, reached: Reached) -> bool:
        """Write a decision and its alert; ``False``: it could not be, and will be come to again."""
        action, state, text = self._wish(watched, reached)
        decision = decisions.of_reached(
            watched.id, reached, rounds=standing.rounds, now_ns=self._clock.now_ns(),
            action=action, action_state=state, action_text=text,
        )  # fmt: skip
        change = Change(decided=[(decision, [decisions.alert_of(decision)])])
        earlier = self._book.get(standing.decision)
        if earlier is not None and earlier.resolved_ns is None and earlier.id != decision.id:
            now_ns = self._clock.now_ns()
            over = decisions.resolved(earlier, "It became more: see the next decision.", now_ns)
            change.moved = [(earlier, over)]
            change.resolved = ended(over, now_ns)
        to = states.to(standing, reached.state, decision.text, decision.wall_ns, decision.id)
        change.standings = {watched.id: to}
        if not self._book.write(change):
            self._note({watched.id: standing})
            return False
        logger.warning("%s: %s %s", watched.id.model, decision.text, decision.action_text)
        self._told(decision)
        return True

    def _wish(self, watched: Watched, reached: Reached) -> tuple[str, str, str]:
        """What is to be done: the action's kind, how far it is, and why, in a sentence."""
        settings, name = watched.config.rollback, watched.id
        kind = settings.action.kind
        if reached.state is not State.REGRESSED:
            return kind, str(ActionState.NONE), ""
        if not self._from.serves(name.model, name.new):
            said = f"{name.new} answers nobody, so there is nothing to take back."
            return kind, str(ActionState.NONE), f"{said} It should not be promoted."
        if kind == "observe":
            said = "Nothing is done: rollback.action is observe."
            return kind, str(ActionState.NONE), said
        return kind, str(ActionState.PENDING), ""

    def _block(self, watched: Watched, standing: Standing) -> None:
        """The two cannot be compared: said once, with the reason."""
        if standing.state is State.BLOCKED:
            return
        now_ns = self._clock.now_ns()
        text = f"{watched.id.new} cannot be compared with {watched.id.previous}: "
        decision = Decision(
            id=decisions.decision_id(watched.id, Kind.BLOCKED, str(standing.rounds)),
            pair=watched.id, kind=str(Kind.BLOCKED), state=str(State.BLOCKED), wall_ns=now_ns,
            text=f"{text}{watched.pair.blocked}. Nothing is known of it, good or bad.",
            action=watched.config.rollback.action.kind,
        )  # fmt: skip
        to = states.to(standing, State.BLOCKED, decision.text, now_ns, decision.id)
        told = (decision, [decisions.alert_of(decision)])
        if self._book.write(Change(standings={watched.id: to}, decided=[told])):
            logger.error("%s", decision.text)
            self._told(decision)

    # --- what has no pair -------------------------------------------------------------------------

    def _check_stale(self, watched: Watched) -> None:
        name = watched.id
        standing = [d for d in self._standing(Kind.STALE) if d.pair == name]
        now_ns = self._clock.now_ns()
        if not watched.stale:
            for one in standing:
                self._over(one, "Pairs come again.")
        elif not standing:
            after_s = watched.config.rollback.stale_after_s
            text = (
                f"No request was run on both {name.new} and {name.previous} for more than "
                f"{after_s:g} s, while requests came: whether the new version is worse is not "
                "known meanwhile. `sidecar status` says what became of the samples."
            )
            self._tell(Kind.STALE, name, str(now_ns), text, metric="")

    def _check_served(self, traffic: Traffic) -> None:
        """Errors and fallbacks of what is new, while serving."""
        for name in {one.id.new: one.id for one in self._watched.values()}.values():
            settings = self._from.models[name.model].rollback
            if not settings.served.enabled or name.new not in traffic:
                continue
            earlier = [
                d
                for d in self._book.decisions(name.model)
                if d.kind == Kind.SERVED and d.pair.new == name.new
                and d.marks.get("since_ns") == self._from.since_ns
            ]  # fmt: skip
            served = self._served_of(name.new, settings.served.limit, traffic[name.new], earlier)
            served.add(*traffic[name.new])
            stands = any(d.resolved_ns is None for d in earlier)
            if stands or not self._book.leads or not served.is_over(settings.alpha_alert):
                continue
            text = (
                f"{served.failed:,} of {served.ended:,} requests that {name.new} answered failed, "
                f"or fell back to another variant: over the {100 * settings.served.limit:.3g} % "
                "of rollback.served.limit. There is no pair to say whose fault it is, so nothing "
                "is done about it."
            )
            which = f"{self._from.since_ns}:{len(earlier)}"
            self._tell(Kind.SERVED, name, which, text, metric="served", served=served)

    def _served_of(
        self, variant: str, limit: float, now: tuple[int, int], earlier: list[Decision]
    ) -> Served:
        """The evidence of errors while serving, begun anew where somebody has closed a decision.

        Of a fleet nobody's sum is another's: each counts from when it first looked, or from when it
        heard that a decision was closed.
        """
        closed = [d for d in earlier if d.resolved_ns is not None and "ended" in d.marks]
        served = self._served.get(variant)
        latest = max((d.resolved_ns or 0 for d in closed), default=0)
        if served is None:
            served = self._served[variant] = Served(limit)
            if self._book.is_shared:
                served.begin({"ended": now[0], "failed": now[1]})
                served.closed_ns = latest
            elif closed:
                served.begin(closed[0].marks)
        elif self._book.is_shared and latest > served.closed_ns:
            served.begin({"ended": now[0], "failed": now[1]})
            served.closed_ns = latest
        return served

    def _tell(
        self,
        kind: Kind,
        name: PairId,
        which: str,
        text: str,
        *,
        metric: str,
        served: Served | None = None,
    ) -> None:
        """A decision that changes no state and asks for no action."""
        settings = self._from.models[name.model].rollback
        decision = Decision(
            id=decisions.decision_id(name, kind, which), pair=name, kind=str(kind),
            state=str(self._book.standing(name).state), wall_ns=self._clock.now_ns(),
            metric=metric, text=text, action=settings.action.kind,
        )  # fmt: skip
        if served is not None:
            threshold = states.log_threshold(settings.alpha_alert)
            decision = replace(
                decision, log_e=served.best_log_e, threshold=threshold, pairs=served.ended,
                marks={"since_ns": self._from.since_ns},
            )  # fmt: skip
        if self._book.write(Change(decided=[(decision, [decisions.alert_of(decision)])])):
            logger.warning("%s: %s", name.model, text)
            self._told(decision)

    # --- what is over -----------------------------------------------------------------------------

    def _standing(self, kind: Kind) -> list[Decision]:
        return [one for one in self._book.standing_decisions() if one.kind == kind]

    def _resolve(self) -> None:
        """Alerts of versions that get no traffic any more, or are compared no more."""
        for one in self._book.standing_decisions():
            name = one.pair
            plan, config = self._from.plans.get(name.model), self._from.models.get(name.model)
            under_way = one.action_state in {ActionState.ACTING, ActionState.VERIFYING}
            if under_way or plan is None or config is None:
                continue
            if name not in self._watched:
                self._over(one, "These two are compared no more: another artifact or plan.")
            elif not one.is_open and self.fresh.is_gone(
                name.new, name.model, config.rollback.verify_within_s
            ):
                self._over(one, f"{name.new} gets no requests any more.")

    def _over(self, decision: Decision, text: str) -> None:
        now_ns = self._clock.now_ns()
        over = decisions.resolved(decision, text, now_ns)
        if decision.is_open:
            over = replace(over, action_state=str(ActionState.NONE))
        served = self._served.get(decision.pair.new)
        if decision.kind == Kind.SERVED and served is not None:
            over = replace(over, marks={**decision.marks, **served.marks()})
        if self._book.move(decision, over, Change(resolved=ended(over, now_ns))) and (
            decision.kind == Kind.SERVED and served is not None
        ):
            served.begin(over.marks)

    # --- for operators and views ------------------------------------------------------------------

    def close_decision(self, decision: Decision, text: str, state: ActionState) -> bool:
        """An operator takes it back: the pair is judged anew, from now on."""
        with self._book.lock:
            now_ns = self._clock.now_ns()
            over = decisions.resolved(decision, text, now_ns)
            over = replace(over, action_state=str(state))
            change = Change(resolved=ended(over, now_ns))
            name, standing = decision.pair, self._book.standing(decision.pair)
            served = self._served.get(name.new)
            if decision.kind == Kind.SERVED and served is not None:
                over = replace(over, marks={**decision.marks, **served.marks()})
            if standing.decision == decision.id and not name.identity.startswith(BLOCKED):
                reset = Reset.at(self._counted.series((name.model, name.new, name.previous)))
                change.standings = {name: states.anew(standing, reset, text, now_ns)}
            done = self._book.move(decision, over, change, operator=True)
            if done and decision.kind == Kind.SERVED and served is not None:
                served.begin(over.marks)
            if done and decision.kind == Kind.STALE:
                self.fresh.again(name)
            return done

    def watched(self) -> list[Watched]:
        """Every pair, as it was last looked at; without a lock, which who asks may not wait for."""
        return list(self._watched.values())

    def not_fresh(self, pair: PairId) -> str:
        """Why a pair is too old to act on; empty: it is not."""
        with self._book.lock:
            settings = self._from.models[pair.model].rollback
            return self.fresh.not_fresh(pair, settings.stale_after_s)
