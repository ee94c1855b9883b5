"""The part of the configuration that says when two variants agree (see ``config.py``)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sidecar.config_runtime import Settings

Precision = Literal["fp64", "fp32", "tf32", "fp16", "bf16", "int8"]
OutputKind = Literal[
    "tensor", "class_scores", "embedding", "boxes", "masks", "token_ids", "regression", "exact"
]
RetentionClass = Literal["safety-critical", "production", "edge"]
#: How much accuracy a variant may lose, as a share of predictions.
RETENTION_LIMITS: dict[str, float] = {"safety-critical": 0.001, "production": 0.01, "edge": 0.05}

_LIMIT = re.compile(r"\s*(<=|>=)?\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*")


def _limit(value: str | float) -> str | float:
    if isinstance(value, str) and not _LIMIT.fullmatch(value):
        message = f"{value!r} is not a limit; write a number, or a comparison like '<= 0.01'"
        raise ValueError(message)
    return value


#: ``"<= 0.01"``, ``">= 40"``; a bare number takes the metric's own direction.
LimitText = Annotated[str | float, AfterValidator(_limit)]


class OutputConfig(Settings):
    """How one output is compared."""

    kind: OutputKind | None = Field(
        None, description="What it holds; default: inferred, and said what was inferred."
    )
    limits: dict[str, LimitText] | None = Field(
        None,
        description='Metric to limit (`sqnr_db: ">= 40"`); replaces the defaults of the '
        "precision. A bare number takes the metric's own direction.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Of the kind: `unit`, `iou`, `k`, …; see comparators.md."
    )


class ValidationConfig(Settings):
    """When variants of this model agree, and what may be promised about it."""

    retention_class: RetentionClass = Field(
        "production",
        description="How much accuracy may be lost: safety-critical 0.1 %, production 1 %, "
        "edge 5 %.",
    )
    alpha: float = Field(
        0.05, gt=0, lt=0.5, description="The risk that a certificate is wrong: 0.05 is 95 % sure."
    )
    outputs: dict[str, OutputConfig] = Field(
        default_factory=dict, description="Output name to how it is compared."
    )
    latency_margin: float = Field(
        0.1, ge=0, le=10, description="A version is slow beyond previous × (1 + this)."
    )

    @model_validator(mode="after")
    def _known_limits(self) -> ValidationConfig:
        if not self.outputs:
            return self
        from validators.comparators import check_policy

        for name, output in self.outputs.items():
            check_policy(name, output.kind, output.limits, output.options)
        return self
