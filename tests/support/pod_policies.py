"""What rendered objects must keep to, whoever's values they come of.

Each policy yields what is wrong. The first ones are the Pod Security Standard *restricted* of
Kubernetes, the rest is ours. A policy is about every container of the pod unless it says otherwise;
``OURS`` are those of the sidecar.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import yaml

Object = dict[str, Any]
Policy = Callable[[list[Object]], Iterator[str]]

OURS = ("gateway", "monitor")
#: Ports that only the pod itself and kubelet may use: health, hooks, the monitor's calls, admin.
INNER_PORTS = frozenset({9001, 9002, 9003, 9005, 9006})
_VOLUMES = frozenset({
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim",
    "projected", "secret",
})  # fmt: skip
_SECRET_NAME = re.compile(r"(?i)(password|passwd|secret|token|credential|api_?key|routing_?key)")
_CREDENTIALS = re.compile(r"://[^/\s:@]*:[^/\s@]+@")
_READ_ONLY = ("sidecar-config", "sidecar-models", "sidecar-tls", "sidecar-token")


def pods(objects: list[Object]) -> list[Object]:
    """The pods' specs of everything that makes some; KServe's is a predictor's, its own aside."""
    found = [
        item["spec"]["template"]["spec"]
        for item in objects
        if "template" in item.get("spec", {}) and "spec" in item["spec"]["template"]
    ]
    return found + [
        item["spec"]["predictor"] for item in objects if item["kind"] == "InferenceService"
    ]


def containers(spec: Object) -> list[Object]:
    """Every container of a pod."""
    return [*spec.get("initContainers", ()), *spec["containers"]]


def lasting(spec: Object) -> list[Object]:
    """Those that run as long as the pod."""
    stay = [one for one in spec.get("initContainers", ()) if one.get("restartPolicy") == "Always"]
    return [*stay, *spec["containers"]]


def _each(objects: list[Object]) -> Iterator[tuple[Object, Object]]:
    for spec in pods(objects):
        for one in containers(spec):
            yield spec, one


def _said(spec: Object, one: Object, key: str) -> Any:
    """A field of a container's security context, or else the pod's."""
    own = one.get("securityContext", {})
    return own[key] if key in own else spec.get("securityContext", {}).get(key)


# --- the Pod Security Standard --------------------------------------------------------------------


def host_is_left_alone(objects: list[Object]) -> Iterator[str]:
    """No namespace, port or folder of the node."""
    for spec in pods(objects):
        for key in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(key):
                yield f"{key} is on"
        for volume in spec.get("volumes", ()):
            if "hostPath" in volume:
                yield f"volume {volume['name']} is a folder of the node"
    for _, one in _each(objects):
        for port in one.get("ports", ()):
            if port.get("hostPort"):
                yield f"{one['name']} takes port {port['hostPort']} of the node"


def volumes_are_of_allowed_kinds(objects: list[Object]) -> Iterator[str]:
    """Those of *restricted*; a folder of the node is told by another policy."""
    for spec in pods(objects):
        for volume in spec.get("volumes", ()):
            for kind in set(volume) - {"name", "hostPath"} - _VOLUMES:
                yield f"volume {volume['name']} is a {kind}"


def nothing_is_privileged(objects: list[Object]) -> Iterator[str]:
    """No privilege, none to be gained, no capability, the kernel's usual faces."""
    for spec, one in _each(objects):
        own = one.get("securityContext", {})
        if own.get("privileged"):
            yield f"{one['name']} is privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{one['name']} may gain privileges"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", ()):
            yield f"{one['name']} keeps capabilities"
        if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
            yield f"{one['name']} adds capabilities"
        if own.get("procMount", "Default") != "Default":
            yield f"{one['name']} sees more of /proc"
        profile = _said(spec, one, "seccompProfile") or {}
        if profile.get("type") not in {"RuntimeDefault", "Localhost"}:
            yield f"{one['name']} has no seccomp profile"


