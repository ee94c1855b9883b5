"""The Kubernetes permissions that each action needs: no more than it calls, by name where it can.

``docs/actions.md`` shows them; a test holds them to what is really called.
"""

from __future__ import annotations

import json
from typing import Any

from sidecar.config_rollback import ArgoConfig, DeploymentConfig, KServeConfig

Rule = dict[str, list[str]]


def rules(config: DeploymentConfig | ArgoConfig | KServeConfig) -> list[Rule]:
    """The rules of a Role in the object's namespace."""
    if isinstance(config, DeploymentConfig):
        return [
            _rule("apps", "deployments", ["get", "patch"], config.name),
            # A list cannot be allowed by name.
            _rule("apps", "replicasets", ["list"]),
        ]
    if isinstance(config, ArgoConfig):
        return [
            _rule("argoproj.io", "rollouts", ["get"], config.name),
            _rule("argoproj.io", "rollouts/status", ["patch"], config.name),
        ]
    return [_rule("serving.kserve.io", "inferenceservices", ["get", "patch"], config.name)]


def _rule(group: str, resource: str, verbs: list[str], name: str | None = None) -> Rule:
    rule = {"apiGroups": [group], "resources": [resource], "verbs": verbs}
    return rule if name is None else {**rule, "resourceNames": [name]}


def role(config: DeploymentConfig | ArgoConfig | KServeConfig) -> dict[str, Any]:
    """The whole Role, to be bound to the pod's service account."""
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": f"model-sidecar-{config.kind}", "namespace": config.namespace},
        "rules": rules(config),
    }


def in_words(config: DeploymentConfig | ArgoConfig | KServeConfig) -> str:
    """The rules in one line, as YAML takes them."""
    return json.dumps(rules(config))
