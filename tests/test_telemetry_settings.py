"""Configuration and ``OTEL_*`` variables become one set of telemetry settings."""

from __future__ import annotations

import pytest

from exporters.telemetry import Exporter, Signal
from exporters.telemetry.context import Sampler
from sidecar.cli.check_config import notes
from sidecar.config import SidecarConfig, parse, telemetry
from sidecar.config_plain import pack, unpack
from sidecar.config_telemetry import TelemetryConfig
from sidecar.errors import ConfigError
from sidecar.telemetry_settings import Resolved, resolve

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
VARIANT = {
    "name": "onnx", "version": "1", "roles": ["serving"],
    "runtime": {"kind": "onnxruntime", "path": "m.onnx"},
}  # fmt: skip


def tree(telemetry: dict | None = None, **more) -> dict:
    made = {"models": [{"name": "digits", "variants": [VARIANT]}], **more}
    return made if telemetry is None else {**made, "telemetry": telemetry}


def made(config: dict, environ: dict[str, str] | None = None) -> Resolved:
    return resolve(TelemetryConfig.model_validate(config), environ or {})


def places(found: Resolved) -> dict[str, tuple[str, str]]:
    backends = {signal: found.settings.backend(signal) for signal in Signal}
    return {str(s): (str(one.exporter), one.endpoint) for s, one in backends.items()}


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    import os

    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


# --- where everything goes ------------------------------------------------------------------------


def test_nothing_is_told_unasked():
    found = made({})
    assert not found.tells
    assert found.lines() == []
    assert found.sampler == Sampler()


def test_the_configuration_alone():
    found = made({"exporter": "otlp-grpc", "endpoint": "http://there:4317"})
    assert places(found) == dict.fromkeys(
        ("traces", "metrics", "logs"), ("otlp-grpc", "http://there:4317")
    )
    assert found.lines() == ["telemetry: traces, metrics, logs: otlp-grpc → http://there:4317"]


def test_the_environment_alone():
    found = made({}, {ENDPOINT: "http://there:4318"})
    assert found.settings.backend(Signal.LOGS).endpoint == "http://there:4318/v1/logs"
    assert found.lines() == ["telemetry: traces, metrics, logs: otlp-http → http://there:4318"]


@pytest.mark.parametrize(
    ("endpoint", "exporter"),
    [("http://there:4317", Exporter.OTLP_GRPC), ("http://there:4318", Exporter.OTLP_HTTP)],
)
def test_an_endpoint_says_that_it_is_wanted(endpoint, exporter):
    assert made({"endpoint": endpoint}).settings.exporter is exporter
    own = made({"logs": {"endpoint": endpoint}})
    assert own.settings.backend(Signal.LOGS).exporter is exporter
    assert not own.exports(Signal.TRACES)


def test_the_first_that_is_said_counts():
    environ = {
        ENDPOINT: "http://variable:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "x=variable",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "3000",
        "OTEL_EXPORTER_OTLP_LOGS_TIMEOUT": "4000",
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs-of-variable:4318/in",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
    }
    config = {
        "endpoint": "http://config:4317",
        "headers": {"X-Config": "yes"},
        "traces": {"endpoint": "http://traces-of-config:4317", "timeout_s": 5},
    }
    found = made(config, environ)
    assert places(found) == {
        "traces": ("otlp-grpc", "http://traces-of-config:4317"),
        "metrics": ("otlp-grpc", "http://config:4317"),
        "logs": ("otlp-grpc", "http://config:4317"),
    }
    backends = [found.settings.backend(signal) for signal in Signal]
    assert [dict(one.headers) for one in backends] == [{"x-config": "yes"}] * 3
    assert [one.timeout_s for one in backends] == [5.0, 3.0, 4.0]
    assert {one.compression for one in backends} == {"gzip"}


def test_an_exporter_for_all_wins_over_a_variable_for_one():
    found = made({"exporter": "console"}, {"OTEL_TRACES_EXPORTER": "none"})
    assert found.exports(Signal.TRACES)
    found = made({"endpoint": "http://there:4317"}, {"OTEL_LOGS_EXPORTER": "none"})
    assert [found.exports(signal) for signal in Signal] == [True, True, False]


def test_prometheus_beside_otlp():
    config = {"exporter": "otlp-http", "metrics": {"exporter": "prometheus"}}
    found = made({**config, "prometheus": "0.0.0.0:9999"})
    assert found.lines("127.0.0.1:9999") == [
        "telemetry: traces, logs: otlp-http → http://localhost:4318",
        "metrics: http://127.0.0.1:9999/metrics",
    ]


def test_the_switch_of_the_standard_turns_everything_off():
    found = made({"exporter": "console"}, {"OTEL_SDK_DISABLED": "true"})
    assert not found.tells
    assert found.notes == ("OTEL_SDK_DISABLED=true: nothing is told, whatever `telemetry` says",)


# --- the rest -------------------------------------------------------------------------------------


def test_whose_telemetry_it_is():
    environ = {
        "OTEL_SERVICE_NAME": "of-variable", "OTEL_RESOURCE_ATTRIBUTES": "team=a,region=north",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1", "HOSTNAME": "digits-7", "POD_NAMESPACE": "ml",
    }  # fmt: skip
    resource = made({"resource": {"team": "b"}}, environ).settings.resource
    expected = {
        "service.name": "of-variable", "team": "b", "region": "north", "k8s.pod.name": "digits-7",
        "k8s.namespace.name": "ml",
    }  # fmt: skip
    assert {name: resource[name] for name in expected} == expected
    assert made({}).settings.resource["service.name"] == "model-sidecar"
    assert "k8s.pod.name" not in made({}, {"HOSTNAME": "laptop"}).settings.resource
    named = made({"resource": {"service.name": "mine"}}, environ)
    assert named.settings.resource["service.name"] == "mine"


