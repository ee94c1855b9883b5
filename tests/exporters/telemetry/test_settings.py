"""Settings, and the standard variables that say the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

from exporters.telemetry import Bounds, Exporter, Override, Settings, Signal
from exporters.telemetry.context import Sampler
from exporters.telemetry.environment import from_environment, sampler_of
from exporters.telemetry.settings import host_and_port


def made(environ: dict[str, str], **said) -> Settings:
    found = from_environment(environ)
    assert found.notes == ()
    return Settings(**{**found.values, **said})


def test_nothing_is_exported_unasked():
    assert made({}) == Settings()
    assert {Settings().backend(signal).exporter for signal in Signal} == {Exporter.NONE}


@pytest.mark.parametrize(
    ("exporter", "endpoint", "expected"),
    [
        ("otlp-grpc", "", "http://localhost:4317"),
        ("otlp-grpc", "https://there:4317", "https://there:4317"),
        ("otlp-http", "", "http://localhost:4318/v1/traces"),
        ("otlp-http", "http://there:4318/", "http://there:4318/v1/traces"),
        ("otlp-http", "https://there/otlp", "https://there/otlp/v1/traces"),
        ("console", "", ""),
        ("prometheus", "", ""),
    ],
)
def test_endpoints(exporter, endpoint, expected):
    told = Settings(exporter=Exporter(exporter), endpoint=endpoint)
    assert told.backend(Signal.TRACES).endpoint == expected


def test_prometheus_has_metrics_only():
    told = Settings(exporter=Exporter.PROMETHEUS)
    assert told.backend(Signal.METRICS).exporter is Exporter.PROMETHEUS
    assert told.backend(Signal.TRACES).exporter is Exporter.NONE
    assert told.backend(Signal.LOGS).exporter is Exporter.NONE


def test_a_signal_has_its_own():
    own = Override(Exporter.OTLP_HTTP, "http://logs:1/here", {"a": "b"}, 3.0, "gzip")
    told = Settings(exporter=Exporter.OTLP_GRPC, headers={"c": "d"}, overrides={Signal.LOGS: own})
    logs, traces = told.backend(Signal.LOGS), told.backend(Signal.TRACES)
    assert (logs.exporter, logs.endpoint) == (Exporter.OTLP_HTTP, "http://logs:1/here")
    assert (dict(logs.headers), logs.timeout_s, logs.compression) == ({"a": "b"}, 3.0, "gzip")
    assert (traces.exporter, dict(traces.headers)) == (Exporter.OTLP_GRPC, {"c": "d"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"exporter": Exporter.OTLP_HTTP, "endpoint": "there:4318"},
        {"exporter": Exporter.OTLP_GRPC, "endpoint": "ftp://there"},
        {"exporter": Exporter.OTLP_GRPC, "endpoint": "http://there:99999"},
        {"exporter": Exporter.OTLP_GRPC, "endpoint": "http://"},
        {"timeout_s": 0},
        {"interval_s": float("nan")},
        {"retry_s": -1},
        {"points_max": 0},
        {"compression": "brotli"},
        {"prometheus": "9464"},
    ],
)
def test_a_mistake_is_found_at_the_start(wrong):
    with pytest.raises(ValueError, match=r"endpoint|at least|compression|host:port"):
        Settings(**wrong)


@pytest.mark.parametrize("wrong", [{"items": 0}, {"slice": 0}, {"delay_s": -1}, {"breath_s": -1}])
def test_bounds_are_checked(wrong):
    with pytest.raises(ValueError, match="at least"):
        Bounds(**wrong)


def test_host_and_port():
    assert host_and_port("0.0.0.0:9464") == ("0.0.0.0", 9464)
    assert host_and_port("[::1]:0") == ("::1", 0)
    for wrong in ("9464", ":9464", "a:b", "a:70000", "a:-1", "a:٣"):
        with pytest.raises(ValueError, match="host:port"):
            host_and_port(wrong)


def test_the_standard_variables():
    told = made({
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317",
        "OTEL_EXPORTER_OTLP_HEADERS": "Api-Key=a%20b, tenant=t",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "2500",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip",
        "OTEL_EXPORTER_OTLP_CERTIFICATE": "ca.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": "client.pem",
        "OTEL_EXPORTER_OTLP_CLIENT_KEY": "key.pem",
        "OTEL_METRIC_EXPORT_INTERVAL": "15000",
        "OTEL_BSP_MAX_QUEUE_SIZE": "500",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "50",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "OTEL_BLRP_MAX_QUEUE_SIZE": "600",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=prod,service.name=one",
        "OTEL_SERVICE_NAME": "two",
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_PORT": "9999",
    })  # fmt: skip
    traces = told.backend(Signal.TRACES)
    assert (traces.exporter, traces.endpoint) == (Exporter.OTLP_GRPC, "http://collector:4317")
    assert dict(traces.headers) == {"api-key": "a b", "tenant": "t"}
    assert (traces.timeout_s, traces.compression) == (2.5, "gzip")
    assert traces.certificate == "ca.pem"
    assert (traces.client_certificate, traces.client_key) == ("client.pem", "key.pem")
    assert told.interval_s == 15.0
    assert told.spans == Bounds(items=500, slice=50, delay_s=0.2)
    assert told.logs == Bounds(items=600)
    assert told.resource == {"deployment.environment.name": "prod", "service.name": "two"}
    assert told.backend(Signal.METRICS).exporter is Exporter.PROMETHEUS
    assert told.prometheus == "localhost:9999"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, "none"),
        ({"ENDPOINT": "http://there"}, "otlp-http"),
        ({"ENDPOINT": "http://there:4317"}, "otlp-grpc"),
        ({"ENDPOINT": "http://there:4317", "PROTOCOL": "http/protobuf"}, "otlp-http"),
        ({"ENDPOINT": "http://there:4318", "TRACES_PROTOCOL": "grpc"}, "otlp-grpc"),
        ({"TRACES_ENDPOINT": "http://there:4317"}, "otlp-grpc"),
        ({"LOGS_ENDPOINT": "http://there:4317"}, "none"),
    ],
)
def test_an_endpoint_is_named_to_be_used(environ, expected):
    told = made({f"OTEL_EXPORTER_OTLP_{name}": value for name, value in environ.items()})
    assert told.backend(Signal.TRACES).exporter == expected


def test_one_signal_is_turned_off_and_the_others_are_not():
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there", "OTEL_LOGS_EXPORTER": "none"}
    told = made(environ)
    found = {signal.value: told.backend(signal).exporter.value for signal in Signal}
    assert found == {"traces": "otlp-http", "metrics": "otlp-http", "logs": "none"}
    told = made({"OTEL_TRACES_EXPORTER": "console"})
    assert told.backend(Signal.TRACES).exporter is Exporter.CONSOLE
    assert told.backend(Signal.METRICS).exporter is Exporter.NONE


def test_all_of_it_is_turned_off():
    told = made({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://there"})
    assert {told.backend(signal).exporter for signal in Signal} == {Exporter.NONE}


def test_the_configuration_wins():
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://there:4317"}
    told = made(environ, endpoint="http://here:4317")
    assert told.backend(Signal.TRACES).endpoint == "http://here:4317"
    assert told.exporter is Exporter.OTLP_GRPC


@pytest.mark.parametrize(
    ("insecure", "scheme"), [("true", "http"), ("false", "https"), ("", "https")]
)
def test_an_endpoint_without_a_scheme(insecure, scheme):
    environ = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "there:4317",
        "OTEL_EXPORTER_OTLP_INSECURE": insecure,
    }
    assert made(environ).backend(Signal.TRACES).endpoint == f"{scheme}://there:4317"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_EXPORTER", "prometheus"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "ten"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "-1"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "nothing"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_RESOURCE_ATTRIBUTES", "nothing"),
    ],
)
def test_what_cannot_be_understood_is_noted_and_left_out(name, value):
    found = from_environment({name: value})
    assert len(found.notes) == 1
    assert found.notes[0].startswith(f"{name}={value} is ignored")
    Settings(**found.values)


def test_seconds_in_place_of_milliseconds_are_noted():
    found = from_environment({"OTEL_EXPORTER_OTLP_TIMEOUT": "10"})
    assert found.values["timeout_s"] == 0.01
    assert "milliseconds" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "argument", "expected"),
    [
        ("", "", None),
        ("always_on", "", Sampler(1.0, parent=False)),
        ("parentbased_always_off", "", Sampler(0.0)),
        ("parentbased_traceidratio", "0.01", Sampler(0.01)),
        ("traceidratio", "", Sampler(1.0, parent=False)),
    ],
)
def test_samplers(name, argument, expected):
    environ = {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}
    assert sampler_of(environ) == (expected, ())


def test_samplers_that_are_not_known_are_noted():
    assert sampler_of({"OTEL_TRACES_SAMPLER": "jaeger_remote"})[0] is None
    assert len(sampler_of({"OTEL_TRACES_SAMPLER": "jaeger_remote"})[1]) == 1
    environ = {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"}
    sampler, notes = sampler_of(environ)
    assert sampler == Sampler(1.0, parent=False)
    assert "not between 0 and 1" in notes[0]


def test_nothing_is_loaded_for_nothing():
    """The gateway reads contexts; who exports nothing needs no SDK installed."""
    code = (
        "import sys\n"
        "from exporters.telemetry import Settings, Telemetry\n"
        "import exporters.telemetry.environment, exporters.telemetry.loghandler\n"
        "telemetry = Telemetry(Settings())\n"
        "assert not telemetry.active and telemetry.shutdown() == {}\n"
        "print([name for name in sys.modules if name.split('.')[0] in"
        " ('opentelemetry', 'grpc', 'google', 'h11', 'http', 'sidecar')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
