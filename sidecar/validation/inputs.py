"""Rows to run: given ones, checked against what the model takes.

Names, classes of values and shapes must be those of the model's inputs; what does not fit is a
mistake of who called, told with the file and never a verdict.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.protocol.datatypes import BY_NAME
from sidecar.validation.files import UNNAMED, Block, ValidationInputError, read
from sidecar.validation.layout import Layout, Rows, pick, rows_in
from validators.dtypes import dtype_class

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array, TensorSpec


@dataclass(slots=True)
class InputData:
    """A set of rows that is reported by itself.

    Attributes:
        name: unique within the run.
        kind: as in ``validators.results.InputSet``.
        source: where they come from, for people.
        blocks: rows of equal shapes each: input → [rows, …]. Where ``calls`` is set, one call each.
        labels: int64 [rows] or objects of ``bytes`` [rows]; ``None``: there are none.
        seed: of generated rows.
        decides: see ``InputSet``.
        only_masks: just where values are not finite is compared, no metric is judged.
        calls: each block is run as one batch, whatever the batch size of the run.
        row_names: what a generated row is ("zeros"); empty where rows have no names.
        origin, origin_rows: as in ``InputSet``.
    """

    name: str
    kind: str
    source: str
    blocks: list[Rows]
    labels: Array | None = None
    seed: int | None = None
    decides: bool = True
    only_masks: bool = False
    calls: bool = False
    row_names: list[str] = field(default_factory=list)
    origin: str = ""
    origin_rows: list[int] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(rows_in(block) for block in self.blocks)


def load(
    paths: Sequence[Path], layout: Layout, *, labels: str | None = None, rows: int | None = None
) -> list[InputData]:
    """Read and check given inputs: one set for each path.

    Args:
        paths: what ``files.read`` reads.
        layout: what the model takes.
        labels: the key of the labels in the files, or a ``.npy`` file.
        rows: use only the first so many of each set.

    Raises:
        ValidationInputError: something does not fit; says which file, what, and what would.
        MissingExtraError: a file's kind needs an extra.
    """
    label_file = labels if labels is not None and labels.endswith(".npy") else None
    if label_file is not None and len(paths) != 1:
        message = f"--labels {label_file} belongs to one set of rows, but {len(paths)} are given; "
        message += "put the labels into each file, and name their key: --labels NAME"
        raise ValidationInputError(message)
    sets = []
    for name, path in zip(_names(paths), paths, strict=True):
        key = None if label_file is not None else labels
        found = _fit_set(name, path, read(path, rows=rows), layout, key, rows)
        if label_file is not None:
            found.labels = _label_file(Path(label_file), found.rows, rows)
        sets.append(found)
    return sets


def _names(paths: Sequence[Path]) -> list[str]:
    """The files' names; the same name twice becomes name, name-2."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        name = path.name or str(path)
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _fit_set(
    name: str, path: Path, blocks: Iterable[Block], layout: Layout, key: str | None,
    rows: int | None,
) -> InputData:  # fmt: skip
    fitted: list[Rows] = []
    labels: list[Array] = []
    left = rows
    for block in blocks:
        arrays = dict(block.arrays)
        given = None
        if key is not None:
            if key not in arrays:
                message = f"{block.where} has no labels {key!r}; it has: {_listed(arrays)}"
                raise ValidationInputError(message)
            given = arrays.pop(key)
        ready = fit(arrays, layout, block.where)
        count = rows_in(ready)
        if given is not None:
            labels.append(check_labels(given, count, f"{block.where}: labels {key!r}")[:left])
        if left is not None and count > left:
            ready = pick(ready, 0, left)
        if left is not None:
            left -= rows_in(ready)
        fitted.append(ready)
        if left == 0:
            break
    if not sum(rows_in(block) for block in fitted):
        message = f"{path} has no rows: nothing would be compared"
        raise ValidationInputError(message)
    return InputData(
        name, "data", str(path), _merged(fitted), np.concatenate(labels) if labels else None
    )


def _merged(blocks: list[Rows]) -> list[Rows]:
    """Neighbours of equal shapes joined, so that batches are as large as they may be."""
    groups: list[list[Rows]] = []
    for block in blocks:
        same = groups and all(
            groups[-1][-1].get(name) is not None
            and groups[-1][-1][name].shape[1:] == array.shape[1:]
            for name, array in block.items()
        )
        if same and groups[-1][-1].keys() == block.keys():
            groups[-1].append(block)
        else:
            groups.append([block])
    return [
        group[0]
        if len(group) == 1
        else {name: np.concatenate([block[name] for block in group]) for name in group[0]}
        for group in groups
    ]


# --- fitting --------------------------------------------------------------------------------------


