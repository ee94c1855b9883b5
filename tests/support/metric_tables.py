"""The tables of docs/metrics.md, made from ``exporters/instruments.py``.

``python -m tests.support.metric_tables`` writes them anew; a test compares.
"""

from __future__ import annotations

import re
from pathlib import Path

from exporters.instruments import ATTRIBUTES, INSTRUMENTS, Instrument

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_BLOCK = re.compile(r"(<!-- (metrics|attributes|buckets) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """Return ``page`` with every table made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{_TABLES[found[2]]()}{found[3]}", page)


def _metrics() -> str:
    lines = ["| metric | kind | unit | what it is | attributes |", "|---|---|---|---|---|"]
    for one in INSTRUMENTS:
        name = f"`{one.name}`<br>`{_series(one)}`"
        attributes = ", ".join(f"`{key}`" for key in one.attributes)
        lines.append(f"| {name} | {one.kind} | {one.unit} | {one.description} | {attributes} |")
    return "\n".join(lines) + "\n"


def _series(one: Instrument) -> str:
    return one.prometheus_name + ("_bucket" if one.buckets else "")


def _attributes() -> str:
    lines = ["| attribute | what it says |", "|---|---|"]
    lines += [f"| `{name}` | {what} |" for name, what in ATTRIBUTES.items()]
    return "\n".join(lines) + "\n"


def _buckets() -> str:
    lines = ["| histogram | upper bounds |", "|---|---|"]
    for one in INSTRUMENTS:
        if one.buckets:
            bounds = " · ".join(f"{bound:.15g}" for bound in one.buckets)
            lines.append(f"| `{one.name}` | {bounds} {one.unit} |")
    return "\n".join(lines) + "\n"


_TABLES = {"metrics": _metrics, "attributes": _attributes, "buckets": _buckets}


def main() -> None:
    """Write the page's tables anew."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
