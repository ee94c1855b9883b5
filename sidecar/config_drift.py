"""The part of the configuration that says how a model's traffic is watched for drift."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from sidecar.config_runtime import AnyPath, Settings

DescriptorKind = Literal["tensor", "class_scores", "embedding", "image", "features", "exact"]


class DescriptorConfig(Settings):
    """How one tensor becomes columns."""

    kind: DescriptorKind | None = Field(
        None, description="Default: told by the tensor's declared kind, its type and shape."
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Of the kind: names of features, layout of images, …"
    )


class DeepConfig(Settings):
    """Evidently's tests on a schedule, in a child process (the extra `drift`)."""

    enabled: bool = Field(True, description="Where Evidently is installed.")
    every_s: float = Field(3600, ge=1, description="How often.")
    rows: int = Field(5000, ge=100, le=1_000_000, description="Of the live sample it looks at.")
    html: Literal["on_alarm", "always", "never"] = Field(
        "on_alarm", description="Pages are slow to make; `sidecar drift --open` makes one as well."
    )
    keep: int = Field(20, ge=1, le=10_000, description="Reports on disk; then the oldest go.")
    timeout_s: float = Field(300, gt=0, le=86400, description="Then the child is ended.")
    memory_max_bytes: int = Field(
        2 * 2**30, ge=2**28, description="Address space the child may take on top of its start."
    )


class DriftConfig(Settings):
    """Whether the traffic of a model is still like its reference."""

    enabled: bool | None = Field(
        None, description="Default: wherever a monitor runs. On: start one for it."
    )
    reference: AnyPath | None = Field(
        None, description="A file that `sidecar reference` made; without one, the first rows that "
        "come are the reference.",
    )  # fmt: skip
    reference_rows: int = Field(
        5000, ge=1000, le=1_000_000, description="How many first rows, where there is no file."
    )
    sample_rate: float = Field(
        1.0, ge=0, le=1, description="Share of the sampled requests that are looked at."
    )
    window_rows: int = Field(500, ge=50, le=1_000_000, description="Rows of a full window.")
    window_max_s: float = Field(
        3600, gt=0, description="A window closes at this age, however few rows it has."
    )
    min_rows: int = Field(
        500, ge=50, description="Fewer rows than these are not judged: insufficient data."
    )
    block_rows: int | None = Field(
        None, ge=1, description="Rows that belong together; default: found from the reference."
    )
    expected_windows_between_false_alarms: float = Field(
        2000, ge=5, le=1_000_000, description="How rare alarms without drift are to be."
    )
    inputs: dict[str, DescriptorConfig] | None = Field(
        None, description="By name; default: every input. An empty mapping: none."
    )
    outputs: dict[str, DescriptorConfig] | None = Field(
        None, description="By name; default: every output. An empty mapping: none."
    )
    methods: dict[str, str] = Field(
        default_factory=dict, description="Column → distance, where not the default."
    )
    deep: DeepConfig = DeepConfig()
