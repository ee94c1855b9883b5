"""What an answer says, row by row, in the terms that labels are told in; and if it is right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sidecar.runtimes.base import Array
from validators.dtypes import dtype_class

#: A class's index or name, or a score.
Value = int | float | str
#: Rows of one request that wait for labels; a request of more is not kept.
ROWS_MAX = 4096
_NAME_MAX = 200
REQUEST_ID_MAX = 512


class UnfitLabelError(ValueError):
    """A label that cannot be compared with the answer; the text says why, and is counted by."""


@dataclass(frozen=True, slots=True)
class Said:
    """What one variant answered.

    Attributes:
        rows: of class scores the index of the highest (the lowest of equal ones), of whole numbers
            and texts themselves, of a single score the score.
        classes: how many classes there are; 0: not known, or no classes.
    """

    rows: tuple[Value, ...]
    classes: int = 0


def choose_output(answer: Mapping[str, Array], named: str | None, scores: frozenset[str]) -> str:
    """The output that labels are of.

    Args:
        answer: name → array [rows, …].
        named: as configured.
        scores: outputs that are configured to be class scores.

    Returns:
        Its name; without a configured one: the only one of class scores, else the only one of
        whole numbers or texts, else the only one of single scores; ``""``: there is none, or
        several.
    """
    if named is not None:
        return named if named in answer and kind_of(answer[named]) else ""
    kinds = {name: kind_of(array) for name, array in answer.items()}
    declared = [name for name, kind in kinds.items() if kind and name in scores]
    for found in (declared, *([n for n, own in kinds.items() if own == k] for k in _KINDS)):
        if found:
            return found[0] if len(found) == 1 else ""
    return ""


_KINDS = ("scores", "class", "score")


def kind_of(array: Array) -> str:
    """``scores``, ``class``, ``score``, or ``""``: labels cannot be of this."""
    if array.ndim not in {1, 2}:
        return ""
    kind = dtype_class(array.dtype)
    one = array.ndim == 1 or array.shape[1] == 1
    if kind == "float":
        return "score" if one else "scores"
    return "class" if one and kind in {"int", "bool", "string"} else ""


def said(array: Array) -> Said:
    """What an output says; ``array`` is of a kind that ``kind_of`` names."""
    kind = kind_of(array)
    if kind == "scores":
        return Said(tuple(np.argmax(array, axis=1).tolist()), array.shape[1])
    flat = array.reshape(-1)
    if kind == "score":
        return Said(tuple(np.asarray(flat, np.float64).tolist()))
    if dtype_class(array.dtype) == "string":
        return Said(tuple(_text(value) for value in flat.tolist()))
    return Said(tuple(int(value) for value in flat.tolist()))


def _text(value: object) -> str:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return text[:_NAME_MAX]


def is_right(answer: Said, labels: Sequence[Value], names: Sequence[str] = ()) -> list[bool] | None:
    """Row by row, whether an answer is what its label says; ``None``: it is a score.

    Args:
        labels: one for each row.
        names: of the classes, where they are known.

    Raises:
        UnfitLabelError: another number of labels, or one that no answer can be.
    """
    check(answer, labels, names)
    if any(isinstance(value, float) for value in answer.rows):
        return None
    return [_index(label, names) == value for label, value in zip(labels, answer.rows, strict=True)]


def distances(answer: Said, labels: Sequence[Value]) -> list[float]:
    """Of scores: how far each is from its label; infinite for one that is no number."""
    pairs = zip(answer.rows, labels, strict=True)
    found = [abs(float(value) - float(label)) for value, label in pairs]
    return [math.inf if math.isnan(distance) else distance for distance in found]


def check(answer: Said, labels: Sequence[Value], names: Sequence[str] = ()) -> None:
    """Refuse labels that cannot be compared with an answer: they would be mistakes of everybody.

    Raises:
        UnfitLabelError: says why, in words that many labels share.
    """
    if len(labels) != len(answer.rows):
        raise UnfitLabelError("another number of labels than the request has rows")
    for label, value in zip(labels, answer.rows, strict=True):
        if isinstance(value, str) is not isinstance(label, str) and not isinstance(value, int):
            what = "text" if isinstance(value, str) else "score"
            given = "text" if isinstance(label, str) else "number"
            raise UnfitLabelError(f"a {given}, where the answer is a {what}")
        if isinstance(value, int) and (why := _no_class(label, answer.classes, names)):
            raise UnfitLabelError(why)


def _no_class(label: Value, classes: int, names: Sequence[str]) -> str:
    """Why a label is none of the classes; empty: it is one."""
    if isinstance(label, str):
        if not names:
            return "a class's name, and `classes` of the variant does not say which it is"
        return "" if label in names else "a name that is no class of the variant"
    if isinstance(label, float) and not label.is_integer():
        return "a fraction, where the answer is a class"
    is_one = not classes or 0 <= label < classes
    return "" if is_one else f"no class: they are 0 to {classes - 1}"


def _index(label: Value, names: Sequence[str]) -> Value:
    if isinstance(label, str) and names:
        return names.index(label)
    return int(label) if isinstance(label, float) and label.is_integer() else label


def misformed(request_id: str, values: Sequence[Value]) -> str:
    """Why nothing can be made of a label, whatever its request is; empty: something can."""
    if not request_id:
        return "no request id"
    if "\0" in request_id or not _is_text(request_id):
        return "a request id that no store can keep"
    if len(request_id) > REQUEST_ID_MAX:
        return f"a request id of over {REQUEST_ID_MAX} characters"
    if not 0 < len(values) <= ROWS_MAX:
        return f"no values, or over {ROWS_MAX}"
    if any(isinstance(value, float) and not np.isfinite(value) for value in values):
        return "a score that is no number"
    return ""


def harmed(
    answers: Mapping[str, Said], right: Mapping[str, list[bool] | None], labels: Sequence[Value],
    new: str, previous: str,
) -> tuple[Array, Array]:  # fmt: skip
    """Harms by row, float64 [rows] each: wrong; of scores, farther from it than the other's."""
    sides = right[new], right[previous]
    if sides[0] is None or sides[1] is None:
        far, near = (np.array(distances(answers[key], labels)) for key in (new, previous))
        return (far > near).astype(np.float64), (near > far).astype(np.float64)
    ours, theirs = (1.0 - np.array(side, np.float64) for side in sides)
    return ours, theirs


def _is_text(text: str) -> bool:
    """Halves of characters, which JSON can carry, are none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
