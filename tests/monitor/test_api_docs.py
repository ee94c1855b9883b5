"""docs/monitor-api.md names every field that the monitor answers with, where it belongs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

import pytest

from sidecar.monitor import routing, telemetry_view, view
from sidecar.monitor.view_messages import MESSAGES

PAGE = (Path(__file__).parents[2] / "docs" / "monitor-api.md").read_text(encoding="utf-8")
#: The first cell of its row → what the row describes.
ROWS = {
    "the monitor": view.MonitorStatus,
    "`models[]`": view.ModelStatus,
    "`models[].pairs[]`": view.PairStatus,
    "`….outputs[]`": view.OutputStatus,
    "`….noise`": view.NoiseView,
    "`….certificate`": view.CertificateView,
    "`coverage`": view.Coverage,
    "`store`": view.StoreStatus,
    "`leader`": view.LeaderStatus,
    "`child`": view.ChildStatus,
    "`telemetry`": telemetry_view.TelemetryStatus,
    "`telemetry.signals[]`": telemetry_view.SignalStatus,
    "`routes[]`": routing.RouteView,
}


def reached(kind: type[Any]) -> Iterator[type[Any]]:
    """A message's kind, and those within it."""
    yield kind
    for hint in get_type_hints(kind).values():
        parts = (hint, *get_args(hint)) if not isinstance(hint, UnionType) else get_args(hint)
        for part in parts:
            if part in MESSAGES:
                yield from reached(part)


@pytest.mark.parametrize("cell", ROWS)
def test_a_row_names_every_field_and_no_other(cell):
    [row] = [line for line in PAGE.splitlines() if line.startswith(f"| {cell} |")]
    named = set(re.findall(r"`(\w+)`", row.removeprefix(f"| {cell} |")))
    assert named == {field.name for field in fields(ROWS[cell])}


def test_every_part_of_an_answer_has_a_row():
    answers = {*reached(view.MonitorStatus), *reached(routing.RouteView)}
    assert answers == set(ROWS.values())
