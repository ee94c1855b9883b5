"""The endpoint, scraped by Debian's Prometheus and linted by its promtool."""

from __future__ import annotations

import time
from statistics import quantiles

import pytest

from exporters.instruments import INSTRUMENTS, Kind
from exporters.telemetry import Exporter
from exporters.telemetry.prometheus import OPEN_METRICS
from sidecar.gateway.pages import sum_slot
from tests.backends.processes import NO_PROMETHEUS, READY_WITHIN_S, Prometheus, promtool, until
from tests.backends.story import COLUMNS, REFERENCE, SERVING, Story, named
from tests.exporters.telemetry.support import settings, telling

pytestmark = [
    pytest.mark.skipif(bool(NO_PROMETHEUS), reason=NO_PROMETHEUS),
    pytest.mark.timeout(READY_WITHIN_S + 120),
]

REQUESTS = 400
VARIANT = 'model_name="digits",model_version="2",variant="fp32"'


@pytest.fixture(scope="module")
def story():
    # Now, since Prometheus takes no exemplar that is older than what it has.
    story = Story(time.time_ns())
    for _ in range(REQUESTS // 2):
        story.request(time.time_ns())
    story.request(time.time_ns(), error="DeadlineError")
    story.dropped = 3
    yield story
    story.close()


@pytest.fixture(scope="module")
def telemetry(story):
    with telling(settings(Exporter.PROMETHEUS)) as telemetry:
        telemetry.observe(story.points)
        yield telemetry


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory, story, telemetry):
    host, port = telemetry.prometheus.address
    with Prometheus(tmp_path_factory.mktemp("prometheus"), [f"{host}:{port}"]) as running:
        until(lambda: running.vector('up{job="model-sidecar"} == 1'), "the target is up")
        for _ in range(REQUESTS - REQUESTS // 2):
            story.request(time.time_ns())
        query = f'model_sidecar_requests_total{{outcome="success"}} == {REQUESTS}'
        until(lambda: running.vector(query), "all requests are scraped")
        yield running


def value(prometheus: Prometheus, query: str) -> float:
    [(_, found)] = prometheus.vector(query)
    return found


def test_the_target_is_up_and_says_nothing_against_it(prometheus):
    [target] = prometheus.api("targets")["activeTargets"]
    assert (target["health"], target["lastError"]) == ("up", "")
    [(labels, one)] = prometheus.vector("target_info")
    assert (labels["service_name"], labels["service_instance_id"], one) == ("checkout", "a-1", 1)


def test_counters_are_what_was_counted(prometheus, story):
    found = {
        (labels["outcome"], labels.get("reason", "")): count
        for labels, count in prometheus.vector(f"model_sidecar_requests_total{{{VARIANT}}}")
    }
    assert found == {("success", ""): REQUESTS, ("fail", "DeadlineError"): 1}
    for direction in ("in", "out"):
        query = f'model_sidecar_request_io_bytes_total{{direction="{direction}"}}'
        counted = sum_slot([story.page], SERVING).counters[f"bytes_{direction}"]
        assert value(prometheus, query) == counted > 0
    assert value(prometheus, 'model_sidecar_mirror_exchanges_total{outcome="dropped"}') == 3
    rate = value(prometheus, "sum(increase(model_sidecar_requests_total[1m]))")
    assert rate > 0, "it began before the requests that came later"


def test_histograms_keep_their_buckets_sums_and_quantiles(prometheus, story):
    name = "model_sidecar_inference_duration_seconds"
    executing = f'{VARIANT},role="serving",stage="execute"'
    found = {
        labels["le"]: count for labels, count in prometheus.vector(f"{name}_bucket{{{executing}}}")
    }
    [instrument] = [one for one in INSTRUMENTS if one.prometheus_name == name]
    assert sorted(float(bound) for bound in found) == [*instrument.buckets, float("inf")]
    assert found["+Inf"] == value(prometheus, f"{name}_count{{{executing}}}") == REQUESTS
    total_ns = sum_slot([story.page], SERVING).durations["execute"][1]
    assert value(prometheus, f"{name}_sum{{{executing}}}") == pytest.approx(total_ns / 1e9)
    durations = quantiles(story.executed_ns, n=20)
    for share, known_ns in ((0.5, durations[9]), (0.95, durations[18])):
        query = f"histogram_quantile({share}, sum by (le) ({name}_bucket{{{executing}}}))"
        estimate = value(prometheus, query)
        # As good as the bucket that it lies in: those are at most 2.5 times apart.
        assert known_ns / 2.5 < estimate * 1e9 < known_ns * 2.5
    stages = prometheus.vector(f"sum by (stage) ({name}_count)")
    assert {labels["stage"] for labels, _ in stages} == {"decode", "queue", "execute", "encode"}


def test_drift_and_agreement_by_their_labels(prometheus):
    scores = prometheus.vector('model_sidecar_drift_score{model_name="digits"}')
    assert {labels["column"] for labels, _ in scores} == set(COLUMNS)
    assert {labels["reference"] for labels, _ in scores} == {REFERENCE}
    assert prometheus.vector("model_sidecar_drift_score > model_sidecar_drift_threshold") == []
    rate, bound = (
        value(prometheus, f"model_sidecar_comparison_disagreement_{name}_ratio")
        for name in ("rate", "upper_bound")
    )
    assert 0 <= rate < bound <= 1
    verdicts = prometheus.vector("sum by (variant) (model_sidecar_comparison_results_total)")
    assert verdicts == [({"variant": named(2)["variant"]}, REQUESTS)]


def test_help_types_and_units_are_known(prometheus):
    metadata = prometheus.api("metadata")
    for one in INSTRUMENTS:
        family = one.prometheus_name.removesuffix("_total")
        for told in metadata.pop(family, []):
            expected = (str(one.kind), one.description, one.prometheus_unit)
            assert (told["type"], told["help"], told["unit"]) == expected
    assert set(metadata) == {"target"}


def test_exemplars_lead_to_traces(prometheus, story):
    found = prometheus.api(
        "query_exemplars", query="rpc_server_call_duration_seconds_bucket",
        start=story.since_ns / 1e9 - 60, end=time.time_ns() / 1e9 + 60,
    )  # fmt: skip
    exemplars = [one for series in found for one in series["exemplars"]]
    assert exemplars
    for one in exemplars:
        assert int(one["labels"]["trace_id"], 16) in story.traces
        assert int(one["labels"]["span_id"], 16)
        assert 0 < float(one["value"]) < 1


def test_what_is_asked_for_is_openmetrics(telemetry):
    """2.42 prefers it; the older format has neither exemplars nor units."""
    preferred = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5"
    kind, body = telemetry.scrape(preferred)
    assert kind == OPEN_METRICS
    assert b"# UNIT model_sidecar_inference_duration_seconds seconds\n" in body
    assert b"# UNIT" not in telemetry.scrape()[1]


#: What promtool says against the page, and why it stays.
EXPLAINED = {
    "model_sidecar_comparison_sqnr_dB metric names should be written in 'snake_case' not 'camelCase'":  # noqa: E501
    "the unit is dB, and OpenTelemetry's translation keeps units as they are written",
}  # fmt: skip


def test_promtool_has_nothing_to_say_that_is_not_explained(telemetry):
    status, output = promtool("check", "metrics", given=telemetry.scrape()[1])
    assert set(output.splitlines()) == set(EXPLAINED)
    assert status == 3, "complaints, and no errors"


def test_every_kind_of_instrument_was_shown(telemetry):
    page = telemetry.scrape()[1].decode()
    shown = [one for one in INSTRUMENTS if f"# TYPE {one.prometheus_name} " in page]
    assert {one.kind for one in shown} == set(Kind)
    assert len(shown) >= 15


def test_a_restart_of_the_target_is_a_reset_and_not_a_jump(tmp_path):
    """Counters that begin again are seen as such: ``increase`` never counts backwards."""
    first = Story(time.time_ns(), seed=1)
    for _ in range(50):
        first.request(time.time_ns())
    with telling(settings(Exporter.PROMETHEUS)) as telemetry:
        telemetry.observe(first.points)
        host, port = telemetry.prometheus.address
        with Prometheus(tmp_path, [f"{host}:{port}"]) as running:
            query = "sum(model_sidecar_requests_total)"
            until(lambda: running.vector(f"{query} == 50"), "the first life is scraped")
            telemetry.shutdown(1)
            until(lambda: running.vector("up == 0"), "the target is gone")
            assert running.vector(query) == [], "stale at once, and not for five minutes"
            second = Story(time.time_ns(), seed=2)
            for _ in range(8):
                second.request(time.time_ns())
            given = settings(Exporter.PROMETHEUS, prometheus=f"{host}:{port}")
            with telling(given) as again:
                again.observe(second.points)
                until(lambda: running.vector(f"{query} == 8"), "the second life is scraped")
                assert value(running, "sum(resets(model_sidecar_requests_total[1m]))") == 1
    first.close()
    second.close()
