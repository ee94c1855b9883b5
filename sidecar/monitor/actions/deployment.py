"""Roll a Kubernetes Deployment back, as ``kubectl rollout undo`` would, but safely.

Its ReplicaSets are its revisions. A JSON patch puts the template of an earlier one in its place, if
the Deployment is still the one that was looked at (``test`` on its resourceVersion), after the same
patch has passed as a dry run.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from sidecar.monitor.actions.base import DEPOSED, Outcome, Request, Result
from sidecar.monitor.actions.cluster import (
    JSON_PATCH,
    MARK,
    VERSION,
    CallError,
    Cluster,
    Object,
    StaleError,
    answered,
)
from sidecar.monitor.actions.gitops import git_ops
from sidecar.monitor.actions.mark import Mark, Remembered, done_before, make_mark, read_mark
from sidecar.monitor.actions.mark import undo_mark as undone

_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"
_CAUSE = "kubernetes.io/change-cause"
#: Status is written all the time while a rollout goes on, and each write makes ours stale.
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class _Plan:
    deployment: Object
    current: Object
    target: Object
    warning: str


class DeploymentAction:
    """One Deployment."""

    kind = "deployment"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._remembered = Remembered()

    def check(self, request: Request) -> Result:
        """Is there a healthy revision to go back to, and would the server take the change?"""
        return self._remembered.told(request, answered(lambda: self._check(request)))

    def perform(self, request: Request) -> Result:
        """Put the earlier revision's template in place."""
        return self._remembered.told(request, answered(lambda: self._perform(request)))

    def verify(self, request: Request) -> Result:
        """Do all its pods come from that revision, and are they available?"""
        return answered(lambda: self._verify(request))

    def undo(self, request: Request) -> Result:
        """Put the template back that the decision took away."""
        return answered(lambda: self._undo(request))

    # --- what is there ------------------------------------------------------------------------

    def _check(self, request: Request) -> Result:
        deployment = self._cluster.get()
        before = done_before(read_mark(deployment), request)
        if before is not None:
            if before.outcome is not Outcome.DONE or not self._is_set_back(deployment):
                return before
            self._remembered.allow_again(request)
        plan = self._plan(request, deployment)
        self._cluster.patch(self._body(request, plan), JSON_PATCH, dry_run=True)
        text = f"{_words(plan)} can be done: the API server has taken it as a dry run{plan.warning}"
        return Result(Outcome.DONE, text, _details(plan))

    def _is_set_back(self, deployment: Object) -> bool:
        """Whether it runs what its mark says was taken away."""
        mark = read_mark(deployment)
        if mark is None or mark.undone:
            return False
        revision = _revision(deployment)
        owned = self._revisions(deployment)
        return any(_revision(one) == revision and _name(one) == mark.before for one in owned)

    def _plan(self, request: Request, deployment: Object) -> _Plan:
        target = self._cluster.target
        spec, status = deployment["spec"], deployment.get("status") or {}
        if spec.get("paused"):
            text = f"{target} is paused, so a change of its template would not be rolled out: "
            raise CallError(Outcome.BLOCKED, f"{text}`kubectl rollout resume` first")
        if spec.get("replicas", 1) == 0:
            raise CallError(Outcome.BLOCKED, f"{target} is scaled to 0: it serves nobody")
        if (status.get("observedGeneration") or 0) < deployment["metadata"].get("generation", 0):
            text = f"{target} was changed just now, and its controller has not seen it yet"
            raise CallError(Outcome.RETRY, text)
        owned = self._revisions(deployment)
        revision = _revision(deployment)
        current = next((one for one in owned if _revision(one) == revision), None)
        if current is None:
            text = f"{target} has revision {revision}, and no ReplicaSet of it: its controller is "
            raise CallError(Outcome.RETRY, f"{text}not done")
        self._remembered.hold(
            request, _name(current), lambda a, b: f"{target} has gone from ReplicaSet {a} to {b}"
        )
        running = _version(current)
        if running and running != request.new_version:
            text = f"{target} runs version {running} of the model, not {request.new_version}"
            raise CallError(Outcome.NOTHING, f"{text}: there is nothing to roll back")
        chosen = _choose(request, owned, current, read_mark(deployment))
        return _Plan(deployment, current, chosen, git_ops(deployment))

    def _revisions(self, deployment: Object) -> list[Object]:
        """The ReplicaSets that it owns, the latest revision first."""
        found = self._cluster.listed("replicasets", _selector(deployment["spec"]["selector"]))
        uid = deployment["metadata"]["uid"]
        # Labels alone are not enough: those of another Deployment may match as well.
        owned = [
            one
            for one in found
            if any(
                owner.get("uid") == uid and owner.get("controller")
                for owner in one["metadata"].get("ownerReferences") or []
            )
        ]
        return sorted(owned, key=_revision, reverse=True)

    # --- the change ---------------------------------------------------------------------------

    def _body(self, request: Request, plan: _Plan) -> list[Object]:
        old = read_mark(plan.deployment)
        mark = make_mark(request, _name(plan.current), _name(plan.target), old)
        return _patch(plan.deployment, plan.target, mark, request.reason)

    def _perform(self, request: Request) -> Result:
        for _ in range(_ATTEMPTS):
            deployment = self._cluster.get()
            before = done_before(read_mark(deployment), request)
            again = self._remembered.may_again(request) and self._is_set_back(deployment)
            if before is not None and not (before.outcome is Outcome.DONE and again):
                return before
            plan = self._plan(request, deployment)
            body = self._body(request, plan)
            try:
                self._cluster.patch(body, JSON_PATCH, dry_run=True)
                if not request.leads():
                    return DEPOSED
                self._cluster.patch(body, JSON_PATCH)
            except StaleError:
                continue
            self._remembered.acted(request)
            return Result(Outcome.DONE, f"{_words(plan)}{plan.warning}", _details(plan))
        text = f"{self._cluster.target} changed {_ATTEMPTS} times while it was looked at"
        return Result(Outcome.RETRY, text)

    def _verify(self, request: Request) -> Result:
        target = self._cluster.target
        deployment = self._cluster.get()
        mark = read_mark(deployment)
        if mark is None or mark.decision != request.decision_id or mark.undone:
            text = f"{target} does not carry this decision's mark: somebody has replaced it"
            return Result(Outcome.BLOCKED, text + git_ops(deployment))
        status, spec = deployment.get("status") or {}, deployment["spec"]
        if (status.get("observedGeneration") or 0) < deployment["metadata"].get("generation", 0):
            return Result(Outcome.RETRY, f"{target}: its controller has not seen the change yet")
        revision = _revision(deployment)
        owned = self._revisions(deployment)
        current = next((_name(one) for one in owned if _revision(one) == revision), "")
        if current != mark.after:
            what = "the revision that was taken away" if current == mark.before else "another one"
            text = f"{target} was rolled back to ReplicaSet {mark.after}, and runs {what} ("
            return Result(Outcome.BLOCKED, f"{text}{current or 'none'}) again{git_ops(deployment)}")
        for condition in status.get("conditions") or []:
            if condition.get("reason") == "ProgressDeadlineExceeded":
                text = f"{target}: the pods of ReplicaSet {current} do not become ready"
                return Result(Outcome.BLOCKED, f"{text} (ProgressDeadlineExceeded)")
        wanted = spec.get("replicas", 1)
        updated, available = status.get("updatedReplicas", 0), status.get("availableReplicas", 0)
        others = status.get("replicas", 0) - updated
        counts = f"{updated} of {wanted} pods are of ReplicaSet {current}, {available} available"
        if updated < wanted or available < wanted or others > 0:
            return Result(Outcome.RETRY, f"{target}: {counts}, {others} of others")
        return Result(Outcome.DONE, f"{target}: {counts}, none of others", {"after": current})

    def _undo(self, request: Request) -> Result:
        target = self._cluster.target
        deployment = self._cluster.get()
        mark = read_mark(deployment)
        if mark is None or mark.decision != request.decision_id:
            text = f"{target} does not carry this decision's mark: it has been changed since"
            return Result(Outcome.BLOCKED, text)
        if mark.undone:
            return Result(Outcome.DONE, f"{target}: undone before")
        owned = self._revisions(deployment)
        current = next((one for one in owned if _revision(one) == _revision(deployment)), None)
        if current is None or _name(current) != mark.after:
            text = f"{target} no longer runs what it was rolled back to: it has been changed since"
            return Result(Outcome.BLOCKED, text)
        back = next((one for one in owned if _name(one) == mark.before), None)
        if back is None:
            text = f"{target}: ReplicaSet {mark.before} is gone (revisionHistoryLimit): deploy it"
            return Result(Outcome.BLOCKED, text)
        body = _patch(deployment, back, undone(mark, request), f"undone: {request.reason}")
        self._cluster.patch(body, JSON_PATCH, dry_run=True)
        self._cluster.patch(body, JSON_PATCH)
        text = f"{target}: ReplicaSet {mark.before} again, as before"
        return Result(Outcome.DONE, text, {"before": mark.after, "after": mark.before})


