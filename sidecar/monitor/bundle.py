"""Many small sets of tensors as few large ones, for the channel to the mirror child.

Sent one by one, sixty-four requests of a small model are hundreds of parts; joined along their
first axis, those of one structure are one part a tensor. Joining costs a copy, which at these sizes
is nothing beside a part's own cost; taking apart again gives views.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sidecar.frames import Bytes, pack_arrays, unpack_arrays
from sidecar.runtimes.base import Array

Arrays = Mapping[str, Array]


def structure(arrays: Arrays) -> tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]:
    """What sets of tensors must have in common to be joined: names, dtypes, all but the first axis.

    A tensor without axes is marked by ``(-1,)``: such ones are stacked.
    """
    return tuple(
        (name, array.dtype, array.shape[1:] if array.ndim else (-1,))
        for name, array in arrays.items()
    )


def pack_many(sets: Sequence[Arrays]) -> tuple[list[dict[str, Any]], list[Bytes]]:
    """Return JSON values that describe ``sets``, and the parts that hold their data.

    Args:
        sets: each maps names to arrays of the protocol's dtypes, with any shapes.
    """
    groups: dict[Any, list[int]] = {}
    for index, arrays in enumerate(sets):
        groups.setdefault(structure(arrays), []).append(index)
    described: list[dict[str, Any]] = []
    parts: list[Bytes] = []
    for key, members in groups.items():
        joined: dict[str, Array] = {}
        rows: list[list[int]] = []
        for name, _, trailing in key:
            pieces = [sets[index][name] for index in members]
            if trailing == (-1,):
                joined[name] = np.stack(pieces)
                rows.append([-1])
            else:
                joined[name] = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
                rows.append([len(piece) for piece in pieces])
        specs, more = pack_arrays(joined)
        described.append({"members": members, "rows": rows, "specs": specs, "parts": len(more)})
        parts += more
    return described, parts


def unpack_many(
    described: Sequence[Mapping[str, Any]], parts: Sequence[Bytes]
) -> list[dict[str, Array]]:
    """Return what ``pack_many`` was given; the arrays are views, read-only where the parts are.

    Raises:
        ValueError: the description does not fit the parts.
    """
    found: dict[int, dict[str, Array]] = {}
    taken = 0
    for group in described:
        count = group["parts"]
        joined = unpack_arrays(group["specs"], parts[taken : taken + count])
        taken += count
        members: list[int] = group["members"]
        for index in members:
            found[index] = {}
        for (name, array), rows in zip(joined.items(), group["rows"], strict=True):
            start = 0
            for position, index in enumerate(members):
                if rows[0] == -1:
                    # Not array[position], which would be a scalar without a dtype of its own.
                    found[index][name] = array[position : position + 1].reshape(())
                    continue
                end = start + rows[position]
                found[index][name] = array[start:end]
                start = end
    if sorted(found) != list(range(len(found))):
        message = "a bundle's members are not numbered from 0 without gaps"
        raise ValueError(message)
    return [found[index] for index in range(len(found))]
