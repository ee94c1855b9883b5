"""The text that Prometheus reads, and the endpoint that gives it."""

from __future__ import annotations

import http.client
import math
import re
import socket
import threading
from contextlib import ExitStack

import pytest

from exporters.instruments import DRIFT_SCORE, INFERENCE_DURATION, REQUESTS, ROUTE_VERSION
from exporters.telemetry import Exporter, Telemetry
from exporters.telemetry.encode import Encoder
from exporters.telemetry.model import Number
from exporters.telemetry.prometheus import OPEN_METRICS, TEXT, exposition
from tests.exporters.telemetry.support import (
    START_NS,
    VARIANT,
    duration,
    points,
    settings,
    telling,
)
from tests.support.otlp_receiver import PATIENCE_S

#: A line of the text format, after https://prometheus.io/docs/instrumenting/exposition_formats/
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\\\|\\"|\\n)*"'
_VALUE = r"(?:NaN|[+-]Inf|-?[0-9.]+(?:e[+-]?[0-9]+)?)"
_EXEMPLAR = rf"(?: # \{{(?:{_LABEL}(?:,{_LABEL})*)?\}} {_VALUE} [0-9.]+)?"
_SAMPLE = re.compile(
    rf"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? ({_VALUE}){_EXEMPLAR}"
)


def text(told: list, *, open_metrics: bool = False) -> str:
    encoder = Encoder({"service.name": "checkout"}, "1", now_ns=lambda: 0, start_ns=START_NS)
    return exposition(encoder.metrics(told), open_metrics=open_metrics).decode()


def samples(page: str) -> dict[str, str]:
    """Series → value; every line is one of the format."""
    found = {}
    for line in page.splitlines():
        if line.startswith("#"):
            assert re.match(r"# (HELP|TYPE|UNIT) [a-zA-Z_:][a-zA-Z0-9_:]* .+|# EOF", line), line
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, line
        series = f"{match[1]}{{{match[2] or ''}}}"
        assert series not in found, "twice"
        found[series] = match[3]
    return found


LABELS = 'model_name="digits",model_version="2",variant="int8"'


@pytest.mark.parametrize("open_metrics", [False, True])
def test_counters_and_gauges(open_metrics):
    page = text(points(), open_metrics=open_metrics)
    found = samples(page)
    name = "model_sidecar_requests_total"
    assert found[f'{name}{{{LABELS},outcome="success",reason=""}}'] == "41"
    assert found[f'{name}{{{LABELS},outcome="fail",reason=""}}'] == "1"
    assert found[f"model_sidecar_route_version_ratio{{{LABELS}}}"] == "0.25"
    assert found['target_info{service_name="checkout"}'] == "1"
    family = name.removesuffix("_total") if open_metrics else name
    assert f"# TYPE {family} counter\n" in page
    assert page.count(f"# TYPE {family} ") == 1
    assert ("# UNIT model_sidecar_route_version_ratio ratio\n" in page) == open_metrics
    assert page.endswith("# EOF\n") == open_metrics


@pytest.mark.parametrize("open_metrics", [False, True])
def test_a_histogram_is_cumulative_over_its_buckets(open_metrics):
    found = samples(text([duration({0: 1, 3: 30, 18: 11}, 0.075)], open_metrics=open_metrics))
    name, labels = INFERENCE_DURATION.prometheus_name, f'{LABELS},role="serving",stage="execute"'
    buckets = [int(value) for series, value in found.items() if series.startswith(f"{name}_bucket")]
    assert buckets == [1, 1, 1, *[31] * 15, 42]
    assert found[f'{name}_bucket{{{labels},le="5e-05"}}'] == "1"
    assert found[f'{name}_bucket{{{labels},le="1.0"}}'] == "31"
    assert found[f'{name}_bucket{{{labels},le="+Inf"}}'] == "42"
    assert found[f"{name}_count{{{labels}}}"] == "42"
    assert found[f"{name}_sum{{{labels}}}"] == "0.075"


def test_open_metrics_has_exemplars_and_the_beginning():
    page = text(points(), open_metrics=True)
    [line] = [line for line in page.splitlines() if " # {" in line]
    assert 'le="0.005"' in line, "in the bucket that it fell into"
    assert line.endswith(
        ' 41 # {trace_id="0af7651916cd43dd8448eb211c80319c",span_id="0000000000000022"}'
        " 0.004 1760000000.123"
    )
    assert f"model_sidecar_requests_created{{{LABELS}" in page
    assert " # {" not in text(points()), "the older format knows no exemplars"


