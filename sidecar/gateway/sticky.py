"""Requests of one user go to one version: by the hash of a metadata value, where one is configured.

Workers need not agree on anything for it, nor remember anything: the value's point is the same
everywhere, and the route says which version it lies in (``route_table.Split``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import random

from sidecar.route_table import point_of

Keys = Mapping[str, str]  # model → its metadata key


def of_metadata(
    keys: Keys, model: str, metadata: Sequence[tuple[str, str | bytes]]
) -> float | None:
    """A gRPC request's point; ``None``: its model has no key, or it came without a value.

    Of several values the last counts, as over HTTP.
    """
    key = keys.get(model)
    if key is None:
        return None
    found: str | bytes = b""
    for name, value in metadata:
        if name == key:
            found = value
    raw = found if isinstance(found, bytes) else found.encode("utf-8", "surrogateescape")
    return point_of(raw, model) if raw else None


def of_headers(keys: Keys, model: str, headers: Mapping[bytes, bytes]) -> float | None:
    """The same of an HTTP request: the same value gives the same point."""
    key = keys.get(model)
    value = None if key is None else headers.get(key.encode())
    return point_of(value, model) if value else None


def drawn(point: float | None) -> float:
    """A request that is looked at twice must be drawn once."""
    return random() if point is None else point  # noqa: S311 - a share is no secret
