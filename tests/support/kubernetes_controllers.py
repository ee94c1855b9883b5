"""What controllers do in a cluster, so far as the actions see it: Deployment, Rollout, KServe.

Written after the documents and sources of those controllers, not taken from them; none has been
compared with a cluster.
"""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any

from tests.support.kubernetes_api import KubernetesApi, Object

HASH = "pod-template-hash"
REVISION = "deployment.kubernetes.io/revision"


def bare(template: Object) -> Object:
    """A template without the label that the controller adds."""
    result = copy.deepcopy(template)
    result.get("metadata", {}).get("labels", {}).pop(HASH, None)
    return result


class DeploymentController:
    """Rolls ReplicaSets when a template changes: at once, or when ``step`` is called.

    Attributes:
        held: only notices (observedGeneration, the new ReplicaSet), rolls nothing.
        broken: images whose pods never become ready.
    """

    def __init__(self) -> None:
        self.held = False
        self.asleep = False
        self.broken: set[str] = set()

    def __call__(self, api: KubernetesApi) -> None:
        if self.asleep:
            return
        for (plural, _, _), document in list(api.objects.items()):
            if plural == "deployments":
                self._sync(api, document)

    def _sync(self, api: KubernetesApi, deployment: Object) -> None:
        meta = deployment["metadata"]
        owned = [
            one
            for one in api.all("replicasets", meta["namespace"])
            if any(ref["uid"] == meta["uid"] for ref in one["metadata"].get("ownerReferences", []))
        ]
        template = bare(deployment["spec"]["template"])
        new = next((one for one in owned if bare(one["spec"]["template"]) == template), None)
        latest = max((int(one["metadata"]["annotations"][REVISION]) for one in owned), default=0)
        if new is None:
            new = self._make(api, deployment, template, latest + 1)
            owned.append(new)
        elif int(new["metadata"]["annotations"][REVISION]) < latest:
            new = _alter(api, "replicasets", new, lambda o: _set_revision(o, latest + 1))
        revision = new["metadata"]["annotations"][REVISION]
        deployment = _alter(
            api, "deployments", deployment,
            lambda o: o["metadata"].setdefault("annotations", {}).update({REVISION: revision}),
        )  # fmt: skip
        self._roll(api, deployment, owned, new["metadata"]["name"])

    def _make(
        self, api: KubernetesApi, deployment: Object, template: Object, revision: int
    ) -> Object:
        text = json.dumps(template, sort_keys=True).encode()
        digest = hashlib.sha256(text).hexdigest()[:10]
        meta = deployment["metadata"]
        labelled = copy.deepcopy(template)
        labelled["metadata"].setdefault("labels", {})[HASH] = digest
        owner = {
            "apiVersion": "apps/v1", "kind": "Deployment", "name": meta["name"],
            "uid": meta["uid"], "controller": True,
        }  # fmt: skip
        document = {
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": f"{meta['name']}-{digest}", "namespace": meta["namespace"],
                "uid": f"uid-{digest}", "generation": 1, "ownerReferences": [owner],
                "labels": dict(labelled["metadata"]["labels"]),
                "annotations": {REVISION: str(revision)},
            },
            "spec": {"replicas": 0, "selector": {}, "template": labelled},
            "status": {"replicas": 0},
        }  # fmt: skip
        key = ("replicasets", meta["namespace"], document["metadata"]["name"])
        return copy.deepcopy(api._keep(key, document))

    def _roll(self, api: KubernetesApi, deployment: Object, owned: list[Object], new: str) -> None:
        wanted = deployment["spec"].get("replicas", 1)
        ready_in_all = updated = total = 0
        fails = deployment["spec"]["template"]["spec"]["containers"][0]["image"] in self.broken
        for one in owned:
            is_new = one["metadata"]["name"] == new
            current = api.get("replicasets", one["metadata"]["namespace"], one["metadata"]["name"])
            pods = current["spec"]["replicas"]
            image = current["spec"]["template"]["spec"]["containers"][0]["image"]
            unhealthy = image in self.broken
            if not self.held and not deployment["spec"].get("paused"):
                # A new revision that does not get ready leaves the healthy old pods running; the
                # others are scaled down first.
                old = pods if fails and not unhealthy else 0
                pods = (1 if fails else wanted) if is_new else old
            ready = 0 if unhealthy else pods
            _alter(api, "replicasets", current, lambda o, n=pods, r=ready: _set_pods(o, n, r))
            ready_in_all += ready
            total += pods
            updated += pods if is_new else 0
        status: dict[str, Any] = {
            "observedGeneration": deployment["metadata"]["generation"], "replicas": total,
            "updatedReplicas": updated, "readyReplicas": ready_in_all,
            "availableReplicas": ready_in_all,
        }  # fmt: skip
        if fails:
            status["conditions"] = [
                {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
            ]
        _alter(api, "deployments", deployment, lambda o: o.update(status=status))


def _set_pods(document: Object, pods: int, ready: int) -> None:
    document["spec"]["replicas"] = pods
    document["status"] = {"replicas": pods, **({"readyReplicas": ready} if ready else {})}


def _set_revision(document: Object, revision: int) -> None:
    document["metadata"]["annotations"][REVISION] = str(revision)


def _alter(api: KubernetesApi, plural: str, document: Object, how: Any) -> Object:
    meta = document["metadata"]
    before = api.objects[plural, meta["namespace"], meta["name"]]
    after = copy.deepcopy(before)
    how(after)
    return copy.deepcopy(api.write(plural, before, after))


def rollout_controller(api: KubernetesApi) -> None:
    """Argo Rollouts, of an update in progress: an abort takes the canary's weight to 0.

    A Rollout's observedGeneration is a text.
    """
    for (plural, _, _), document in list(api.objects.items()):
        if plural != "rollouts":
            continue
        status = copy.deepcopy(document["status"])
        status["observedGeneration"] = str(document["metadata"]["generation"])
        in_progress = status["stableRS"] != status["currentPodHash"]
        weights = status.get("canary", {}).get("weights", {})
        if in_progress and status.get("abort"):
            status["phase"] = "Degraded"
            status["message"] = "RolloutAborted: Rollout aborted update to revision 2"
            status["updatedReplicas"] = 0
            if weights:
                weights["canary"] = {"weight": 0}
        elif in_progress:
            status["phase"] = "Paused"
            status.pop("message", None)
        _alter(api, "rollouts", document, lambda o, s=status: o.update(status=s))


def kserve_controller(api: KubernetesApi) -> None:
    """KServe on Knative: traffic from ``canaryTrafficPercent``, and what is rolled out.

    Run again until nothing changes, as a controller is: going back from a version that was rolled
    out wholly takes it two rounds.
    """
    for (plural, _, _), document in list(api.objects.items()):
        if plural != "inferenceservices" or "predictor" not in document["status"]["components"]:
            continue
        for _ in range(3):
            current = api.objects[plural, "shop", document["metadata"]["name"]]
            predictor = copy.deepcopy(current["status"]["components"]["predictor"])
            percent = current["spec"]["predictor"].get("canaryTrafficPercent")
            latest, out = predictor["latestReadyRevision"], predictor.get("latestRolledoutRevision")
            latest_target = {"latestRevision": True, "revisionName": latest, "percent": 100}
            predictor["traffic"] = [latest_target]
            if percent is not None and out:
                latest_target["percent"] = percent
                if percent < 100:
                    other = {"revisionName": out, "tag": "prev", "percent": 100 - percent}
                    predictor["traffic"].append({"latestRevision": False, **other})
            if out != latest and latest_target["percent"] == 100:
                predictor["previousRolledoutRevision"] = out
                predictor["latestRolledoutRevision"] = latest
            elif out == latest and latest_target["percent"] < 100:
                before = predictor.get("previousRolledoutRevision")
                predictor["latestRolledoutRevision"] = before or latest

            def put(o: Object, p: Object = predictor) -> None:
                o["status"]["components"]["predictor"] = p

            _alter(api, "inferenceservices", current, put)
