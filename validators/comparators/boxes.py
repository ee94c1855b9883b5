"""Detections: do both sides find the same objects in the same places?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec
from validators.sketches import LogHistogram

Array = npt.NDArray[Any]

#: What the columns are when nobody says, by their number.
_BY_WIDTH = {
    4: ("x1", "y1", "x2", "y2"),
    5: ("x1", "y1", "x2", "y2", "score"),
    6: ("x1", "y1", "x2", "y2", "score", "class"),
}
_PLACES = (("x1", "y1", "x2", "y2"), ("x", "y", "w", "h"), ("cx", "cy", "w", "h"))
_NAMES = ("x1", "y1", "x2", "y2", "x", "y", "w", "h", "cx", "cy", "score", "class", "_")
#: Options that name another output, in the order in which `gather` appends them as columns.
_OUTPUTS = {"scores": "score", "classes": "class", "count": "valid"}
#: Boxes of a row on one side, after those under the threshold are gone.
_BOXES_MAX = 4096


class BoxesComparator(Comparator):
    """[rows, boxes, columns]; the two sides may differ in the number of boxes, and in their order.

    Columns: `x1 y1 x2 y2 score class` (six), without the class (five) or the score (four); or as
    the option `columns` names them: `x1 y1 x2 y2` (corners), `x y w h` (corner and size) or
    `cx cy w h` (center and size), with `score`, `class`, and `_` for one to be left out. Scores
    and classes may be outputs of their own, [rows, boxes], named by `scores` and `classes`; so may
    the number of boxes that are meant, [rows], named by `count`.

    Not a box: a score under `threshold`, a negative class, a width or height of 0: padding.

    Boxes of the same class are matched one to one, the largest overlap first, from an intersection
    over union of `iou` on. Boxes whose score is within `threshold_margin` of the threshold may
    match, but are not missed: rounding decides whether they are there. Two empty rows agree.
    """

    kind: ClassVar[str] = "boxes"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec("f1", "1", "lower", "2·matched / (boxes of both sides)"),
        MetricSpec("mean_iou", "1", "lower", "of matched boxes; NaN where there are none"),
        MetricSpec("delta_score", "1", "higher", "largest |Δ score| of matched boxes"),
        MetricSpec("missed", "boxes", "higher", "of the reference, without a match"),
        MetricSpec("extra", "boxes", "higher", "of the candidate, without a match"),
        MetricSpec("boxes", "boxes", "lower", "of the reference that count"),
    )
    options: ClassVar[Mapping[str, Any]] = MappingProxyType({
        "iou": 0.5, "threshold": 0.25, "threshold_margin": 0.02,
        "columns": None, "scores": None, "classes": None, "count": None,
    })  # fmt: skip
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType(
        {"f1": 0.99}
    )
    variable_length: ClassVar[bool] = True

    @override
    def check_options(self) -> None:
        for name in ("iou", "threshold", "threshold_margin"):
            value = self.settings[name]
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ValueError(f"boxes: `{name}` is a number from 0, not {value!r}")
        if not 0 < self.settings["iou"] <= 1:
            raise ValueError(f"boxes: `iou` is over 0 and at most 1, not {self.settings['iou']!r}")
        for name in _OUTPUTS:
            value = self.settings[name]
            if value is not None and not (isinstance(value, str) and value):
                raise ValueError(f"boxes: `{name}` is the name of an output, not {value!r}")
        given = self.settings["columns"]
        if given is None:
            return
        listed = isinstance(given, list | tuple) and all(isinstance(each, str) for each in given)
        if not isinstance(given, str) and not listed:
            raise ValueError(f"boxes: `columns` are names like `x1 y1 x2 y2 score`, not {given!r}")
        self.settings["columns"] = columns = tuple(
            given.replace(",", " ").split() if isinstance(given, str) else given
        )
        unknown = [name for name in columns if name not in _NAMES]
        if unknown:
            raise ValueError(f"boxes: no column {unknown[0]!r}; known: {', '.join(_NAMES)}")
        places = [each for each in _PLACES if set(each) <= set(columns)]
        used = set(columns) - {"_", "score", "class"}
        twice = [name for name in used | {"score", "class"} if columns.count(name) > 1]
        if not places or used != set(places[0]) or twice:
            raise ValueError(
                f"boxes: `columns` {' '.join(columns)} must hold one of "
                f"{'; '.join(' '.join(each) for each in _PLACES)}, each once"
            )

    @override
    def covers(self) -> frozenset[str]:
        names = (self.settings[option] for option in _OUTPUTS)
        return frozenset(name for name in names if name is not None)

    @override
    def gather(self, output: str, arrays: Mapping[str, Array]) -> Array:
        """With outputs of their own, float64 [rows, boxes, columns], theirs appended."""
        boxes = arrays[output]
        if not self.covers() or boxes.ndim != 3:
            return boxes
        rows, count = boxes.shape[:2]
        parts = [boxes.astype(np.float64)]
        for option in _OUTPUTS:
            name = self.settings[option]
            if name is None:
                continue
            values = arrays[name].astype(np.float64)
            if option == "count":
                if values.size != rows:
                    raise ValueError(f"boxes: {name!r} has {values.size} counts for {rows} rows")
                values = (np.arange(count) < values.reshape(rows, 1)).astype(np.float64)
            if values.size != rows * count:
                raise ValueError(
                    f"boxes: {name!r} has shape {arrays[name].shape}, which is not one value for "
                    f"each of {rows} × {count} boxes"
                )
            parts.append(values.reshape(rows, count, 1))
        return np.concatenate(parts, axis=-1)

    @property
    def _sure(self) -> float:
        """A score above counts."""
        return float(self.settings["threshold"] + self.settings["threshold_margin"])

    def _columns(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        appended = tuple(column for option, column in _OUTPUTS.items() if self.settings[option])
        if len(shape) != 3:
            raise ValueError(f"boxes needs [rows, boxes, columns], not {shape}")
        width = shape[2] - len(appended)
        columns = self.settings["columns"] or _BY_WIDTH.get(width)
        if columns is None or len(columns) != width:
            wanted = len(columns) if columns else "4, 5 or 6"
            raise ValueError(
                f"boxes have {width} columns, not {wanted}; name them all with the option "
                "`columns`, `_` for those to be left out"
            )
        return (*(name if name not in appended else "_" for name in columns), *appended)

    def _row(self, boxes: Array, columns: tuple[str, ...]) -> tuple[Array, Array, Array]:
        """(corners float64 [n, 4], scores [n], classes [n]) of what is a box in [boxes, columns].

        Without scores every box is a sure one; without classes all are of one class.
        """
        by_name = dict(zip(columns, boxes.astype(np.float64).T, strict=True))
        ones = np.ones(boxes.shape[0])
        scores, classes = by_name.get("score", ones * (1 + self._sure)), by_name.get("class", ones)
        if "x1" in by_name:
            corners = [by_name[name] for name in _PLACES[0]]
        else:
            half = 0.0 if "x" in by_name else 0.5
            width, height = by_name["w"], by_name["h"]
            left = by_name["x" if "x" in by_name else "cx"] - half * width
            top = by_name["y" if "y" in by_name else "cy"] - half * height
            corners = [left, top, left + width, top + height]
        places = np.stack(corners, axis=1)
        kept = np.isfinite(places).all(axis=1) & np.isfinite(scores)
        kept &= (places[:, 2] > places[:, 0]) & (places[:, 3] > places[:, 1]) & (classes >= 0)
        kept &= scores >= self.settings["threshold"] - self.settings["threshold_margin"]
        kept &= by_name.get("valid", ones) > 0
        if np.count_nonzero(kept) > _BOXES_MAX:
            raise ValueError(
                f"boxes: {np.count_nonzero(kept)} in one row, more than {_BOXES_MAX}; raise "
                "`threshold`, or compare what comes before non-maximum suppression as `tensor`"
            )
        return places[kept], scores[kept], classes[kept]

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        columns = self._columns(reference.shape), self._columns(candidate.shape)
        if columns[0] != columns[1]:
            raise ValueError(f"boxes: columns {columns[0]} on one side, {columns[1]} on the other")
        sure = self._sure
        measured: list[tuple[float, ...]] = []
        sketches = {"delta_score": LogHistogram(), "iou_distance": LogHistogram()}
        for left, right in zip(reference, candidate, strict=True):
            one, other = self._row(left, columns[0]), self._row(right, columns[1])
            at, to, overlap = _match(one, other, self.settings["iou"])
            # A pair in which neither is sure is left out, as each of the two would be alone.
            counted = np.maximum(one[1][at], other[1][to]) > sure
            missed = int(np.count_nonzero(np.delete(one[1], at) > sure))
            extra = int(np.count_nonzero(np.delete(other[1], to) > sure))
            matched = int(np.count_nonzero(counted))
            delta = np.abs(one[1][at] - other[1][to])[counted]
            sketches["delta_score"].add(delta)
            sketches["iou_distance"].add(np.maximum(1 - overlap[counted], 0.0))
            total = 2 * matched + missed + extra
            measured.append((
                2 * matched / total if total else 1.0,
                float(overlap[counted].mean()) if matched else math.nan,
                float(delta.max()) if matched else math.nan,
                missed, extra, matched + missed,
            ))  # fmt: skip
        names = (spec.name for spec in self.metrics)
        metrics = dict(zip(names, np.array(measured, np.float64).T.copy(), strict=True))
        return Comparison(reference.shape[0], metrics, sketches)

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        corner = rng.uniform(0, 500, (8, 5, 2))
        size = rng.uniform(20, 80, (8, 5, 2))
        score, kind = rng.uniform(0.5, 1, (8, 5, 1)), rng.integers(0, 3, (8, 5, 1))
        reference = np.concatenate([corner, corner + size, score, kind], -1).astype(np.float32)
        equal = reference[:, ::-1].copy()
        equal[..., :5] *= 1 + rng.uniform(-1e-6, 1e-6, (8, 5, 5)).astype(np.float32)
        worse = reference.copy()
        worse[:, 2, 5] += 1
        return reference, equal, worse


def _match(
    one: tuple[Array, Array, Array], other: tuple[Array, Array, Array], least: float
) -> tuple[Array, Array, Array]:
    """(places in one, places in other, intersection over union) of the pairs matched."""
    places, their = one[0], other[0]
    with np.errstate(all="ignore"):  # areas beyond the range of float64 overlap in nothing
        low = np.maximum(places[:, None, :2], their[None, :, :2])
        high = np.minimum(places[:, None, 2:], their[None, :, 2:])
        common = np.prod(np.maximum(high - low, 0.0), axis=-1)
        areas = [np.prod(each[:, 2:] - each[:, :2], axis=-1) for each in (places, their)]
        overlap = common / (areas[0][:, None] + areas[1][None, :] - common)
    overlap[one[2][:, None] != other[2][None, :]] = 0.0
    at, to = np.nonzero(overlap >= least)
    order = np.argsort(-overlap[at, to], kind="stable")
    free, free_there = np.ones(len(places), np.bool_), np.ones(len(their), np.bool_)
    pairs: list[tuple[int, int]] = []
    for i, j in zip(at[order].tolist(), to[order].tolist(), strict=True):
        if free[i] and free_there[j]:
            free[i] = free_there[j] = False
            pairs.append((i, j))
    found = np.array(pairs, dtype=np.intp).reshape(-1, 2)
    return found[:, 0], found[:, 1], overlap[found[:, 0], found[:, 1]]
