"""What replicas tell one another of their gateway workers: with each heartbeat, over the database.

    {"name": host, "models": {model: {"revision", "workers", "applied", "problem"}},
     "pages": {model: {page: {version: counts}}},
     "wanted": {id: {"model", "version", "timeout_s"}},    a probe that all replicas are asked for
     "probed": {id: {"ok", "text", "workers"}}}            what came of one here

Counts are those of ``VersionCounts.packed``, of models with more than one version; of more than
``MODELS_MAX`` such models only how many requests were answered.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.clock import Clock
from sidecar.monitor.routed_frames import PROBE_S_MAX, VersionCounts, counts_of
from sidecar.monitor.routing import Probe
from sidecar.monitor.worker_routes import WorkerRoutes

#: Of so many models the histograms are told; each takes some hundred bytes a version and worker.
MODELS_MAX = 20
#: Pages whose replicas are gone: their counts stay, or requests would seem to have been unanswered.
_PAGES_MAX = 4096
_WANTED_MAX = 8
_PROBES_MAX = 4
#: A question reaches another replica with its next look, its answer comes with one more of each.
#: Some longer, so that one that has died meanwhile is known to be gone (``fleet_side.py``) before.
_LOOKS = 6
_TEXT_MAX = 1000

Told = Mapping[str, Any]
#: Version → counts of one page, or only how many were answered.
PageCounts = dict[str, "VersionCounts | int"]


@dataclass(frozen=True, slots=True)
class ReplicaRoute:
    """How another replica routes a model.

    Attributes:
        revision: that its pod's table has; ``workers`` are connected, ``applied`` follow it.
        problem: what keeps them from it.
    """

    name: str
    revision: int
    workers: int
    applied: int
    problem: str


class RouteReplicas:
    """Tells and hears; any thread.

    Args:
        name: of this replica, for people.
        models: name → whether it has more than one version.
        own: a model's route as this replica's workers follow it.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[str, bool],
        workers: WorkerRoutes,
        own: Callable[[str], ReplicaRoute],
        clock: Clock,
        sync_s: float,
    ) -> None:
        self._name = name
        self._several = [model for model, several in models.items() if several]
        self._models = tuple(models)
        self._workers = workers
        self._own = own
        self._clock = clock
        self._sync_s = sync_s
        self._changed = threading.Condition()
        self._others: dict[str, Told] = {}
        self._heard_ns: int | None = None
        #: Page → model → version → counts; the latest come last.
        self._pages: dict[int, dict[str, PageCounts]] = {}
        self._wanted: dict[str, dict[str, Any]] = {}
        #: Of a question of another replica: the answer, or ``None`` while it is looked for.
        self._probed: dict[str, dict[str, Any] | None] = {}
        self._probing: dict[tuple[str, str], threading.Lock] = {}

    # --- the heartbeat --------------------------------------------------------------------------

    def tell(self) -> dict[str, Any]:
        """What this replica's heartbeat says of its workers."""
        models = {model: self._own(model) for model in self._models}
        with self._changed:
            wanted = dict(self._wanted)
            probed = {key: answer for key, answer in self._probed.items() if answer is not None}
        return {
            "name": self._name,
            "models": {
                model: {
                    "revision": one.revision, "workers": one.workers, "applied": one.applied,
                    "problem": one.problem[:_TEXT_MAX],
                }
                for model, one in models.items()
            },
            "pages": {model: self._told_pages(at, model) for at, model in enumerate(self._several)},
            "wanted": wanted,
            "probed": probed,
        }  # fmt: skip

    def _told_pages(self, at: int, model: str) -> dict[str, Any]:
        return {
            str(page): {
                version: each.packed() if at < MODELS_MAX else each.answered
                for version, each in counts.items()
            }
            for page, counts in self._workers.pages(model).items()
        }

    def hear(self, others: Mapping[str, Any]) -> None:
        """What the other replicas that live have told last; what cannot be read is passed over."""
        read = {name: told for name, told in others.items() if isinstance(told, dict)}
        questions: dict[str, dict[str, Any]] = {}
        for told in read.values():
            wanted = told.get("wanted")
            if isinstance(wanted, dict):
                questions |= {key: one for key, one in wanted.items() if isinstance(one, dict)}
        begun = []
        with self._changed:
            self._others = read
            self._heard_ns = self._clock.monotonic_ns()
            for told in read.values():
                self._keep_pages(told)
            for key in [key for key in self._probed if key not in questions]:
                del self._probed[key]  # whoever asked knows, or is gone
            for key, question in list(questions.items())[:_WANTED_MAX]:
                running = sum(answer is None for answer in self._probed.values())
                if key not in self._probed and running < _PROBES_MAX:
                    self._probed[key] = None
                    begun.append((key, question))
            self._changed.notify_all()
        for key, question in begun:
            threading.Thread(
                target=self._answer, args=(key, question), name="probe", daemon=True
            ).start()

    def _answer(self, key: str, question: Mapping[str, Any]) -> None:
        """Thread: ask this replica's workers for another one."""
        model, version = str(question.get("model")), str(question.get("version"))
        limit = question.get("timeout_s")
        timeout_s = float(limit) if isinstance(limit, int | float) and limit > 0 else 1.0
        found = self._probe_here(model, version, min(timeout_s, PROBE_S_MAX))
        with self._changed:
            if key in self._probed:
                self._probed[key] = found

    def _probe_here(self, model: str, version: str, timeout_s: float) -> dict[str, Any]:
        workers = len(self._workers.following(model))
        if model not in self._models:
            text = f"it serves no model {model!r:.80}"
            return {"ok": False, "text": text, "workers": workers}
        with self._changed:
            one_at_a_time = self._probing.setdefault((model, version), threading.Lock())
        # Two who ask at once (one leader after another) must not find each other's probe running.
        waited = one_at_a_time.acquire(timeout=timeout_s)
        try:
            probe = self._workers.probe(model, version, timeout_s)
        finally:
            if waited:
                one_at_a_time.release()
        return {"ok": probe.ok, "text": probe.text[:_TEXT_MAX], "workers": workers}

    def _keep_pages(self, told: Told) -> None:
        pages = told.get("pages")
        for model, of_model in pages.items() if isinstance(pages, dict) else ():
            for page, counts in of_model.items() if isinstance(of_model, dict) else ():
                read = _page_counts(counts)
                if read is None or not str(page).isdigit():
                    continue
                known = self._pages.pop(int(page), {})
                known[model] = _later(known.get(model), read)
                self._pages[int(page)] = known
        while len(self._pages) > _PAGES_MAX:
            del self._pages[next(iter(self._pages))]

    # --- views ----------------------------------------------------------------------------------

    @property
    def heard_s(self) -> float:
        """How long ago the others were heard; infinite: never."""
        with self._changed:
            if self._heard_ns is None:
                return float("inf")
            return (self._clock.monotonic_ns() - self._heard_ns) / 1e9

    def others(self, model: str) -> list[ReplicaRoute]:
        """How each other live replica that serves a model routes it."""
        with self._changed:
            told = list(self._others.items())
        found = (_replica_route(key, each, model) for key, each in told)
        return [each for each in found if each is not None]

    def pages(self, model: str) -> dict[int, Mapping[str, VersionCounts]]:
        """Page → version → what was counted in it, over all replicas that were ever heard of."""
        with self._changed:
            of_others: dict[int, Mapping[str, VersionCounts]] = {
                page: {v: each for v, each in counts.items() if isinstance(each, VersionCounts)}
                for page, models in self._pages.items()
                if (counts := models.get(model))
            }
        # A page of our own may have been told by the monitor that was here before.
        return {**of_others, **self._workers.pages(model)}

    def answered(self, model: str) -> dict[str, int]:
        """Version → requests answered, over all replicas that were ever heard of."""
        own = self._workers.pages(model)
        sums: dict[str, int] = {}
        for version, counts in (item for page in own.values() for item in page.items()):
            sums[version] = sums.get(version, 0) + counts.answered
        with self._changed:
            for page, models in self._pages.items():
                for version, each in models.get(model, {}).items() if page not in own else ():
                    sums[version] = sums.get(version, 0) + _answered(each)
        return sums

    def is_whole(self, model: str) -> bool:
        """Whether replicas tell one another the histograms of a model."""
        return model in self._several[:MODELS_MAX]

    # --- probes ---------------------------------------------------------------------------------

    def probe(self, model: str, version: str, timeout_s: float) -> Probe:
        """Have every worker of every live replica run its copy of a version once.

        Replicas without a worker serve nobody, and are not waited for.
        """
        wait_s = timeout_s + _LOOKS * self._sync_s + 2
        key = uuid.uuid4().hex
        with self._changed:
            question = {"model": model, "version": version, "timeout_s": timeout_s}
            self._wanted[key] = question
        try:
            own = self._probe_here(model, version, timeout_s)
            with self._changed:
                self._changed.wait_for(lambda: not self._missing(key, model), wait_s)
                missing = self._missing(key, model)
                answers = self._answers(key)
        finally:
            with self._changed:
                del self._wanted[key]
        if missing and self.heard_s > _LOOKS * self._sync_s + 1:
            text = f"the other replicas are not heard (for {self.heard_s:.0f} s): {self._named()}"
            return Probe(ok=False, text=text, unheard=True)
        return _joined(f"{model}:{version}", {self._name: own, **answers}, missing, wait_s)

    def _missing(self, key: str, model: str) -> list[str]:
        """Names of live replicas that serve a model, and have not answered yet."""
        return [
            _name(life, told)
            for life, told in self._others.items()
            if key not in (told.get("probed") or {})
            and (one := _replica_route(life, told, model)) is not None
            and one.workers > 0
        ]

    def _answers(self, key: str) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for life, told in self._others.items():
            probed = told.get("probed")
            answer = probed.get(key) if isinstance(probed, dict) else None
            if isinstance(answer, dict):
                found[_name(life, told)] = answer
        return found

    def _named(self) -> str:
        with self._changed:
            return ", ".join(_name(life, told) for life, told in self._others.items())