def fit(arrays: Mapping[str, Array], layout: Layout, where: str) -> Rows:
    """Return ``arrays`` as the model's inputs, each [rows, …] and of the declared dtype.

    Args:
        arrays: key → array; an unnamed one stands for the only input.
        layout: what the model takes.
        where: the file, for messages.

    Raises:
        ValidationInputError: says what does not fit.
    """
    arrays = dict(arrays)
    specs = {spec.name: spec for spec in layout.specs}
    if set(arrays) == {UNNAMED}:
        if len(specs) != 1:
            message = f"{where} holds one array without a name, but the model takes "
            message += f"{_listed(specs)}: write an npz (numpy.savez(file, name=array))"
            raise ValidationInputError(message)
        arrays = {next(iter(specs)): arrays[UNNAMED]}
    _check_names(arrays, specs, where)
    fitted: Rows = {}
    for name, array in arrays.items():
        spec = specs[name]
        typed = _typed(array, spec, f"{where}: input {name!r}")
        fitted[name] = _shaped(typed, spec, layout, f"{where}: input {name!r}")
    counts = {name: len(array) for name, array in fitted.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        message = f"{where}: the inputs differ in their number of rows: {said}"
        raise ValidationInputError(message)
    return fitted


def _check_names(arrays: Mapping[str, Any], specs: Mapping[str, TensorSpec], where: str) -> None:
    missing = [name for name, spec in specs.items() if name not in arrays and not spec.optional]
    extra = [name for name in arrays if name not in specs]
    if not missing and not extra:
        return
    said = []
    for name in missing:
        close = difflib.get_close_matches(name, extra, n=1, cutoff=0.6)
        if close or (len(missing) == len(extra) == 1):
            other = close[0] if close else extra[0]
            said.append(f"input {name!r} is missing (is it what the file calls {other!r}?)")
        else:
            said.append(f"input {name!r} is missing")
    for name in extra:
        if not any(repr(name) in text for text in said):
            text = f"{name!r} is no input of the model"
            said.append(f"{text} (if these are the labels: --labels {name})")
    message = f"{where}: {'; '.join(said)}. The file has: {_listed(arrays)}; the model takes: "
    raise ValidationInputError(message + _listed(specs))


def _typed(array: Array, spec: TensorSpec, where: str) -> Array:
    wanted = BY_NAME[spec.datatype]
    if array.dtype == np.dtype("V2") and wanted.name == "BF16":
        return array.view(wanted.numpy)  # npy files do not know the type
    try:
        found = dtype_class(array.dtype)
    except ValueError as error:
        message = f"{where}: {error}"
        raise ValidationInputError(message) from None
    if found != dtype_class(wanted.numpy):
        message = f"{where} holds {array.dtype}; the model takes {spec.datatype}: convert it as "
        message += "your application does before it calls the model"
        raise ValidationInputError(message)
    if wanted.item_bytes == 0:
        return _bytes(array, where)
    if found == "int" and array.size and array.dtype != wanted.numpy:
        limits: Any = np.iinfo(wanted.numpy.name)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            message = f"{where} holds {low} to {high}, which {spec.datatype} cannot: it is "
            message += f"{limits.min} to {limits.max}"
            raise ValidationInputError(message)
    with np.errstate(over="ignore"):
        return array.astype(wanted.numpy, copy=False)


def _bytes(array: Array, where: str) -> Array:
    """Text of any dtype as objects of ``bytes``."""
    fitted = np.empty(array.size, dtype=object)
    for index, value in enumerate(array.ravel()):
        if isinstance(value, str):
            fitted[index] = value.encode()
        elif isinstance(value, bytes):
            fitted[index] = bytes(value)
        else:
            message = f"{where} holds {type(value).__name__}; the model takes text or bytes"
            raise ValidationInputError(message)
    return fitted.reshape(array.shape)


def _shaped(array: Array, spec: TensorSpec, layout: Layout, where: str) -> Array:
    row = layout.row_shape(spec)
    if not layout.batched and array.ndim == len(row):
        array = array[np.newaxis]  # the whole tensor is one row
    sizes = array.shape[1:]
    if array.ndim and _fits(sizes, row):
        return array
    # Tables hold tensors as flat lists, and numbers without the axis of length 1.
    fixed = all(size >= 0 for size in row)
    if array.ndim in {1, 2} and fixed and int(np.prod(sizes)) == int(np.prod(row)):
        return array.reshape(len(array), *row)
    shown = ["rows", *("any" if size < 0 else str(size) for size in row)]
    message = f"{where} has shape {list(array.shape)}; the model takes [{', '.join(shown)}]"
    if _fits(array.shape, row):
        message += " (one sample? give it a first axis: array[None])"
    raise ValidationInputError(message)


def _fits(sizes: Sequence[int], wanted: Sequence[int]) -> bool:
    return len(sizes) == len(wanted) and all(
        want < 0 or want == size for size, want in zip(sizes, wanted, strict=True)
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(name or "(an array without a name)" for name in names) or "nothing"


# --- labels ---------------------------------------------------------------------------------------


def _label_file(path: Path, count: int, rows: int | None) -> Array:
    blocks = read(path)
    array = blocks[0].arrays.get(UNNAMED)
    if array is None:
        message = f"--labels {path} must be an npy file, which holds one array; for a key of the "
        message += "inputs' file: --labels NAME"
        raise ValidationInputError(message)
    if rows is not None and len(array) > count:
        array = array[:count]
    return check_labels(array, count, f"{path}: labels")


def check_labels(array: Array, count: int, where: str) -> Array:
    """Return labels as int64 or objects of ``bytes``, [count].

    Raises:
        ValidationInputError: another number of them, or not one class a row.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim == 0 or len(array) != count:
        message = f"{where} has shape {list(array.shape)} for {count} rows; one label a row"
        raise ValidationInputError(message)
    kind = dtype_class(array.dtype)
    if array.ndim != 1:
        message = f"{where} has shape {list(array.shape)}; one class index a row is needed"
        if array.ndim == 2:
            message += " (one-hot? use array.argmax(axis=1))"
        raise ValidationInputError(message)
    if kind == "string":
        return _bytes(array, where)
    if kind == "float":
        if not (np.isfinite(array).all() and np.array_equal(array, np.round(array))):
            message = f"{where} holds numbers that are no class index"
            raise ValidationInputError(message)
    elif kind not in {"int", "bool"}:
        message = f"{where} holds {array.dtype}; class indices or texts are needed"
        raise ValidationInputError(message)
    return array.astype(np.int64)