@pytest.mark.parametrize(
    ("given", "escaped"),
    [
        ('a"b', r"a\"b"),
        ("a\\b", r"a\\b"),
        ("a\nb", r"a\nb"),
        ('\\"\n', r"\\\"\n"),
        ("a,b}=#{", "a,b}=#{"),
        ("größe ✓", "größe ✓"),
    ],
)
def test_labels_are_escaped(given, escaped):
    page = text([Number(ROUTE_VERSION, 1, {**VARIANT, "variant": given})])
    assert f'variant="{escaped}"}} 1\n' in page
    samples(page)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (math.nan, "NaN"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (1e300, "1e+300"),
        (0.1, "0.1"),
        (-2, "-2"),
        (2**62, "4611686018427387904"),
    ],
)
def test_values(value, written):
    given = {"model.name": "m", "column": "c", "method": "ks", "reference": "r"}
    found = samples(text([Number(DRIFT_SCORE, value, given)]))
    assert found[
        'model_sidecar_drift_score{model_name="m",column="c",method="ks",reference="r"}'
    ] == (written)


def test_nothing_is_still_a_page():
    assert samples(text([])) == {'target_info{service_name="checkout"}': "1"}
    assert text([], open_metrics=True).endswith("# EOF\n")


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="18 buckets and one above: 1 counts do not fit"):
        type(duration({}, 0))(INFERENCE_DURATION, [1], 0.0)
    with pytest.raises(ValueError, match="has no attribute request_id"):
        Number(REQUESTS, 1, {"request_id": "1"})
    with pytest.raises(ValueError, match="is a histogram"):
        Number(INFERENCE_DURATION, 1)
    with pytest.raises(ValueError, match="is no histogram"):
        type(duration({}, 0))(REQUESTS, [1], 0.0)


# --- the endpoint ---------------------------------------------------------------------------------


@pytest.fixture
def telemetry():
    with telling(settings(Exporter.PROMETHEUS)) as telemetry:
        telemetry.observe(points)
        yield telemetry


def get(telemetry: Telemetry, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    assert telemetry.prometheus is not None
    connection = http.client.HTTPConnection(*telemetry.prometheus.address, timeout=PATIENCE_S)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("content-type", ""), answer.read().decode()
    finally:
        connection.close()


def test_a_scrape(telemetry):
    status, kind, page = get(telemetry)
    assert (status, kind) == (200, TEXT)
    assert "model_sidecar_requests_total" in page
    samples(page)
    accept = "application/openmetrics-text;version=1.0.0;q=0.75,text/plain;version=0.0.4;q=0.5"
    status, kind, page = get(telemetry, Accept=accept)
    assert (status, kind) == (200, OPEN_METRICS)
    assert page.endswith("# EOF\n")
    assert get(telemetry, "/metrics?name=x")[0] == 200
    assert get(telemetry, "/other")[0] == 404


def test_scrapers_that_say_nothing_take_no_place_for_ever(telemetry):
    """Four at once are served; what comes then is turned away and not queued in threads."""
    with ExitStack() as stack:
        for _ in range(4):
            silent = socket.create_connection(telemetry.prometheus.address, PATIENCE_S)
            stack.enter_context(silent)
        deadline = threading.Event()
        statuses = set()
        for _ in range(10_000):  # until the server has seen all four
            statuses.add(get(telemetry)[0])
            if 503 in statuses:
                break
            deadline.wait(0.001)
        assert 503 in statuses
        threads = [one for one in threading.enumerate() if "process_request" in one.name]
        assert len(threads) <= 4


def test_a_reader_that_hangs_holds_one_scrape_and_not_the_others():
    with telling(settings(Exporter.PROMETHEUS, timeout_s=0.05)) as telemetry:
        released = threading.Event()
        entered = threading.Event()

        def hang():
            entered.set()
            released.wait(PATIENCE_S)
            return points()[:1]

        telemetry.observe(hang)
        first: list[int] = []
        scraper = threading.Thread(target=lambda: first.append(get(telemetry)[0]))
        scraper.start()
        assert entered.wait(PATIENCE_S)
        assert get(telemetry)[0] == 503
        released.set()
        scraper.join(PATIENCE_S)
        assert first == [200]


def test_an_address_that_is_taken_is_said(telemetry):
    port = telemetry.prometheus.address[1]
    with pytest.raises(OSError, match="Address already in use"):
        Telemetry(settings(Exporter.PROMETHEUS, prometheus=f"127.0.0.1:{port}"))


def test_the_endpoint_ends(telemetry):
    address = telemetry.prometheus.address
    telemetry.shutdown()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address, PATIENCE_S)
