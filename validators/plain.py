"""Dataclasses to plain values that JSON has, and back, checked against their annotations."""

from __future__ import annotations

import dataclasses
import math
import types
from enum import StrEnum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

_T = TypeVar("_T")


def to_plain(value: Any) -> Any:
    """Dataclasses become dicts, enums and non-finite numbers text; all else must be JSON's own."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {item.name: to_plain(getattr(value, item.name)) for item in fields}
    if isinstance(value, StrEnum):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if hasattr(value, "item"):  # a numpy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def from_plain(kind: type[_T], plain: object, where: str = "report") -> _T:
    """Read a dataclass of this module back.

    Unknown keys are mistakes: a field that nobody reads would be a silent loss.

    Raises:
        ValueError: says where, what was found, and what belongs there.
    """
    if not isinstance(plain, dict):
        raise _wrong(where, plain, "an object")
    hints = get_type_hints(kind)
    if unknown := sorted(set(plain) - set(hints)):
        message = f"{where}: unknown key {unknown[0]!r}"
        raise ValueError(message)
    values = {name: _read(hints[name], item, f"{where}.{name}") for name, item in plain.items()}
    try:
        return kind(**values)
    except TypeError as error:
        message = f"{where}: {error}"
        raise ValueError(message) from None


def _read(hint: Any, value: object, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in {types.UnionType, Union}:
        if value is None and type(None) in arguments:
            return None
        inner = [argument for argument in arguments if argument is not type(None)]
        return _read(inner[0], value, where)
    if origin is list:
        if not isinstance(value, list):
            raise _wrong(where, value, "a list")
        return [_read(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if origin is dict:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        return {key: _read(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, where)
    return _scalar(hint, value, where)


def _scalar(hint: Any, value: object, where: str) -> Any:
    if hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if value in ("nan", "inf", "-inf"):  # a tuple: what was found need not be hashable
            return float(str(value))
        raise _wrong(where, value, "a number")
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in list(hint):
            raise _wrong(where, value, f"one of {', '.join(hint)}")
        return hint(str(value))
    if isinstance(hint, type) and type(value) is not hint:
        raise _wrong(where, value, f"of type {hint.__name__}")
    return value


def _wrong(where: str, value: object, wanted: str) -> ValueError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}…"
    return ValueError(f"{where} is {shown}; it must be {wanted}")
