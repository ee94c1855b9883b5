"""What the PyTorch runtime executes, whichever kind of artifact it came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from sidecar.errors import ArtifactError
from sidecar.runtimes.base import TensorSpec

DTYPES: dict[str, Any] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "FP32": torch.float32,
    "FP64": torch.float64,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded artifact.

    Attributes:
        run: one tensor per input, in order → one tensor per output, in order.
        inputs, outputs: the signature.
        memory_bytes, memory_meaning: what it holds, and how that is known.
        reads_only: it never writes into its inputs, so that a request's buffer may be lent to it.
        state: addresses of every storage that an output could share with the model; ``None`` when
            they cannot be known, so that every output is copied.
        check_inputs: it reads beyond a wrong input's end instead of failing (compiled code).
        check_outputs: the signature was declared, not read from the artifact: hold it to that.
        batch_symbols: names of the first dimensions (see ``signature.batch_limit``).
        batch_limit: the largest first dimension the artifact allows, where it says so.
    """

    run: Callable[[list[Any]], Sequence[Any]]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    memory_bytes: int
    memory_meaning: str
    reads_only: bool = False
    state: frozenset[int] | None = None
    check_inputs: bool = False
    check_outputs: bool = False
    batch_symbols: tuple[str | None, ...] = ()
    batch_limit: int | None = None


def datatype_of(artifact: str, what: str, dtype: Any) -> str:
    """Return the protocol's name of a torch dtype.

    Raises:
        ArtifactError: the protocol has no such datatype (complex, quantized, float8).
    """
    try:
        return _NAMES[dtype]
    except KeyError:
        message = f"{artifact}: {what} is {dtype}, which the protocol cannot carry"
        raise ArtifactError(message) from None


def output_names(spec: Any) -> list[str]:
    """Name the leaves of a program's output.

    Keys of dicts and fields of named tuples are names that the model's author chose
    (``"boxes"``, ``"heads.score"``); other leaves are ``output_0``, ``output_1``, … by position.
    The graph's own names (``linear_1``) change between versions of torch: clients could not rely
    on them.
    """
    tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    names = []
    for index, (path, _) in enumerate(pytree.tree_flatten_with_path(tree)[0]):
        parts = [
            getattr(key, "key", getattr(key, "name", getattr(key, "idx", None))) for key in path
        ]
        named = any(isinstance(part, str) for part in parts)
        names.append(".".join(map(str, parts)) if named else f"output_{index}")
    return names
