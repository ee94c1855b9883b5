"""A cluster with a Deployment, a Rollout or an InferenceService, and requests about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from sidecar.config_rollback import ActionConfig
from sidecar.monitor.actions import build
from sidecar.monitor.actions.base import Action, Request
from tests.support.kubernetes_api import KubernetesApi, Object
from tests.support.kubernetes_controllers import DeploymentController
from tests.support.routes import RouteTable

NAME = {"namespace": "shop", "name": "digits"}


def config(**values: Any) -> Any:
    """An action's configuration, parsed as it is in a file."""
    return TypeAdapter(ActionConfig).validate_python(values)


def request(decision: str = "d-1", *, fence: int = 1, **changes: str) -> Request:
    fields: dict[str, Any] = {
        "decision_id": decision, "model": "digits", "new": "3/onnx", "previous": "2/onnx",
        "new_version": "3", "previous_version": "2", "fence": fence,
        "reason": "version 3 errs more often than version 2",
    }  # fmt: skip
    return Request(**{**fields, **changes})


def action(
    kind: str, api: KubernetesApi, folder: Path, *, timeout_s: float = 60, **changes: Any
) -> Action:
    """One on the cluster; by a kubeconfig whose context must be chosen."""
    file = api.kubeconfig(folder / "kubeconfig", **changes)
    kubernetes = {"kubeconfig": file, "context": "here", "timeout_s": timeout_s}
    return build(config(kind=kind, **NAME, kubernetes=kubernetes), RouteTable(), "digits")


def template(image: str, **annotations: str) -> Object:
    """A pod template; with a field that no client has heard of yet."""
    return {
        "metadata": {"labels": {"app": "digits"}, "annotations": annotations},
        "spec": {"containers": [{"name": "model", "image": image}], "fieldOfTomorrow": {"a": [1]}},
    }


def deploy(
    api: KubernetesApi, *templates: Object, annotations: dict[str, str] | None = None
) -> DeploymentController:
    """A Deployment that was given these templates, one after the other."""
    controller = DeploymentController()
    api.controllers.append(controller)
    spec = {"replicas": 3, "selector": {"matchLabels": {"app": "digits"}}, "template": templates[0]}
    meta = {**NAME, "annotations": annotations or {}}
    api.put("deployments", {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta,
                            "spec": spec})  # fmt: skip
    for one in templates[1:]:
        roll_out(api, one)
    return controller


def roll_out(api: KubernetesApi, new: Object) -> None:
    """Somebody deploys another template."""
    api.change("deployments", "shop", "digits", lambda o: o["spec"].update(template=new))


def image(api: KubernetesApi) -> str:
    """What the Deployment runs."""
    spec = api.get("deployments", "shop", "digits")["spec"]["template"]["spec"]
    return str(spec["containers"][0]["image"])


def touch(api: KubernetesApi) -> None:
    """A status is written: nothing that matters, but another resourceVersion."""

    def how(document: Object) -> None:
        labels = document["metadata"].setdefault("labels", {})
        labels["touched"] = str(int(labels.get("touched", "0")) + 1)

    api.change("deployments", "shop", "digits", how)
