"""Which columns a model's traffic has: as configured, or inferred from what an exchange holds.

What was inferred is said, and how to declare something else. Rows are the first axis where the
model has a batch dimension; otherwise an exchange is one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from sidecar.config import ModelConfig
from sidecar.config_drift import DescriptorConfig
from sidecar.runtimes.base import Array
from validators.drift.columns import Descriptor, Rows
from validators.drift.descriptors import build, from_plain
from validators.dtypes import dtype_class
from validators.inference import adds_up, infer_kind

#: Columns of one model. A window keeps sums of their products: memory grows with the square.
COLUMNS_MAX = 512
#: A row of so many numbers is a list of features; a longer one is looked at as a vector.
FEATURES_MAX = 64
_CHANNELS = (1, 3)

Tensors = Mapping[str, Array]


class ColumnsError(ValueError):
    """The tensors cannot be made columns of as configured; says where, and what would do."""


class MisfitError(ValueError):
    """An exchange whose tensors are not those that the columns were made for."""


class _NoColumnsError(ValueError):
    """Nothing can be made of a tensor that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Source:
    """A tensor that is watched. ``side``: "inputs" or "outputs"."""

    side: str
    tensor: str
    descriptor: Descriptor

    @property
    def must_be_fitted(self) -> bool:
        """Whether its columns are known only when it has seen rows."""
        return self.descriptor.kind == "embedding" and not self.descriptor.learnt()


