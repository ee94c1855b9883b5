"""Take a KServe InferenceService's canary back to no traffic: `canaryTrafficPercent: 0`.

KServe on Knative then sends everything to the revision that was rolled out before. In raw
deployment mode there are no such revisions, and KServe ignores the setting without a word: refused
here, with the reason.
"""

from __future__ import annotations

from typing import Any

from sidecar.monitor.actions.base import DEPOSED, Outcome, Request, Result
from sidecar.monitor.actions.cluster import (
    MARK,
    MERGE_PATCH,
    CallError,
    Cluster,
    Object,
    StaleError,
    answered,
)
from sidecar.monitor.actions.gitops import git_ops
from sidecar.monitor.actions.mark import Mark, Remembered, done_before, make_mark, read_mark
from sidecar.monitor.actions.mark import undo_mark as undone

_MODE = "serving.kserve.io/deploymentMode"
#: Its older and newer names for "no Knative".
_RAW = {"RawDeployment", "Standard", "ModelMesh"}
_ATTEMPTS = 3
_NONE = "none"


class KServeAction:
    """One InferenceService."""

    kind = "kserve"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._remembered = Remembered()

    def check(self, request: Request) -> Result:
        """Is there a revision to go back to, and does the setting do anything here?"""
        result = answered(lambda: self._perform(request, dry_run=True))
        return self._remembered.told(request, result)

    def perform(self, request: Request) -> Result:
        """Set the canary's traffic to 0."""
        result = answered(lambda: self._perform(request, dry_run=False))
        return self._remembered.told(request, result)

    def verify(self, request: Request) -> Result:
        """Does the new revision get nothing?"""
        return answered(lambda: self._verify(request))

    def undo(self, request: Request) -> Result:
        """Set the canary's traffic to what it was."""
        return answered(lambda: self._undo(request))

    def _perform(self, request: Request, *, dry_run: bool) -> Result:
        target = self._cluster.target
        for _ in range(_ATTEMPTS):
            service = self._cluster.get()
            mark = read_mark(service)
            percent = service["spec"]["predictor"].get("canaryTrafficPercent")
            before = done_before(mark, request)
            if before is not None:
                # Set back since, and approved by an operator: that is why it is checked again.
                again = before.outcome is Outcome.DONE and percent != 0
                if not again or not (dry_run or self._remembered.may_again(request)):
                    return before
            latest, previous = _revisions(service)
            self._remembered.hold(
                request, latest, lambda a, b: f"{target} has gone from revision {a} to {b}"
            )
            if percent == 0:
                return Result(Outcome.NOTHING, f"{target}: its canary has no traffic already")
            was = _NONE if percent is None else str(percent)
            new = make_mark(request, was, "0", mark)
            try:
                self._set(service, 0, new, dry_run=True)
                if not dry_run and not request.leads():
                    return DEPOSED
                if not dry_run:
                    self._set(service, 0, new)
            except StaleError:
                continue
            if not dry_run:
                self._remembered.acted(request)
            elif before is not None:
                self._remembered.allow_again(request)
            what = "can go" if dry_run else "goes"
            text = f"{target}: revision {latest} {what} to 0 % of the traffic, {previous} to 100 %"
            details = {"before": was, "after": "0", "new": latest, "previous": previous}
            return Result(Outcome.DONE, text + git_ops(service), details)
        text = f"{target} changed {_ATTEMPTS} times while it was looked at"
        return Result(Outcome.RETRY, text)

    def _set(
        self, service: Object, percent: int | None, mark: Mark, *, dry_run: bool = False
    ) -> None:
        body: dict[str, Any] = {
            "metadata": {
                "resourceVersion": service["metadata"]["resourceVersion"],
                "annotations": {MARK: mark.text()},
            },
            "spec": {"predictor": {"canaryTrafficPercent": percent}},
        }
        self._cluster.patch(body, MERGE_PATCH, dry_run=dry_run)

    def _verify(self, request: Request) -> Result:
        target = self._cluster.target
        service = self._cluster.get()
        percent = service["spec"]["predictor"].get("canaryTrafficPercent")
        if percent != 0:
            shown = _NONE if percent is None else percent
            text = f"{target}: canaryTrafficPercent is {shown} again: somebody has set it"
            return Result(Outcome.BLOCKED, text + git_ops(service))
        mark = read_mark(service)
        if mark is not None and mark.decision == request.decision_id and mark.undone:
            return Result(Outcome.BLOCKED, f"{target}: an operator has undone it")
        predictor = _predictor(service)
        traffic = predictor.get("traffic") or []
        latest = predictor.get("latestReadyRevision")
        newest = sum(_percent(one) for one in traffic if _is_latest(one, latest))
        others = sum(_percent(one) for one in traffic if not _is_latest(one, latest))
        said = f"{target}: revision {latest} gets {newest} % of the traffic, others {others} %"
        return Result(Outcome.DONE if newest == 0 and others == 100 else Outcome.RETRY, said)

    def _undo(self, request: Request) -> Result:
        target = self._cluster.target
        service = self._cluster.get()
        mark = read_mark(service)
        if mark is None or mark.decision != request.decision_id:
            text = f"{target} does not carry this decision's mark: it has been changed since"
            return Result(Outcome.BLOCKED, text)
        if mark.undone:
            return Result(Outcome.DONE, f"{target}: undone before")
        if service["spec"]["predictor"].get("canaryTrafficPercent") != 0:
            text = f"{target}: its canary's traffic has been set by somebody since"
            return Result(Outcome.BLOCKED, text)
        percent = None if mark.before == _NONE else int(mark.before)
        self._set(service, percent, undone(mark, request))
        text = f"{target}: canaryTrafficPercent is {mark.before} again, as before"
        return Result(Outcome.DONE, text, {"before": "0", "after": mark.before})


def _predictor(service: Object) -> dict[str, Any]:
    components = (service.get("status") or {}).get("components") or {}
    return components.get("predictor") or {}


def _revisions(service: Object) -> tuple[str, str]:
    """The revision that would lose its traffic, and the one that would get it.

    Raises:
        CallError: raw deployment mode, or there is no other revision.
    """
    meta, status = service["metadata"], service.get("status") or {}
    name = f"InferenceService {meta.get('namespace')}/{meta.get('name')}"
    mode = status.get("deploymentMode") or (meta.get("annotations") or {}).get(_MODE) or ""
    predictor = _predictor(service)
    latest = predictor.get("latestReadyRevision")
    if mode in _RAW or not latest:
        why = f"its deployment mode is {mode}" if mode in _RAW else "it has no Knative revisions"
        text = f"{name}: {why}, where KServe ignores canaryTrafficPercent without a word. Use the "
        text += "action `deployment` on its predictor's Deployment"
        raise CallError(Outcome.BLOCKED, text)
    rolled_out = predictor.get("latestRolledoutRevision")
    previous = rolled_out if rolled_out != latest else predictor.get("previousRolledoutRevision")
    if not previous or previous == latest:
        text = f"{name} has no revision but {latest}: there is nothing to go back to"
        raise CallError(Outcome.BLOCKED, text)
    return str(latest), str(previous)


def _is_latest(traffic: dict[str, Any], latest: Any) -> bool:
    return bool(traffic.get("latestRevision")) or traffic.get("revisionName") == latest


def _percent(traffic: dict[str, Any]) -> int:
    return int(traffic.get("percent") or 0)
