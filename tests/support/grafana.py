"""What a Grafana dashboard is made of, as plain JSON (schema of Grafana 10 and newer).

Panels are laid out from left to right in rows of 24 columns; ids follow from their order, so that
the same description always gives the same file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCHEMA = 39  # Grafana 10.4; newer ones migrate it when it is loaded
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24
GREEN, YELLOW, RED, GREY = "green", "yellow", "red", "#808080"

Json = dict[str, Any]


@dataclass(frozen=True)
class Query:
    """One query of a panel.

    Attributes:
        legend: with ``{{label}}``; empty where there is nothing to tell apart.
        instant: only the value of now.
        heatmap: buckets by ``le``.
        exemplars: draw the traces that are remembered beside it.
    """

    expr: str
    legend: str = ""
    instant: bool = False
    heatmap: bool = False
    exemplars: bool = False

    def json(self, number: int, *, table: bool = False) -> Json:
        kind = "heatmap" if self.heatmap else "table" if table else "time_series"
        target: Json = {
            "datasource": DATASOURCE,
            "editorMode": "code",
            "expr": self.expr,
            "format": kind,
            "legendFormat": "{{le}}" if self.heatmap else self.legend or "__auto",
            "range": not self.instant,
            "instant": self.instant,
            "refId": chr(ord("A") + number),
        }
        if self.exemplars:
            target["exemplar"] = True
        return target


@dataclass(frozen=True)
class Panel:
    """A panel before it has a place.

    Attributes:
        unit: of Grafana (``s``, ``reqps``, ``percentunit``, …).
        steps: colour from which value on; the first one's value is ``None``.
        overrides: of single fields.
    """

    kind: str
    title: str
    description: str
    queries: Sequence[Query]
    unit: str
    width: int = 8
    height: int = 8
    steps: Sequence[tuple[str, float | None]] = ((GREEN, None),)
    options: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    least: float | None = None
    most: float | None = None
    decimals: int | None = None
    mappings: Sequence[Json] = ()
    overrides: Sequence[Json] = ()
    transformations: Sequence[Json] = ()

    def json(self, number: int, x: int, y: int) -> Json:
        defaults: Json = {
            "unit": self.unit,
            "color": {"mode": "thresholds" if len(self.steps) > 1 else "palette-classic"},
            "thresholds": {
                "mode": "absolute",
                "steps": [{"color": color, "value": value} for color, value in self.steps],
            },
            "custom": self.custom,
            "mappings": list(self.mappings),
        }
        for key, value in (("min", self.least), ("max", self.most), ("decimals", self.decimals)):
            if value is not None:
                defaults[key] = value
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [
                one.json(i, table=self.kind == "table") for i, one in enumerate(self.queries)
            ],
            "fieldConfig": {"defaults": defaults, "overrides": list(self.overrides)},
            "options": self.options,
            "transformations": list(self.transformations),
        }


# --- kinds of panels ------------------------------------------------------------------------------


def stat(title: str, description: str, expr: str, unit: str, **more: Any) -> Panel:
    """One number, coloured by its thresholds, with its course behind it."""
    legend = more.pop("legend", "")
    return Panel(
        "stat", title, description, [Query(expr, legend)], unit,
        width=more.pop("width", 4), height=more.pop("height", 4),
        options={
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value", "graphMode": "area", "textMode": more.pop("text", "auto"),
            "justifyMode": "auto", "orientation": "auto",
        },
        **more,
    )  # fmt: skip


def series(title: str, description: str, queries: Sequence[Query], unit: str, **more: Any) -> Panel:
    """Lines over time; ``stacked`` for what adds up, ``line`` for a threshold to be drawn."""
    stacked, line = more.pop("stacked", False), more.pop("line", None)
    custom = {
        "drawStyle": "line", "lineInterpolation": "linear", "lineWidth": 1,
        "fillOpacity": 30 if stacked else 0, "showPoints": "never", "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "dashed" if line is not None else "off"},
    }  # fmt: skip
    options = {
        "legend": {
            "displayMode": "table",
            "placement": "bottom",
            "showLegend": True,
            "calcs": more.pop("calcs", ["mean", "max", "lastNotNull"]),
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel(
        "timeseries", title, description, queries, unit,
        width=more.pop("width", 12), options=options, custom=custom,
        steps=((GREEN, None), (RED, line)) if line is not None else ((GREEN, None),),
        least=more.pop("least", 0), **more,
    )  # fmt: skip


def heatmap(title: str, description: str, query: Query, unit: str, **more: Any) -> Panel:
    """Buckets of a histogram over time."""
    return Panel(
        "heatmap", title, description, [query], unit, width=more.pop("width", 12),
        options={
            "calculate": False,
            "cellGap": 1,
            "color": {
                "mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5,
                "fill": "dark-orange", "scale": "exponential", "reverse": False,
            },
            "yAxis": {"unit": unit, "axisPlacement": "left", "reverse": False},
            "rowsFrame": {"layout": "auto"},
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9},
            "legend": {"show": True},
            "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": True},
        },
        custom={"scaleDistribution": {"type": "linear"}},
        **more,
    )  # fmt: skip


def timeline(title: str, description: str, query: Query, **more: Any) -> Panel:
    """States over time: 0 and 1 by their words."""
    words = more.pop("words")
    return Panel(
        "state-timeline", title, description, [query], "none", width=more.pop("width", 24),
        steps=((GREY, None),),
        mappings=[mapping(words)],
        options={
            "mergeValues": True, "showValue": "never", "alignValue": "left", "rowHeight": 0.85,
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "single", "sort": "none"},
        },
        custom={"lineWidth": 0, "fillOpacity": 80, "spanNulls": False},
        **more,
    )  # fmt: skip


def table(
    title: str, description: str, columns: Sequence[tuple[str, str, str]], hidden: Sequence[str],
    renamed: dict[str, str], **more: Any,
) -> Panel:  # fmt: skip
    """One row for each set of labels.

    Args:
        columns: of each query its expression, heading, and unit.
        hidden: labels that are not shown.
        renamed: label → heading, in the order in which they are shown.
    """
    letters = [chr(ord("A") + number) for number in range(len(columns))]
    names = {f"Value #{one}": head for one, (_, head, _) in zip(letters, columns, strict=True)}
    order = {name: number for number, name in enumerate([*renamed, *names])}
    overrides = [
        field_override(head, unit=unit) for _, head, unit in columns
    ] + list(more.pop("overrides", ()))  # fmt: skip
    return Panel(
        "table", title, description, [Query(expr, instant=True) for expr, _, _ in columns], "none",
        width=more.pop("width", 24),
        options={
            "showHeader": True, "cellHeight": "sm", "sortBy": more.pop("sort", []),
            "footer": {"show": False, "reducer": ["sum"], "fields": ""},
        },
        custom={"align": "auto", "cellOptions": {"type": "auto"}, "filterable": True},
        overrides=overrides,
        transformations=[
            {"id": "merge", "options": {}},
            {
                "id": "organize",
                "options": {
                    "excludeByName": {"Time": True, **dict.fromkeys(hidden, True)},
                    "indexByName": order,
                    "renameByName": {**renamed, **names},
                },
            },
        ],
        **more,
    )  # fmt: skip


def mapping(words: dict[int, tuple[str, str]]) -> Json:
    """Value → word and colour."""
    return {
        "type": "value",
        "options": {
            str(value): {"text": text, "color": color, "index": index}
            for index, (value, (text, color)) in enumerate(words.items())
        },
    }


def field_override(name: str, **properties: Any) -> Json:
    """Properties of the field that is called ``name``; dots as ``__``."""
    return {
        "matcher": {"id": "byName", "options": name},
        "properties": [
            {"id": key.replace("__", "."), "value": value} for key, value in properties.items()
        ],
    }


def named_override(pattern: str, **properties: Any) -> Json:
    """Properties of the fields whose name fits the pattern."""
    found = field_override(f"/{pattern}/", **properties)
    return {**found, "matcher": {"id": "byRegexp", "options": f"/{pattern}/"}}


# --- the dashboard --------------------------------------------------------------------------------


def variable(name: str, label: str, query: str, description: str) -> Json:
    """A variable that is filled from Prometheus; several values may be chosen, or all."""
    return {
        "type": "query",
        "name": name,
        "label": label,
        "description": description,
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "StandardVariableQuery", "qryType": 1},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
        "hide": 0,
    }


_SOURCE = {
    "type": "datasource",
    "name": "datasource",
    "label": "Data source",
    "description": "A Prometheus, or what speaks its language.",
    "query": "prometheus",
    "current": {},
    "options": [],
    "refresh": 1,
    "regex": "",
    "hide": 0,
}


def link(title: str, name: str, **chosen: str) -> Json:
    """A link from a value to the dashboard ``model-sidecar-NAME``, at the same time and place.

    Args:
        chosen: a variable of that dashboard → what it is to be; others are all.
    """
    kept = "${__url_time_range}&${datasource:queryparam}&${namespace:queryparam}"
    more = "".join(f"&var-{key}={value}" for key, value in chosen.items())
    return {"title": title, "url": f"/d/model-sidecar-{name}?{kept}{more}", "targetBlank": False}


def event(name: str, expr: str, text: str, color: str) -> Json:
    """A line in every panel for each time at which ``expr`` begins to give something."""
    return {
        "name": name, "datasource": DATASOURCE, "enable": True, "hide": False, "iconColor": color,
        "expr": expr, "step": "60s", "titleFormat": name, "textFormat": text, "tagKeys": "",
        "useValueForTime": False,
    }  # fmt: skip


def dashboard(
    uid: str,
    title: str,
    description: str,
    variables: Sequence[Json],
    rows: Sequence[tuple[str, Sequence[Panel]]],
    events: Sequence[Json] = (),
) -> Json:
    """All of it: rows with their panels, one below the other."""
    panels: list[Json] = []
    y = 0
    for heading, content in rows:
        panels.append({
            "id": len(panels) + 1, "type": "row", "title": heading, "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1}, "panels": [],
        })  # fmt: skip
        y += 1
        x = highest = 0
        for panel in content:
            if x + panel.width > COLUMNS:
                x, y, highest = 0, y + highest, 0
            panels.append(panel.json(len(panels) + 1, x, y))
            x, highest = x + panel.width, max(highest, panel.height)
        y += highest
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["model-sidecar"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": list(events)},
        "links": [
            {
                "type": "dashboards", "title": "Model sidecar", "tags": ["model-sidecar"],
                "asDropdown": True, "includeVars": True, "keepTime": True, "targetBlank": False,
            }
        ],
        "templating": {"list": [_SOURCE, *variables]},
        "panels": panels,
    }  # fmt: skip
