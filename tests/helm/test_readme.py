"""The chart's README and NOTES.txt say what is so."""

from __future__ import annotations

import re

import yaml

from tests.helm.test_pod import hosted, values
from tests.support import chart_tables, chart_values, helm

PAGE = chart_tables.PAGE.read_text(encoding="utf-8")


def test_the_table_and_the_example_are_those_of_the_files():
    assert chart_tables.render(PAGE) == PAGE, "run: python -m tests.support.chart_tables"


def test_the_table_has_every_value():
    rows = set(re.findall(r"^\| `([\w.]+)` \| ", PAGE, re.MULTILINE))
    assert {value.path for value in chart_values.values()} <= rows
    assert [value.path for value in chart_values.values() if not value.comment] == []


def test_what_the_readme_shows_can_be_installed():
    blocks = [yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
              if "{{" not in text]  # fmt: skip
    shown = [tree for tree in blocks if "models" in tree.get("config", {})]
    assert len(shown) == 2
    for tree in shown:
        assert helm.containers(helm.objects(helm.render(tree)))["gateway"]


def test_every_named_template_of_the_readme_is_there():
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (helm.CHART / "templates").glob("*.tpl")
    )
    section = PAGE.split("## In a pod of another chart")[1].split("<!-- example -->")[0]
    named = {
        name if name.startswith("model-sidecar.") else f"model-sidecar{name}"
        for name in re.findall(r"`((?:model-sidecar)?\.[a-zA-Z]+)`", section)
    }
    assert len(named) > 10
    assert [name for name in sorted(named) if f'define "{name}"' not in sources] == []


def test_the_addresses_of_the_readme_are_the_charts():
    tree = values(monitor={"http": {"enabled": True}})
    config = yaml.safe_load(helm.config_text(helm.objects(helm.render(tree))))
    section = PAGE.split("## The configuration")[1].split("Secrets are never")[0]
    said = set(re.findall(r"`((?:0\.0\.0\.0|127\.0\.0\.1):\d+)`", section))
    rendered = set(re.findall(r"(?:0\.0\.0\.0|127\.0\.0\.1):\d+", yaml.safe_dump(config)))
    assert said == rendered - {"127.0.0.1:8001"}


# --- NOTES.txt ------------------------------------------------------------------------------------


def test_notes_say_what_to_do_next():
    said = helm.notes(values())
    assert "rollout status deploy/demo-model-sidecar" in said
    assert "port-forward svc/demo-model-sidecar 9000:9000" in said
    assert "sidecar infer 127.0.0.1:9000 digits" in said
    assert "-c monitor -- sidecar status" in said
    assert "as native sidecars beside model" in said
    assert "Nothing is compared" in said


def test_notes_warn_of_what_is_easily_overlooked():
    tree = hosted()
    variant = tree["config"]["models"][0]["variants"][0]
    tree["config"]["models"][0]["variants"].append(
        {**variant, "version": 0, "roles": ["previous"]}
    )  # fmt: skip
    said = helm.notes(tree)
    assert "Observe only: a worse version of digits is told of" in said
    assert "No persistence" in said
    assert "Alerts go to the monitor's log alone" in said
    assert "Nothing is compared" not in said
    tree["store"] = {"postgresql": {"existingSecret": "s"}}
    tree["config"]["models"][0]["rollback"] = {"action": {"kind": "switch"}}
    tree["config"]["alerts"] = {"channels": [{"kind": "alertmanager", "url": "http://am:9093"}]}
    assert "To know:" not in helm.notes(tree)


def test_notes_of_other_forms():
    assert "Nothing is watched" in helm.notes(values(monitor={"enabled": False}))
    said = helm.notes(values(configMap={"existing": "mine"}, config={}))
    assert "ConfigMap mine, which the chart does not read" in said
    assert "your own chart takes the" in helm.notes(values(deployment={"enabled": False}))
