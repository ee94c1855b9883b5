"""Signatures: what the artifact says, what the config adds, and whether the two agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from sidecar.errors import ArtifactError
from sidecar.runtimes.base import TensorSpec, infer_max_batch_size

if TYPE_CHECKING:
    from sidecar.config_runtime import TensorConfig


def declared(tensors: Sequence[TensorConfig] | None) -> tuple[TensorSpec, ...] | None:
    """Return the config's ``inputs`` or ``outputs`` as specs; ``None`` where it has none."""
    if tensors is None:
        return None
    return tuple(TensorSpec(t.name, t.datatype, t.shape) for t in tensors)


def yaml_for(field: str, tensors: Sequence[TensorSpec]) -> str:
    """Return the YAML that declares ``tensors``: what a message tells people to add."""
    lines = [f"    {field}:"]
    for spec in tensors:
        shape = ", ".join(str(size) for size in spec.shape)
        lines.append(f"      - {{name: {spec.name}, datatype: {spec.datatype}, shape: [{shape}]}}")
    return "\n".join(lines)


def reconcile(
    artifact: str,
    field: str,
    found: Sequence[TensorSpec],
    config: Sequence[TensorConfig] | None,
    *,
    by_position: bool = False,
) -> tuple[TensorSpec, ...]:
    """Join what an artifact carries with what the config declares.

    The config may leave tensors out, and may narrow a dynamic dimension (-1) to a size.

    Args:
        artifact: the file's name, for messages.
        field: ``"inputs"`` or ``"outputs"``, for messages.
        found: what the artifact carries.
        config: what the config declares, or ``None``.
        by_position: the config's names replace the artifact's, in order (an exported program does
            not name its outputs); then it must declare all of them.

    Raises:
        ArtifactError: they contradict each other; says where.
    """
    wanted = declared(config)
    if wanted is None:
        return tuple(found)
    if by_position:
        if len(wanted) != len(found):
            message = f"{artifact} has {len(found)} {field}, but the config declares {len(wanted)}"
            raise ArtifactError(message)
        pairs = dict(zip((spec.name for spec in found), wanted, strict=True))
    else:
        known = {spec.name for spec in found}
        for spec in wanted:
            if spec.name not in known:
                message = f"{artifact} has no {field[:-1]} {spec.name!r}, which the config "
                message += f"declares; it has: {', '.join(sorted(known))}"
                raise ArtifactError(message)
        pairs = {spec.name: spec for spec in wanted}
    return tuple(_join(artifact, field, spec, pairs.get(spec.name)) for spec in found)


def _join(artifact: str, field: str, found: TensorSpec, wanted: TensorSpec | None) -> TensorSpec:
    if wanted is None:
        return found
    where = f"{artifact}: {field[:-1]} {found.name!r}"
    if wanted.datatype != found.datatype:
        message = f"{where} is {found.datatype} in the artifact, {wanted.datatype} in the config"
        raise ArtifactError(message)
    if not fits(wanted.shape, found.shape):
        message = f"{where} has shape {list(found.shape)} in the artifact, {list(wanted.shape)} in "
        message += "the config; leave it out of the config, or narrow only dimensions of -1"
        raise ArtifactError(message)
    return replace(found, name=wanted.name, shape=wanted.shape)


def fits(shape: Sequence[int], allowed: Sequence[int]) -> bool:
    """Whether ``shape`` has the rank and the sizes of ``allowed`` (-1 there: any)."""
    return len(shape) == len(allowed) and all(
        want in {-1, size} for size, want in zip(shape, allowed, strict=True)
    )


def batch_limit(
    artifact: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    configured: int | None,
    *,
    symbols: Sequence[str | None] = (),
    limit: int | None = None,
) -> int:
    """Return ``max_batch_size``, or say why the configured one cannot be.

    Args:
        artifact: the file's name, for messages.
        inputs, outputs: the signature's.
        configured: the runtime's ``max_batch_size`` setting.
        symbols: what the artifact calls each tensor's first dimension (``None``: nothing). Two
            names mean two dimensions: joining requests along them would mix up answers, so the
            model counts as not batchable, unless the config says otherwise.
        limit: the largest size that the artifact itself allows.

    Raises:
        ArtifactError: the config asks for more than the artifact can do.
    """
    fixed = next((t for t in (*inputs, *outputs) if not t.shape or t.shape[0] != -1), None)
    if configured and fixed is not None:
        message = f"{artifact}: max_batch_size is {configured}, but the first dimension of "
        message += f"{fixed.name!r} is fixed (shape {list(fixed.shape)}); export the model with a "
        message += "dynamic batch dimension, or leave max_batch_size out"
        raise ArtifactError(message)
    if configured is not None and limit is not None and configured > limit:
        message = f"{artifact}: max_batch_size is {configured}, but it was exported for at most "
        message += f"{limit}"
        raise ArtifactError(message)
    if configured is None and len(set(symbols) - {None}) > 1:
        return 0
    size = infer_max_batch_size(inputs, outputs, configured)
    return size if limit is None or configured is not None else min(size, limit)