def _joined(
    name: str, answers: Mapping[str, Mapping[str, Any]], missing: list[str], wait_s: float
) -> Probe:
    bad = [f"replica {who}: no answer within {wait_s:g} s" for who in missing]
    workers = replicas = 0
    for who, answer in answers.items():
        count = answer.get("workers")
        if not isinstance(count, int) or count == 0:
            continue  # it serves nobody (yet)
        if answer.get("ok") is True:
            workers, replicas = workers + count, replicas + 1
        else:
            bad.append(f"replica {who}: {answer.get('text')}")
    if bad:
        return Probe(ok=False, text="; ".join(bad))
    if not workers:
        return Probe(ok=False, text="no gateway worker is connected at any replica")
    text = f"{name} answers at {workers} {'worker' if workers == 1 else 'workers'} of {replicas} "
    return Probe(ok=True, text=text + ("replica" if replicas == 1 else "replicas"))


def _name(life: str, told: Told) -> str:
    """A replica, for people: pods have names of their own, two monitors of one host do not."""
    return f"{str(told.get('name', ''))[:80]} ({life[:8]})"


def _replica_route(life: str, told: Told, model: str) -> ReplicaRoute | None:
    models = told.get("models")
    one = models.get(model) if isinstance(models, dict) else None
    if not isinstance(one, dict):
        return None
    numbers = [one.get(field) for field in ("revision", "workers", "applied")]
    if not all(isinstance(each, int) for each in numbers):
        return None
    revision, workers, applied = (int(each or 0) for each in numbers)
    problem = str(one.get("problem", ""))[:_TEXT_MAX]
    return ReplicaRoute(_name(life, told), revision, workers, applied, problem)


def _page_counts(counts: Any) -> PageCounts | None:
    if not isinstance(counts, dict):
        return None
    read: PageCounts = {}
    for version, packed in counts.items():
        each = packed if type(packed) is int and packed >= 0 else counts_of(packed)
        if each is None:
            return None
        read[version] = each
    return read


def _later(before: PageCounts | None, now: PageCounts) -> PageCounts:
    """Of two that were told of one page: a monitor that is gone may be heard after the next one."""
    if before is None:
        return now
    fewer = sum(map(_answered, now.values())) < sum(map(_answered, before.values()))
    return before if fewer else now


def _answered(counts: VersionCounts | int) -> int:
    return counts if isinstance(counts, int) else counts.answered