def _patch(deployment: Object, target: Object, mark: Mark, cause: str) -> list[Object]:
    template = copy.deepcopy(target["spec"]["template"])
    # The controller's own, of the ReplicaSet: with it the template would be another one.
    (template.get("metadata", {}).get("labels") or {}).pop(_HASH, None)
    meta = deployment["metadata"]
    body: list[Object] = [
        {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
        {"op": "replace", "path": "/spec/template", "value": template},
    ]
    if not meta.get("annotations"):
        body.append({"op": "add", "path": "/metadata/annotations", "value": {}})
    for key, value in ((MARK, mark.text()), (_CAUSE, f"model-sidecar: {cause}"[:1000])):
        path = f"/metadata/annotations/{key.replace('~', '~0').replace('/', '~1')}"
        body.append({"op": "add", "path": path, "value": value})
    return body


def _choose(request: Request, owned: list[Object], current: Object, mark: Mark | None) -> Object:
    """The last healthy revision before the present one.

    Of a ReplicaSet without pods nothing tells whether they were ever ready. So where a rollout is
    not over, one with pods that are ready now is taken before later ones that have none: what
    failed in between is scaled down first, and would look like any other.

    Raises:
        CallError: there is none; says why not, for each.
    """
    taken = set(mark.taken_back) if mark else set()
    fit, reasons = [], []
    # Once templates say which version they serve, one that does not is no version to go back to.
    said = any(_version(one) for one in owned)
    for one in owned:
        if one is current:
            continue
        if why := _unfit(one, request, taken, said=said):
            reasons.append(f"revision {_revision(one)} ({_name(one)}) {why}")
        else:
            fit.append(one)
    if not fit:
        text = "there is no healthy revision to go back to: "
        text += "; ".join(reasons[:10]) or "no other is kept (revisionHistoryLimit)"
        raise CallError(Outcome.BLOCKED, text)
    return next((one for one in fit if _ready(one)), fit[0])


def _unfit(one: Object, request: Request, taken: set[str], *, said: bool) -> str:
    status = one.get("status") or {}
    if _name(one) in taken:
        return "was itself rolled back from"
    version = _version(one)
    if said and version != request.previous_version:
        return f"serves version {version or 'unknown'}, not {request.previous_version}"
    if status.get("replicas", 0) > 0 and not _ready(one):
        return f"has {status['replicas']} pods, and none is ready"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return f"cannot make pods: {condition.get('message') or 'ReplicaFailure'}"
    return ""


def _selector(selector: Object) -> str:
    """A ``LabelSelector`` as a LIST takes it."""
    parts = [f"{key}={value}" for key, value in (selector.get("matchLabels") or {}).items()]
    for one in selector.get("matchExpressions") or []:
        key, values = one["key"], ",".join(one.get("values") or [])
        parts.append(
            {
                "In": f"{key} in ({values})", "NotIn": f"{key} notin ({values})",
                "Exists": key, "DoesNotExist": f"!{key}",
            }[one["operator"]]
        )  # fmt: skip
    return ",".join(parts)


def _name(one: Object) -> str:
    return str(one["metadata"]["name"])


def _revision(one: Object) -> int:
    text = (one["metadata"].get("annotations") or {}).get(_REVISION, "0")
    return int(text) if str(text).isdigit() else 0


def _ready(one: Object) -> int:
    return int((one.get("status") or {}).get("readyReplicas") or 0)


def _version(replica_set: Object) -> str:
    """Which version of the model a revision says that it serves; empty: it does not say."""
    meta: Any = replica_set["spec"]["template"].get("metadata") or {}
    for where in ("annotations", "labels"):
        if value := (meta.get(where) or {}).get(VERSION):
            return str(value)
    return ""


def _words(plan: _Plan) -> str:
    meta = plan.deployment["metadata"]
    ready = _ready(plan.target)
    health = f"{ready} of whose pods are ready" if ready else "which has no pods now"
    return (
        f"Deployment {meta['namespace']}/{meta['name']} back from revision "
        f"{_revision(plan.current)} ({_name(plan.current)}) to revision "
        f"{_revision(plan.target)} ({_name(plan.target)}, {health})"
    )


def _details(plan: _Plan) -> dict[str, str]:
    return {"before": _name(plan.current), "after": _name(plan.target)}
