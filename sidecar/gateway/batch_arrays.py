"""Joining the arrays of several requests, and splitting what comes back: pure functions.

Batches are joined into fresh arrays. Reusing one buffer was rejected: it gained nothing that could
be measured (32 x 64 KiB: 57 and 56 us; 32 x 588 KiB: 1.37 and 1.36 ms), and an output that is a
view of an input (an identity) would have shown one client the next one's data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sidecar.errors import ExecutionError, InvalidRequestError, RequestError, UpstreamError
from sidecar.runtimes.base import Array

#: Upstream's answers that say something about one request, not about the server's state.
_UPSTREAM_REQUEST_CODES = frozenset({"INVALID_ARGUMENT", "OUT_OF_RANGE", "INTERNAL", "UNKNOWN"})


def group_key(inputs: dict[str, Array], rows: int, max_size: int) -> tuple[object, int]:
    """What must be equal for requests to be joined, and how much of ``max_size`` this one takes.

    Raises:
        InvalidRequestError: an input has not ``rows`` rows.
    """
    if not inputs:
        return None, max_size  # no rows to join by: a batch of its own
    for name, array in inputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            text = (
                f"input '{name}' has shape {list(array.shape)}, but the request has {rows} rows; "
            )
            text += "a model that is batched takes the same first dimension in every input"
            raise InvalidRequestError(text)
    # dtype.num, not dtype.str: bfloat16 calls itself "<V2".
    if len(inputs) == 1:
        return (name, array.shape[1:], array.dtype.num), rows
    return tuple(sorted((n, a.shape[1:], a.dtype.num) for n, a in inputs.items())), rows


def join(
    inputs: list[dict[str, Array]], outputs: list[Sequence[str]]
) -> tuple[dict[str, Array], Sequence[str]]:
    """A batch's inputs, and the union of the outputs wanted, in order of first mention.

    A single request's arrays are passed on as they are.
    """
    first, wanted = inputs[0], outputs[0]
    if len(inputs) == 1:
        return first, wanted
    joined: dict[str, Array] = {
        name: np.concatenate([arrays[name] for arrays in inputs]) for name in first
    }
    if any(names != wanted for names in outputs):
        wanted = list(dict.fromkeys(name for names in outputs for name in names))
    return joined, wanted


def split(
    wanted: Sequence[str],
    results: list[Array],
    sizes: list[int] | None,
    outputs: list[Sequence[str]],
) -> list[list[Array]]:
    """Each request's rows (views) of the outputs that it asked for.

    Args:
        wanted: what ``results`` are.
        sizes: rows of each request; ``None`` for a single one without inputs, whose outputs have
            whatever rows they have.
        outputs: what each request asked for.

    Raises:
        ExecutionError: an output has not one row for each of the batch's.
    """
    if len(results) != len(wanted):
        text = f"the model gave {len(results)} outputs instead of {len(wanted)}"
        raise ExecutionError(text)
    if sizes is None:
        return [results]
    rows = sum(sizes)
    for name, array in zip(wanted, results, strict=True):
        # Of a single request too: a model that cannot be batched shows at once, not under load.
        if array.ndim == 0 or array.shape[0] != rows:
            raise NoRowsError(name, array.shape, rows)
    if len(sizes) == 1:
        return [results]
    parts: list[list[Array]] = []
    start = 0
    for size, names in zip(sizes, outputs, strict=True):
        stop = start + size
        if names == wanted:
            parts.append([array[start:stop] for array in results])
        else:
            by_name = dict(zip(wanted, results, strict=True))
            parts.append([by_name[name][start:stop] for name in names])
        start = stop
    return parts


class NoRowsError(ExecutionError):
    """An output that is not batched. A type of its own, because retries do not help."""

    def __init__(self, name: str, shape: tuple[int, ...], rows: int) -> None:
        text = f"output '{name}' has shape {list(shape)} for a batch of {rows} rows, so it cannot "
        text += "be split; this model cannot be batched: set batching.max_size to 1"
        super().__init__(text)


def concerns_one_request(error: Exception) -> bool:
    """Whether one request of the batch may have caused it, so that the others deserve a try.

    Not when the server behind is down or late: trying dozens of times makes it worse.
    """
    if isinstance(error, NoRowsError):
        return False
    if isinstance(error, UpstreamError):
        return error.code in _UPSTREAM_REQUEST_CODES
    return isinstance(error, ExecutionError | InvalidRequestError) or not isinstance(
        error, RequestError
    )


def twin(error: Exception) -> Exception:
    """The same error again, to be raised on another thread; faults of the server as they are.

    Not ``copy.copy``: it calls ``__init__``, whose arguments are unknown.
    """
    if not isinstance(error, RequestError):
        return error
    same: Any = type(error).__new__(type(error), str(error))
    same.__dict__.update(error.__dict__)
    return same  # type: ignore[no-any-return]
