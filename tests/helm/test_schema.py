"""values.schema.json: made of the configuration's schema and values.yaml, strict, and readable."""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from typing import Any

import jsonschema
import pytest

from sidecar.config import json_schema
from tests.helm.test_pod import values
from tests.support import chart_schema, chart_values, helm


def test_the_file_is_that_of_the_configuration_and_of_the_values():
    text = chart_schema.SCHEMA.read_text(encoding="utf-8")
    assert text == chart_schema.render(), "run: python -m tests.support.chart_schema"


def test_every_key_has_a_comment():
    assert chart_values.uncommented() == []


def test_the_defaults_are_valid():
    schema = chart_schema.build()
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.Draft7Validator(schema).validate(chart_values.tree())


def groups(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every object with named keys."""
    if isinstance(node, list):
        return [found for item in node for found in groups(item, path)]
    if not isinstance(node, dict):
        return []
    own = [(path, node)] if "properties" in node and "allOf" not in node else []
    return own + [found for key, item in node.items() for found in groups(item, f"{path}/{key}")]


def test_an_unknown_key_is_a_mistake_everywhere():
    open_ones = [
        path
        for path, node in groups(chart_schema.build())
        if node.get("additionalProperties") is not False
        # A condition names one key of an object that another schema describes; a container's
        # variable is passed on to Kubernetes.
        and not path.endswith(("/if", "/env/items"))
    ]
    assert open_ones == []


def test_it_stays_small_enough_to_travel_with_every_release():
    # Helm keeps the chart in a Secret of 1 MiB, compressed.
    assert chart_schema.SCHEMA.stat().st_size < 150_000


TYPOS: dict[str, tuple[dict[str, Any], str]] = {
    "at the top": ({"imagee": {}}, "Additional property imagee is not allowed"),
    "in a group": ({"image": {"repo": "x"}}, "image: Additional property repo is not allowed"),
    "a type": ({"replicas": "two"}, "replicas: Invalid type. Expected: integer, given: string"),
    "a choice": ({"sidecar": {"form": "natif"}}, 'sidecar.form must be one of .*"native"'),
    "a probe's name": (
        {"gateway": {"probes": {"startupp": {}}}}, "gateway.probes: Additional property startupp",
    ),
    "a port": ({"service": {"grpc": {"port": 70000}}}, "less than or equal to 65535"),
    "a variable's name": (
        {"secrets": {"MY-NAME": {"name": "a", "key": "b"}}}, "Additional property MY-NAME",
    ),
    "a secret without a key": ({"secrets": {"A": {"name": "a"}}}, "secrets.A: key is required"),
    "in the configuration": (
        {"config": {"gatway": {}}}, "config: Additional property gatway is not allowed",
    ),
    "deep in it": (
        {"config": {"gateway": {"drain": {"delay": 3}}}},
        "config.gateway.drain: Additional property delay is not allowed",
    ),
    "in a group that may be null": (
        {"config": {"gateway": {"http": {"adress": ""}}}},
        "config.gateway.http: Additional property adress is not allowed",
    ),
    "a role": (
        {"config": {"models": [{"name": "a", "variants": [{"roles": ["servin"]}]}]}},
        'roles.0 must be one of the following: "serving"',
    ),
    "a kind": (
        {"config": {"models": [{"name": "a", "variants": [{"runtime": {"kind": "onx"}}]}]}},
        'runtime.kind must be one of the following: "onnxruntime"',
    ),
    "in a kind": (
        {"config": {"alerts": {"channels": [{"kind": "slack", "urll": ""}]}}},
        "config.alerts.channels.0: Additional property urll is not allowed",
    ),
    "a bound": (
        {"config": {"gateway": {"workers": 0}}}, "workers: Must be greater than or equal to 1",
    ),
}  # fmt: skip


@pytest.mark.parametrize("typo", TYPOS)
def test_a_typo_is_named_with_its_place(typo: str):
    changes, message = TYPOS[typo]
    with pytest.raises(helm.HelmError, match=message):
        helm.render(values(**changes))


def test_what_helm_adds_by_itself_is_taken():
    assert helm.render(values(**{"global": {"a": 1}, "enabled": True}))


def test_a_default_can_be_taken_away_by_null():
    probes = {"startup": None, "liveness": None}
    found = helm.objects(helm.render(values(gateway={"probes": probes}, securityContext=None)))
    gateway = helm.containers(found)["gateway"]
    assert not {"startupProbe", "livenessProbe", "securityContext"} & set(gateway)


# --- it says what the configuration's own schema says ---------------------------------------------


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key and index below a node."""
    items = node.items() if isinstance(node, dict) else enumerate(node)
    found = []
    for key, value in items:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def damaged(tree: Any, place: tuple[Any, ...], damage: str) -> Any:
    """A copy with one place damaged."""
    copied = copy.deepcopy(tree)
    node = copied
    for key in place[:-1]:
        node = node[key]
    key = place[-1]
    if damage == "misspelled" and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    elif damage == "gone":
        del node[key]
    else:
        node[key] = {"null": None, "other": {"other": []}, "low": -1}.get(damage)
    return copied


#: One of each form that the two schemas write otherwise: a choice by kind, something or null.
FORMS = {
    "models": [
        {
            "name": "digits",
            "default_version": 2,
            "variants": [
                {"name": "a", "version": 2, "roles": ["serving"],
                 "runtime": {"kind": "remote", "address": "a:1"}},
            ],
        }
    ],
    "gateway": {"http": {"max_body_bytes": 4096}, "default_timeout_s": 2},
    "monitor": {"store": {"sync_s": 2}},
    "alerts": {"channels": [{"kind": "slack", "url": "${URL}"}]},
}  # fmt: skip


def test_it_judges_as_the_configurations_own_schema_does():
    config = FORMS
    built = chart_schema.build()
    ours = jsonschema.Draft7Validator({**built["$defs"]["SidecarConfig"], "$defs": built["$defs"]})
    own_schema = json_schema()
    # What the chart gives by itself.
    del own_schema["required"]
    own_schema["$defs"]["StoreConfig"]["required"].remove("url")
    own = jsonschema.Draft202012Validator(own_schema)
    assert ours.is_valid(config)
    assert own.is_valid(config)
    judged: Counter[bool] = Counter()
    damages = itertools.cycle(("misspelled", "other", "gone", "low", "null"))
    for place, damage in zip(places(config), damages, strict=False):
        tree = damaged(config, place, damage)
        judged[own.is_valid(tree)] += 1
        assert ours.is_valid(tree) == own.is_valid(tree), (place, damage)
    assert min(judged.values()) > 3
