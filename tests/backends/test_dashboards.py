"""Dashboards show what is told, all of it, in queries that Prometheus answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from exporters import instruments as known
from exporters.instruments import INSTRUMENTS
from exporters.telemetry import Exporter
from tests.backends.everything import Everything, unknown_values
from tests.backends.processes import NO_PROMETHEUS, READY_WITHIN_S, Prometheus, until
from tests.backends.rule_files import FILES, exprs
from tests.exporters.telemetry.support import settings, telling
from tests.support import promql
from tests.support.dashboards import DASHBOARDS, FOLDER, text
from tests.support.grafana import COLUMNS

needs_prometheus = pytest.mark.skipif(bool(NO_PROMETHEUS), reason=NO_PROMETHEUS)

#: What no dashboard shows, and why.
NOT_SHOWN: dict[known.Instrument, str] = {}
#: Grafana's variables, as they would be filled.
FILLED = {
    "$__rate_interval": "15s",
    "$__range": "1m",
    "$model": ".*",
    "$version": ".*",
    "$variant": ".*",
    "$column": ".*",
    "$namespace": ".*",
    "$instance": ".*",
}
NAMES = sorted(DASHBOARDS)


def loaded(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def panels(name: str) -> list[dict[str, Any]]:
    return [one for one in loaded(name)["panels"] if one["type"] != "row"]


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    """Of every query where it is, and the target."""
    for name in NAMES:
        for panel in panels(name):
            for target in panel["targets"]:
                yield f"{name}: {panel['title']} {target['refId']}", target


def events() -> Iterator[tuple[str, str]]:
    """Of every event that is marked in panels where it is, and its query."""
    for name in NAMES:
        for one in loaded(name)["annotations"]["list"]:
            yield f"{name}: {one['name']}", one["expr"]


def links(found: Any) -> Iterator[str]:
    """Every address of a link, however deep."""
    if isinstance(found, dict):
        if isinstance(found.get("url"), str):
            yield found["url"]
        found = list(found.values())
    if isinstance(found, list):
        for one in found:
            yield from links(one)


def variables() -> Iterator[tuple[str, str]]:
    """Of every variable that is filled from Prometheus its selector and label."""
    for name in NAMES:
        for one in loaded(name)["templating"]["list"]:
            if one["type"] == "query":
                match = re.fullmatch(r"label_values\((.+), (\w+)\)", one["definition"])
                assert match, one["definition"]
                yield match[1], match[2]


def filled(query: str) -> str:
    for name, value in FILLED.items():
        query = query.replace(name, value)
    assert "$" not in query, query
    return query


# --- the files ------------------------------------------------------------------------------------


def test_the_files_are_what_is_described():
    assert {path.stem for path in FOLDER.iterdir()} == set(DASHBOARDS)
    for name in NAMES:
        found = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
        assert found == text(name), "run: python -m tests.support.dashboards"


@pytest.mark.parametrize("name", NAMES)
def test_a_dashboard_is_complete(name):
    one = loaded(name)
    assert one["uid"] == f"model-sidecar-{name}"
    assert len(one["uid"]) <= 40, "Grafana's limit"
    assert one["schemaVersion"] >= 38
    assert "id" not in one, "Grafana gives it"
    source, *others = one["templating"]["list"]
    assert (source["type"], source["name"]) == ("datasource", "datasource")
    used = json.dumps(one["panels"])
    for variable in others:
        assert f"${variable['name']}" in used, "nothing is chosen by it"
    assert set(re.findall(r"\$\{?(\w+)", used)) <= {
        "datasource", "__rate_interval", "__range", "__url_time_range", "__value", "__data",
        "__field", *(v["name"] for v in others),
    }  # fmt: skip
    marked = json.dumps(one["annotations"])
    assert set(re.findall(r"\$\{?(\w+)", marked)) <= {"datasource", *(v["name"] for v in others)}


@pytest.mark.parametrize("name", NAMES)
def test_a_fleet_can_be_told_apart(name):
    chosen = [one["name"] for one in loaded(name)["templating"]["list"]]
    assert chosen[1:3] == ["namespace", "instance"]
    for panel in panels(name):
        for target in panel["targets"]:
            # Of all instances: what Prometheus says of rules, which may be about several.
            wanted = 1 if "ALERTS{" in target["expr"] else 2
            for place in ('namespace=~"$namespace"', 'instance=~"$instance"')[:wanted]:
                assert place in target["expr"], panel["title"]


def test_links_lead_to_a_dashboard_and_choose_what_it_has():
    found = {url for name in NAMES for url in links(loaded(name)["panels"])}
    assert len(found) >= 5
    for url in found:
        match = re.match(r"/d/model-sidecar-(\w+)\?", url)
        assert match, url
        names = {one["name"] for one in loaded(match[1])["templating"]["list"]}
        assert set(re.findall(r"var-(\w+)=", url)) <= names, url
        assert set(re.findall(r"\$\{(\w+):queryparam\}", url)) <= names, url


@pytest.mark.parametrize("name", NAMES)
def test_panels_say_what_they_are_and_do_not_overlap(name):
    every = loaded(name)["panels"]
    assert len({one["id"] for one in every}) == len(every)
    titles = [one["title"] for one in every if one["type"] != "row"]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for one in every:
        place = one["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, one["title"]
        taken |= cells
        if one["type"] == "row":
            continue
        assert one["description"].endswith("."), one["title"]
        assert one["datasource"]["uid"] == "${datasource}"
        assert one["fieldConfig"]["defaults"]["unit"]
        assert one["targets"]
        for target in one["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
    width = {y: sum(1 for x, row in taken if row == y) for _, y in taken}
    assert set(width.values()) == {COLUMNS}, "a gap, or panels of unequal height side by side"


# --- names ----------------------------------------------------------------------------------------


def test_every_name_is_one_that_is_told():
    found = [
        f"{where}: {problem}"
        for where, target in targets()
        for problem in promql.undeclared(target["expr"])
    ]
    found += [problem for selector, _ in variables() for problem in promql.undeclared(selector)]
    found += [problem for _, expr in events() for problem in promql.undeclared(expr)]
    for selector, label in variables():
        [name] = promql.metrics(selector)
        if label not in promql.labels(promql.series()[name]):
            found.append(f"{name} has no label {label}")
    assert found == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("rate(model_sidecar_request_total[1m])", "model_sidecar_request_total is no series"),
        ("rate(model_sidecar_inference_duration_seconds[1m])", "is no series of ours"),
        ('model_sidecar_requests_total{outcom="fail"}', "has no label outcom"),
        ('model_sidecar_drift_score{variant="x",column="a"}', "has no label variant"),
        ("sum by (le, phase) (rpc_server_call_duration_seconds_bucket)", "a label phase"),
    ],
)
def test_a_wrong_name_is_found(query, problem):
    assert problem in "\n".join(promql.undeclared(query))


def test_every_instrument_is_shown_or_said_not_to_be():
    names = promql.series()
    shown = {
        names[metric]
        for _, target in targets()
        for metric in promql.metrics(target["expr"])
        if metric in names
    }
    assert {one.name for one in INSTRUMENTS if one not in shown} == {
        one.name for one in NOT_SHOWN
    }  # fmt: skip


def test_legends_are_of_labels_that_the_query_keeps():
    for where, target in targets():
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            assert grouped, where
            assert all(label in re.split(r",\s*", group) for group in grouped), where


# --- a real Prometheus ----------------------------------------------------------------------------


def test_what_the_queries_are_tried_on_is_what_is_described():
    assert unknown_values() == []


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Scrapes a sidecar that tells everything there is, with our rules loaded."""
    everything = Everything(time.time_ns())
    with telling(settings(Exporter.PROMETHEUS)) as telemetry:
        telemetry.observe(everything.points)
        host, port = telemetry.prometheus.address
        with Prometheus(
            tmp_path_factory.mktemp("prometheus"), [f"{host}:{port}"], rules=FILES,
            labels={"namespace": "shop"},
        ) as running:  # fmt: skip
            query = "count_over_time(model_sidecar_mirror_queue_bytes[1m]) >= 4"
            until(lambda: running.vector(query), "a few scrapes are there")
            yield running


