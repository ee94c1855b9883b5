"""How one output is compared: kind, limits, options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from validators.limits import Limit


@dataclass(frozen=True, slots=True)
class OutputPolicy:
    """`inferred` is the sentence that says what was inferred and why; empty when declared."""

    kind: str
    limits: tuple[Limit, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    inferred: str = ""
