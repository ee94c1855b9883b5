"""What the demo shows: the table, a row of digits with their answers, a line of progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from sidecar.demo.figures import STAGES, VariantFigures
from sidecar.demo.load import NOT_ANSWERED
from sidecar.demo.train import PIXEL_MAX
from sidecar.runtimes.base import Array

TRANSPORTS = {"grpc": "gRPC", "http": "HTTP"}
#: Columns that one digit takes: its own eight and a gap.
DIGIT_COLUMNS = 12
DIGITS_MAX = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """One digit and what was said of it (``NOT_ANSWERED`` before it was).

    Attributes:
        image: float32 ``[8, 8]``, pixels from 0 to 16.
        answers: who (``"v1"``) → answer.
    """

    image: Array
    label: int
    answers: dict[str, int]


def variant_table(rows: Sequence[VariantFigures]) -> Table:
    """Return the table: a variant a row."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("\nvariant", no_wrap=True)
    table.add_column("\nreq/s", justify="right", no_wrap=True)
    for name in TRANSPORTS.values():
        table.add_column(f"{name} ms\np50/p99", justify="right", no_wrap=True)
    for stage in STAGES:
        table.add_column(f"{stage}\nµs", justify="right", no_wrap=True)
    table.add_column("\naccuracy", justify="right", no_wrap=True)
    for row in rows:
        cells = [row.variant, f"{row.rate_per_s:.0f}"]
        for transport in TRANSPORTS:
            latency = row.latency_ms.get(transport)
            cells.append("" if latency is None else f"{latency.p50:.1f}/{latency.p99:.1f}")
        for stage in STAGES:
            mean = row.stages_us.get(stage)
            cells.append("" if mean is None else f"{mean:,.0f}")
        cells.append("" if row.accuracy is None else f"{row.accuracy:.1%}")
        table.add_row(*cells, style="red" if row.failures else None)
    return table


def digit_row(console: Console, digits: Sequence[Shown]) -> Table | None:
    """Draw digits side by side, each over its label and answers.

    Returns ``None`` where the terminal cannot show block characters.
    """
    if console.options.ascii_only or not digits:
        return None
    colored = console.color_system is not None and not console.no_color
    fitting = digits[: max(1, console.width // DIGIT_COLUMNS)]
    grid = Table.grid(padding=(0, DIGIT_COLUMNS - 8))
    drawn: list[Text] = []
    for digit in fitting:
        grid.add_column(min_width=8)
        text = draw(digit.image, colored=colored)
        text.append(f"\nis {digit.label}", "bold")
        for who, answer in digit.answers.items():
            text.append("\n")
            text.append_text(_answer(who, answer, digit.label))
        drawn.append(text)
    grid.add_row(*drawn)
    return grid


def _answer(who: str, answer: int, label: int) -> Text:
    if answer == NOT_ANSWERED:
        return Text(f"{who} …", "dim")
    if answer == label:
        return Text(f"{who} {answer} ✓", "green")
    return Text(f"{who} {answer} ✗", "red")


def draw(image: Array, *, colored: bool) -> Text:
    """Draw an image ``[8, 8]`` (pixels 0 to 16) in 4 lines: two pixels a character.

    The upper half block takes its colour from the upper pixel and its background from the lower
    one; without colours, a pixel is there or it is not.
    """
    text = Text()
    for upper_row, lower_row in zip(image[0::2], image[1::2], strict=True):
        if text:
            text.append("\n")
        for upper, lower in zip(upper_row, lower_row, strict=True):
            if colored:
                text.append("▀", Style(color=_gray(upper), bgcolor=_gray(lower)))
            else:
                is_ink = (upper > PIXEL_MAX / 2, lower > PIXEL_MAX / 2)
                text.append({(0, 0): " ", (1, 0): "▀", (0, 1): "▄", (1, 1): "█"}[is_ink])
    return text


def _gray(pixel: float) -> str:
    level = round(float(np.clip(pixel / PIXEL_MAX, 0, 1)) * 255)
    return f"#{level:02x}{level:02x}{level:02x}"


def progress_line(rows: Sequence[VariantFigures], elapsed_s: float) -> str:
    """Return one line for where no table can be drawn again and again."""
    requests = sum(sum(row.requests.values()) for row in rows)
    failures = sum(row.failures for row in rows)
    answered = sum(row.answered for row in rows)
    right = sum(row.answered * (row.accuracy or 0) for row in rows)
    rate = requests / elapsed_s if elapsed_s > 0 else 0.0
    line = f"{elapsed_s:6.1f} s  {requests:8,} requests  {rate:7,.0f}/s  {failures} failed"
    return line + (f"  {right / answered:.1%} right" if answered else "")
