"""Every policy holds for everything that is rendered, and each can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import helm
from tests.support import pod_policies as policies
from tests.support.chart_values import CHART

Object = dict[str, Any]
EXAMPLES = sorted((CHART / "examples").glob("*/rendered*.yaml"))
#: What an example cannot keep to, and why.
EXCEPTIONS = {
    # Knative takes probes of the container that serves, and of no other.
    "kserve/rendered-knative.yaml": ["our_containers_are_probed: monitor has no livenessProbe"],
}


def broken(objects: list[Object]) -> list[str]:
    return [
        f"{policy.__name__}: {problem}"
        for policy in policies.POLICIES
        for problem in policy(objects)
    ]


@pytest.mark.parametrize(("values", "version"), helm.ci_cases(), ids=helm.case_name)
def test_what_is_rendered_keeps_to_them(values, version):
    found = broken(helm.ci_objects(values, version))
    text = yaml.safe_load(values.read_text(encoding="utf-8"))
    if text.get("models", {}).get("source") == "hostPath":
        found.remove("host_is_left_alone: volume sidecar-models is a folder of the node")
    assert found == []


def rendered_examples() -> Iterator[tuple[Path, list[Object]]]:
    """Every manifest among the examples that makes pods."""
    for path in EXAMPLES:
        found = helm.objects(path.read_text(encoding="utf-8"))
        if policies.pods(found):
            yield path, found


@pytest.mark.parametrize(
    "path",
    [path for path, _ in rendered_examples()],
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_examples_keep_to_them(path):
    (found,) = [found for one, found in rendered_examples() if one == path]
    assert broken(found) == EXCEPTIONS.get(f"{path.parent.name}/{path.name}", [])


# --- each can fail --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sound() -> list[Object]:
    """Objects of each kind that a policy looks at, and nothing wrong with them."""
    values = {
        **yaml.safe_load((helm.CI / "network-policy-values.yaml").read_text(encoding="utf-8")),
        "model": {"image": "model:1", "ports": [{"containerPort": 8001}]},
        "models": {"source": "pvc", "pvc": {"claimName": "models"}},
    }
    objects = helm.objects(helm.render(values))
    assert broken(objects) == []
    return objects


def spec(objects: list[Object]) -> Object:
    return helm.pod(objects)["spec"]


def one(objects: list[Object], name: str) -> Object:
    return helm.containers(objects)[name]


def own(objects: list[Object], name: str) -> Object:
    context: Object = one(objects, name)["securityContext"]
    return context


def volume(objects: list[Object], name: str) -> Object:
    (found,) = [item for item in spec(objects)["volumes"] if item["name"] == name]
    return found


def mount(objects: list[Object], container: str, name: str) -> Object:
    (found,) = [item for item in one(objects, container)["volumeMounts"] if item["name"] == name]
    return found


def config_map(objects: list[Object]) -> Object:
    return helm.the(objects, "ConfigMap")["data"]


Spoil = Callable[[list[Object]], object]
SPOILED: list[tuple[policies.Policy, str, Spoil]] = [
    (policies.host_is_left_alone, "hostNetwork is on",
     lambda o: spec(o).update(hostNetwork=True)),
    (policies.host_is_left_alone, "hostPID is on", lambda o: spec(o).update(hostPID=True)),
    (policies.host_is_left_alone, "a folder of the node",
     lambda o: spec(o)["volumes"].append({"name": "x", "hostPath": {"path": "/"}})),
    (policies.host_is_left_alone, "takes port 80 of the node",
     lambda o: one(o, "model")["ports"][0].update(hostPort=80)),
    (policies.volumes_are_of_allowed_kinds, "is a nfs",
     lambda o: spec(o)["volumes"].append({"name": "x", "nfs": {}})),
    (policies.nothing_is_privileged, "is privileged",
     lambda o: own(o, "gateway").update(privileged=True)),
    (policies.nothing_is_privileged, "monitor may gain privileges",
     lambda o: own(o, "monitor").pop("allowPrivilegeEscalation")),
    (policies.nothing_is_privileged, "model keeps capabilities",
     lambda o: own(o, "model").pop("capabilities")),
    (policies.nothing_is_privileged, "adds capabilities",
     lambda o: own(o, "gateway")["capabilities"].update(add=["SYS_ADMIN"])),
    (policies.nothing_is_privileged, "sees more of /proc",
     lambda o: own(o, "gateway").update(procMount="Unmasked")),
    (policies.nothing_is_privileged, "no seccomp profile",
     lambda o: spec(o)["securityContext"].pop("seccompProfile")),
    (policies.nobody_is_root, "model may run as root",
     lambda o: spec(o)["securityContext"].pop("runAsNonRoot")),
    (policies.nobody_is_root, "gateway runs as root",
     lambda o: own(o, "gateway").update(runAsUser=0)),
    (policies.nobody_is_root, "monitor has no user", lambda o: own(o, "monitor").pop("runAsUser")),
    (policies.images_are_pinned, "whatever model is today",
     lambda o: one(o, "model").update(image="model")),
    (policies.images_are_pinned, "model:latest", lambda o: one(o, "model").update(
        image="registry:5000/model:latest")),
    (policies.our_files_are_read_only, "gateway may write to its own image",
     lambda o: own(o, "gateway").pop("readOnlyRootFilesystem")),
    (policies.our_files_are_read_only, "model may write to sidecar-models",
     lambda o: mount(o, "model", "sidecar-models").pop("readOnly")),
    (policies.everything_has_limits, "monitor has no limit of memory",
     lambda o: one(o, "monitor")["resources"].pop("limits")),
    (policies.everything_has_limits, "model requests no cpu",
     lambda o: one(o, "model")["resources"]["requests"].pop("cpu")),
    (policies.everything_has_limits, "sidecar-run may fill the node",
     lambda o: volume(o, "sidecar-run")["emptyDir"].pop("sizeLimit")),
    (policies.our_containers_are_probed, "gateway has no readinessProbe",
     lambda o: one(o, "gateway").pop("readinessProbe")),
    (policies.our_containers_are_probed, "gateway has no startupProbe",
     lambda o: one(o, "gateway").pop("startupProbe")),
    (policies.our_containers_are_probed, "monitor has no livenessProbe",
     lambda o: one(o, "monitor").pop("livenessProbe")),
    (policies.our_containers_are_probed, "wait for the monitor",
     lambda o: one(o, "monitor").update(readinessProbe={})),
    (policies.our_containers_are_probed, "more than whether the process lives",
     lambda o: one(o, "gateway")["livenessProbe"]["grpc"].update(service="")),
    (policies.no_secret_is_written_down, "DB_PASSWORD holds a secret",
     lambda o: one(o, "monitor")["env"].append({"name": "DB_PASSWORD", "value": "hunter2"})),
    (policies.no_secret_is_written_down, "variable STORE holds a secret",
     lambda o: one(o, "model").update(env=[
         {"name": "STORE", "value": "postgresql://me:hunter2@db/x"}])),
    (policies.no_secret_is_written_down, "holds credentials",
     lambda o: config_map(o).update({"config.yaml": "url: https://me:hunter2@example.org"})),
    (policies.no_secret_is_written_down, "routing_key is written down",
     lambda o: config_map(o).update({"config.yaml": "alerts: [{routing_key: abc}]"})),
    (policies.no_secret_is_written_down, "a Secret is made",
     lambda o: o.append({"kind": "Secret", "metadata": {"name": "x"}})),
    (policies.a_token_is_where_a_role_is, "mounted everywhere",
     lambda o: helm.the(o, "ServiceAccount").pop("automountServiceAccountToken")),
    (policies.a_token_is_where_a_role_is, "the pod mounts",
     lambda o: spec(o).update(automountServiceAccountToken=True)),
    (policies.a_token_is_where_a_role_is, "and nothing that it may do",
     lambda o: o.remove(helm.the(o, "RoleBinding"))),
    (policies.a_token_is_where_a_role_is, "['gateway', 'monitor'] has it",
     lambda o: one(o, "gateway")["volumeMounts"].append(
         {"name": "sidecar-token", "mountPath": "/x", "readOnly": True})),
    (policies.a_token_is_where_a_role_is, "nobody has it",
     lambda o: one(o, "monitor")["volumeMounts"].remove(mount(o, "monitor", "sidecar-token"))),
    (policies.rights_are_narrow, "the whole cluster",
     lambda o: o.append({"kind": "ClusterRole", "rules": []})),
    (policies.rights_are_narrow, "allows everything",
     lambda o: helm.the(o, "Role")["rules"][0].update(resources=["*"])),
    (policies.rights_are_narrow, "no action does this",
     lambda o: helm.the(o, "Role")["rules"][0]["verbs"].append("delete")),
    (policies.rights_are_narrow, "whatever its name",
     lambda o: helm.the(o, "Role")["rules"][0].pop("resourceNames")),
    (policies.inner_ports_are_in_no_service, "port 9003 is offered",
     lambda o: helm.the(o, "Service")["spec"]["ports"][0].update(targetPort=9003)),
    (policies.inner_ports_are_in_no_service, "found by name: grpc",
     lambda o: helm.the(o, "Service")["spec"]["ports"][0].update(targetPort="grpc")),
    (policies.mounts_have_their_volumes, "no volume is called sidecar-run",
     lambda o: spec(o)["volumes"].remove(volume(o, "sidecar-run"))),
    (policies.mounts_have_their_volumes, "nobody mounts x",
     lambda o: spec(o)["volumes"].append({"name": "x", "emptyDir": {"sizeLimit": "1Mi"}})),
    (policies.mounts_have_their_volumes, "two volumes at one place",
     lambda o: mount(o, "gateway", "sidecar-run").update(mountPath="/tmp")),
    (policies.the_gateway_is_the_only_one_with_a_way_in, "lets everything in",
     lambda o: helm.the(o, "NetworkPolicy")["spec"]["ingress"].append({})),
    (policies.the_gateway_is_the_only_one_with_a_way_in, "anybody reaches [9464]",
     lambda o: helm.the(o, "NetworkPolicy")["spec"]["ingress"].append(
         {"ports": [{"port": 9464}]})),
    (policies.the_gateway_is_the_only_one_with_a_way_in, "found by name",
     lambda o: helm.the(o, "NetworkPolicy")["spec"]["ingress"].append(
         {"ports": [{"port": "grpc"}], "from": [{}]})),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "problem", "spoil"), SPOILED, ids=[problem for _, problem, _ in SPOILED]
)
def test_a_policy_finds_what_breaks_it(sound, policy, problem, spoil):
    objects = copy.deepcopy(sound)
    spoil(objects)
    assert problem in "\n".join(policy(objects))


def test_every_policy_can_fail():
    assert {policy for policy, _, _ in SPOILED} == set(policies.POLICIES)
