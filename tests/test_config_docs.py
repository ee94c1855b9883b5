"""docs/configuration.md says what the configuration's schema says."""

from __future__ import annotations

import re

import yaml

from sidecar.config import parse
from tests.support.config_tables import PAGE, named, nodes, render


def test_the_tables_are_those_of_the_schema():
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "run: python -m tests.support.config_tables"


def test_every_group_has_a_section_and_every_key_a_purpose():
    page = PAGE.read_text(encoding="utf-8")
    assert named(page) == set(nodes())
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == sum(len(node["properties"]) for node in nodes().values())
    without_purpose = [row for row in rows if not row.removesuffix("|").split("|")[-1].strip()]
    assert without_purpose == []


def test_the_example_on_the_page_is_valid():
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert parse(yaml.safe_load(example)).models[0].name == "digits"
