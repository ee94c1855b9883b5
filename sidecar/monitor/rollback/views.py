"""How pairs and decisions are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from sidecar.config import ModelConfig
from sidecar.monitor.rollback.book import Book
from sidecar.monitor.rollback.decisions import Decision, Kind
from sidecar.monitor.rollback.desk import Desk
from sidecar.monitor.rollback.states import LATCHED, State
from sidecar.monitor.rollback.watched import Watched
from sidecar.monitor.rows import StoreError
from sidecar.monitor.view_rollback import DecisionView, HarmView, RollbackView

_MEBIBYTE = 2**20


class Views:
    """Any thread.

    Args:
        memory: variant → bytes of its copy in the mirror child; 0: not known.
    """

    def __init__(
        self,
        book: Book,
        desk: Desk,
        models: Mapping[str, ModelConfig],
        memory: Callable[[str], int],
    ) -> None:
        self._book = book
        self._desk = desk
        self._models = models
        self._memory = memory

    def pairs(self, model: str | None = None) -> list[RollbackView]:
        """Every pair of versions; of a model that has none, why."""
        watched = [one for one in self._desk.watched() if model in {None, one.id.model}]
        views = [self._pair(one) for one in watched]
        have = {one.id.model for one in watched}
        for name, config in self._models.items():
            if model in {None, name} and name not in have:
                views += self._before(config)
        return views

    def _pair(self, watched: Watched) -> RollbackView:
        name = watched.id
        standing = self._book.standing(name)
        decision = self._book.get(standing.decision)
        harms = list(watched.look.harms) if watched.look is not None else []
        memory = self._of_memory(name.new, name.previous)
        frozen, frozen_text = self._frozen(name.model)
        latched = standing.state in LATCHED and decision is not None
        text = (decision.text if latched and decision else standing.text) or "not looked at yet"
        return RollbackView(
            model=name.model, new=name.new_short, previous=name.previous_short,
            state=str(standing.state), text=self._with_trouble(text),
            since_wall_ns=standing.since_ns,
            checked_wall_ns=self._desk.checked_ns(name.model),
            stale=watched.stale, frozen=frozen, frozen_text=frozen_text,
            action=watched.config.rollback.action.kind,
            decision=self.decision(decision) if decision is not None else None,
            metrics=harms + ([memory] if memory is not None else []),
            calibration=watched.look.calibration if watched.look is not None else None,
            log_es=list(watched.log_es),
        )  # fmt: skip

    def _before(self, config: ModelConfig) -> list[RollbackView]:
        """What is known of a model whose pairs are not there (yet)."""
        known = {f"{config.name}:{variant.key}" for variant in config.variants}
        found = [
            (name, standing)
            for name in self._book.pairs()
            if name.model == config.name and {name.new, name.previous} <= known
            and (standing := self._book.standing(name)).state in LATCHED
        ]  # fmt: skip
        if not found:
            return [self._nothing(config)]
        name, standing = max(found, key=lambda one: one[1].since_ns)
        decision = self._book.get(standing.decision)
        return [
            replace(
                self._nothing(config), new=name.new_short, previous=name.previous_short,
                state=str(standing.state), since_wall_ns=standing.since_ns,
                text=self._with_trouble(decision.text if decision else standing.text),
                decision=self.decision(decision) if decision is not None else None,
            )
        ]  # fmt: skip

    def _nothing(self, config: ModelConfig) -> RollbackView:
        serving = [variant for variant in config.variants if "serving" in variant.roles]
        frozen, frozen_text = self._frozen(config.name)
        text = (
            "the versions cannot be compared yet: the copies are being loaded, or could not be"
            if any({"previous", "candidate"} & set(v.roles) for v in config.variants)
            else "there is no previous version to compare with: give a variant that role"
        )
        return RollbackView(
            model=config.name, new=serving[-1].key if serving else "", previous="",
            state=str(State.INSUFFICIENT), text=self._with_trouble(text),
            checked_wall_ns=self._desk.checked_ns(config.name), frozen=frozen,
            frozen_text=frozen_text, action=config.rollback.action.kind,
        )  # fmt: skip

    def _frozen(self, model: str) -> tuple[bool, str]:
        freeze = self._book.frozen(model)
        if freeze is None:
            return False, ""
        return True, f"by {freeze.by}{f': {freeze.reason}' if freeze.reason else ''}"

    def _with_trouble(self, text: str) -> str:
        return f"{text} ({self._book.trouble})" if self._book.trouble else text

    def _of_memory(self, new: str, previous: str) -> HarmView | None:
        """What the copies take: one figure each, so there is nothing to test."""
        sizes = self._memory(new), self._memory(previous)
        if not all(sizes):
            return None
        text = (
            f"{sizes[0] / _MEBIBYTE:,.0f} MiB, the previous version {sizes[1] / _MEBIBYTE:,.0f} MiB"
        )
        return HarmView(
            metric="memory", pairs=0, new_only=sizes[0], previous_only=sizes[1], log_e=0.0,
            threshold=math.inf, log_e_act=0.0, threshold_act=math.inf, may_act=False,
            held="one figure is no test: it only informs", text=text,
        )  # fmt: skip

    def decision(self, decision: Decision, *, told: bool = False) -> DecisionView:
        """One decision; with ``told`` also what became of its alerts."""
        deliveries = []
        if told:
            with suppress(StoreError):  # it is shown without them
                deliveries = self._book.deliveries(decision)
        return decision.view(deliveries)

    def decisions(self, model: str | None, limit: int) -> list[DecisionView]:
        """The newest first, each with its deliveries."""
        found = self._book.decisions(model)[:limit]
        return [self.decision(one, told=True) for one in found]

    def notices(self, model: str) -> list[Decision]:
        """What stands beside the pair's own decision: staleness, errors while serving."""
        kinds = {Kind.STALE, Kind.SERVED}
        standing = [one for one in self._book.standing_decisions() if one.pair.model == model]
        return [one for one in standing if one.kind in kinds]
