"""The chart gives the account what the configured action calls, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.monitor.actions import roles
from sidecar.monitor.actions.base import Outcome
from tests.monitor.actions import test_roles
from tests.monitor.actions.clusters import NAME, action, config, request
from tests.support import helm
from tests.support.kubernetes_api import KubernetesApi, allows

Object = dict[str, Any]
_REMOTE = {"kind": "remote", "address": "triton.shop:8001"}


def model(name: str, action: Object | None, **rollback: Any) -> Object:
    """A model of the configuration, with two versions."""
    rollback = {**rollback, **({} if action is None else {"action": action})}
    return {
        "name": name,
        "variants": [
            {"name": "a", "version": "3", "roles": ["serving"], "runtime": _REMOTE},
            {"name": "a", "version": "2", "roles": ["previous"], "runtime": _REMOTE},
        ],
        "rollback": rollback,
    }


def rendered(*models: Object, **values: Any) -> list[Object]:
    """What the chart makes for these models."""
    store = {"postgresql": {"existingSecret": "store"}}
    values = {"config": {"models": list(models)}, "store": store, **values}
    return helm.objects(helm.render(values))


def granted(objects: list[Object]) -> dict[str, list[Object]]:
    """Namespace → rules of its Role, once bound to the pod's account."""
    account = helm.pod(objects)["spec"]["serviceAccountName"]
    subject = {"kind": "ServiceAccount", "name": account, "namespace": helm.NAMESPACE}
    found = {}
    bindings = {
        (item["metadata"]["namespace"], item["roleRef"]["name"]): item
        for item in helm.of_kind(objects, "RoleBinding")
    }
    for item in helm.of_kind(objects, "Role"):
        space = item["metadata"]["namespace"]
        binding = bindings.pop((space, item["metadata"]["name"]))
        assert binding["subjects"] == [subject]
        assert binding["roleRef"]["kind"] == "Role"
        found[space] = item["rules"]
    assert bindings == {}, "bound to nothing"
    assert helm.of_kind(objects, "ClusterRole") == []
    return found


def has_token(objects: list[Object]) -> bool:
    return any(item["name"] == "sidecar-token" for item in helm.pod(objects)["spec"]["volumes"])


@pytest.mark.parametrize(("kind", "put"), test_roles.KINDS)
def test_a_whole_rollback_needs_all_of_the_role_and_no_more(kind, put, tmp_path):
    rules = granted(rendered(model("digits", {"kind": kind, **NAME})))
    assert list(rules) == [NAME["namespace"]]
    (rules,) = rules.values()
    assert rules == roles.rules(config(kind=kind, **NAME)), "as docs/actions.md shows it"
    with KubernetesApi() as api:
        put(api)
        api.rules = rules
        one = action(kind, api, tmp_path)
        # As a decision does: a dry run, the change, until its effect shows, and an operator's undo.
        for call in (one.check, one.perform, one.verify, one.undo):
            result = call(request())
            assert result.outcome is Outcome.DONE, result.text
        assert any(call.dry_run for call in api.calls if call.verb == "patch") or kind == "argo"
        called = {(call.verb, call.group, call.resource, call.name) for call in api.calls}
        assert {call.namespace for call in api.calls} == {NAME["namespace"]}
    rights = [
        {**rule, "verbs": [verb], **({"resourceNames": [name]} if name else {})}
        for rule in rules
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [None])
    ]
    unused = [right for right in rights if not any(allows(right, *call) for call in called)]
    assert unused == []


def test_without_the_role_the_action_is_refused(tmp_path):
    with KubernetesApi() as api:
        test_roles.put_deployment(api)
        api.rules = granted(rendered(model("digits", {"kind": "argo", **NAME})))["shop"]
        result = action("deployment", api, tmp_path).check(request())
    assert result.outcome is Outcome.BLOCKED
    assert "403" in result.text


@pytest.mark.parametrize(
    "models",
    [
        [model("a", None)],
        [model("a", {"kind": "observe"})],
        [model("a", {"kind": "switch"})],
        [model("a", {"kind": "webhook", "url": "https://delivery.example.org"})],
        # Nobody acts.
        [model("a", {"kind": "deployment", **NAME}, enabled=False)],
    ],
    ids=["default", "observe", "switch", "webhook", "off"],
)
def test_nothing_calls_kubernetes_and_there_is_no_right_and_no_token(models):
    objects = rendered(*models)
    assert granted(objects) == {}
    assert not has_token(objects)
    assert helm.the(objects, "ServiceAccount")["automountServiceAccountToken"] is False
    assert helm.pod(objects)["spec"]["automountServiceAccountToken"] is False


