"""The part of the configuration that says what is served: models and their variants (see
``config.py``)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sidecar.config_drift import DriftConfig
from sidecar.config_rollback import LabelsConfig, RollbackConfig, RouteConfig
from sidecar.config_runtime import Name, RuntimeConfig, Settings, TensorConfig, Version
from sidecar.config_validation import Precision, ValidationConfig

Role = Literal["serving", "reference", "mirror", "previous", "fallback", "candidate"]


class BatchingConfig(Settings):
    """Joining requests: worth it where a batch costs less than its parts; off by default."""

    max_size: int = Field(1, ge=1, le=65536, description="Rows in one execution; 1: off.")
    max_delay_ms: float = Field(
        1.0, ge=0, le=10_000, description="How long the first request of a batch may wait."
    )
    max_queue: int = Field(1024, ge=1, le=1_000_000, description="Requests waiting; then refused.")


class FallbackConfig(Settings):
    """When the variant with the role `fallback` answers instead of the serving one."""

    after_ms: float | None = Field(
        None, gt=0, le=3_600_000, description="Serving slower than this counts as failed; off: null"
    )


class VariantConfig(Settings):
    """One version of the model in one format on one runtime."""

    name: Name = Field(description="Unique within its version: `onnx`, `int8`, …")
    version: Version = Field(description="The version it is a form of.")
    roles: tuple[Role, ...] = Field(
        min_length=1,
        description="serving: answers clients; fallback: answers when serving fails; reference: "
        "its answers are the truth; mirror: compared only; previous: the version before; "
        "candidate: compared with the version that serves; answers nobody until promoted.",
    )
    runtime: RuntimeConfig = Field(description="What executes it, by `kind`.")
    precision: Precision | None = Field(
        None,
        description="What it computes in, which says how far it may differ from the reference; "
        "default: told by the artifact.",
    )
    inputs: tuple[TensorConfig, ...] | None = Field(
        None, description="Only where the artifact does not carry them."
    )
    outputs: tuple[TensorConfig, ...] | None = Field(None, description="As `inputs`.")
    classes: dict[str, tuple[str, ...]] = Field(
        default_factory=dict,
        description="Output to the names of its classes, in the order of its scores. Late labels "
        "may then be names, and versions with another order are not compared.",
    )

    @property
    def key(self) -> str:
        """``version/name``: unique within the model."""
        return f"{self.version}/{self.name}"


class ModelConfig(Settings):
    """One model: its variants, in order of version (the last is the newest)."""

    name: Name = Field(description="What clients call it.")
    variants: tuple[VariantConfig, ...] = Field(
        min_length=1, description="In order of version: the last serving one is the newest."
    )
    default_version: Version | None = Field(
        None, description="Which version answers requests that name none; default: the newest."
    )
    batching: BatchingConfig = BatchingConfig()
    fallback: FallbackConfig = FallbackConfig()
    cache: bool = Field(False, description="Answer repeated requests from the response cache.")
    validation: ValidationConfig = ValidationConfig()
    drift: DriftConfig = DriftConfig()
    route: RouteConfig = RouteConfig()
    rollback: RollbackConfig = RollbackConfig()
    labels: LabelsConfig | None = Field(
        None, description="Late labels are taken, and answers wait for theirs; `{}` is enough."
    )

    @property
    def is_watched(self) -> bool:
        """Whether there is anything to compare its answers with."""
        watched = {"reference", "mirror", "previous", "candidate"}
        return any(watched & set(variant.roles) for variant in self.variants)

    @property
    def is_split(self) -> bool:
        """Whether several versions are to share its requests, which somebody has to steer."""
        return bool(self.route.shares) or self.route.sticky is not None

    @model_validator(mode="before")
    @classmethod
    def _name_on_remotes(cls, tree: Any) -> Any:
        """On another server the model has the same name, unless the config gives its name there.

        Filled in here, since nothing below a variant knows which model it belongs to. The tree may
        be wrong in any way: what does not look right is left for the checks that follow.
        """
        if not isinstance(tree, dict) or not isinstance(tree.get("variants"), list | tuple):
            return tree
        return {**tree, "variants": [_named(item, tree.get("name")) for item in tree["variants"]]}


def _named(variant: Any, model_name: Any) -> Any:
    runtime = variant.get("runtime") if isinstance(variant, dict) else None
    if not isinstance(model_name, str) or not isinstance(runtime, dict):
        return variant
    if runtime.get("kind") != "remote" or runtime.get("model_name") is not None:
        return variant
    return {**variant, "runtime": {**runtime, "model_name": model_name}}
