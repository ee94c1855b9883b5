"""The tables of docs/comparators.md, made from the comparators themselves.

``python -m tests.support.comparator_tables`` writes them anew; a test compares.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from validators.comparators import BUILTIN, comparator_class
from validators.limits import PRECISIONS

PAGE = Path(__file__).parents[2] / "docs" / "comparators.md"
_BLOCK = re.compile(r"(<!-- metrics: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render(page: str) -> str:
    """Return ``page`` with every table made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{_table(found[2])}{found[3]}", page)


def named(page: str) -> set[str]:
    """The kinds that ``page`` has a table for."""
    return {found[2] for found in _BLOCK.finditer(page)}


def _table(kind: str) -> str:
    comparator = comparator_class(kind)
    lines = ["| metric | unit | worse | default limit | what it is |", "|---|---|---|---|---|"]
    for metric in comparator.metrics:
        default = comparator.defaults.get(metric.name)
        sign = "≤" if metric.worse == "higher" else "≥"
        what = " ".join(metric.help.split()).replace("|", "\\|")
        limit = "" if default is None else _limit(sign, default)
        lines.append(f"| `{metric.name}` | {metric.unit} | {metric.worse} | {limit} | {what} |")
    options = ", ".join(f"`{name}: {_value(value)}`" for name, value in comparator.options.items())
    return "\n".join(lines) + f"\n\nOptions, with their defaults: {options or 'none'}.\n"


def _limit(sign: str, default: Any) -> str:
    if not isinstance(default, Mapping):
        return f"{sign} {default:g}"
    values = ", ".join(f"{default[precision]:g} ({precision})" for precision in PRECISIONS)
    return f"{sign} {values}"


def _value(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def kinds() -> set[str]:
    """Every kind there is."""
    return set(BUILTIN)


def main() -> None:
    """Write the page's tables anew."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
