"""The picture of evidence as it grows: bars under the line at which it is decided."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from sidecar.monitor.view_rollback import HarmView, RollbackView

HEIGHT = 8
WIDTH = 64
#: The line of the threshold is in this row from the bottom, counted from 0.
_LINE_ROW = 5
_BARS = " ▁▂▃▄▅▆▇█"


def leading(view: RollbackView) -> HarmView | None:
    """The metric whose evidence is nearest to its threshold for acting, of those that may act."""
    able = [harm for harm in view.metrics if harm.may_act and harm.threshold_act > 0]
    return max(able, key=share, default=None)


def share(harm: HarmView) -> float:
    """Evidence over its threshold: 1 where it is decided; never under 0."""
    return max(0.0, harm.log_e_act / harm.threshold_act) if harm.threshold_act > 0 else 0.0


def chart(shares: Sequence[float], title: str) -> Group:
    """Draw one bar for each look, the latest at the right; the dashed line is the threshold.

    Args:
        shares: of the threshold, 0 and more; only the last ``WIDTH`` are shown.
    """
    shown = list(shares)[-WIDTH:]
    rows: list[Text] = [Text(title, "bold")]
    for row in reversed(range(HEIGHT)):
        line = Text("1.0 ┤" if row == _LINE_ROW else "    │", "dim")
        for value in shown:
            line.append(*_cell(value, row))
        if row == _LINE_ROW:
            line.append("╌" * (WIDTH - len(shown)), "red")
        rows.append(line)
    rows.append(Text("    └" + "─" * WIDTH, "dim"))
    return Group(*rows)


def _cell(value: float, row: int) -> tuple[str, str]:
    """One character of a bar: its eighths, and a colour by how near it is."""
    filled = value * _LINE_ROW - row  # in rows
    style = "red" if value >= 1 else "yellow" if value > 1 / 2 else "green"
    if filled <= 0:
        return ("╌", "red") if row == _LINE_ROW else (" ", style)
    return _BARS[min(8, max(1, round(filled * 8)))], style
