"""helm/model-sidecar/values.schema.json, made of the configuration's own schema and values.yaml.

``python -m tests.support.chart_schema`` writes it anew; a test compares. Types of the chart's own
keys follow from their defaults; ``SPECIAL`` says what a default cannot.
"""

from __future__ import annotations

import json
from typing import Any

from sidecar.config import json_schema
from tests.support.chart_values import CHART, Value, tree, values

SCHEMA = CHART / "values.schema.json"

_OPEN = {"type": "object"}
_MAPS = {"type": "array", "items": {"type": "object"}}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_QUANTITY = {
    "type": ["string", "integer"],
    "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi|E|Ei)?$",
}
_PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
_COUNT = {"type": "integer", "minimum": 0}
_NUMBER_OR_PERCENT = {"type": ["string", "integer"], "pattern": "^([0-9]+%?)?$", "minimum": 0}
_PULL = {"enum": ["", "Always", "IfNotPresent", "Never"]}
_ENV = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
    },
}
_NAMES = {"type": "array", "items": {"type": "string"}}

#: What the type of a default does not tell, by path.
SPECIAL: dict[str, dict[str, Any]] = {
    "commonLabels": _TEXTS,
    "commonAnnotations": _TEXTS,
    "podAnnotations": _TEXTS,
    "podLabels": _TEXTS,
    "nodeSelector": _TEXTS,
    "replicas": _COUNT,
    "image.variant": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"},
    "image.digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "image.pullPolicy": _PULL,
    "model.pullPolicy": _PULL,
    "models.image.pullPolicy": _PULL,
    "models.init.pullPolicy": _PULL,
    "sidecar.form": {"enum": ["auto", "native", "ordinary"]},
    "deployment.annotations": _TEXTS,
    "deployment.revisionHistoryLimit": _COUNT,
    "deployment.progressDeadlineSeconds": {"type": "integer", "minimum": 1},
    "config": {"$ref": "#/$defs/SidecarConfig"},
    "configMap.checksum": {"type": ["string", "integer"]},
    "configMap.key": {"type": "string", "minLength": 1},
    "model.ports": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["containerPort"],
            "properties": {
                "name": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]{0,13}[a-z0-9])?$"},
                "containerPort": _PORT,
                "protocol": {"enum": ["TCP", "UDP", "SCTP"]},
            },
        },
    },
    "model.stopSeconds": _COUNT,
    "model.command": _NAMES,
    "model.args": _NAMES,
    "models.init.command": _NAMES,
    "models.init.args": _NAMES,
    "models.source": {"enum": ["none", "pvc", "image", "init", "hostPath"]},
    "models.mountPath": {"type": "string", "pattern": "^/."},
    "models.hostPath.path": {"type": "string", "pattern": "^(/.*)?$"},
    "secrets": {
        "type": "object",
        "additionalProperties": False,
        "patternProperties": {
            "^[A-Za-z_][A-Za-z0-9_]*$": {
                "type": "object",
                "additionalProperties": False,
                "required": ["name", "key"],
                "properties": {
                    "name": {"type": "string", "minLength": 1},
                    "key": {"type": "string", "minLength": 1},
                },
            }
        },
    },
    "store.postgresql.key": {"type": "string", "minLength": 1},
    "store.persistence.accessModes": {
        "type": "array",
        "minItems": 1,
        "items": {"enum": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]},
    },
    "service.type": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    "service.annotations": _TEXTS,
    "service.labels": _TEXTS,
    "service.grpc.nodePort": {"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
    "service.http.nodePort": {"type": ["integer", "null"], "minimum": 1, "maximum": 65535},
    "serviceAccount.annotations": _TEXTS,
    "autoscaling.minReplicas": {"type": "integer", "minimum": 1},
    "autoscaling.maxReplicas": {"type": "integer", "minimum": 1},
    "autoscaling.cpu.averageUtilization": {"type": "integer", "minimum": 1},
    "podDisruptionBudget.maxUnavailable": _NUMBER_OR_PERCENT,
    "podDisruptionBudget.minAvailable": _NUMBER_OR_PERCENT,
    "topologySpread.whenUnsatisfiable": {"enum": ["ScheduleAnyway", "DoNotSchedule"]},
    "topologySpread.maxSkew": {"type": "integer", "minimum": 1},
    "topologySpread.topologyKeys": _NAMES,
    "gpu.count": _COUNT,
    "gpu.container": {"enum": ["", "model", "gateway", "monitor"]},
    "terminationGracePeriodSeconds": {"type": ["integer", "null"], "minimum": 1},
    **{
        f"networkPolicy.egress.{name}.ports": {"type": "array", "items": _PORT}
        for name in ("postgresql", "telemetry", "alerts", "apiServer", "upstreams", "models")
    },
    **{
        f"metrics.{name}.{key}": _TEXTS
        for name in ("podMonitor", "serviceMonitor", "rules", "dashboards")
        for key in ("labels", "annotations")
    },
    "metrics.rules.scope": {"enum": ["release", "all"]},
    "metrics.rules.alertLabels": _TEXTS,
    "metrics.rules.disabled": _NAMES,
    "rbac.actions": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["kind", "namespace", "name"],
            "properties": {
                "kind": {"enum": ["deployment", "argo", "kserve"]},
                "namespace": {"type": "string", "minLength": 1},
                "name": {"type": "string", "minLength": 1},
            },
        },
    },
    "gpu.monitorCount": _COUNT,
    "autoscaling.queue.averageValue": _QUANTITY,
    "podDisruptionBudget.unhealthyPodEvictionPolicy": {"enum": ["AlwaysAllow", "IfHealthyBudget"]},
}
#: Passed on as Kubernetes takes it, wherever it stands.
_AS_KUBERNETES = {
    "resources", "securityContext", "podSecurityContext", "startup", "liveness", "readiness",
    "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "affinity", "strategy",
    "behavior", "spec",
}  # fmt: skip


