"""What pydantic found, said for the person who wrote the file.

Paths are those of the file (pydantic adds the branch of a union to them), a consequence of another
mistake is left out, and the value of a secret is never shown.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from datetime import date
from typing import Any, get_args

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic_core import ErrorDetails

from sidecar.errors import Problem

_SHOWN_CHARACTERS_MAX = 80
_ENV_ANYWHERE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")

_TEXT = "text"
# What a value must be, for the mistakes that say nothing but that it is something else.
_MUST_BE = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "path_type": "a path",
    "string_type": _TEXT,
}
_PLAIN = {
    "missing": "is required",
    "too_short": "needs at least one item",
    "string_too_short": "is empty",
    "invalid_key": "the key must be text: put it in quotes",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}
# Regular expressions of the tree, in words.
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "must begin with a letter or digit and hold only letters, "
    "digits, '.', '_', '-'",
    r"^[A-Za-z0-9_.-]+$": "is no header's name: letters, digits, '.', '_', '-' only",
    r"^(cpu|cuda(:\d+)?)$": "is no device; write cpu, cuda, or cuda:0",
}
_SENTENCES: dict[str, Callable[[dict[str, Any], str], str]] = {
    "value_error": lambda context, _: str(context["error"]),
    "string_too_long": lambda context, _: f"is longer than {context['max_length']} characters",
    "literal_error": lambda context, shown: f"{shown} is not one of {context['expected']}",
    "string_pattern_mismatch": lambda context, shown: (
        f"{shown} {_PATTERNS.get(context['pattern'], 'does not match ' + context['pattern'])}"
    ),
    "union_tag_invalid": lambda context, _: (
        f"kind {context['tag']!r} is unknown; choose one of: {context['expected_tags']}"
    ),
}


def problems(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Every mistake in ``error``, each with its path, without repetitions."""
    items = error.errors(include_url=False)
    found = [_problem(item, root) for item in items if not _is_consequence(item)]
    return list(dict.fromkeys(found))


def environment_problems(tree: Any, root: type[BaseModel]) -> list[Problem]:
    """``${NAME}`` where it would be taken for plain text: anywhere but in a secret."""
    found = []
    for location, value in _strings(tree, ()):
        match = _ENV_ANYWHERE.search(value)
        if match is None:
            continue
        if not _is_secret(location, root):
            message = f"{match.group()} is read from the environment in secrets only; write it out"
            found.append(Problem(path_of(location, root), message))
        elif match.group() != value:
            message = f"{match.group()} must stand alone, without other text around it"
            found.append(Problem(path_of(location, root), message))
    return found


def path_of(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    """``models[0].name`` of ``("models", 0, "name")``."""
    path = ""
    for part, models in zip(location, _models_along(location, root), strict=True):
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != "[key]" and not _is_branch(part, models):
            path += f".{part}" if path else str(part)
    return path


def _problem(item: ErrorDetails, root: type[BaseModel]) -> Problem:
    location = item["loc"]
    shown = "the given value" if _is_secret(location, root) else _show(item["input"])
    return Problem(path_of(location, root), _message(item, shown, root))


def _message(item: ErrorDetails, shown: str, root: type[BaseModel]) -> str:
    kind = item["type"]
    context = item.get("ctx", {})
    if kind == "too_short" and item["input"] == "":  # pydantic counts a secret's characters so
        kind = "string_too_short"
    if kind in _PLAIN:
        return _PLAIN[kind]
    if kind in _MUST_BE:
        return _must_be(_MUST_BE[kind], item["input"], shown)
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"must be {words} {_bound(context[bound])}, not {shown}"
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(item['loc'], root)}"
    if kind in _SENTENCES:
        return _SENTENCES[kind](context, shown)
    if kind == "union_tag_not_found":
        return f"needs a `kind`, one of: {', '.join(_kinds(item['loc'], root))}"
    message = item["msg"]
    return f"{message[:1].lower()}{message[1:]}, not {shown}"


def _must_be(what: str, value: Any, shown: str) -> str:
    if value is None:
        return f"is empty; it must be {what}"
    if what == _TEXT and isinstance(value, int | float | date):
        return f"must be text, not {shown}: put it in quotes"
    if isinstance(value, dict | list):
        shown = "a mapping" if isinstance(value, dict) else "a list"
    return f"must be {what}, not {shown}"


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # an integer beyond what Python prints
        text = "a huge number"
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…"


def _bound(value: float) -> str:
    return str(int(value) if float(value).is_integer() else value)


def _is_consequence(item: ErrorDetails) -> bool:
    # A list whose items are all wrong counts as empty for pydantic; what is wrong with the items
    # has been said already.
    return item["type"] == "too_short" and bool(item["input"])


def _suggestion(location: tuple[int | str, ...], root: type[BaseModel]) -> str:
    *_, models = _models_along(location, root)
    known = sorted({name for model in models for name in model.model_fields})
    close = difflib.get_close_matches(str(location[-1]), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""


def _kinds(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    *_, parents = _models_along(location, root)
    models = _step(parents, location[-1]) if location else []
    return [kind for model in models for kind in _kind_of(model)]


# --- walking the model beside a location --------------------------------------------------------


def _models_along(
    location: tuple[int | str, ...], root: type[BaseModel]
) -> Iterator[list[type[BaseModel]]]:
    """For each part of ``location``, the nodes it may be a key of."""
    models = [root]
    for part in location:
        yield models
        models = _step(models, part)


def _step(models: list[type[BaseModel]], part: int | str) -> list[type[BaseModel]]:
    if _is_branch(part, models):
        return [model for model in models if part in _kind_of(model)]
    fields = [model.model_fields[part] for model in models if part in model.model_fields]
    if not fields:
        return models  # an index, or a key of a mapping: the nodes inside are the same
    return [
        found
        for field in fields
        for found in _flatten(field.annotation)
        if isinstance(found, type) and issubclass(found, BaseModel)
    ]


def _is_branch(part: int | str, models: list[type[BaseModel]]) -> bool:
    return len(models) > 1 and any(part in _kind_of(model) for model in models)


def _kind_of(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return () if field is None else get_args(field.annotation)


def _flatten(annotation: Any) -> Iterator[Any]:
    arguments = get_args(annotation)
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _flatten(argument)


def _is_secret(location: tuple[int | str, ...], root: type[BaseModel]) -> bool:
    if not location or location[-1] == "[key]":
        return False
    # Of a mapping's value, what holds the mapping says it: there are no fields further in.
    along = list(zip(location, _models_along(location, root), strict=True))
    part, models = next(((part, models) for part, models in reversed(along) if models), ("", []))
    fields = [model.model_fields.get(str(part)) for model in models]
    return any(SecretStr in _flatten(field.annotation) for field in fields if field is not None)


def _strings(
    node: Any, location: tuple[int | str, ...]
) -> Iterator[tuple[tuple[int | str, ...], str]]:
    if isinstance(node, str):
        yield location, node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from _strings(value, (*location, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _strings(value, (*location, index))
