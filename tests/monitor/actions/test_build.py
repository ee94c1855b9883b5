"""Every action, made of its configuration: the contract, and what keeps one from being made."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any, get_args

import pytest

from sidecar.config_rollback import ActionConfig
from sidecar.errors import ConfigError, MissingExtraError
from sidecar.monitor.actions import BUILTIN, build
from sidecar.monitor.actions.base import Outcome, Result
from tests.monitor.actions.clusters import NAME, config, request
from tests.support.kubernetes_api import KubernetesApi
from tests.support.otlp_receiver import refusing
from tests.support.routes import RouteTable

#: Of a kind: what it needs besides.
NEEDS: dict[str, dict[str, Any]] = {
    "observe": {},
    "switch": {},
    "webhook": {"url": "http://127.0.0.1:1/"},
    "deployment": NAME,
    "argo": NAME,
    "kserve": NAME,
}
CLUSTER = ("deployment", "argo", "kserve")


def made(kind: str, folder: Any, port: int) -> Any:
    """One whose other end is not there."""
    values = dict(NEEDS[kind])
    if kind in CLUSTER:
        file = KubernetesApi().kubeconfig(folder / "kubeconfig", url=f"http://127.0.0.1:{port}")
        values["kubernetes"] = {"kubeconfig": file, "context": "here"}
    return build(config(kind=kind, **values), RouteTable(), "digits")


def test_every_kind_of_the_configuration_is_built_in():
    union = get_args(ActionConfig)[0]
    kinds = {get_args(one.model_fields["kind"].annotation)[0] for one in get_args(union)}
    assert kinds == set(BUILTIN) == set(NEEDS)


@pytest.mark.parametrize("kind", BUILTIN)
def test_an_action_says_everything_in_a_result(kind, tmp_path):
    with refusing() as port:
        action = made(kind, tmp_path, port)
        assert action.kind == kind
        for call in (action.check, action.perform, action.verify, action.undo):
            result = call(request())
            assert isinstance(result, Result)
            assert result.text
            assert all(isinstance(value, str) for value in result.details.values())


def test_observing_touches_nothing():
    table = RouteTable()
    action = build(config(kind="observe"), table, "digits")
    for call in (action.check, action.perform, action.verify, action.undo):
        assert call(request()).outcome is Outcome.NOTHING
    assert (table.changes, table.asked) == (0, [])


def test_an_unknown_kind_names_those_there_are():
    with pytest.raises(ConfigError) as caught:
        build(SimpleNamespace(kind="prayer"), RouteTable(), "digits")  # type: ignore[arg-type]
    assert "observe, switch, deployment, argo, kserve, webhook" in str(caught.value)


@pytest.mark.parametrize("kind", CLUSTER)
def test_outside_of_a_cluster_it_says_what_to_do(kind, monkeypatch):
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError) as caught:
        build(config(kind=kind, **NAME), RouteTable(), "digits")
    assert "models[digits].rollback.action.kubernetes" in str(caught.value)
    assert "give kubernetes.kubeconfig" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "kind: Config", "a: [1"])
def test_a_kubeconfig_that_is_none_is_a_mistake_at_start(tmp_path, text):
    file = tmp_path / "kubeconfig"
    file.write_text(text)
    made = config(kind="argo", **NAME, kubernetes={"kubeconfig": file})
    with pytest.raises(ConfigError):
        build(made, RouteTable(), "digits")


def test_a_context_that_is_not_there_is_a_mistake_at_start(tmp_path):
    file = KubernetesApi().kubeconfig(tmp_path / "kubeconfig", url="http://127.0.0.1:1")
    made = config(kind="argo", **NAME, kubernetes={"kubeconfig": file, "context": "nowhere"})
    with pytest.raises(ConfigError, match="nowhere"):
        build(made, RouteTable(), "digits")


def test_the_context_that_is_chosen_is_the_one_that_is_asked(tmp_path):
    with KubernetesApi() as api:
        file = api.kubeconfig(tmp_path / "kubeconfig")
        made = config(kind="argo", **NAME, kubernetes={"kubeconfig": file})
        # The current context is another server, at which nobody listens.
        assert build(made, RouteTable(), "digits").check(request()).outcome is Outcome.RETRY
        assert api.calls == []


def test_a_missing_library_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    with pytest.raises(MissingExtraError, match=r"model-sidecar\[kubernetes\]"):
        made("argo", tmp_path, 1)


def test_a_configuration_pays_only_for_what_it_names():
    code = (
        "import sys\n"
        "from sidecar.monitor.actions import build\n"
        "from types import SimpleNamespace as N\n"
        "for kind in ('observe', 'switch', 'webhook'):\n"
        "    build(N(kind=kind, timeout_s=1), None, 'm')\n"
        "print(*{'kubernetes', 'httpx', 'urllib3', 'starlette'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
