"""The checked configuration as plain objects, for a process that only reads it.

Checking needs pydantic, whose import costs a process 15 MB and a third of its start-up. A worker's
configuration was checked by the supervisor, which hands it on in this form: ``pack`` makes JSON
values of the typed tree, ``unpack`` makes objects of them that have the same attributes (properties
are worked out by ``pack``). Here as there the tree is read-only, and a secret shows itself to
nobody who does not ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import override

from sidecar.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sidecar.config import AdminConfig


class Node:
    """One node of the tree: its attributes are what is set, and the properties."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)

    @override
    def __setattr__(self, name: str, value: object) -> NoReturn:
        message = f"the configuration is read-only, '{name}' too"
        raise AttributeError(message)

    @override
    def __repr__(self) -> str:
        return f"Node({self.__dict__})"


class PlainSecret:
    """A secret, as pydantic's ``SecretStr`` keeps it."""

    def __init__(self, value: str) -> None:
        self._value = value

    def get_secret_value(self) -> str:
        """The secret itself."""
        return self._value

    @override
    def __repr__(self) -> str:
        return "PlainSecret('**********')"


def pack(value: Any) -> Any:
    """The typed tree, or a part of it, as JSON values. With its secrets: for our own processes."""
    kind = type(value)
    if hasattr(kind, "model_fields"):
        names = [*kind.model_fields, *_properties(kind)]
        return {"node": {name: pack(getattr(value, name)) for name in names}}
    if hasattr(kind, "get_secret_value"):
        return {"secret": value.get_secret_value()}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, dict):  # as pairs: the keys of free values need not be text
        return {"dict": [[pack(key), pack(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [pack(item) for item in value]}
    if isinstance(value, list):
        return [pack(item) for item in value]
    return value


def unpack(plain: Any) -> Any:
    """What ``pack`` was given, as objects with the same attributes."""
    if isinstance(plain, list):
        return [unpack(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    ((kind, value),) = plain.items()
    if kind == "node":
        return Node({name: unpack(item) for name, item in value.items()})
    if kind == "secret":
        return PlainSecret(value)
    if kind == "path":
        return Path(value)
    if kind == "dict":
        return {unpack(key): unpack(item) for key, item in value}
    return tuple(unpack(item) for item in value)


def _properties(kind: type) -> list[str]:
    """The names of the properties that our own classes have."""
    return [
        name
        for base in kind.__mro__
        if base.__module__.startswith("sidecar.")
        for name, value in vars(base).items()
        if isinstance(value, property)
    ]


def read_token(admin: AdminConfig) -> str | None:
    """The admin token, from wherever it is kept; ``None`` when none is asked for.

    Raises:
        ConfigError: the file cannot be read, or holds nothing. (An empty token would let
            everybody in who sends an empty one.)
    """
    if admin.token_file is None:
        return None if admin.token is None else admin.token.get_secret_value()
    try:
        token = admin.token_file.read_text(encoding="utf-8").strip()
        message = "" if token else "is empty"
    except OSError as error:
        token, message = "", f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        token, message = "", "is not text"
    if message:
        problem = Problem("gateway.admin.token_file", message)
        raise ConfigError(str(admin.token_file), [problem])
    return token