def nobody_is_root(objects: list[Object]) -> Iterator[str]:
    """No container may run as root, and ours have a user of their own."""
    for spec, one in _each(objects):
        if _said(spec, one, "runAsNonRoot") is not True:
            yield f"{one['name']} may run as root"
        if _said(spec, one, "runAsUser") == 0:
            yield f"{one['name']} runs as root"
        if one["name"] in OURS and not _said(spec, one, "runAsUser"):
            yield f"{one['name']} has no user"


# --- ours -----------------------------------------------------------------------------------------


def images_are_pinned(objects: list[Object]) -> Iterator[str]:
    """By a tag that says which, or a digest."""
    for _, one in _each(objects):
        _, _, digest = one["image"].partition("@")
        _, _, tag = one["image"].partition("@")[0].rpartition("/")[2].partition(":")
        if not digest and tag in {"", "latest"}:
            yield f"{one['name']} runs whatever {one['image']} is today"


def our_files_are_read_only(objects: list[Object]) -> Iterator[str]:
    """The sidecar writes to its volumes only, and not to those that others fill."""
    for _, one in _each(objects):
        if one["name"] in OURS and not one.get("securityContext", {}).get("readOnlyRootFilesystem"):
            yield f"{one['name']} may write to its own image"
        if one["name"] == "models":  # fetches them
            continue
        for mount in one.get("volumeMounts", ()):
            if mount["name"] in _READ_ONLY and not mount.get("readOnly"):
                yield f"{one['name']} may write to {mount['name']}"


def everything_has_limits(objects: list[Object]) -> Iterator[str]:
    """Memory for every container, and what it asks for; a size for every volume in the node."""
    for _, one in _each(objects):
        resources = one.get("resources", {})
        if "memory" not in resources.get("limits", {}):
            yield f"{one['name']} has no limit of memory"
        yield from (
            f"{one['name']} requests no {what}"
            for what in ("cpu", "memory")
            if what not in resources.get("requests", {})
        )
    for spec in pods(objects):
        for volume in spec.get("volumes", ()):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"volume {volume['name']} may fill the node"


def our_containers_are_probed(objects: list[Object]) -> Iterator[str]:
    """Liveness of both; start and readiness of the gateway, and of nothing else of ours."""
    for spec in pods(objects):
        for one in lasting(spec):
            if one["name"] not in OURS:
                continue
            wanted = {"livenessProbe"}
            if one["name"] == "gateway":
                wanted |= {"startupProbe", "readinessProbe"}
            for probe in sorted(wanted - set(one)):
                yield f"{one['name']} has no {probe}"
            if one["name"] == "monitor" and "readinessProbe" in one:
                yield "requests would wait for the monitor"
            for probe in ("startupProbe", "livenessProbe"):
                # Of a model that loads, or a drain, kubelet must not make a restart.
                if one.get(probe, {}).get("grpc", {}).get("service", "live") != "live":
                    yield f"{one['name']}: {probe} asks more than whether the process lives"


def no_secret_is_written_down(objects: list[Object]) -> Iterator[str]:
    """Neither in a variable nor in a ConfigMap: by reference only."""
    for _, one in _each(objects):
        for variable in one.get("env", ()):
            value = str(variable.get("value", ""))
            if value and (_SECRET_NAME.search(variable["name"]) or _CREDENTIALS.search(value)):
                yield f"{one['name']}: the variable {variable['name']} holds a secret"
    for item in objects:
        if item["kind"] == "Secret":
            yield f"a Secret is made: {item['metadata']['name']}"
        if item["kind"] != "ConfigMap":
            continue
        for key, text in item.get("data", {}).items():
            if _CREDENTIALS.search(text):
                yield f"{item['metadata']['name']}: {key} holds credentials"
            if key.endswith((".yaml", ".yml")):
                yield from _literals(yaml.safe_load(text), item["metadata"]["name"])


