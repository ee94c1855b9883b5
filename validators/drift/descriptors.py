"""Tensors as columns: a few numbers or a category for each row, which can be watched for drift.

A descriptor is chosen by the declared kind of a tensor, and is one class and one line of `BUILTIN`.
Some are fitted on the reference (the centroid of embeddings); what they learnt travels as JSON.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.drift.columns import LOOK_AT, Descriptor, Rows, as_float64, look, pieces
from validators.dtypes import dtype_class

Array = npt.NDArray[Any]
#: Principal components of an embedding, and the rows that they are fitted on.
COMPONENTS = 8
_FIT_ROWS = 1024
#: Characters of a text that is a category: of a longer one its beginning and a hash are kept, so
#: that one long text does not make every row of a column as wide.
TEXT_MAX = 80


class TensorDescriptor(Descriptor):
    """Any numbers: moments and extremes of the finite ones, shares of NaN, infinities and zeros.

    A row with nothing finite has NaN for the first four. Option ``shape``: for tensors whose shape
    varies, the shape of a row as a category (all rows of a batch have the same).
    """

    kind = "tensor"
    options = MappingProxyType({"shape": False})

    @override
    def _describe(self, values: Array) -> Rows:
        names = ("mean", "std", "min", "max", "nan_share", "inf_share", "zero_share")
        found = np.empty((len(names), len(values)))
        for piece, wide in pieces(look(values), self.prefix):
            found[:, piece] = _moments(wide)
        made: Rows = dict(zip(names, found, strict=True))
        if self.settings["shape"]:
            made["shape"] = np.full(len(values), "×".join(map(str, values.shape[1:])) or "scalar")
        return made


class ClassScoresDescriptor(Descriptor):
    """[rows, classes]: the answer, and how sure the model is of it.

    Option ``scores``: "logits" or "probabilities". Logits go through the softmax first. Entropy in
    nats; margin: top probability over the second; logsumexp of the logits (with probabilities it
    would be constant, so it is left out) tells unusual inputs from usual (Liu et al., Energy-based
    out-of-distribution detection, NeurIPS 2020). A row with NaN has class −1 and NaN elsewhere.
    """

    kind = "class_scores"
    options = MappingProxyType({"scores": "logits"})

    @override
    def _rows(self, values: Array) -> Array:
        if self.settings["scores"] not in {"logits", "probabilities"}:
            raise ValueError(f"scores are logits or probabilities, not {self.settings['scores']!r}")
        if values.ndim != 2 or values.shape[1] < 2:
            raise ValueError(f"{self.prefix}: class scores are [rows, ≥ 2], not {values.shape}")
        return values

    @override
    def _describe(self, values: Array) -> Rows:
        logits = self.settings["scores"] == "logits"
        top = np.empty(len(values), dtype=np.int64)
        found = np.empty((4, len(values)))
        for piece, wide in pieces(values, self.prefix):
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                highest = wide.max(axis=1)
                # one infinite logit is a certain answer, not a NaN
                shifted = np.where(wide == highest[:, None], 0.0, wide - highest[:, None])
                powers = np.exp(shifted) if logits else wide
                total = powers.sum(axis=1)
                shares = powers / total[:, None] if logits else powers
                parts = np.where(shares > 0, shares * np.log(shares), 0.0)
                second, first = np.partition(shares, -2, axis=1)[:, -2:].T
                found[:, piece] = (
                    first, first - second, -parts.sum(axis=1), highest + np.log(total),
                )  # fmt: skip
            top[piece] = wide.argmax(axis=1)
            broken = np.isnan(wide).any(axis=1)
            top[piece][broken] = -1
            found[:, piece][:, broken] = np.nan
        made = {"class": top, "top": found[0], "margin": found[1], "entropy": found[2]}
        return {**made, "logsumexp": found[3]} if logits else made


class EmbeddingDescriptor(Descriptor):
    """[rows, width]: norm, cosine to the reference's centroid, coordinates on its main axes.

    Fitted: the mean of the unit vectors, the mean, and the first ``components`` principal
    components, of at most 1,024 rows from all over the reference. The sign of a component is that
    of its largest weight.
    """

    kind = "embedding"
    options = MappingProxyType({"components": COMPONENTS})

    def __init__(self, prefix: str, options: Mapping[str, Any] = MappingProxyType({})) -> None:
        super().__init__(prefix, options)
        count = self.settings["components"]
        if type(count) is not int or not 0 <= count <= 64:
            raise ValueError(f"components must be from 0 to 64, not {count!r}")
        self._centroid: Array | None = None
        self._mean: Array = np.zeros(0)
        self._axes: Array = np.zeros((0, 0))

    @override
    def _rows(self, values: Array) -> Array:
        if values.ndim < 2:
            raise ValueError(f"{self.prefix}: embeddings are [rows, width], not {values.shape}")
        return values.reshape(len(values), math.prod(values.shape[1:]))

    @override
    def fit(self, values: Array) -> Self:
        rows = self._rows(values)
        # Spread over the reference: its first rows may all be of one hour.
        step = max(1, len(rows) // _FIT_ROWS)
        wide = rows[::step][:_FIT_ROWS].astype(np.float64)
        wide = wide[np.isfinite(wide).all(axis=1)]
        if len(wide) < 2:
            raise ValueError(f"{self.prefix}: {len(wide)} finite embeddings are too few to fit on")
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        centroid = (wide / np.where(norms > 0, norms, 1.0)).mean(axis=0)
        self._mean = wide.mean(axis=0)
        count = min(self.settings["components"], wide.shape[1])
        axes = np.linalg.svd(wide - self._mean, full_matrices=False)[2][:count]
        signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
        self._centroid, self._axes = centroid, axes * signs
        return self

    @override
    def _describe(self, values: Array) -> Rows:
        if self._centroid is None:
            raise ValueError(f"{self.prefix}: fit the embeddings on a reference first")
        if values.shape[1] != self._centroid.size:
            raise ValueError(
                f"{self.prefix}: embeddings of width {values.shape[1]}; the reference's are "
                f"{self._centroid.size} wide"
            )
        found = np.empty((2 + len(self._axes), len(values)))
        long = max(float(np.linalg.norm(self._centroid)), np.finfo(np.float64).tiny)
        for piece, wide in pieces(values, self.prefix):
            with np.errstate(invalid="ignore", over="ignore"):
                norms = np.linalg.norm(wide, axis=1)
                cosines = wide @ self._centroid / (np.where(norms > 0, norms, 1.0) * long)
                found[:, piece] = (norms, cosines, *((wide - self._mean) @ self._axes.T).T)
        names = ["norm", "cosine", *(f"pc{index}" for index in range(1, len(self._axes) + 1))]
        return dict(zip(names, found, strict=True))

    @override
    def learnt(self) -> dict[str, Any]:
        if self._centroid is None:
            return {}
        arrays = {"centroid": self._centroid, "mean": self._mean, "axes": self._axes}
        return {name: array.tolist() for name, array in arrays.items()}

    @override
    def recall(self, learnt: Mapping[str, Any]) -> Self:
        if not learnt:
            return self
        try:
            centroid, mean, axes = (
                np.array(learnt[name], dtype=np.float64) for name in ("centroid", "mean", "axes")
            )
            axes = axes.reshape(-1, centroid.size)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.prefix}: not what an embedding learnt: {error!r}") from error
        if mean.shape != centroid.shape or centroid.ndim != 1:
            raise ValueError(f"{self.prefix}: not what an embedding learnt: widths differ")
        self._centroid, self._mean, self._axes = centroid, mean, axes
        return self


class ImageDescriptor(Descriptor):
    """[rows, channels, height, width]: brightness, contrast (standard deviation), channel means.

    Option ``channels``: "first" or "last" axis of a row. [rows, height, width] has one channel.
    """

    kind = "image"
    options = MappingProxyType({"channels": "first"})

    @override
    def _rows(self, values: Array) -> Array:
        if self.settings["channels"] not in {"first", "last"}:
            raise ValueError(f"channels are first or last, not {self.settings['channels']!r}")
        if values.ndim not in {3, 4}:
            raise ValueError(f"{self.prefix}: images are 3- or 4-dimensional, not {values.shape}")
        if values.ndim == 3:
            return values[:, None]
        return values if self.settings["channels"] == "first" else np.moveaxis(values, -1, 1)

    @override
    def _describe(self, values: Array) -> Rows:
        step = max(1, math.ceil(math.sqrt(math.prod(values.shape[2:]) / LOOK_AT * 4)))
        pixels = values[:, :, ::step, ::step]
        count = pixels.shape[1]
        found = np.empty((2 + count, len(values)))
        for piece, wide in pieces(pixels, self.prefix):
            with np.errstate(invalid="ignore", over="ignore"):
                means = wide.reshape(len(wide), count, -1).mean(axis=2).T
                found[:, piece] = (wide.mean(axis=1), wide.std(axis=1), *means)
        names = ["brightness", "contrast", *(f"channel{index}" for index in range(count))]
        return dict(zip(names, found, strict=True))


class FeaturesDescriptor(Descriptor):
    """[rows] or [rows, features]: each element is a column.

    Options: ``names`` of the elements, in order (default: their numbers); ``categorical``: names of
    those that are categories, whose values must be whole numbers or texts.
    """

    kind = "features"
    options = MappingProxyType({"names": (), "categorical": ()})

    @override
    def _rows(self, values: Array) -> Array:
        rows = values.reshape(len(values), math.prod(values.shape[1:]))
        names = self.settings["names"]
        if names and len(names) != rows.shape[1]:
            raise ValueError(f"{self.prefix}: {len(names)} names for {rows.shape[1]} features")
        if len(set(names)) != len(names):
            raise ValueError(f"{self.prefix}: a name of a feature is there twice")
        known = names or [str(index) for index in range(rows.shape[1])]
        if unknown := sorted(set(self.settings["categorical"]) - set(known)):
            raise ValueError(f"{self.prefix}: no feature {unknown[0]!r} to be a category")
        return rows

    @override
    def _describe(self, values: Array) -> Rows:
        names = self.settings["names"] or [str(index) for index in range(values.shape[1])]
        return {
            name: _category(values[:, at])
            if name in self.settings["categorical"]
            else as_float64(values[:, at], f"{self.prefix}.{name}")
            for at, name in enumerate(names)
        }


class ExactDescriptor(Descriptor):
    """[rows] of integers, truth values or texts: the value itself is the category.

    Of a text over 80 characters, its first 60 and a hash.
    """

    kind = "exact"

    @override
    def _rows(self, values: Array) -> Array:
        if values.ndim == 0 or math.prod(values.shape[1:]) != 1:
            raise ValueError(f"{self.prefix}: a category is one value a row, not {values.shape}")
        return values.reshape(-1)

    @override
    def _describe(self, values: Array) -> Rows:
        return {"value": _category(values)}


#: Kind → its descriptor.
BUILTIN: Mapping[str, type[Descriptor]] = MappingProxyType(
    {
        made.kind: made
        for made in (
            TensorDescriptor, ClassScoresDescriptor, EmbeddingDescriptor, ImageDescriptor,
            FeaturesDescriptor, ExactDescriptor,
        )
    }
)  # fmt: skip


def build(kind: str, prefix: str, options: Mapping[str, Any] = MappingProxyType({})) -> Descriptor:
    """Raises ValueError for an unknown kind or option, naming the known ones."""
    if kind not in BUILTIN:
        raise ValueError(f"no descriptor {kind!r}; known: {', '.join(BUILTIN)}")
    return BUILTIN[kind](prefix, options)


def from_plain(plain: Mapping[str, Any]) -> Descriptor:
    """The inverse of ``Descriptor.to_plain``; ValueError when it is not that."""
    try:
        made = build(plain["kind"], plain["prefix"], plain["options"])
        return made.recall(plain["learnt"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a stored descriptor: {error!r}") from error


def _moments(wide: Array) -> tuple[Array, ...]:
    """Seven columns of [rows, values]; of the finite values the first four."""
    size = max(1, wide.shape[1])
    if wide.shape[1] == 0:
        wide = np.full((len(wide), 1), np.nan)
    finite = np.isfinite(wide)
    count = finite.sum(axis=1)
    known = np.where(finite, wide, 0.0)
    none = count == 0
    with np.errstate(over="ignore", invalid="ignore"):
        mean = known.sum(axis=1) / np.where(none, 1, count)
        off = np.where(finite, wide - mean[:, None], 0.0)
        std = np.sqrt(np.square(off).sum(axis=1) / np.where(none, 1, count))
    least = np.where(finite, wide, np.inf).min(axis=1)
    most = np.where(finite, wide, -np.inf).max(axis=1)
    shares = (np.isnan(wide), np.isinf(wide), wide == 0)
    return (
        *(np.where(none, np.nan, column) for column in (mean, std, least, most)),
        *(found.sum(axis=1) / size for found in shares),
    )


def _category(values: Array) -> Array:
    """int64 or str [rows]."""
    found = dtype_class(values.dtype)
    if found == "string":
        return np.array([_text(item) for item in values.tolist()], dtype=str)
    if found == "float":
        wide = values.astype(np.float64)
        if not np.array_equal(wide, np.round(wide)) or (np.abs(wide) >= 2.0**63).any():
            raise ValueError("a category of floats must hold whole numbers")
        return wide.astype(np.int64)
    return values.astype(np.int64)


def _text(item: Any) -> str:
    text = item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item)
    if len(text) <= TEXT_MAX:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return f"{text[: TEXT_MAX - 20]}… {digest}"
