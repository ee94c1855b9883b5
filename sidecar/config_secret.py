"""Secrets in the configuration: from the environment, never written down (see ``config.py``).

Gateway and monitor may be containers of their own with one configuration, and each has in its
environment what it needs itself. What only the other one uses may be missing there: it is then not
read, and stands for nothing.
"""

from __future__ import annotations

import re
import secrets
from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationInfo

#: Who reads the configuration, where it is not both in one.
Reader = Literal["gateway", "monitor"]

_ENV = re.compile(r"^\$\{([A-Za-z_][A-Za-z0-9_]*)\}$")


def _from_environment(user: Reader, value: Any, info: ValidationInfo) -> Any:
    """Secrets only: ``${NAME}`` is read from the environment, and a missing one is a mistake."""
    if isinstance(value, str) and (match := _ENV.match(value)):
        name = match.group(1)
        context = info.context or {}
        value = context.get("environ", {}).get(name)
        if not value:
            if context.get("reader") not in (None, user):
                # Nobody knows it: a token that a caller must have is refused to everybody.
                return secrets.token_urlsafe(32)
            state = "is not set" if value is None else "is empty"
            message = f"the environment variable {name} {state}"
            raise ValueError(message)
    return value


#: One that only the monitor uses.
Secret = Annotated[
    SecretStr, BeforeValidator(partial(_from_environment, "monitor")), Field(min_length=1)
]
#: One that the gateway uses, and the monitor where it has it.
GatewaySecret = Annotated[
    SecretStr, BeforeValidator(partial(_from_environment, "gateway")), Field(min_length=1)
]
