"""Every metric is declared once, and the documentation says the same."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from opentelemetry.semconv._incubating.attributes import rpc_attributes
from opentelemetry.semconv._incubating.metrics import rpc_metrics
from opentelemetry.semconv.attributes import error_attributes

from exporters import instruments
from exporters.instruments import ATTRIBUTES, CALL_DURATION, INSTRUMENTS, Instrument, Kind
from sidecar.gateway.pages import BUCKETS_NS, STAGES
from tests.support.metric_tables import PAGE, render


def test_the_page_is_what_the_code_says():
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "run: python -m tests.support.metric_tables"
    assert all(f"| `{one.name}`<br>" in page for one in INSTRUMENTS)


def test_every_instrument_of_the_module_is_listed_once():
    defined = [one for one in vars(instruments).values() if isinstance(one, Instrument)]
    assert sorted(one.name for one in defined) == sorted(one.name for one in INSTRUMENTS)
    for names in (
        [one.name for one in INSTRUMENTS],
        [one.prometheus_name for one in INSTRUMENTS],
    ):
        assert len(names) == len(set(names))


@pytest.mark.parametrize("one", INSTRUMENTS, ids=lambda one: one.name)
def test_an_instrument_is_well_formed(one):
    assert re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+", one.name)
    assert one.description.endswith(".")
    assert one.unit
    assert len(set(one.attributes)) == len(one.attributes)
    assert set(one.attributes) <= set(ATTRIBUTES)
    assert (one.kind is Kind.HISTOGRAM) == bool(one.buckets)
    assert all(low < high for low, high in pairwise(one.buckets))
    assert re.fullmatch(r"[a-z][a-zA-Z0-9_]*", one.prometheus_name)


def test_no_attribute_is_declared_for_nothing():
    assert {key for one in INSTRUMENTS for key in one.attributes} == set(ATTRIBUTES)


def test_durations_have_the_gateways_buckets():
    # The pages' counts are handed on as they are: with other bounds they would be other numbers.
    assert [round(bound * 1e9) for bound in CALL_DURATION.buckets] == list(BUCKETS_NS)
    assert instruments.INFERENCE_DURATION.buckets == CALL_DURATION.buckets
    assert all(f"`{stage}`" in ATTRIBUTES["stage"] for stage in STAGES if stage != "total")


def test_names_of_the_conventions_are_theirs():
    assert CALL_DURATION.name == rpc_metrics.RPC_SERVER_CALL_DURATION
    assert CALL_DURATION.unit == "s"
    theirs = {
        rpc_attributes.RPC_SYSTEM_NAME,
        rpc_attributes.RPC_METHOD,
        error_attributes.ERROR_TYPE,
    }
    assert theirs <= set(CALL_DURATION.attributes)


def test_names_for_prometheus():
    names = {one.name: one.prometheus_name for one in INSTRUMENTS}
    assert names["rpc.server.call.duration"] == "rpc_server_call_duration_seconds"
    assert names["model_sidecar.requests"] == "model_sidecar_requests_total"
    assert names["model_sidecar.request.io"] == "model_sidecar_request_io_bytes_total"
    assert names["model_sidecar.mirror.queue.bytes"] == "model_sidecar_mirror_queue_bytes"
    assert (
        names["model_sidecar.comparison.disagreement.rate"]
        == "model_sidecar_comparison_disagreement_rate_ratio"
    )
    assert names["model_sidecar.drift.alarm"] == "model_sidecar_drift_alarm"
    assert names["model_sidecar.comparison.sqnr"] == "model_sidecar_comparison_sqnr_dB"
