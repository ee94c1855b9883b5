"""What must stay from one version of the chart to the next: names of objects, and selectors.

``python -m tests.support.chart_names`` writes tests/helm/releases/VERSION.json for the version of
Chart.yaml; for one that has been released it is never written again. A selector that changes makes
`helm upgrade` fail (a Deployment's cannot), a name that changes leaves what had the old one behind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.support import helm
from tests.support.chart_values import CHART

RELEASES = Path(__file__).parents[1] / "helm" / "releases"

#: What cannot be changed, or what other objects are found by, of each kind.
_KEPT = {
    "Deployment": ("spec.selector",),
    "Service": ("spec.selector", "spec.clusterIP"),
    "PodDisruptionBudget": ("spec.selector",),
    "NetworkPolicy": ("spec.podSelector",),
    "HorizontalPodAutoscaler": ("spec.scaleTargetRef",),
    "PersistentVolumeClaim": ("spec.accessModes", "spec.storageClassName"),
    "PodMonitor": ("spec.selector",),
    "ServiceMonitor": ("spec.selector",),
    "RoleBinding": ("roleRef", "subjects"),
}
_SERVED = {
    "models": [
        {
            "name": "digits",
            "variants": [
                {"name": "server", "version": 2, "roles": ["serving"],
                 "runtime": {"kind": "remote", "address": "127.0.0.1:8001"}},
                {"name": "server", "version": 1, "roles": ["previous"],
                 "runtime": {"kind": "remote", "address": "old.models.svc:9000"}},
            ],
            "rollback": {"action": {"kind": "deployment", "namespace": "models", "name": "digits"}},
        }
    ]
}  # fmt: skip
_EVERYTHING = {
    "config": _SERVED,
    "model": {"image": "example/server:1"},
    "store": {"postgresql": {"existingSecret": "store"}},
    "autoscaling": {"enabled": True},
    "networkPolicy": {"enabled": True},
    "metrics": {
        "podMonitor": {"enabled": True}, "rules": {"enabled": True},
        "dashboards": {"enabled": True},
    },
}  # fmt: skip
_CLAIM = {
    "config": _SERVED,
    "model": {"image": "example/server:1"},
    "store": {"persistence": {"enabled": True}},
    "metrics": {"serviceMonitor": {"enabled": True}},
}

#: Release and values: what users have installed.
INSTALLED: dict[str, tuple[str, dict[str, Any]]] = {
    "everything": ("demo", _EVERYTHING),
    "claim": ("demo", _CLAIM),
    "named": ("prod", {**_EVERYTHING, "fullnameOverride": "digits", "nameOverride": "sidecar"}),
    "called like the chart": ("model-sidecar", _EVERYTHING),
    "long": ("long-" * 10 + "end", _CLAIM),  # as long as Helm allows
}


def version() -> str:
    """Of the chart."""
    tree = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    return str(tree["version"])


def kept(found: list[helm.Object]) -> dict[str, dict[str, Any]]:
    """Each object's name with what must stay of it."""
    return {
        f"{item['kind']} {item['metadata']['namespace']}/{item['metadata']['name']}": {
            path: value
            for path in _KEPT.get(item["kind"], ())
            if (value := _at(item, path)) is not None
        }
        for item in found
    }


def rendered(chart: Path = CHART) -> dict[str, Any]:
    """The same of every installation, with its values."""
    return {
        name: {
            "release": release,
            "values": values,
            "kept": kept(helm.objects(helm.render(values, release=release, chart=chart))),
        }
        for name, (release, values) in INSTALLED.items()
    }


def lost(before: dict[str, Any], chart: Path = CHART) -> list[str]:
    """What a file of an earlier version has that the chart would now render otherwise."""
    found = []
    for name, installed in before.items():
        text = helm.render(installed["values"], release=installed["release"], chart=chart)
        now = kept(helm.objects(text))
        for item, fields in installed["kept"].items():
            if item not in now:
                found.append(f"{name}: {item} is gone")
                continue
            found += [
                f"{name}: {item}: {path} was {value}, is {now[item].get(path)}"
                for path, value in fields.items()
                if now[item].get(path) != value
            ]
    return found


def _at(node: Any, path: str) -> Any:
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def main() -> None:
    """Write the file of this version."""
    path = RELEASES / f"{version()}.json"
    path.write_text(json.dumps(rendered(), indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