@pytest.mark.parametrize(
    ("config", "environ", "expected"),
    [
        ({}, {}, Sampler(1.0, True)),
        ({"sample_ratio": 0.1}, {}, Sampler(0.1, True)),
        ({"trust_callers": False}, {}, Sampler(1.0, False)),
        ({}, {"OTEL_TRACES_SAMPLER": "always_off"}, Sampler(0.0, False)),
        ({"sample_ratio": 0.1}, {"OTEL_TRACES_SAMPLER": "always_on"}, Sampler(0.1, False)),
    ],
)
def test_which_traces_are_recorded(config, environ, expected):
    assert made({"traces": config}, environ).sampler == expected


def test_how_many_spans_wait():
    variable = {"OTEL_BSP_MAX_QUEUE_SIZE": "50", "OTEL_BSP_SCHEDULE_DELAY": "200"}
    assert made({}).settings.spans.items == 2048
    assert made({}, variable).settings.spans.items == 50
    spans = made({"queue_spans": 2048}, variable).settings.spans
    assert (spans.items, spans.delay_s) == (2048, 0.2)


@pytest.mark.parametrize(
    "environ",
    [
        {ENDPOINT: "http://"},
        {ENDPOINT: "http://there:none"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "://"},
        {"OTEL_EXPORTER_PROMETHEUS_PORT": "many"},
        {"OTEL_EXPORTER_PROMETHEUS_PORT": "99999"},
        {"OTEL_TRACES_SAMPLER": "sometimes"},
        {"OTEL_METRICS_EXPORTER": "carbon"},
        {"OTEL_EXPORTER_OTLP_HEADERS": "no equals sign"},
    ],
)
def test_a_variable_that_cannot_be_understood_is_noted_and_left_out(environ):
    found = made({}, environ)
    ((name, _),) = environ.items()
    assert [name in note for note in found.notes] == [True]
    assert not found.tells


def test_a_few_milliseconds_are_as_short_as_it_gets():
    environ = {"OTEL_EXPORTER_OTLP_TIMEOUT": "5", "OTEL_METRIC_EXPORT_INTERVAL": "1"}
    settings = made({}, environ).settings
    assert (settings.timeout_s, settings.interval_s) == (0.01, 0.01)


# --- in the configuration -------------------------------------------------------------------------


def test_ten_mistakes_are_ten_messages():
    content = tree(
        {
            "exporter": "jaeger",
            "endpoint": "there:4317",
            "headers": {"two words": "x"},
            "timeout_s": 0,
            "compression": "zip",
            "client_key": "key.pem",
            "prometheus": "9464",
            "queue_spans": 0,
            "traces": {"sample_ratio": 2, "exporter": "prometheus"},
            "metrics": {"interval": 5},
        }
    )
    with pytest.raises(ConfigError) as caught:
        parse(content)
    assert {problem.path for problem in caught.value.problems} == {
        "telemetry.exporter", "telemetry.endpoint", "telemetry.headers.two words",
        "telemetry.timeout_s", "telemetry.compression", "telemetry.client_certificate",
        "telemetry.prometheus", "telemetry.queue_spans", "telemetry.traces.sample_ratio",
        "telemetry.traces.exporter", "telemetry.metrics.interval",
    }  # fmt: skip


def test_the_endpoint_for_prometheus_is_nobody_elses():
    with pytest.raises(ConfigError, match=r"is also monitor\.grpc"):
        parse(tree({"prometheus": "127.0.0.1:9002"}, monitor={"grpc": "127.0.0.1:9002"}))


def test_telemetry_needs_the_monitor():
    assert not parse(tree()).monitored
    assert parse(tree({"exporter": "console"})).monitored
    assert parse(tree({"metrics": {"exporter": "prometheus"}})).monitored
    assert not parse(tree({"resource": {"team": "a"}})).monitored


def test_variables_alone_start_a_monitor(monkeypatch):
    monkeypatch.setenv(ENDPOINT, "http://there:4318")
    config = parse(tree())
    assert config.monitored
    assert telemetry(config).tells
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not parse(tree()).monitored


def test_without_a_monitor_it_is_said_that_nothing_is_told():
    config = parse(tree({"exporter": "console"}, monitor={"enabled": False}))
    assert "monitor.enabled is false" in config.untold
    assert config.untold in notes(config)
    assert not config.tracing["on"]
    assert parse(tree({"exporter": "console"})).untold == ""
    assert parse(tree(monitor={"enabled": False})).untold == ""


def test_the_gateway_is_handed_plain_values(monkeypatch):
    off = {"on": False, "ratio": 0.0, "parent": False, "logs": False}
    assert handed_over(tree()).tracing == off
    content = tree({"exporter": "console", "logs": {"exporter": "none"}})
    on = {"on": True, "ratio": 1.0, "parent": True, "logs": False}
    assert handed_over(content).tracing == on
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.25")
    assert handed_over(content).tracing == {**on, "ratio": 0.25, "parent": False}
    prometheus = handed_over(tree({"exporter": "prometheus"}))
    assert (prometheus.tracing["on"], prometheus.monitored) == (False, True)


def handed_over(content: dict) -> SidecarConfig:
    return unpack(pack(parse(content)))