@needs_prometheus
@pytest.mark.timeout(READY_WITHIN_S + 60)
def test_every_panel_shows_something(prometheus):
    wrong = []
    for where, target in targets():
        query = filled(target["expr"])
        if problem := prometheus.problem(query):
            wrong.append(f"{where}: {problem}")
            continue
        found = prometheus.vector(query)
        if not found:
            wrong.append(f"{where}: nothing")
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            # A label whose value is empty is none to Prometheus: `reason` of a success.
            none = not any(label in labels for labels, _ in found)
            wrong += [f"{where}: no series has a {label}"] * none
    assert wrong == []


@needs_prometheus
@pytest.mark.timeout(READY_WITHIN_S + 60)
def test_every_event_is_marked_once_it_happens(prometheus):
    for where, expr in events():
        found = prometheus.vector(filled(expr))
        assert {labels["state"] for labels, _ in found} == {
            "suspect", "regressed", "rolled_back", "blocked"
        }, where  # fmt: skip


@needs_prometheus
@pytest.mark.timeout(READY_WITHIN_S + 60)
def test_every_variable_offers_something(prometheus):
    for selector, label in variables():
        found = prometheus.api(f"label/{label}/values", **{"match[]": filled(selector)})
        assert found, f"{label} of {selector}"


@needs_prometheus
@pytest.mark.timeout(READY_WITHIN_S + 60)
def test_rules_are_loaded_and_record(prometheus):
    groups = until(
        lambda: (
            (found := prometheus.api("rules")["groups"])
            and all(rule["health"] == "ok" for group in found for rule in group["rules"])
            and found
        ),
        "every rule was evaluated",
    )
    assert sum(len(group["rules"]) for group in groups) == len(list(exprs()))
    recorded = {name for rule in exprs() if (name := rule.record)}
    for name in recorded:
        until(lambda name=name: prometheus.vector(name), f"{name} is recorded")


@needs_prometheus
def test_prometheus_says_what_is_wrong_with_a_query(prometheus):
    assert "parse error" in prometheus.problem("sum by (le (model_sidecar_requests_total)")
