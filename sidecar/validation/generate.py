"""Rows made from the model's metadata, where none are given.

Five kinds, each reported by itself. ``random`` and ``batch`` are what a model may be asked every
day, so that differences on them decide; ``edges``, ``extremes`` and ``nonfinite`` are beyond what
precision promises (fp16 ends at 65,504): there only structure and failures decide, differences are
warnings (docs/decisions/0006-offline-verdicts.md).

All is drawn from one seed: the same seed, model and version of numpy give the same rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from sidecar.protocol.datatypes import BY_NAME
from sidecar.validation.inputs import InputData
from sidecar.validation.layout import Layout, Rows, rows_in
from validators.dtypes import dtype_class

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array, TensorSpec

#: Rows of the random set, unless ``--rows`` says otherwise.
RANDOM_ROWS = 64
BATCH_SIZE_MAX = 64

#: Sizes tried for dynamic dimensions (all of them alike: lengths that belong together agree, as
#: those of a mask and its ids), and highest integers tried: the first pair that the reference takes
#: is used. Large sizes are for networks that halve an image several times; small integers for ids
#: that index a table.
_SIZES = (8, 32, 64, 224)
_HIGHEST = (127, 15, 1)
_SCALES = (1e-6, 1e-3, 1e2, 1e4)

Accepts = Callable[[Rows], bool]
_Make = Callable[["TensorSpec", tuple[int, ...]], "Array"]


class Maker:
    """Makes the sets for one model."""

    def __init__(
        self, layout: Layout, seed: int, accepts: Accepts, *, wild_integers: bool = True
    ) -> None:
        """Find a size for dynamic dimensions, and a range of integers.

        Args:
            layout: what the model takes.
            seed: of everything that is drawn.
            accepts: whether the reference answers these rows; called with a handful of small ones.
            wild_integers: edges include the ends of wide integers. An index beyond its table is an
                error on a CPU, and the end of the process's CUDA context on a GPU.
        """
        self.wild_integers = wild_integers
        self.layout = layout
        self.seed = seed
        self.sizes, self.highest = self._probe(accepts)

    def _probe(self, accepts: Accepts) -> tuple[tuple[int, ...], int]:
        shapes = [self.layout.row_shape(spec) for spec in self.layout.specs]
        dynamic = any(size < 0 for shape in shapes for size in shape)
        integers = any(_ranged(spec) for spec in self.layout.specs)
        sizes = _SIZES if dynamic else _SIZES[:1]
        highest = _HIGHEST if integers else _HIGHEST[:1]

        def taken(size: int, high: int) -> bool:
            return accepts(self._rows("probe", 2, size, lambda rng: _Random(rng, high).uniform))

        for high, size in product(highest, sizes):
            if taken(size, high):
                # A second size, where it is taken: shapes are what a conversion bakes in.
                both = (size, size * 2) if dynamic and taken(size * 2, high) else (size,)
                return both, high
        return sizes[:1], highest[0]  # the reference's refusal of it is what is then reported

    def others(self) -> list[InputData]:
        """The kinds that do not decide; those of floats only where an input is one."""
        found = [self.edges()]
        if any(_is_float(spec) for spec in self.layout.specs):
            found += [self.extremes(), self.nonfinite()]
        return found

    def random(self, rows: int = RANDOM_ROWS) -> InputData:
        """Half of a normal, half of a uniform distribution; integers and texts uniformly."""
        half = max(1, rows // 2)
        blocks = [self._rows("normal", half, self.sizes[0], lambda g: self._random(g).normal)]
        if rows > half:
            make = self._rows
            blocks.append(
                make("uniform", rows - half, self.sizes[-1], lambda g: self._random(g).uniform)
            )
        return InputData("random", "random", self._said_random(), blocks, seed=self.seed)

    def _said_random(self) -> str:
        kinds = {dtype_class(BY_NAME[spec.datatype].numpy) for spec in self.layout.specs}
        said = []
        if "float" in kinds:
            said.append("normal(0, 1) and uniform(0, 1)")
        if any(_ranged(spec) for spec in self.layout.specs):
            said.append(f"integers 0 to {self.highest}")
        if "string" in kinds:
            said.append("texts of 0 to 12 characters")
        if any(size < 0 for spec in self.layout.specs for size in self.layout.row_shape(spec)):
            said.append(f"dynamic dimensions of {' and '.join(map(str, self.sizes))}")
        return "; ".join(said) or "uniform over the datatype"

    def batches(self, source: InputData) -> list[InputData]:
        """The first rows of another set, in batches of 1, 2, 3, 5, 8, … up to the largest.

        A conversion may have baked a batch size in, or use other kernels for another size; what it
        answers for a row must not depend on the rows beside it. Rows repeat where there are fewer
        than the batches need.
        """
        sizes = batch_sizes(self.layout.largest)
        if not self.layout.batched or len(sizes) < 2:
            return []
        block = source.blocks[0]
        count = rows_in(block)
        rows = [at % count for at in range(sum(sizes))]
        starts = np.cumsum([0, *sizes]).tolist()
        blocks = [
            {name: array[rows[start : start + size]] for name, array in block.items()}
            for start, size in zip(starts, sizes, strict=False)
        ]
        said = f"rows of {source.name} in batches of {', '.join(map(str, sizes))}"
        data = InputData("batch", "batch", said, blocks, seed=source.seed, calls=True)
        data.origin, data.origin_rows = source.name, rows
        return [data]

    def edges(self) -> InputData:
        """Zeros, ones, the ends of the datatype, -0.0, denormals; empty and long texts."""
        ends = None if self.wild_integers else (0, self.highest)
        edges = _edges(self.layout.specs, ends)
        blocks = self._named_rows(edges.values())
        said = f"one row each: {', '.join(edges)}"
        return InputData(
            "edges", "edges", said, blocks, seed=self.seed, decides=False, row_names=list(edges)
        )

    def extremes(self) -> InputData:
        """Normal values of magnitudes 1e-6 to 1e4, four rows each."""
        blocks, names = [], []
        for scale in _SCALES:
            make = lambda rng, by=scale: self._random(rng, by).normal  # noqa: E731
            blocks.append(self._rows(f"scale {scale:g}", 4, self.sizes[0], make))
            names += [f"normal times {scale:g}"] * 4
        merged = {name: np.concatenate([b[name] for b in blocks]) for name in blocks[0]}
        said = f"normal(0, 1) times {', '.join(f'{scale:g}' for scale in _SCALES)}"
        return InputData(
            "extremes", "extremes", said, [merged], seed=self.seed, decides=False, row_names=names
        )

    def nonfinite(self) -> InputData:
        """NaN and infinities: only where the answers are not finite is compared."""
        makes: dict[str, Callable[[np.random.Generator], _Make]] = {
            "all NaN": lambda rng: _filled(np.nan, self._random(rng).normal),
            "all +inf": lambda rng: _filled(np.inf, self._random(rng).normal),
            "all -inf": lambda rng: _filled(-np.inf, self._random(rng).normal),
            "one NaN": lambda rng: _one_nan(self._random(rng).normal),
        }
        said = f"one row each: {', '.join(makes)}; only masks are compared"
        return InputData(
            "nonfinite", "nonfinite", said, self._named_rows(makes.values()), seed=self.seed,
            decides=False, only_masks=True, row_names=list(makes),
        )  # fmt: skip

    def _named_rows(self, makes: Iterable[Callable[[np.random.Generator], _Make]]) -> list[Rows]:
        rows = [self._rows(f"row {i}", 1, self.sizes[0], make) for i, make in enumerate(makes)]
        return [{name: np.concatenate([row[name] for row in rows]) for name in rows[0]}]

    def _random(self, rng: np.random.Generator, scale: float = 1.0) -> _Random:
        return _Random(rng, self.highest, scale)

    def _rows(
        self, purpose: str, count: int, size: int, maker: Callable[[np.random.Generator], _Make]
    ) -> Rows:
        # Each block has a stream of its own, so that one more edge changes no other row.
        rng = np.random.default_rng([self.seed, *purpose.encode()])
        make = maker(rng)
        rows: Rows = {}
        for spec in self.layout.specs:
            row = tuple(size if given < 0 else given for given in self.layout.row_shape(spec))
            rows[spec.name] = make(spec, (count, *row))
        return rows


def batch_sizes(largest: int) -> list[int]:
    """1, 2, 3, 5, 8, … and the largest itself, which is bounded by ``BATCH_SIZE_MAX``."""
    bound = min(largest, BATCH_SIZE_MAX)
    sizes, one, two = [], 1, 2
    while one < bound:
        sizes.append(one)
        one, two = two, one + two
    return [*sizes, bound]


class _Random:
    """Draws arrays for an input, by its datatype."""

    def __init__(self, rng: np.random.Generator, highest: int, scale: float = 1.0) -> None:
        self.rng = rng
        self.highest = highest
        self.scale = scale

    def normal(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        if _is_float(spec):
            return _cast(self.rng.standard_normal(shape) * self.scale, spec)
        return self._other(spec, shape)

    def uniform(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        if _is_float(spec):
            return _cast(self.rng.random(shape) * self.scale, spec)
        return self._other(spec, shape)

    def _other(self, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        dtype = BY_NAME[spec.datatype].numpy
        if spec.datatype == "BOOL":
            return self.rng.integers(0, 2, shape).astype(np.bool_)
        if spec.datatype == "BYTES":
            letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz 0123456789", np.uint8)
            lengths = self.rng.integers(0, 13, int(np.prod(shape)))
            return _texts([self.rng.choice(letters, n).tobytes() for n in lengths], shape)
        low, high = 0, self.highest
        if not _ranged(spec):  # 8 bits: pixels and quantized values, the whole range
            info: Any = np.iinfo(dtype.name)
            low, high = int(info.min), int(info.max)
        return self.rng.integers(low, high, shape, endpoint=True).astype(dtype)


def _ranged(spec: TensorSpec) -> bool:
    """Whether integers of this input are drawn from a small range: the wide ones, which index."""
    datatype = BY_NAME[spec.datatype]
    return dtype_class(datatype.numpy) == "int" and datatype.item_bytes > 1


def _is_float(spec: TensorSpec) -> bool:
    return dtype_class(BY_NAME[spec.datatype].numpy) == "float"


def _cast(values: Array, spec: TensorSpec) -> Array:
    with np.errstate(over="ignore"):
        return values.astype(BY_NAME[spec.datatype].numpy)


def _texts(values: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array.reshape(shape)


def _filled(value: float, other: _Make) -> _Make:
    def make(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        return _cast(np.full(shape, value), spec) if _is_float(spec) else other(spec, shape)

    return make


def _one_nan(other: _Make) -> _Make:
    def make(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        array = other(spec, shape)
        if _is_float(spec) and array.size:
            array.reshape(-1)[0] = np.nan
        return array

    return make


def _edges(
    specs: Sequence[TensorSpec], ends: tuple[int, int] | None
) -> dict[str, Callable[[np.random.Generator], _Make]]:
    """Edges by name; those that no input has are left out."""
    floats = any(_is_float(spec) for spec in specs)
    texts = any(spec.datatype == "BYTES" for spec in specs)
    names = ["zeros", "ones"]
    if any(spec.datatype not in {"BYTES", "BOOL"} for spec in specs):
        names += ["largest", "smallest"]
    if floats:
        names += ["minus zero", "denormal", "least normal"]
    if texts:
        names += ["long texts", "not ASCII"]
    return {name: partial(_edge, name, ends) for name in names}


def _edge(edge: str, ends: tuple[int, int] | None, _rng: np.random.Generator) -> _Make:
    def make(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
        kind = dtype_class(BY_NAME[spec.datatype].numpy)
        if kind == "string":
            text = _TEXTS.get(edge, b"")
            return _texts([text] * int(np.prod(shape)), shape)
        value = _edge_value(edge, spec, kind)
        if ends is not None and _ranged(spec):
            value = min(max(value, ends[0]), ends[1])
        return np.full(shape, value, BY_NAME[spec.datatype].numpy)

    return make


_TEXTS = {"ones": b"1", "long texts": b"x" * 10_000, "not ASCII": "Grüße 日本 🚀".encode()}


def _edge_value(edge: str, spec: TensorSpec, kind: str) -> Any:
    dtype = BY_NAME[spec.datatype].numpy
    if kind == "float":
        info = ml_dtypes.finfo(dtype)
        return {
            "ones": 1.0, "largest": info.max, "smallest": info.min, "minus zero": -0.0,
            "denormal": info.smallest_subnormal, "least normal": info.smallest_normal,
        }.get(edge, 0.0)  # fmt: skip
    if kind == "int":
        limits: Any = np.iinfo(dtype.name)
        return {"ones": 1, "largest": limits.max, "smallest": limits.min}.get(edge, 0)
    return edge in {"ones", "largest"}