def _literals(node: Any, path: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            secret = isinstance(value, str) and _SECRET_NAME.search(str(key))
            if secret and not value.startswith("${") and not str(key).endswith("_file"):
                yield f"{path}.{key} is written down"
            yield from _literals(value, f"{path}.{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from _literals(value, f"{path}[{number}]")


def a_token_is_where_a_role_is(objects: list[Object]) -> Iterator[str]:
    """No container has the account's token but the monitor, and that one only with a Role."""
    has_role = any(item["kind"] == "RoleBinding" for item in objects)
    for item in objects:
        if (
            item["kind"] == "ServiceAccount"
            and item.get("automountServiceAccountToken") is not False
        ):
            yield "the account's token is mounted everywhere"
    for spec in pods(objects):
        if spec.get("automountServiceAccountToken") is not False:
            yield "the pod mounts the account's token"
        tokens = {
            volume["name"]
            for volume in spec.get("volumes", ())
            for source in volume.get("projected", {}).get("sources", ())
            if "serviceAccountToken" in source and "audience" not in source["serviceAccountToken"]
        }
        holders = [
            one["name"]
            for one in containers(spec)
            if any(mount["name"] in tokens for mount in one.get("volumeMounts", ()))
        ]
        if has_role and holders != ["monitor"]:
            yield f"the token is for the monitor, and {holders or 'nobody'} has it"
        if tokens and not has_role:
            yield f"a token for {holders}, and nothing that it may do"


def rights_are_narrow(objects: list[Object]) -> Iterator[str]:
    """Roles of a namespace, by name of the object; a list is the only exception there is."""
    for item in objects:
        if item["kind"] in {"ClusterRole", "ClusterRoleBinding"}:
            yield f"{item['kind']}: the whole cluster"
        for rule in item.get("rules", ()) if item["kind"] == "Role" else ():
            words = [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if "*" in words:
                yield f"a rule allows everything: {rule}"
            if set(rule["verbs"]) - {"get", "list", "patch"}:
                yield f"no action does this: {rule['verbs']}"
            if not rule.get("resourceNames") and rule["verbs"] != ["list"]:
                yield f"whatever its name: {rule['verbs']} {rule['resources']}"


def inner_ports_are_in_no_service(objects: list[Object]) -> Iterator[str]:
    """And a Service finds the others by number, as an init container's need it before 1.32."""
    for item in objects:
        if item["kind"] != "Service":
            continue
        for port in item["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            if not isinstance(target, int):
                yield f"{port['name']} is found by name: {target}"
            elif target in INNER_PORTS:
                yield f"port {target} is offered to others"


def mounts_have_their_volumes(objects: list[Object]) -> Iterator[str]:
    """Each is mounted by somebody, once at a place."""
    for spec in pods(objects):
        there = {volume["name"] for volume in spec.get("volumes", ())}
        used = set()
        for one in containers(spec):
            paths = [mount["mountPath"] for mount in one.get("volumeMounts", ())]
            if len(paths) != len(set(paths)):
                yield f"{one['name']} mounts two volumes at one place"
            used |= {mount["name"] for mount in one.get("volumeMounts", ())}
        yield from (f"no volume is called {name}" for name in sorted(used - there))
        yield from (f"nobody mounts {name}" for name in sorted(there - used))


def the_gateway_is_the_only_one_with_a_way_in(objects: list[Object]) -> Iterator[str]:
    """Where there is a NetworkPolicy, from anywhere only the serving ports can be reached."""
    for item in objects:
        if item["kind"] != "NetworkPolicy":
            continue
        for rule in item["spec"].get("ingress", ()):
            ports = {port.get("port") for port in rule.get("ports", ())}
            if not ports:
                yield "a rule lets everything in"
            if not rule.get("from") and ports - {9000, 8080}:
                yield f"anybody reaches {sorted(ports - {9000, 8080}, key=str)}"
            if any(not isinstance(port, int) for port in ports):
                yield f"a port is found by name: {sorted(ports, key=str)}"


POLICIES: tuple[Policy, ...] = (
    host_is_left_alone, volumes_are_of_allowed_kinds, nothing_is_privileged, nobody_is_root,
    images_are_pinned, our_files_are_read_only, everything_has_limits, our_containers_are_probed,
    no_secret_is_written_down, a_token_is_where_a_role_is, rights_are_narrow,
    inner_ports_are_in_no_service, mounts_have_their_volumes,
    the_gateway_is_the_only_one_with_a_way_in,
)  # fmt: skip
