"""How rows lie in the tensors of each variant, and calling a variant with rows.

A row is one sample. Where the model has a batch dimension, rows are the first axis of every tensor;
where it has none, a whole tensor is one row. Variants of one model may differ in it: an engine of a
fixed batch of 1 is called row by row, one of a fixed batch of 8 is given eight (the last ones
repeated, their answers dropped), so that all are compared on the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sidecar.errors import ExecutionError, InvalidRequestError
from sidecar.protocol.datatypes import BY_NAME
from sidecar.validation.isolated import CrashError, IsolatedRuntime
from validators.dtypes import dtype_class

if TYPE_CHECKING:
    from sidecar.clock import Clock
    from sidecar.runtimes.base import Array, Runtime, Signature, TensorSpec

Rows = dict[str, "Array"]
Span = tuple[int, int]


class RaggedError(Exception):
    """The calls' answers differ in shape beyond the first axis: they are no one array."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What a row of the model is.

    Attributes:
        specs: the inputs, as the reference declares them.
        batched: rows are the first axis of every tensor.
        largest: how many rows one call of the reference takes.
    """

    specs: tuple[TensorSpec, ...]
    batched: bool
    largest: int

    def row_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        """The shape of one row of an input; -1 where any size is allowed."""
        return spec.shape[1:] if self.batched else spec.shape


def layout_of(reference: Signature, others: Iterable[Signature] = ()) -> Layout:
    """Tell what a row is, from the variants' signatures.

    Rows are batched when any variant says so. A model exported for a batch of exactly one says
    so too: every input and output begins with 1.
    """
    signatures = (reference, *others)
    batched = any(signature.max_batch_size > 0 for signature in signatures)
    # Only if the reference can be called so: its tensors all have a first axis.
    batched = batched and all(spec.shape for spec in (*reference.inputs, *reference.outputs))
    tensors = (*reference.inputs, *reference.outputs)
    batched = batched or all(spec.shape[:1] == (1,) for spec in tensors)
    fixed = [spec.shape[0] for spec in reference.inputs if batched and spec.shape[0] > 0]
    largest = max(reference.max_batch_size, *fixed, 1) if batched else 1
    return Layout(reference.inputs, batched, largest)


def rows_in(rows: Mapping[str, Array]) -> int:
    """How many rows there are (0 for no tensors)."""
    return next((len(array) for array in rows.values()), 0)


def pick(rows: Mapping[str, Array], start: int, stop: int) -> Rows:
    """Rows ``start`` to ``stop``."""
    return {name: array[start:stop] for name, array in rows.items()}


class Caller:
    """One loaded variant, called with rows.

    Attributes:
        key: ``version/name``.
        runtime: the copy.
        problems: why its inputs cannot be made of the reference's; then it must not be called.
        notes: what was done so that they can (a cast of fp32 to fp16).
        times_ns: batch size → compute time of each call.
        calling: the rows (first, behind the last) of the call under way, or of the one that failed.
    """

    def __init__(self, key: str, runtime: Runtime, layout: Layout, clock: Clock) -> None:
        self.key = key
        self.runtime = runtime
        self.layout = layout
        self.clock = clock
        self.times_ns: dict[int, list[int]] = defaultdict(list)
        self.calling = (0, 0)
        self.problems, self.notes, self._casts = _match(runtime.signature, layout)
        firsts = {spec.shape[0] for spec in runtime.signature.inputs if spec.shape}
        self._fixed = (
            max(firsts, default=-1) if layout.batched and max(firsts, default=-1) > 0 else 0
        )

    @property
    def takes(self) -> frozenset[str]:
        """The names of its inputs."""
        return frozenset(spec.name for spec in self.runtime.signature.inputs)

    @property
    def batches_freely(self) -> bool:
        """Whether the same rows can be run in batches of different sizes."""
        return self.layout.batched and not self._fixed and self.largest > 1

    @property
    def largest(self) -> int:
        """How many rows one call takes."""
        if not self.layout.batched:
            return 1
        return self._fixed or self.runtime.signature.max_batch_size or self.layout.largest

    def call(self, rows: Mapping[str, Array], size: int) -> Rows:
        """Run rows, at most ``size`` in a call; every output with rows as its first axis.

        Raises:
            RequestError: the variant failed; the message is the runtime's.
            RaggedError: the answers of several calls cannot be put together.
        """
        count = rows_in(rows)
        step = self._fixed or max(1, min(size, self.largest))
        spans = [(at, min(at + step, count)) for at in range(0, count, step)]
        pieces = list(self._pieces(rows, spans))
        if len(pieces) == 1:
            return pieces[0]
        joined: Rows = {}
        for name in pieces[0]:
            parts = [piece[name] for piece in pieces]
            if len({part.shape[1:] for part in parts}) > 1:
                raise RaggedError(name)
            joined[name] = np.concatenate(parts)
        return joined

    def _pieces(
        self, rows: Mapping[str, Array], spans: Sequence[tuple[int, int]]
    ) -> Iterator[Rows]:
        """The answers to some spans of rows, one call each."""
        runtime = self.runtime
        if not isinstance(runtime, IsolatedRuntime):
            for self.calling in spans:
                part = pick(rows, *self.calling)
                feed = self._feed(part)
                started = self.clock.monotonic_ns()
                answers = runtime.infer(feed)
                yield self._answered(answers, rows_in(part), self.clock.monotonic_ns() - started)
            return
        # Of a variant in another process, what it took there counts.
        found = runtime.infer_many([self._feed(pick(rows, *span)) for span in spans])
        try:
            for self.calling in spans:
                answers = next(found)
                count = self.calling[1] - self.calling[0]
                yield self._answered(answers, count, runtime.compute_ns)
        except CrashError as error:
            self.calling = (0, rows_in(rows)) if error.at is None else spans[error.at]
            raise

    def _feed(self, rows: Rows) -> Rows:
        return {name: self._prepared(name, array) for name, array in rows.items()}

    def _answered(self, answers: Sequence[Array], count: int, took_ns: int) -> Rows:
        self.times_ns[self._fixed or count].append(took_ns)
        names = [spec.name for spec in self.runtime.signature.outputs]
        found = dict(zip(names, answers, strict=True))
        if not self.layout.batched:
            return {name: answer[np.newaxis] for name, answer in found.items()}
        scalars = [name for name, answer in found.items() if answer.ndim == 0]
        if scalars:
            message = f"output {scalars[0]!r} is one number for {count} rows; it should have rows "
            message += "as its first axis"
            raise ExecutionError(message)
        if not self._fixed or count == self._fixed:
            return found
        # The rows that were added are dropped where the output has them.
        return {
            name: answer[:count] if len(answer) == self._fixed else answer
            for name, answer in found.items()
        }

    def _prepared(self, name: str, array: Array) -> Array:
        if not self.layout.batched:
            array = array[0] if array.ndim else array
            if not isinstance(array, np.ndarray):  # a row of no axes came out as a scalar
                array = np.asarray(array)
        elif self._fixed and len(array) < self._fixed:
            missing = self._fixed - len(array)
            array = np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])
        if name in self._casts:
            with np.errstate(over="ignore"):  # fp16 has no 1e30: what becomes of it is the finding
                array = array.astype(self._casts[name])
        return np.ascontiguousarray(array)

    def run(self, rows: Mapping[str, Array], size: int) -> Rows:
        """``call``, with what else a model may raise turned into an ``ExecutionError``.

        A runtime promises not to raise anything else; here a broken variant must never end the
        run of the others.
        """
        try:
            return self.call(rows, size)
        except (ExecutionError, InvalidRequestError, RaggedError):
            raise
        except Exception as error:
            from sidecar.runtimes.failures import execution_error

            raise execution_error(f"{type(error).__name__}: {error}") from error


def _match(
    signature: Signature, layout: Layout
) -> tuple[list[str], list[str], dict[str, np.dtype[np.generic]]]:
    """Compare a variant's inputs with the reference's: problems, notes, casts."""
    problems: list[str] = []
    notes: list[str] = []
    casts: dict[str, np.dtype[np.generic]] = {}
    wanted = {spec.name: spec for spec in layout.specs}
    own = {spec.name: spec for spec in signature.inputs}
    missing = [name for name, spec in own.items() if name not in wanted and not spec.optional]
    extra = [name for name, spec in wanted.items() if name not in own and not spec.optional]
    if missing or extra:
        has, takes = ", ".join(own) or "none", ", ".join(wanted) or "none"
        text = f"its inputs are {has}; those of the reference are {takes}"
        if len(missing) == len(extra):
            text += " (renamed? give the names under `inputs` of the variant)"
        problems.append(text)
    for name in own.keys() & wanted.keys():
        here, there = BY_NAME[own[name].datatype], BY_NAME[wanted[name].datatype]
        if here.name == there.name:
            continue
        said = f"input {name!r} is {here.name}, the reference's is {there.name}"
        if dtype_class(here.numpy) != dtype_class(there.numpy):
            problems.append(f"{said}: not the same class of values")
        else:
            notes.append(f"{said}: values were cast")
            casts[name] = here.numpy
    return problems, notes, casts