def build() -> dict[str, Any]:
    """The whole schema."""
    by_path = {value.path: value for value in values()}
    unknown = set(SPECIAL) - set(by_path)
    if unknown:
        message = f"values.yaml has no {', '.join(sorted(unknown))}"
        raise KeyError(message)
    own = _group("", tree(), by_path)
    # Helm gives `global` to every chart, and `enabled` is what a chart around this one asks.
    own["properties"]["global"] = {"type": "object"}
    own["properties"]["enabled"] = {"type": "boolean"}
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Values of the chart model-sidecar",
        **own,
        "$defs": _config_definitions(),
    }


def render() -> str:
    """The schema as the file holds it."""
    return json.dumps(build(), indent=1, ensure_ascii=False) + "\n"


# --- the chart's own keys ----------------------------------------------------------------------


def _group(prefix: str, node: dict[str, Any], by_path: dict[str, Value]) -> dict[str, Any]:
    properties = {}
    for key, default in node.items():
        path = f"{prefix}{key}"
        properties[key] = _described(_typed(path, key, default, by_path), by_path.get(path))
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _typed(path: str, key: str, default: Any, by_path: dict[str, Value]) -> dict[str, Any]:
    if path in SPECIAL:
        return dict(SPECIAL[path])
    if key in _AS_KUBERNETES:
        return dict(_OPEN)
    if key == "port":
        return dict(_PORT)
    if key == "env":
        return dict(_ENV)
    if key in {"size", "sizeLimit", "runSizeLimit"}:
        return dict(_QUANTITY)
    if isinstance(default, dict) and default:
        return _group(f"{path}.", default, by_path)
    if isinstance(default, dict):
        return dict(_OPEN)
    if isinstance(default, list):
        return dict(_MAPS)
    kinds: dict[type, str] = {str: "string", bool: "boolean", int: "integer", float: "number"}
    if type(default) not in kinds:
        message = f"{path}: a default of {default!r} tells no type; write one into SPECIAL"
        raise TypeError(message)
    return {"type": kinds[type(default)]}


def _described(schema: dict[str, Any], value: Value | None) -> dict[str, Any]:
    return schema if value is None else {"description": value.comment, **schema}


# --- the sidecar's own configuration -------------------------------------------------------------


def _config_definitions() -> dict[str, Any]:
    schema = json_schema()
    definitions = {name: _plain(node) for name, node in schema.pop("$defs").items()}
    del schema["$schema"]
    root = _plain(schema)
    # With a ConfigMap that exists there is no `config`; otherwise a template asks for models, and
    # says what to do. The store's url comes of `store.postgresql`.
    del root["required"]
    definitions["StoreConfig"]["required"].remove("url")
    return dict(sorted({**definitions, "SidecarConfig": root}.items()))


#: What says nothing about validity, or what only the configuration's own reader knows.
_DROPPED = {"title", "default", "discriminator", "writeOnly", "format"}


def _plain(node: Any) -> Any:
    """A node of pydantic's schema as draft 7, in the forms of which Helm's messages can be read."""
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, dict):
        return node
    if "discriminator" in node:
        return _by_kind(node)
    plain = {}
    for key, value in node.items():
        if key in {"properties", "patternProperties"}:
            plain[key] = {name: _plain(item) for name, item in value.items()}
        elif key not in _DROPPED:
            plain[key] = _plain(value)
    return _nullable(plain)


def _by_kind(node: dict[str, Any]) -> dict[str, Any]:
    """`oneOf` by `kind`, as conditions: else a typo in one kind is "must validate one and only one
    schema"."""
    mapping: dict[str, str] = node["discriminator"]["mapping"]
    described = {"description": node["description"]} if "description" in node else {}
    return {
        **described,
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": sorted(mapping)}},
        "allOf": [
            {
                "if": {"required": ["kind"], "properties": {"kind": {"const": kind}}},
                "then": {"$ref": reference},
            }
            for kind, reference in sorted(mapping.items())
        ],
    }


def _nullable(node: dict[str, Any]) -> dict[str, Any]:
    """`anyOf: [X, null]` as one type or null, where X has a simple one."""
    options = node.get("anyOf", [])
    if len(options) != 2 or options[1] != {"type": "null"}:
        return node
    (option, _) = options
    rest = {key: value for key, value in node.items() if key != "anyOf"}
    if "enum" in option:
        return {**rest, "enum": [*option["enum"], None]}
    if isinstance(option.get("type"), str):
        return {**rest, **option, "type": [option["type"], "null"]}
    return node


def main() -> None:
    """Write the file anew."""
    SCHEMA.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
