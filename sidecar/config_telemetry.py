"""The part of the configuration that says what is told, and where to (see ``config.py``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from sidecar.config_runtime import ExistingPath, Settings
from sidecar.config_secret import Secret

ExporterName = Literal["otlp-grpc", "otlp-http", "prometheus", "console", "none"]
SignalExporterName = Literal["otlp-grpc", "otlp-http", "console", "none"]
Compression = Literal["none", "gzip"]


def _endpoint(value: str) -> str:
    from exporters.telemetry.settings import check_endpoint

    return check_endpoint(value)


def _host_and_port(value: str) -> str:
    from exporters.telemetry.settings import host_and_port

    host_and_port(value)
    return value


Endpoint = Annotated[str, AfterValidator(_endpoint)]
#: What gRPC allows, and HTTP as well.
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]
AttributeName = Annotated[str, Field(min_length=1, max_length=255)]


class SignalConfig(Settings):
    """What one signal has otherwise; what is left out is as for the others."""

    endpoint: Endpoint | None = Field(
        None, description="For otlp-http the full URL, path included."
    )
    headers: dict[HeaderName, Secret] | None = Field(
        None, description="Instead of the shared ones."
    )
    timeout_s: float | None = Field(
        None, ge=0.01, le=3600, description="Instead of the shared one."
    )
    compression: Compression | None = Field(None, description="Instead of the shared one.")


class TracesConfig(SignalConfig):
    """Spans of requests, of what the mirror runs, of drift windows."""

    exporter: SignalExporterName | None = Field(None, description="Default: the shared one.")
    sample_ratio: float | None = Field(
        None, ge=0, le=1,
        description="Share of the traces that begin here which are recorded; default: 1, or what "
        "OTEL_TRACES_SAMPLER says.",
    )  # fmt: skip
    trust_callers: bool | None = Field(
        None, description="Whether a caller's sampled flag decides; default: yes. Off: only "
        "`sample_ratio` does.",
    )  # fmt: skip


class MetricsConfig(SignalConfig):
    """Counters, gauges and histograms."""

    exporter: ExporterName | None = Field(None, description="Default: the shared one.")
    interval_s: float | None = Field(
        None, ge=0.1, le=3600, description="Between two exports; default: 60."
    )


class LogsConfig(SignalConfig):
    """Log records of the gateway and the monitor, beside what goes to standard error."""

    exporter: SignalExporterName | None = Field(None, description="Default: the shared one.")


class TelemetryConfig(Settings):
    """What is told through OpenTelemetry, and where to.

    Standard OTEL_* variables fill in what is not set here. With neither, nothing is told. An
    endpoint without an exporter means otlp-grpc on port 4317, and otlp-http otherwise.
    """

    exporter: ExporterName | None = Field(
        None, description="Of all signals: otlp-grpc, otlp-http, prometheus (metrics alone), "
        "console (JSON lines), none.",
    )  # fmt: skip
    endpoint: Endpoint | None = Field(
        None, description="`http://host:4317` (otlp-grpc), `http://host:4318` (otlp-http)."
    )
    headers: dict[HeaderName, Secret] | None = Field(
        None, description="Sent with each export: credentials, tenants."
    )
    timeout_s: float | None = Field(
        None, ge=0.01, le=3600, description="Of one attempt; default: 10."
    )
    compression: Compression | None = Field(None, description="Of OTLP; default: none.")
    certificate: ExistingPath | None = Field(
        None, description="PEM: the authorities to trust; default: the system's."
    )
    client_certificate: ExistingPath | None = Field(None, description="PEM, for mutual TLS.")
    client_key: ExistingPath | None = Field(None, description="PEM, for mutual TLS.")
    resource: dict[AttributeName, str] = Field(
        default_factory=dict,
        description="Attributes of everything that is told (`service.name`, …).",
    )
    prometheus: Annotated[str, AfterValidator(_host_and_port)] | None = Field(
        None, description="host:port of the endpoint to scrape; default: 127.0.0.1:9464."
    )
    queue_spans: int = Field(
        2048, ge=1, le=1_000_000, description="Spans that wait for the backend; then the oldest go."
    )
    traces: TracesConfig = TracesConfig()
    metrics: MetricsConfig = MetricsConfig()
    logs: LogsConfig = LogsConfig()
