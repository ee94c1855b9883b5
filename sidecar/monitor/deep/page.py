"""Evidently's own page of a run, with our summary over it. For the child alone: it takes long."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.metrics import ValueDrift

from sidecar.monitor.deep.job import Job, Side
from sidecar.monitor.deep.stattests import Tested
from validators.drift.columns import ColumnType

#: Pictures on one page, the drifted columns first: each costs 0.1 to 0.2 s and 60 kB. The JSON has
#: all columns.
COLUMNS_MAX = 200
_BODY = "<body>"
_HEADS = ("column", "method", "value", "drifted when", "verdict")
_STYLE = (
    "font-family: Roboto, Helvetica, Arial, sans-serif; max-width: 1200px; margin: 24px auto 0; "
    "padding: 0 24px"
)


def make_page(job: Job, tested: Sequence[Tested], heading: Sequence[str]) -> str:
    """One HTML file that needs nothing else; of the columns that could be tested.

    Args:
        heading: a title, then sentences, shown over Evidently's.
    """
    shown = sorted(
        (one for one in tested if one.value is not None), key=lambda one: not one.drifted
    )[:COLUMNS_MAX]
    lines = list(heading)
    if len(shown) < len(tested):
        lines.append(
            f"{len(shown)} of {len(tested)} columns are shown; the JSON beside this page has all."
        )
    if not shown:
        empty = "<!DOCTYPE html>\n<html><head></head><body></body></html>"
        return _headed(empty, lines, shown)
    # Each column's type, method and threshold are given: what is left open Evidently guesses.
    definition = DataDefinition(
        numerical_columns=[_name(one) for one in shown if one.type is ColumnType.NUMERIC],
        categorical_columns=[_name(one) for one in shown if one.type is not ColumnType.NUMERIC],
    )
    report = Report(
        [
            ValueDrift(column=_name(one), method=one.method, threshold=one.threshold)
            for one in shown
        ],
        include_tests=True,
    )
    current, reference = (
        Dataset.from_pandas(_frame(job, side, shown), data_definition=definition)
        for side in (job.current, job.reference)
    )
    return _headed(report.run(current, reference).get_html_str(as_iframe=False), lines, shown)


def _name(one: Tested) -> str:
    """Evidently puts names into a script as they are: one must not end it."""
    return one.name.replace("<", "‹").replace(">", "›")


def _frame(job: Job, side: Side, shown: Sequence[Tested]) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for one in shown:
        values = job.column(side, one.name)
        if one.type is ColumnType.NUMERIC:
            columns[_name(one)] = np.where(np.isfinite(values), values, np.nan)
        else:
            labels = [text.replace("<", "‹").replace(">", "›") for text in job.labels[one.name]]
            columns[_name(one)] = np.array(labels, dtype=object)[values]
    return pd.DataFrame(columns)


def _headed(page: str, lines: Sequence[str], shown: Sequence[Tested]) -> str:
    """Ours under the page's first tag; without that tag the page is left as it is.

    Evidently's own words do not name the thresholds, and its tests round them to two digits.
    """
    title, *rest = [html.escape(line) for line in lines]
    text = "".join(f"<p>{line}</p>" for line in rest)
    cells = "".join(_row(one) for one in shown)
    heads = "".join(f"<th align=left>{name}</th>" for name in _HEADS)
    table = f"<details><summary>Values and thresholds</summary><table cellpadding=4><tr>{heads}"
    table += f"</tr>{cells}</table></details>"
    block = f'{_BODY}\n<title>{title}</title><div style="{_STYLE}"><h2>{title}</h2>{text}{table}'
    return page.replace(_BODY, f"{block}</div>", 1)


def _row(one: Tested) -> str:
    limit = "≤" if one.is_p_value else "≥"
    values = (
        one.name, one.display, f"{one.value:.4g}", f"{limit} {one.threshold:.4g}",
        "drifted" if one.drifted else "",
    )  # fmt: skip
    return f"<tr>{''.join(f'<td>{html.escape(value)}</td>' for value in values)}</tr>"
