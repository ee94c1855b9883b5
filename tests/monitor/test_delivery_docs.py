"""docs/argo-rollouts.md and docs/flagger.md: their YAML is executed, at a real endpoint."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from sidecar.config import parse
from tests.monitor.verdicts import Shown, harm, pair, showing

DOCS = Path(__file__).parents[2] / "docs"


def documents(page: str) -> list[Any]:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def of_kind(page: str, kind: str) -> Any:
    (found,) = [one for one in documents(page) if one.get("kind") == kind]
    return found


@pytest.fixture
def shown() -> Iterator[Shown]:
    with showing() as made:
        yield made


ENOUGH = [harm(pairs=2000)]


# --- Argo Rollouts --------------------------------------------------------------------------------


def argo_metric() -> Any:
    (metric,) = of_kind("argo-rollouts.md", "AnalysisTemplate")["spec"]["metrics"]
    return metric


def holds(condition: str, result: Any) -> bool:
    """The part of the condition language that the page uses."""
    match = re.fullmatch(r'result == "(\w+)"', condition)
    assert match, f"this test does not know the condition {condition!r}"
    return bool(result == match[1])


def at(path: str, document: Any) -> Any:
    """The part of JSONPath that the page uses; a field that is not there is an error."""
    match = re.fullmatch(r"\{\$\.(\w+)\}", path)
    assert match, f"this test does not know the path {path!r}"
    return document[match[1]]


def measure(shown: Shown) -> str:
    """One measurement, as Argo's web provider makes it: an answer that is not 2xx is an error."""
    metric, web = argo_metric(), argo_metric()["provider"]["web"]
    rollout = of_kind("argo-rollouts.md", "Rollout")
    (step,) = [one["analysis"] for one in rollout["spec"]["strategy"]["canary"]["steps"]
               if "analysis" in one]  # fmt: skip
    arguments = {one["name"]: one["value"] for one in step["args"]}
    url = urlsplit(re.sub(r"\{\{args\.(\w+)\}\}", lambda m: arguments[m[1]], web["url"]))
    response = shown.get(f"{url.path}?{url.query}")
    if not response.is_success:
        return "Error"
    result = at(web["jsonPath"], response.json())
    if holds(metric["failureCondition"], result):
        return "Failed"
    return "Successful" if holds(metric["successCondition"], result) else "Inconclusive"


def run_ends(phases: list[str]) -> str:
    """How a run with these measurements ends, by the limits on the page."""
    metric = argo_metric()
    assert len(phases) == metric["count"]
    errors = 0
    for done in range(1, len(phases) + 1):
        if phases[:done].count("Failed") > metric["failureLimit"]:
            return "Failed"
        if phases[:done].count("Inconclusive") > metric["inconclusiveLimit"]:
            return "Inconclusive"
        errors = errors + 1 if phases[done - 1] == "Error" else 0
        if errors > metric["consecutiveErrorLimit"]:
            return "Error"
    return "Successful"


@pytest.mark.parametrize(
    ("pairs", "phase"),
    [
        ([], "Inconclusive"),
        ([pair("insufficient")], "Inconclusive"),
        ([pair("suspect")], "Inconclusive"),
        ([pair("ok", metrics=[harm(pairs=1999)])], "Inconclusive"),
        ([pair("ok", metrics=ENOUGH, stale=True)], "Inconclusive"),
        ([pair("ok", metrics=ENOUGH)], "Successful"),
        ([pair("regressed", metrics=ENOUGH)], "Failed"),
        # An older pair, well proved, says nothing of version 3.
        ([pair("ok", new="2/onnx", previous="1/onnx", metrics=ENOUGH)], "Inconclusive"),
    ],
)
def test_argos_measurement_of_each_state(shown, pairs, phase):
    shown.pairs = pairs
    assert measure(shown) == phase


def test_argos_measurement_of_a_model_that_is_not_there_is_an_error(shown):
    assert shown.get("/v1/rollback/letters").status_code == 404


def test_argos_run_needs_one_pass_and_no_failure():
    count = argo_metric()["count"]
    assert run_ends(["Inconclusive"] * count) == "Inconclusive"
    assert run_ends(["Inconclusive"] * (count - 1) + ["Successful"]) == "Successful"
    assert run_ends(["Successful"] * (count - 1) + ["Failed"]) == "Failed"
    assert run_ends(["Error"] * count) == "Error"


def test_argos_step_runs_the_template_of_the_page():
    template = of_kind("argo-rollouts.md", "AnalysisTemplate")
    canary = of_kind("argo-rollouts.md", "Rollout")["spec"]["strategy"]["canary"]
    (step,) = [one["analysis"] for one in canary["steps"] if "analysis" in one]
    assert step["templates"] == [{"templateName": template["metadata"]["name"]}]
    assert {one["name"] for one in step["args"]} == {
        one["name"] for one in template["spec"]["args"]
    }
    # The verdict is asked of the canary's pods.
    web = argo_metric()["provider"]["web"]
    assert urlsplit(web["url"]).hostname == f"{canary['canaryService']}.shop.svc"


def test_the_configuration_on_the_page_opens_the_port_that_is_asked():
    (tree,) = [one for one in documents("argo-rollouts.md") if "models" in one]
    config = parse(tree)
    assert config.monitor.http is not None
    port = config.monitor.http.rpartition(":")[2]
    web = argo_metric()["provider"]["web"]
    assert str(urlsplit(web["url"]).port) == port
    urls = [hook["url"] for hook in hooks().values()]
    assert {str(urlsplit(url).port) for url in urls} == {port}


# --- Flagger --------------------------------------------------------------------------------------


def hooks() -> dict[str, Any]:
    webhooks = of_kind("flagger.md", "Canary")["spec"]["analysis"]["webhooks"]
    return {hook["type"]: hook for hook in webhooks}


def call(shown: Shown, kind: str) -> bool:
    """As Flagger calls a webhook of the page; whether it hears yes."""
    hook = hooks()[kind]
    assert all(isinstance(value, str) for value in hook["metadata"].values()), "it takes texts"
    body = {
        "name": "digits", "namespace": "shop", "phase": "Progressing", "checksum": "85d557f47b",
        "metadata": hook["metadata"],
    }  # fmt: skip
    response = shown.client.post(urlsplit(hook["url"]).path, json=body)
    assert response.status_code in {200, 409}, response.text
    return response.is_success


@pytest.mark.parametrize(
    ("pairs", "rolls_back", "goes_on", "promotes"),
    [
        ([], False, True, False),
        ([pair("insufficient")], False, True, False),
        ([pair("suspect")], False, True, False),
        ([pair("ok", metrics=[harm(pairs=1999)])], False, True, False),
        ([pair("ok", metrics=ENOUGH)], False, True, True),
        ([pair("regressed", metrics=ENOUGH)], True, False, False),
        ([pair("regressed", new="2/onnx", previous="1/onnx")], False, True, False),
    ],
)
def test_flagger_hears_what_it_should(shown, pairs, rolls_back, goes_on, promotes):
    shown.pairs = pairs
    assert call(shown, "rollback") == rolls_back
    assert call(shown, "confirm-traffic-increase") == goes_on
    assert call(shown, "confirm-promotion") == promotes


def test_each_webhook_asks_the_hook_of_its_type():
    assert set(hooks()) == {"rollback", "confirm-traffic-increase", "confirm-promotion"}
    for kind, hook in hooks().items():
        assert urlsplit(hook["url"]).path == f"/v1/flagger/{kind}"
