"""Secrets in the configuration: from the environment, never written down (see ``config.py``)."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo

_ENV = re.compile(r"^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$")


def _from_environment(value: Any, info: ValidationInfo) -> Any:
    """Secrets only: ``${NAME}`` is read from the environment, and a missing one is a mistake."""
    if isinstance(value, str) and (match := _ENV.match(value)):
        name = match.group(1)
        value = (info.context or {}).get("environ", {}).get(name)
        if not value:
            state = "is not set" if value is None else "is empty"
            message = f"the environment variable {name} {state}"
            raise ValueError(message)
    return value


Secret = Annotated[SecretStr, BeforeValidator(_from_environment), Field(min_length=1)]
