"""Tensors of stored cases, shown: images as pictures, scores as bars, the rest as short tables.

No drawing library: a picture is a PNG of a few hundred bytes, made here.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from exporters.reports.words import clean, number, shortened
from validators.dtypes import dtype_class

Array = np.ndarray[Any, Any]

#: Sides of a picture: smaller is a table, larger is thinned out.
_SIDE_MIN, _SIDE_MAX = 6, 224
_STRETCH_MAX = 12
#: One row of so many numbers has each of them shown beside the reference's.
_SCORES_MAX = 20
_VALUES_SHOWN = 8
_TEXT_MAX = 200
#: Dark to light, for values without a sign; blue, grey, red for differences (colour-blind safe).
_DIFFERENCE = np.array([[33, 102, 172], [235, 235, 235], [178, 24, 43]], np.float64)


@dataclass(slots=True)
class Shown:
    """One tensor.

    Attributes:
        name: of the input or output.
        what: its type and shape, in words.
        uri: a picture, ``data:`` only; ``""``: none.
        caption: what the picture's darkest and lightest mean.
        columns, rows: a table; empty: none.
        bars: of each row of the table, two lengths in percent (reference, candidate).
        marks: of each row of the table, who gives it the top score: ``"both"``, ``"reference"``,
            ``"candidate"``, or ``""``.
        text: anything else.
        pictures: (caption, picture) where several are side by side.
    """

    name: str
    what: str
    uri: str = ""
    caption: str = ""
    columns: tuple[str, ...] = ()
    rows: list[tuple[str, ...]] = field(default_factory=list)
    bars: list[tuple[float, float]] = field(default_factory=list)
    marks: list[str] = field(default_factory=list)
    text: str = ""
    pictures: list[tuple[str, str]] = field(default_factory=list)


def show_input(name: str, array: Array) -> Shown:
    """Show a tensor by itself."""
    shown = Shown(shortened(name, 80), _what(array))
    image = as_image(array)
    if image is not None:
        shown.uri = picture(image)
        low, high = _range(image)
        shown.caption = f"black {number(low)}, white {number(high)}"
        return shown
    flat = array.ravel()
    values = [_value(value) for value in flat[: 2 * _VALUES_SHOWN]]
    more = " …" if flat.size > len(values) else ""
    shown.text = f"{', '.join(values)}{more}" if values else "no values"
    return shown


def show_output(
    name: str, reference: Array | None, candidate: Array | None, kind: str = ""
) -> Shown:
    """Show an output of both variants side by side.

    Args:
        name: of the output.
        reference, candidate: any shape; ``None`` where a variant does not have it.
        kind: of its comparator; of class scores the winners are marked.
    """
    given = candidate if candidate is not None else reference
    assert given is not None, "the caller has at least one side"
    shown = Shown(shortened(name, 80), _what(given))
    if reference is None or candidate is None:
        side = "the candidate" if candidate is None else "the reference"
        one = show_input(name, given)
        one.caption = f"{side} has no such output. {one.caption}".strip()
        return one
    if reference.shape != candidate.shape or not (_is_real(reference) and _is_real(candidate)):
        shown.what = f"reference {_what(reference)}, candidate {_what(candidate)}"
        shown.columns = ("", "values")
        for side, array in (("reference", reference), ("candidate", candidate)):
            shown.rows.append((side, show_input(name, array).text or "see its shape"))
        return shown
    images = as_image(reference), as_image(candidate)
    if images[0] is not None and images[1] is not None:
        _show_images(shown, images[0], images[1])
        return shown
    _show_table(shown, reference, candidate, is_scores=kind == "class_scores")
    return shown


def as_image(array: Array) -> Array | None:
    """Return [H, W] or [H, W, 3] float64 if a tensor looks like an image, else ``None``.

    Args:
        array: [H, W], [C, H, W] or [H, W, C] with one, three or (last) four channels; further
            axes of size 1 before it.
    """
    if not _is_real(array):
        return None
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] == 3 and _is_side(*array.shape[1:]):
        array = np.moveaxis(array, 0, -1)
    elif array.ndim == 3 and array.shape[2] in {1, 3, 4}:
        array = array[:, :, 0] if array.shape[2] == 1 else array[:, :, :3]
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] != 3):
        return None
    if not _is_side(*array.shape[:2]):
        return None
    step = max(1, -(-max(array.shape[:2]) // _SIDE_MAX))
    return np.asarray(array[::step, ::step], dtype=np.float64)


def _is_real(array: Array) -> bool:
    try:
        return dtype_class(array.dtype) in {"float", "int", "bool"}
    except ValueError:
        return False


def _is_side(height: int, width: int) -> bool:
    short, long = min(height, width), max(height, width)
    return short >= _SIDE_MIN and long <= short * _STRETCH_MAX


def picture(image: Array, scale: tuple[float, float] | None = None) -> str:
    """Return a PNG as a ``data:`` address: black is the least finite value, white the largest.

    Args:
        image: [H, W] or [H, W, 3]; what is not finite is magenta.
        scale: the values of black and white; default: the image's own.
    """
    low, high = scale or _range(image)
    with np.errstate(all="ignore"):
        levels = (image - low) / (high - low) if high > low else np.zeros_like(image)
    finite = np.isfinite(image)
    levels = np.where(finite, np.clip(np.nan_to_num(levels), 0, 1), 0)
    pixels = np.round(255 * levels).astype(np.uint8)
    if pixels.ndim == 2:
        pixels, finite = np.repeat(pixels[:, :, None], 3, axis=2), finite[:, :, None]
    broken = ~finite.all(axis=2)
    pixels[broken] = (255, 0, 255)
    return _png(pixels)


def _difference(image: Array) -> str:
    """Blue: the candidate is lower; red: higher; grey: equal."""
    flat = image.mean(axis=2) if image.ndim == 3 else image
    finite = np.isfinite(flat)
    largest = float(np.abs(flat[finite]).max()) if finite.any() else 0.0
    levels = np.nan_to_num(flat) / largest if largest else np.zeros_like(flat)
    at = np.clip(levels, -1, 1)[:, :, None]
    low, middle, high = _DIFFERENCE
    pixels = np.where(at < 0, middle + at * (middle - low), middle + at * (high - middle))
    pixels[~finite] = (255, 0, 255)
    return _png(np.round(pixels).astype(np.uint8))


def _png(pixels: Array) -> str:
    """[H, W, 3] uint8; the format is at w3.org/TR/png."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(lines.tobytes(), 9)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def _range(image: Array) -> tuple[float, float]:
    finite = image[np.isfinite(image)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def _show_images(shown: Shown, reference: Array, candidate: Array) -> None:
    both = np.concatenate([reference.ravel(), candidate.ravel()])
    scale = _range(both)
    with np.errstate(all="ignore"):
        delta = candidate - reference
    finite = delta[np.isfinite(delta)]
    largest = float(np.abs(finite).max()) if finite.size else float("nan")
    shown.pictures = [
        ("reference", picture(reference, scale)),
        ("candidate", picture(candidate, scale)),
        (f"difference, largest {number(largest)}", _difference(delta)),
    ]


def _show_table(shown: Shown, reference: Array, candidate: Array, *, is_scores: bool) -> None:
    """All of a short row; else where the two differ most."""
    left, right = reference.ravel().astype(np.float64), candidate.ravel().astype(np.float64)
    shown.columns = ("index", "reference", "candidate", "difference")
    with np.errstate(all="ignore"):
        delta = right - left
    if left.size <= _SCORES_MAX:
        order = list(range(left.size))
        shown.bars = _bars(left, right)
    else:
        size = np.where(left == right, 0.0, np.nan_to_num(np.abs(delta), nan=np.inf))
        order = [int(at) for at in np.argsort(-size, kind="stable")[:_VALUES_SHOWN]]
        shown.caption = f"the {len(order)} largest differences of {left.size:,} values"
    # The row of a batch of one says nothing.
    shape = reference.shape[1:] if reference.ndim > 1 and len(reference) == 1 else reference.shape
    for at in order:
        index = ", ".join(str(part) for part in np.unravel_index(at, shape))
        values = (left[at], right[at], delta[at])
        shown.rows.append((index, *(_value(value) for value in values)))
    if is_scores and len(shape) == 1 and left.size and not np.isnan(left + right).any():
        tops = int(left.argmax()), int(right.argmax())
        shown.marks = [_mark(at, *tops) for at in order]
        verb = "both say" if tops[0] == tops[1] else f"reference says {tops[0]}, candidate says"
        shown.caption = f"{verb} {tops[1]}{f'; {shown.caption}' if shown.caption else ''}"


def _mark(at: int, reference: int, candidate: int) -> str:
    if at == reference == candidate:
        return "both"
    return "reference" if at == reference else "candidate" if at == candidate else ""


def _bars(left: Array, right: Array) -> list[tuple[float, float]]:
    """Lengths from 0 to 100: shares of the span from the least (or 0) to the largest value."""
    both = np.concatenate([left, right])
    finite = both[np.isfinite(both)]
    if not finite.size:
        return []
    low, high = min(0.0, float(finite.min())), max(0.0, float(finite.max()))
    span = (high - low) or 1.0

    def length(value: float) -> float:
        return round(100 * (value - low) / span, 1) if np.isfinite(value) else 0.0

    return [(length(a), length(b)) for a, b in zip(left, right, strict=True)]


def _what(array: Array) -> str:
    name = "text" if array.dtype.kind in "OSU" else array.dtype.name
    return f"{name} [{', '.join(map(str, array.shape))}]"


def _value(value: Any) -> str:
    if isinstance(value, bytes):
        return shortened(repr(value.decode("utf-8", "backslashreplace")), _TEXT_MAX)
    if isinstance(value, str):
        return shortened(repr(value), _TEXT_MAX)
    if isinstance(value, complex | np.complexfloating):
        return clean(str(value))
    try:
        found = float(value)
    except (TypeError, ValueError):
        return shortened(str(value), _TEXT_MAX)
    return "NaN" if found != found else number(found)  # noqa: PLR0124 - that is what NaN is


def outputs_of(outputs: Mapping[str, Mapping[str, Array]], key: str) -> Mapping[str, Array] | None:
    """Return a variant's outputs, whether it is named ``version/name`` or with its model."""
    for name, found in outputs.items():
        if name == key or name.endswith(f":{key}"):
            return found
    return None
