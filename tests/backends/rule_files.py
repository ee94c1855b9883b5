"""The rules of helm/model-sidecar/rules, read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from tests.backends.processes import ROOT

FILES = sorted((ROOT / "helm" / "model-sidecar" / "rules").glob("*.yaml"))
#: promtool's own tests of them, one file for each.
TESTS = ROOT / "tests" / "backends" / "rules"


@dataclass(frozen=True)
class Rule:
    """One rule: what it records, or the alert it is."""

    expr: str
    record: str = ""
    alert: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    wait: str = ""


def exprs() -> Iterator[Rule]:
    """Every rule of every file."""
    for path in FILES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                renamed = {("wait" if key == "for" else key): one for key, one in rule.items()}
                yield Rule(**renamed)


def alerts() -> list[Rule]:
    """Those that are alerts."""
    return [rule for rule in exprs() if rule.alert]