@dataclass(frozen=True, slots=True)
class Columns:
    """How exchanges of one model become rows.

    Attributes:
        batched: rows are the first axis of every tensor; else a whole exchange is one row.
        inferred: sentences that say what was taken for what.
    """

    sources: tuple[Source, ...]
    batched: bool
    inferred: tuple[str, ...] = ()

    def arrays(self, inputs: Tensors, outputs: Tensors | None) -> dict[int, Array]:
        """Number of a source → its tensor with rows first.

        Raises:
            MisfitError: a tensor is missing, or they do not have the same number of rows.
        """
        found: dict[int, Array] = {}
        for at, source in enumerate(self.sources):
            given = inputs if source.side == "inputs" else outputs
            if given is None or source.tensor not in given:
                raise MisfitError(f"{source.side[:-1]} {source.tensor!r} is not there")
            array = given[source.tensor]
            found[at] = array if self.batched else array[np.newaxis]
        if any(array.ndim == 0 for array in found.values()):
            raise MisfitError("a tensor without axes has no rows")
        if len({len(array) for array in found.values()}) > 1:
            said = ", ".join(f"{self.sources[at].tensor} {len(a)}" for at, a in found.items())
            raise MisfitError(f"the tensors have different numbers of rows: {said}")
        return found

    def describe(self, arrays: Mapping[int, Array]) -> Rows:
        """Columns of what ``arrays`` gave.

        Raises:
            MisfitError: a descriptor does not take its tensor.
        """
        rows: Rows = {}
        for at, array in arrays.items():
            rows |= describe_one(self.sources[at], array)
        return rows

    def to_plain(self) -> dict[str, Any]:
        """JSON values, with what the descriptors learnt."""
        return {
            "batched": self.batched,
            "inferred": list(self.inferred),
            "sources": [
                {"side": one.side, "tensor": one.tensor, "descriptor": one.descriptor.to_plain()}
                for one in self.sources
            ],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """Raises ValueError when ``plain`` is not what ``to_plain`` wrote."""
        try:
            sources = tuple(
                Source(str(one["side"]), str(one["tensor"]), from_plain(one["descriptor"]))
                for one in plain["sources"]
            )
            batched, inferred = bool(plain["batched"]), tuple(map(str, plain["inferred"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not stored columns: {error!r}") from error
        if not sources or any(one.side not in {"inputs", "outputs"} for one in sources):
            raise ValueError("not stored columns: inputs and outputs are needed")
        return cls(sources, batched, inferred)


def describe_one(source: Source, array: Array) -> Rows:
    """Columns of one tensor [rows, …].

    Raises:
        MisfitError: the descriptor does not take it.
    """
    try:
        return source.descriptor.describe(array)
    except ValueError as error:
        raise MisfitError(str(error)) from None


def columns_of(
    model: ModelConfig, inputs: Tensors, outputs: Tensors | None, *, batched: bool
) -> Columns:
    """Make the columns of a model from one exchange.

    Args:
        model: what it declares.
        inputs, outputs: of an exchange, as the model has them; ``None``: not known.
        batched: as in ``Columns``.

    Raises:
        ColumnsError: an unknown tensor, an option that does not fit, too many columns.
    """
    named = [
        *_chosen("inputs", model.drift.inputs, inputs),
        *_chosen("outputs", model.drift.outputs, outputs or {}),
    ]
    if not named:
        raise ColumnsError("no tensor is watched: name some under drift.inputs and drift.outputs")
    taken: set[str] = set()
    sources: list[Source] = []
    said: list[str] = []
    count = 0
    for side, name, config in named:
        given = (inputs if side == "inputs" else outputs or {})[name]
        sample = given if batched else given[np.newaxis]
        prefix = name if name not in taken else f"{name} (output)"
        taken.add(name)
        try:
            kind, options, why = _kind(model, side, name, config, sample)
        except _NoColumnsError as error:
            said.append(f"{side[:-1]} {name!r} is left out: {error}")
            continue
        if why:
            shape = ", ".join(["rows", *map(str, sample.shape[1:])])
            said.append(
                f"{side[:-1]} {name!r} ([{shape}]) is watched as {kind}: {why}. If it is something "
                f"else, set drift.{side}.{name}.kind of the model"
            )
        try:
            sources.append(Source(side, name, build(kind, prefix, options)))
            count += _count(sources[-1], sample)
        except ValueError as error:
            raise ColumnsError(f"drift.{side}.{name}: {error}") from None
    if not sources:
        raise ColumnsError(f"no tensor can be watched: {'; '.join(said)}")
    if count > COLUMNS_MAX:
        raise ColumnsError(
            f"the tensors give {count} columns, more than {COLUMNS_MAX}: name fewer tensors under "
            "drift.inputs and drift.outputs, or give wide ones the kind embedding or tensor"
        )
    return Columns(tuple(sources), batched, tuple(said))


def _chosen(
    side: str, configured: Mapping[str, DescriptorConfig] | None, given: Tensors
) -> list[tuple[str, str, DescriptorConfig]]:
    if configured is None:
        return [(side, name, DescriptorConfig()) for name in given]
    for name in configured:
        if name not in given:
            known = ", ".join(given) or "none"
            raise ColumnsError(
                f"drift.{side} names {name!r}, which is no {side[:-1]} of the model; there is "
                f"{known}"
            )
    return [(side, name, config) for name, config in configured.items()]


def _count(source: Source, sample: Array) -> int:
    """How many columns a tensor gives; ValueError when the descriptor does not take it."""
    if not source.must_be_fitted:
        return len(source.descriptor.columns(sample))
    if sample.ndim < 2:
        raise ValueError(f"embeddings are [rows, width], not {sample.shape}")
    width = int(np.prod(sample.shape[1:]))
    return 2 + min(int(source.descriptor.settings["components"]), width)


# --- inference ------------------------------------------------------------------------------------


def _kind(
    model: ModelConfig, side: str, name: str, config: DescriptorConfig, sample: Array
) -> tuple[str, dict[str, Any], str]:
    """(kind, options, why; "" where it is declared)."""
    options = dict(config.options)
    if config.kind is not None:
        return config.kind, options, ""
    if side == "outputs":
        kind, found, why = _output_kind(model, name, sample)
    else:
        kind, found, why = _by_shape(sample, may_be_image=True)
    return kind, {**found, **options}, why


def _output_kind(model: ModelConfig, name: str, sample: Array) -> tuple[str, dict[str, Any], str]:
    declared = model.validation.outputs.get(name)
    kind: str
    if declared is not None and declared.kind is not None:
        kind, why = declared.kind, "validation.outputs declares its kind"
    else:
        kind, why, _ = infer_kind(name, _datatype(sample), sample.shape, sample)
    wide = sample.ndim == 2 and sample.shape[1] >= 2
    if kind == "class_scores" and wide and dtype_class(sample.dtype) == "float":
        scores = "probabilities" if adds_up(sample) else "logits"
        return kind, {"scores": scores}, f"{why}, and they look like {scores}"
    if kind == "embedding" and sample.ndim >= 2:
        return kind, {}, why
    return _by_shape(sample, may_be_image=False)


def _by_shape(sample: Array, *, may_be_image: bool) -> tuple[str, dict[str, Any], str]:
    kind = dtype_class(sample.dtype)
    width = int(np.prod(sample.shape[1:]))
    if kind == "string" or (kind in {"int", "bool"} and width == 1):
        if width != 1:
            raise _NoColumnsError(f"{width} texts a row are no category")
        return "exact", {}, "one integer, truth value or text a row is a category"
    if may_be_image and (found := _image(sample)) is not None:
        return found
    if sample.ndim <= 2 and width <= FEATURES_MAX:
        return "features", {}, f"{width} numbers a row are features"
    if sample.ndim == 2 and kind == "float":
        return "embedding", {}, f"{width} numbers a row are more than {FEATURES_MAX} features"
    return "tensor", {}, "nothing says what its numbers mean"


def _image(sample: Array) -> tuple[str, dict[str, Any], str] | None:
    kind = dtype_class(sample.dtype)
    if kind != "float" and sample.dtype != np.uint8:
        return None
    if sample.ndim == 3 and min(sample.shape[1:]) > 1:
        return "image", {}, "three axes are rows, height and width"
    if sample.ndim != 4:
        return None
    for axis, where in ((1, "first"), (3, "last")):
        if sample.shape[axis] in _CHANNELS:
            why = f"four axes, and {sample.shape[axis]} on the {where} of a row, are an image"
            return "image", {"channels": where}, why
    return None


def _datatype(sample: Array) -> str:
    """As the protocol writes it, as far as ``infer_kind`` looks."""
    kind = dtype_class(sample.dtype)
    return {"string": "BYTES", "bool": "BOOL", "int": "INT64"}.get(kind, "FP32")
