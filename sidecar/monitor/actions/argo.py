"""Abort the update of an Argo Rollout: its controller then gives everything to the stable version.

What ``kubectl argo rollouts abort`` does, with the resourceVersion that was read added to the
patch, so that the API server refuses it (409) where the Rollout has changed meanwhile.
"""

from __future__ import annotations

from sidecar.monitor.actions.base import DEPOSED, Outcome, Request, Result
from sidecar.monitor.actions.cluster import (
    MERGE_PATCH,
    CallError,
    Cluster,
    Object,
    StaleError,
    answered,
)
from sidecar.monitor.actions.mark import Remembered

_ATTEMPTS = 3


class ArgoAction:
    """One Rollout. Its status cannot carry a mark of ours: an abort is known by `status.abort`."""

    kind = "argo"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._remembered = Remembered()

    def check(self, request: Request) -> Result:
        """Is an update in progress that can be aborted?"""
        result = answered(lambda: self._perform(request, dry_run=True))
        return self._remembered.told(request, result)

    def perform(self, request: Request) -> Result:
        """Abort it."""
        result = answered(lambda: self._perform(request, dry_run=False))
        return self._remembered.told(request, result)

    def verify(self, request: Request) -> Result:
        """Has the controller taken all traffic from the update?"""
        return answered(self._verify)

    def undo(self, request: Request) -> Result:
        """Take the update up again (`kubectl argo rollouts retry`)."""
        return answered(self._undo)

    def _perform(self, request: Request, *, dry_run: bool) -> Result:
        target = self._cluster.target
        for _ in range(_ATTEMPTS):
            rollout = self._cluster.get()
            stable, updated = _hashes(rollout)
            status = rollout.get("status") or {}
            if status.get("abort"):
                text = f"{target}: its update is aborted already"
                return Result(Outcome.DONE, text, {"before": updated, "after": stable})
            if stable == updated:
                text = (
                    f"{target}: no update is in progress, its new version is stable: an abort "
                    "would do nothing. Change its spec back"
                )
                return Result(Outcome.BLOCKED, text)
            self._remembered.hold(
                request, updated, lambda a, b: f"{target} has gone from update {a} to {b}"
            )
            try:
                self._abort(rollout, abort=True, dry_run=True)
                if not dry_run and not request.leads():
                    return DEPOSED
                if not dry_run:
                    self._abort(rollout, abort=True)
            except StaleError:
                continue
            what = "can be aborted" if dry_run else "is aborted"
            text = f"{target}: its update to {updated} {what}, {stable} gets everything. Its spec "
            text += "still asks for the update: nothing in Git is set back by this"
            return Result(Outcome.DONE, text, {"before": updated, "after": stable})
        text = f"{target} changed {_ATTEMPTS} times while it was looked at"
        return Result(Outcome.RETRY, text)

    def _abort(self, rollout: Object, *, abort: bool, dry_run: bool = False) -> None:
        version = rollout["metadata"]["resourceVersion"]
        body = {"metadata": {"resourceVersion": version}, "status": {"abort": abort}}
        self._cluster.patch(body, MERGE_PATCH, status=True, dry_run=dry_run)

    def _verify(self) -> Result:
        target = self._cluster.target
        rollout = self._cluster.get()
        stable, updated = _hashes(rollout)
        status = rollout.get("status") or {}
        if not status.get("abort"):
            text = f"{target}: it is no longer aborted: somebody has retried or changed it"
            return Result(Outcome.BLOCKED, text)
        # A Rollout's observedGeneration is a text.
        if str(status.get("observedGeneration")) != str(rollout["metadata"].get("generation")):
            return Result(Outcome.RETRY, f"{target}: its controller has not seen its spec yet")
        if status.get("phase") != "Degraded":
            phase = status.get("phase") or "none"
            return Result(Outcome.RETRY, f"{target}: its phase is {phase}, not yet Degraded")
        weights = (status.get("canary") or {}).get("weights") or {}
        if "canary" in weights:
            weight = (weights["canary"] or {}).get("weight", 0)
            said = f"the update's weight is {weight}"
        else:
            weight = status.get("updatedReplicas", 0)
            said = f"{weight} pods are of the update"
        if weight:
            return Result(Outcome.RETRY, f"{target}: aborted, but {said}")
        text = f"{target}: aborted, {said}: {stable} gets everything"
        return Result(Outcome.DONE, text, {"before": updated, "after": stable})

    def _undo(self) -> Result:
        target = self._cluster.target
        rollout = self._cluster.get()
        if not (rollout.get("status") or {}).get("abort"):
            return Result(Outcome.NOTHING, f"{target}: it is not aborted")
        self._abort(rollout, abort=False)
        return Result(Outcome.DONE, f"{target}: its update is taken up again, from the first step")


def _hashes(rollout: Object) -> tuple[str, str]:
    """The stable version and the update.

    Raises:
        CallError: the controller has not said them.
    """
    status = rollout.get("status") or {}
    stable, updated = status.get("stableRS"), status.get("currentPodHash")
    if not stable or not updated:
        name = rollout["metadata"].get("name", "it")
        text = f"Rollout {name} has no stable version yet (status.stableRS): nothing to go back to"
        raise CallError(Outcome.BLOCKED, text)
    return str(stable), str(updated)
