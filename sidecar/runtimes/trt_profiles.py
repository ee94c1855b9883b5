"""Optimization profiles: the ranges of dynamic shapes that an engine is built for, and executes.

Pure: shapes in, shapes or a clear error out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sidecar.config_runtime import ShapeRange
from sidecar.errors import ArtifactError, InvalidRequestError
from sidecar.runtimes.base import TensorSpec

Shape = tuple[int, ...]
#: One profile: input name → (min, opt, max) shape.
Profile = Mapping[str, tuple[Shape, Shape, Shape]]


def resolve_profiles(
    inputs: Sequence[TensorSpec],
    configured: Sequence[Mapping[str, ShapeRange]],
    max_batch_size: int | None,
    where: str,
) -> tuple[Profile, ...]:
    """Decide which profiles to build.

    Args:
        inputs: the network's inputs; -1 marks a dynamic dimension.
        configured: the runtime's ``profiles``.
        max_batch_size: the runtime's setting; without profiles it makes the default one
            (min 1, opt half of it, max itself) if only first dimensions are dynamic.
        where: the artifact, for messages.

    Returns:
        Profiles that name exactly the dynamic inputs; none for a network with fixed shapes.

    Raises:
        ArtifactError: the profiles do not fit the network, or one is missing; the message lists
            every mistake, or the YAML to add.
    """
    dynamic = [spec for spec in inputs if -1 in spec.shape]
    if configured:
        problems = [
            problem
            for index, profile in enumerate(configured)
            for problem in _mistakes(f"profiles[{index}]", profile, inputs, dynamic)
        ]
        if problems:
            lines = "\n".join(f"  {problem}" for problem in problems)
            message = f"{where}: the optimization profiles do not fit the model\n{lines}"
            raise ArtifactError(message)
        names = {spec.name for spec in dynamic}
        return tuple(
            {n: (r.min, r.opt, r.max) for n, r in profile.items() if n in names}
            for profile in (configured if dynamic else ())
        )
    if not dynamic:
        return ()
    if max_batch_size and all(-1 not in spec.shape[1:] for spec in dynamic):
        sizes = (1, max(1, max_batch_size // 2), max_batch_size)
        return ({spec.name: _with_batches(spec, sizes) for spec in dynamic},)
    raise ArtifactError(_missing(dynamic, where))


def _with_batches(spec: TensorSpec, sizes: tuple[int, int, int]) -> tuple[Shape, Shape, Shape]:
    low, middle, high = ((size, *spec.shape[1:]) for size in sizes)
    return low, middle, high


def _mistakes(
    path: str,
    profile: Mapping[str, ShapeRange],
    inputs: Sequence[TensorSpec],
    dynamic: Sequence[TensorSpec],
) -> list[str]:
    problems = []
    by_name = {spec.name: spec for spec in inputs}
    for name, wanted in profile.items():
        spec = by_name.get(name)
        if spec is None:
            problems.append(f"{path}.{name}: no such input; there is: {', '.join(by_name)}")
        elif len(wanted.min) != len(spec.shape):
            problems.append(
                f"{path}.{name}: has {len(wanted.min)} dimensions, the input has "
                f"{len(spec.shape)}: {list(spec.shape)}"
            )
        else:
            sizes = zip(spec.shape, wanted.min, wanted.max, strict=True)
            problems += [
                f"{path}.{name}: dimension {axis} is fixed to {size} in the model, so min, opt "
                f"and max must be {size} there"
                for axis, (size, low, high) in enumerate(sizes)
                if size >= 0 and not low == size == high
            ]
    problems += [
        f"{path}: says nothing of the input {spec.name!r} with the dynamic shape {list(spec.shape)}"
        for spec in dynamic
        if spec.name not in profile
    ]
    return problems


def _missing(dynamic: Sequence[TensorSpec], where: str) -> str:
    inputs = ", ".join(f"{spec.name!r} {list(spec.shape)}" for spec in dynamic)
    head = f"{where} has dynamic shapes ({inputs}), and TensorRT must know their range."
    if all(-1 not in spec.shape[1:] for spec in dynamic):
        return f"{head} Add to the variant's `runtime`:\n  max_batch_size: 32"
    lines = ["  profiles:"]
    for index, spec in enumerate(dynamic):
        ranges = ", ".join(
            f"{key}: {[guess if size < 0 else size for size in spec.shape]}"
            for key, guess in (("min", 1), ("opt", 8), ("max", 32))
        )
        lines.append(f"    {'- ' if index == 0 else '  '}{spec.name}: {{{ranges}}}")
    yaml = "\n".join(lines)
    return (
        f"{head} Add to the variant's `runtime`, with the sizes you serve in place of 1, 8 and "
        f"32:\n{yaml}"
    )


@dataclass(frozen=True, slots=True)
class ShapeGuard:
    """The profiles of a loaded engine: says which one a request fits.

    Attributes:
        profiles: by profile index, input name → (min, opt, max) shape; every input is named.
    """

    profiles: tuple[Profile, ...]

    def choose(self, shapes: Mapping[str, Shape]) -> int:
        """Index of the first profile that fits, so a narrower one belongs before a wider one.

        Raises:
            InvalidRequestError: none fits; names input, shape and what is allowed.
        """
        for index, profile in enumerate(self.profiles):
            if all(_fits(shape, profile[name]) for name, shape in shapes.items()):
                return index
        for name, shape in shapes.items():
            if not any(_fits(shape, profile[name]) for profile in self.profiles):
                allowed = " or ".join(dict.fromkeys(_range(p[name]) for p in self.profiles))
                message = f"input {name!r} has the shape {list(shape)}; allowed is {allowed}"
                raise InvalidRequestError(message)
        given = ", ".join(f"{name!r} {list(shape)}" for name, shape in shapes.items())
        allowed = " or ".join(
            "(" + ", ".join(f"{name!r} {_range(profile[name])}" for name in shapes) + ")"
            for profile in self.profiles
        )
        message = f"the shapes {given} do not go together; allowed is {allowed}"
        raise InvalidRequestError(message)

    def example(self, batch: int) -> dict[str, Shape]:
        """A shape for every input: the optimal one of the first profile that takes ``batch`` rows.

        Without such a profile it is the first one's, with its own number of rows.
        """
        for profile in self.profiles:
            shapes = {
                name: middle if not low or low[0] == high[0] else (batch, *middle[1:])
                for name, (low, middle, high) in profile.items()
            }
            if all(_fits(shape, profile[name]) for name, shape in shapes.items()):
                return shapes
        return {name: middle for name, (_, middle, _) in self.profiles[0].items()}

    def batch_max(self) -> int:
        """The largest first dimension that some profile allows for every input; 0 without any."""
        return max(
            (
                min((high[0] for _, _, high in profile.values() if high), default=0)
                for profile in self.profiles
            ),
            default=0,
        )


def _fits(shape: Shape, allowed: tuple[Shape, Shape, Shape]) -> bool:
    low, _, high = allowed
    return len(shape) == len(low) and all(
        least <= size <= most for least, size, most in zip(low, shape, high, strict=True)
    )


def _range(allowed: tuple[Shape, Shape, Shape]) -> str:
    low, _, high = allowed
    sizes = (
        str(least) if least == most else f"{least}..{most}"
        for least, most in zip(low, high, strict=True)
    )
    return f"[{', '.join(sizes)}]"
