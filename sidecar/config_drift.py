"""The part of the configuration that says how a model's traffic is watched for drift."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

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
        None, description="Default: where a reference is given, or a monitor samples the model "
        "anyway. On: start a monitor for it.",
    )  # fmt: skip
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

    @property
    def wanted(self) -> bool:
        """Whether a monitor has to run for it, whatever else one is needed for."""
        return self.enabled is True or (self.enabled is None and self.reference is not None)

    @model_validator(mode="after")
    def _makes_sense(self) -> DriftConfig:
        if self.enabled is False:
            return self
        if self.window_rows < self.min_rows:
            message = f"window_rows is {self.window_rows}, under min_rows ({self.min_rows}): no "
            message += "window would ever be judged; raise the one or lower the other"
            raise ValueError(message)
        if self.block_rows is not None and self.block_rows > self.window_rows:
            message = f"block_rows is {self.block_rows}, more than window_rows ({self.window_rows})"
            raise ValueError(message)
        if self.reference is None and self.reference_rows < 2 * self.window_rows:
            message = f"reference_rows is {self.reference_rows}: windows of {self.window_rows} rows"
            message += f" need {2 * self.window_rows} at least, better {10 * self.window_rows}"
            raise ValueError(message)
        if self.inputs == {} and self.outputs == {}:
            message = "inputs and outputs are both empty, so nothing would be watched: name some, "
            message += "or set enabled: false"
            raise ValueError(message)
        self._check_names()
        return self

    def _check_names(self) -> None:
        """Unknown kinds of descriptors, their options, and methods: what is known without data."""
        if self.methods:
            from validators.drift.distances import BUILTIN

            for column, method in self.methods.items():
                if method not in BUILTIN:
                    known = ", ".join(BUILTIN)
                    message = f"methods.{column}: no distance {method!r}; known: {known}"
                    raise ValueError(message)
        for side, named in (("inputs", self.inputs), ("outputs", self.outputs)):
            for name, one in (named or {}).items():
                if one.kind is None:
                    continue
                from validators.drift.descriptors import build

                try:
                    build(one.kind, name, one.options)
                except ValueError as error:
                    message = f"{side}.{name}: {error}"
                    raise ValueError(message) from None
