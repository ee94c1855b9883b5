"""The table of values in the chart's README, made of values.yaml and its comments, and the example
that another chart follows, made of tests/helm/charts/customer.

``python -m tests.support.chart_tables`` writes both anew; a test compares.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.support.chart_values import CHART, Value, values

PAGE = CHART / "README.md"
CUSTOMER = Path(__file__).parents[1] / "helm" / "charts" / "customer"
_BLOCK = re.compile(r"(<!-- (values|example) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """Return ``page`` with the table and the example made anew."""
    made = {"values": _table, "example": _example}
    return _BLOCK.sub(lambda found: f"{found[1]}{made[found[2]]()}{found[3]}", page)


def _table() -> str:
    lines = ["| key | default | what for |", "|---|---|---|"]
    lines += [f"| `{v.path}` | {_default(v)} | {_escaped(v.comment)} |" for v in values()]
    return "\n".join(lines) + "\n"


def _default(value: Value) -> str:
    return "" if value.is_group else f"`{_escaped(_short(value.default))}`"


def _short(default: Any) -> str:
    return json.dumps(default, ensure_ascii=False)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _example() -> str:
    shown = []
    for name in ("Chart.yaml", "values.yaml", "templates/deployment.yaml"):
        text = (CUSTOMER / name).read_text(encoding="utf-8").rstrip()
        shown.append(f"`{name}`:\n```yaml\n{text}\n```\n")
    # Where a user's chart finds it is the user's affair.
    return re.sub(r"file://\S+", "file://…/helm/model-sidecar", "\n".join(shown))


def main() -> None:
    """Write the page's table and example anew."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