def test_without_a_monitor_nobody_acts():
    objects = rendered(
        model("a", {"kind": "deployment", **NAME}), monitor={"enabled": False},
        store={"persistence": {"enabled": True}},
    )  # fmt: skip
    assert granted(objects) == {}
    assert not has_token(objects)


def test_another_clusters_credentials_are_its_own_rights():
    elsewhere = {"kind": "deployment", **NAME, "kubernetes": {"kubeconfig": "/etc/kube/config"}}
    objects = rendered(model("a", elsewhere))
    assert granted(objects) == {}
    assert not has_token(objects)


def test_each_namespace_has_a_role_with_the_names_of_its_objects():
    def at(kind: str, namespace: str, name: str) -> Object:
        return {"kind": kind, "namespace": namespace, "name": name}

    rules = granted(
        rendered(
            model("a", at("deployment", "shop", "zebra")),
            model("b", at("deployment", "shop", "ant")),
            model("c", at("deployment", "shop", "ant")),
            model("d", at("argo", "shop", "ant")),
            model("e", at("kserve", "vision", "cars")),
            model("f", {"kind": "switch"}),
        )
    )
    assert list(rules) == ["shop", "vision"]
    shop = {rule["resources"][0]: rule for rule in rules["shop"]}
    assert shop["deployments"]["resourceNames"] == ["ant", "zebra"]
    assert shop["replicasets"] == {
        "apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["list"]
    }  # fmt: skip
    assert shop["rollouts"]["resourceNames"] == shop["rollouts/status"]["resourceNames"] == ["ant"]
    assert [rule["resourceNames"] for rule in rules["vision"]] == [["cars"]]


def test_releases_of_one_name_in_two_namespaces_do_not_share_a_role():
    first, second = (
        helm.the(helm.objects(helm.run(
            "template", "demo", helm.CHART, "--namespace", space, "--values",
            helm.CI / "network-policy-values.yaml",
        )), "Role")["metadata"]
        for space in ("blue", "green")
    )  # fmt: skip
    assert first["namespace"] == second["namespace"] == "shop"
    assert first["name"] != second["name"]


def test_a_configuration_that_the_chart_cannot_see_has_its_actions_named():
    values = {
        "configMap": {"existing": "mine"},
        "rbac": {"actions": [{"kind": "kserve", "namespace": "vision", "name": "cars"}]},
        "store": {"postgresql": {"existingSecret": "store"}},
    }
    objects = helm.objects(helm.render(values))
    assert granted(objects)["vision"] == roles.rules(
        config(kind="kserve", namespace="vision", name="cars")
    )
    assert has_token(objects)


def test_somebody_else_may_give_the_rights():
    objects = rendered(
        model("a", {"kind": "deployment", **NAME}), rbac={"create": False},
        serviceAccount={"create": False, "name": "theirs"},
    )  # fmt: skip
    assert granted(objects) == {}
    assert helm.of_kind(objects, "ServiceAccount") == []
    assert helm.pod(objects)["spec"]["serviceAccountName"] == "theirs"
    assert has_token(objects), "the action still calls"


def test_the_token_is_where_the_client_looks_for_it():
    from kubernetes.config import incluster_config as client

    objects = rendered(model("a", {"kind": "deployment", **NAME}))
    (mount,) = [
        item
        for item in helm.containers(objects)["monitor"]["volumeMounts"]
        if item["name"] == "sidecar-token"
    ]
    (volume,) = [
        item for item in helm.pod(objects)["spec"]["volumes"] if item["name"] == "sidecar-token"
    ]
    files = set()
    for source in volume["projected"]["sources"]:
        (content,) = source.values()
        files |= {item["path"] for item in content.get("items", [content])}
    found = {f"{mount['mountPath']}/{name}" for name in files}
    assert {client.SERVICE_TOKEN_FILENAME, client.SERVICE_CERT_FILENAME} <= found
