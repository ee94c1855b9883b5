"""The part of the configuration that says when a new version is taken back, and how."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sidecar.config_runtime import ExistingPath, Settings, Version
from sidecar.config_secret import Secret

_DNS_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
DnsName = Annotated[str, Field(pattern=_DNS_NAME)]
Share = Annotated[float, Field(ge=0, le=1e9)]
HttpUrl = Annotated[str, Field(pattern=r"^https?://[^\s]+$")]


class HarmConfig(Settings):
    """One thing that a new version may be worse at."""

    enabled: bool = Field(True, description="Off: nobody looks at it.")
    weight: float = Field(1.0, gt=0, le=1000, description="Its part of α, beside the others'.")
    act: bool = Field(True, description="Off: it only alerts.")


class RateHarmConfig(HarmConfig):
    """A harm that happens to a request or does not."""

    margin: float = Field(
        0.0, ge=0, lt=19, description="How much more of it is tolerated: 0.1 is a tenth more."
    )


class FlipHarmConfig(HarmConfig):
    """Answers that change. A version that was trained anew is meant to change some."""

    budget: float | None = Field(
        None, gt=0, lt=1, description="Share of rows that may change; default: what `sidecar "
        "validate` recorded for the pair. Without one, flips only alert.",
    )  # fmt: skip


class ServedConfig(Settings):
    """Errors and fallbacks while serving: an alert of their own, with no pairs and no action."""

    enabled: bool = Field(True, description="Off: no such alert.")
    limit: float = Field(
        0.01, gt=0, lt=1, description="Share of a version's requests that may fail or fall back."
    )


class CalibrationConfig(Settings):
    """The previous version beside itself: what looks like a difference where there is none."""

    rate: float = Field(
        0.1, ge=0, le=1, description="Share of pairs on which the previous version runs twice."
    )
    pairs: int = Field(
        300, ge=50, le=1_000_000, description="So many, and clean, before latency may act."
    )


class KubernetesConfig(Settings):
    """Which API server; default: the cluster that this pod runs in."""

    kubeconfig: ExistingPath | None = Field(None, description="Outside of a cluster.")
    context: str | None = Field(None, description="Of the kubeconfig; default: its current one.")
    timeout_s: float = Field(10, gt=0, le=300, description="Of one call.")


class ObserveConfig(Settings):
    """Decide and tell, and touch nothing."""

    kind: Literal["observe"] = "observe"


class SwitchConfig(Settings):
    """The gateway routes to the previous version, which it holds warm."""

    kind: Literal["switch"]


class DeploymentConfig(Settings):
    """Roll a Kubernetes Deployment back to its last healthy revision before this one."""

    kind: Literal["deployment"]
    namespace: DnsName = Field(description="Of the Deployment.")
    name: DnsName = Field(description="Of the Deployment.")
    kubernetes: KubernetesConfig = KubernetesConfig()


class ArgoConfig(Settings):
    """Abort the update of an Argo Rollout."""

    kind: Literal["argo"]
    namespace: DnsName = Field(description="Of the Rollout.")
    name: DnsName = Field(description="Of the Rollout.")
    kubernetes: KubernetesConfig = KubernetesConfig()


class KServeConfig(Settings):
    """Take the canary traffic of a KServe InferenceService back to 0."""

    kind: Literal["kserve"]
    namespace: DnsName = Field(description="Of the InferenceService.")
    name: DnsName = Field(description="Of the InferenceService.")
    kubernetes: KubernetesConfig = KubernetesConfig()


class WebhookConfig(Settings):
    """Ask a delivery system to roll back."""

    kind: Literal["webhook"]
    url: HttpUrl = Field(description="It is sent a POST with JSON.")
    headers: dict[str, Secret] = Field(default_factory=dict, description="`${NAME}`: environment.")
    timeout_s: float = Field(10, gt=0, le=300, description="Of one call.")


ActionConfig = Annotated[
    ObserveConfig | SwitchConfig | DeploymentConfig | ArgoConfig | KServeConfig | WebhookConfig,
    Field(discriminator="kind"),
]


class RollbackConfig(Settings):
    """Scheduled checks of a new version against the previous one."""

    enabled: bool | None = Field(
        None, description="Default: where a variant is a `previous` version or a `candidate`."
    )
    interval_s: float = Field(10, ge=0.1, le=86400, description="How often it is looked at.")
    alpha_alert: float = Field(0.05, gt=0, lt=1, description="Chance of ever alerting falsely.")
    alpha_act: float = Field(0.01, gt=0, lt=1, description="Chance of ever acting falsely.")
    min_pairs: int = Field(100, ge=1, description="Fewer pairs are `insufficient`, never `ok`.")
    stale_after_s: float = Field(
        900, gt=0, description="So long without a new pair while requests come: a staleness alert."
    )
    cooldown_s: float = Field(3600, ge=0, description="One action in so much time.")
    verify_within_s: float = Field(
        60, gt=0, le=86400, description="Until then the effect must show in the traffic."
    )
    approve: bool = Field(
        False, description="Actions wait for `sidecar rollback approve`."
    )  # fmt: skip
    error: RateHarmConfig = RateHarmConfig()
    latency: HarmConfig = HarmConfig()
    flip: FlipHarmConfig = FlipHarmConfig()
    accuracy: RateHarmConfig = RateHarmConfig()
    output: HarmConfig = HarmConfig(act=False)
    served: ServedConfig = ServedConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    action: ActionConfig = ObserveConfig()


class RouteConfig(Settings):
    """Which version answers requests that name none; changed at run time by `sidecar route`."""

    shares: dict[Version, Share] = Field(
        default_factory=dict,
        description="Version to its share, by weight; default: all to `default_version`.",
    )
    sticky: str | None = Field(
        None, pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=200,
        description="A metadata key (HTTP: header): requests with the same value go to the same "
        "version.",
    )  # fmt: skip


class LabelsConfig(Settings):
    """Late labels: what the right answer was, told after the request."""

    output: str | None = Field(
        None, description="The output that labels are of; default: the one of class scores."
    )
    within_s: float = Field(
        86400, gt=0, description="An answer waits so long for its label; then none will come."
    )
    max_waiting: int = Field(
        100_000, ge=1, le=100_000_000, description="Answers that wait; then the oldest go."
    )


__all__ = ["LabelsConfig", "RollbackConfig", "RouteConfig"]
