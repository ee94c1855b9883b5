"""What an output holds, when nobody has said: read off its type, shape, name and a sample.

A guess is never silent: the policy carries the sentence that says what was taken for what and why,
and how to declare another kind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from validators.comparators import make_policy
from validators.policy import OutputPolicy

Array = npt.NDArray[Any]

#: Words of a name, by what they say about the output.
_WORDS: Mapping[str, frozenset[str]] = {
    "boxes": frozenset({
        "box", "boxes", "bbox", "bboxes", "det", "dets", "detection", "detections",
    }),
    "masks": frozenset({"mask", "masks", "segmentation", "segmentations"}),
    "embedding": frozenset({
        "embedding", "embeddings", "embed", "embeds", "feature", "features", "pooled", "pooler",
    }),
    "class_scores": frozenset({
        "score", "scores", "logit", "logits", "prob", "probs", "proba", "probability",
        "probabilities", "softmax",
    }),
    "token_ids": frozenset({"token", "tokens", "ids", "sequence", "sequences", "generated"}),
}  # fmt: skip
#: How far the sum of a row of probabilities may be from 1 (float16, bfloat16).
_SUM_TOLERANCE = 0.02
#: Values of a sample that are looked at.
_LOOK_AT = 1 << 20


def infer_policy(
    name: str,
    spec_datatype: str,
    shape: tuple[int, ...],
    sample: Array | None,
    precision: str,
) -> OutputPolicy:
    """Kind, options and default limits of an output.

    ``spec_datatype``: as the protocol writes it (FP32, INT64, BYTES, BOOL …). ``shape``: with the
    axis of rows first; −1 where it varies. ``sample``: one answer, [rows, ...], or None; it decides
    where type, shape and name do not. ``precision``: of the candidate.

    ValueError for an unknown precision.
    """
    declared = shape
    if sample is not None and len(declared) != sample.ndim:
        declared = sample.shape
    kind, why, options = infer_kind(name, spec_datatype, shape, sample)
    # How many rows the sample has says nothing about the output.
    written = ", ".join(["rows", *("?" if size < 0 else str(size) for size in declared[1:])])
    sentence = (
        f"{name!r} ({spec_datatype} [{written}]) is compared as {kind}: {why}. If it is something "
        f"else, set validation.outputs.{name}.kind of the model"
    )
    return make_policy(kind, precision, None, options, sentence)


def infer_kind(
    name: str, spec_datatype: str, shape: tuple[int, ...], sample: Array | None
) -> tuple[str, str, dict[str, Any]]:
    """(kind, why, options) of an output; arguments as of ``infer_policy``."""
    if sample is not None:
        shape = tuple(sample.shape)
    return _infer(set(_words(name)), spec_datatype.upper(), shape, sample)


def _words(name: str) -> list[str]:
    """``dets_0`` → dets; ``lastHiddenState:0`` → last, hidden, state."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return [word for word in re.split(r"[^a-z]+", parted.lower()) if word]


def _infer(
    words: set[str], datatype: str, shape: tuple[int, ...], sample: Array | None
) -> tuple[str, str, dict[str, Any]]:
    """(kind, why, options)."""
    named = {kind: sorted(words & known) for kind, known in _WORDS.items()}
    pixels = len(shape) >= 3 and bool(named["masks"])
    if datatype == "BYTES":
        return "exact", "texts are equal or not", {}
    if datatype == "BOOL":
        if pixels:
            return "masks", f"its name says {named['masks'][0]!r}", {}
        return "exact", "truth values are equal or not", {}
    if datatype.startswith(("INT", "UINT")):
        if named["token_ids"] and len(shape) == 2:
            return "token_ids", f"rows of integers, and its name says {named['token_ids'][0]!r}", {}
        if pixels:
            why = f"its name says {named['masks'][0]!r}"
            if sample is not None and np.unique(sample.ravel()[:_LOOK_AT]).size > 2:
                return "masks", f"{why}, and more than two values are classes", {"labels": True}
            return "masks", why, {}
        return "exact", "integers are equal or not", {}
    return _infer_float(named, shape, sample, pixels=pixels)


def _infer_float(
    named: Mapping[str, list[str]], shape: tuple[int, ...], sample: Array | None, *, pixels: bool
) -> tuple[str, str, dict[str, Any]]:
    def says(kind: str) -> str:
        return f"its name says {named[kind][0]!r}"

    if named["boxes"] and len(shape) == 3 and shape[2] in {4, 5, 6}:
        return "boxes", f"{says('boxes')}, with {shape[2]} columns", {}
    if pixels:
        if sample is not None and _outside_unit(sample):
            return (
                "masks",
                f"{says('masks')}, and values outside 0 to 1 are logits",
                {"threshold": 0.0},
            )
        return "masks", says("masks"), {}
    if named["embedding"] and len(shape) >= 2 and shape[-1] != 1:
        return "embedding", says("embedding"), {}
    if len(shape) == 2 and shape[1] != 1:
        if sample is not None and shape[1] >= 2 and adds_up(sample):
            return "class_scores", "its rows add up to 1", {}
        if named["class_scores"]:
            return "class_scores", says("class_scores"), {}
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return "regression", "one number a row; its unit is not known (option `unit`)", {}
    return "tensor", "nothing says what its numbers mean", {}


def _outside_unit(sample: Array) -> bool:
    values = sample.ravel()[:_LOOK_AT].astype(np.float64)
    return bool(np.any((values < 0) | (values > 1)))


def adds_up(sample: Array) -> bool:
    """Whether the rows of [rows, classes] are probabilities."""
    if sample.size == 0:
        return False
    values = sample[: max(1, _LOOK_AT // sample.shape[1])].astype(np.float64)
    inside = np.all((values >= 0) & (values <= 1 + _SUM_TOLERANCE))
    return bool(inside and np.all(np.abs(values.sum(axis=1) - 1) <= _SUM_TOLERANCE))
