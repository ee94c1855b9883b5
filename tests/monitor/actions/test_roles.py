"""docs/actions.md shows the Roles that are needed: no less than is called, and no more."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sidecar.monitor.actions import roles
from sidecar.monitor.actions.base import Outcome
from tests.monitor.actions import test_argo, test_kserve
from tests.monitor.actions.clusters import NAME, action, config, deploy, request, template
from tests.support.kubernetes_api import KubernetesApi, allows
from tests.support.kubernetes_controllers import kserve_controller, rollout_controller

PAGE = Path(__file__).parents[3] / "docs" / "actions.md"


def shown(kind: str) -> Any:
    """The Role on the page."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    documents = [yaml.safe_load(block) for block in blocks]
    (found,) = [
        one
        for one in documents
        if one.get("kind") == "Role" and one["metadata"]["name"] == f"model-sidecar-{kind}"
    ]
    return found


def put_deployment(api: KubernetesApi) -> None:
    deploy(api, template("digits:2"), template("digits:3"))


def put_rollout(api: KubernetesApi) -> None:
    api.controllers.append(rollout_controller)
    test_argo.put(api)


def put_service(api: KubernetesApi) -> None:
    api.controllers.append(kserve_controller)
    test_kserve.put(api)


KINDS: list[tuple[str, Callable[[KubernetesApi], None]]] = [
    ("deployment", put_deployment), ("argo", put_rollout), ("kserve", put_service),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "put"), KINDS)
def test_the_role_on_the_page_is_what_is_needed(kind, put, tmp_path):
    role = shown(kind)
    assert role == roles.role(config(kind=kind, **NAME))
    with KubernetesApi() as api:
        put(api)
        api.rules = role["rules"]
        one = action(kind, api, tmp_path)
        for call in (one.check, one.perform, one.verify, one.undo):
            result = call(request())
            assert result.outcome is Outcome.DONE, result.text
        called = {(call.verb, call.group, call.resource, call.name) for call in api.calls}
    unused = [
        (rule["resources"], verb)
        for rule in role["rules"]
        for verb in rule["verbs"]
        if not any(allows({**rule, "verbs": [verb]}, *call) for call in called)
    ]
    assert unused == [], "a right that nothing uses"


def test_every_action_is_on_the_page():
    text = PAGE.read_text("utf-8")
    from sidecar.monitor.actions import BUILTIN

    assert [kind for kind in BUILTIN if f"| `{kind}` |" not in text] == []
