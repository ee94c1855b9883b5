"""Arrays out of files: npz, npy, safetensors, Parquet, folders of them, stored cases.

What a file is, is told by its first bytes, not by its name. Nothing executable is read: no pickles.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

from sidecar.errors import MissingExtraError, SidecarError

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array

#: The name of an array in a file that holds one and does not name it.
UNNAMED = ""

_ZIP, _NPY, _PARQUET = b"PK\x03\x04", b"\x93NUMPY", b"PAR1"
#: An archive without any member: numpy.savez(file) of nothing.
_EMPTY_ZIP = b"PK\x05\x06"
_KINDS = ("npz", "npy", "safetensors", "Parquet")

_SAFETENSORS = {
    "BOOL": np.bool_, "U8": "<u1", "I8": "<i1", "U16": "<u2", "I16": "<i2", "U32": "<u4",
    "I32": "<i4", "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8",
    "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
_HEADER_BYTES_MAX = 100 * 2**20


class ValidationInputError(SidecarError):
    """What ``validate`` was given cannot be used: which file, what is wrong, what would be right.

    Never a verdict: nothing was compared.
    """


@dataclass(slots=True)
class Block:
    """Arrays that belong together: equal first axes, as the file has them.

    Attributes:
        where: the file, for messages.
        arrays: key → array.
    """

    where: str
    arrays: dict[str, Array]


def read(path: Path, *, rows: int | None = None) -> list[Block]:
    """Read a file, a folder of files, or a folder of stored cases.

    Args:
        path: npz, npy, safetensors or Parquet; a folder of ``NAME.npy`` (an array each), or of
            files of one of the other kinds (rows each, in the order of their names); or cases.
        rows: enough of them: later files of a folder are not opened, Parquet stops there.

    Raises:
        ValidationInputError: missing, unreadable, of another kind, or nothing in it.
        MissingExtraError: Parquet needs pyarrow.
    """
    if path.is_dir():
        return _read_folder(path, rows)
    return [Block(path.name, _read_file(path, rows))]


def _read_file(path: Path, rows: int | None) -> dict[str, Array]:
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}"
        raise ValidationInputError(message) from None
    if not magic:
        message = f"{path} is empty"
        raise ValidationInputError(message)
    reader: Callable[[Path], dict[str, Array]]
    if magic.startswith((_ZIP, _EMPTY_ZIP, _NPY)):
        reader = _read_numpy
    elif magic.startswith(_PARQUET):
        return _read_parquet(path, rows)
    elif len(magic) == 8 and 2 <= int.from_bytes(magic, "little") <= _HEADER_BYTES_MAX:
        reader = read_safetensors
    else:
        message = f"{path} is none of {', '.join(_KINDS)} (it begins with {magic!r})"
        raise ValidationInputError(message)
    arrays = reader(path)
    if not arrays:
        message = f"{path} holds no arrays"
        raise ValidationInputError(message)
    return arrays


def _read_numpy(path: Path) -> dict[str, Array]:
    try:
        # Opened here: numpy leaves a file open that turns out to be no zip.
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)  # pickles run code when they are read
            if isinstance(loaded, np.ndarray):
                return {UNNAMED: loaded}
            with loaded:
                return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        hint = ""
        if isinstance(error, zipfile.BadZipFile):
            hint = " (it begins as one: is it cut off?)"
        if "pickle" in str(error):
            hint = " (arrays of Python objects are pickles, which are never read: store text with "
            hint += "dtype S or U)"
            error = ValueError("an array of Python objects")
        message = f"{path} cannot be read as npz or npy: {error}{hint}"
        raise ValidationInputError(message) from None


def read_safetensors(path: Path) -> dict[str, Array]:
    """Return every tensor of a safetensors file; raises ValidationInputError."""
    # By hand: the format is a JSON header and raw values, and the library's numpy side has no
    # bfloat16. So no extra is needed either.
    try:
        data = path.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        body = memoryview(data)[8 + length :]
        arrays = {}
        for name, item in header.items():
            if name == "__metadata__":
                continue
            start, stop = item["data_offsets"]
            dtype: np.dtype[Any] = np.dtype(_SAFETENSORS[item["dtype"]])
            if not 0 <= start <= stop <= len(body):
                message = f"{name!r} lies beyond the end of the file"
                raise ValueError(message)
            arrays[name] = np.frombuffer(body[start:stop], dtype).reshape(item["shape"])
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        what = f"no dtype {error}" if isinstance(error, KeyError) else str(error)
        message = f"{path} cannot be read as safetensors: {what}"
        raise ValidationInputError(message) from None
    return arrays


# --- Parquet ------------------------------------------------------------------------------------


def _read_parquet(path: Path, rows: int | None) -> dict[str, Array]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        message = f"{path.name} is Parquet, which needs pyarrow: install model-sidecar[validate]"
        raise MissingExtraError(message) from None
    try:
        with pq.ParquetFile(path) as file:
            columns: dict[str, list[Array]] = {name: [] for name in file.schema_arrow.names}
            count = 0
            for batch in file.iter_batches(use_threads=False):  # why: cases.index
                if rows is not None and count + batch.num_rows > rows:
                    batch = batch.slice(0, rows - count)  # noqa: PLW2901
                for name, column in zip(batch.schema.names, batch.columns, strict=True):
                    columns[name].append(_column(path, name, column))
                count += batch.num_rows
                if rows is not None and count >= rows:
                    break
    except (pa.ArrowException, OSError) as error:
        message = f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}"
        raise ValidationInputError(message) from None
    if not count:
        message = f"{path} has no rows"
        raise ValidationInputError(message)
    return {name: _joined(path, name, parts) for name, parts in columns.items()}


def _joined(path: Path, name: str, parts: list[Array]) -> Array:
    shapes = sorted({part.shape[1:] for part in parts})
    if len(shapes) > 1:
        message = f"{path}: the lists in column {name!r} have different lengths ({shapes[0]}, "
        message += f"{shapes[1]}); pad them, or write a file for each length"
        raise ValidationInputError(message)
    return np.concatenate(parts)


def _column(path: Path, name: str, column: Any) -> Array:
    """A column as an array: lists, nested as deep as they are, become axes."""
    import pyarrow.types as kinds

    shape = [len(column)]
    while kinds.is_list(column.type) or kinds.is_large_list(column.type) or (
        kinds.is_fixed_size_list(column.type)
    ):  # fmt: skip
        if column.null_count:
            raise _null(path, name)
        lengths = np.unique(np.asarray(column.value_lengths()))
        if len(lengths) > 1:
            message = f"{path}: the lists in column {name!r} have different lengths "
            message += f"({lengths[0]} to {lengths[-1]}); pad them, or write a file for each length"
            raise ValidationInputError(message)
        shape.append(int(lengths[0]) if len(lengths) else 0)
        column = column.flatten()
    if column.null_count:
        raise _null(path, name)
    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        texts = [text.encode() for text in column.to_pylist()]
        return _objects(texts).reshape(shape)
    if kinds.is_binary(column.type) or kinds.is_large_binary(column.type):
        return _objects(column.to_pylist()).reshape(shape)
    if not (kinds.is_integer(column.type) or kinds.is_floating(column.type)
            or kinds.is_boolean(column.type)):  # fmt: skip
        message = f"{path}: column {name!r} holds {column.type}; numbers, booleans, strings and "
        message += "lists of them can be used"
        raise ValidationInputError(message)
    array: Array = column.to_numpy(zero_copy_only=False)
    return array.reshape(shape)


def _null(path: Path, name: str) -> ValidationInputError:
    return ValidationInputError(f"{path}: column {name!r} has missing values (null)")


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


# --- folders --------------------------------------------------------------------------------------


def _read_folder(path: Path, rows: int | None) -> list[Block]:
    if is_case_folder(path):
        return list(_read_cases(path, rows))
    files = sorted(item for item in path.iterdir() if item.is_file() and item.name[0] != ".")
    known = [item for item in files if item.suffix in {".npy", ".npz", ".safetensors", ".parquet"}]
    if not known:
        message = f"{path} holds neither .npy, .npz, .safetensors or .parquet files nor stored "
        message += "cases"
        raise ValidationInputError(message)
    suffixes = sorted({item.suffix for item in known})
    if len(suffixes) > 1:
        message = f"{path} holds {' and '.join(suffixes)} files; one kind is needed, or name the "
        message += "file that is meant"
        raise ValidationInputError(message)
    if suffixes == [".npy"]:
        return [Block(path.name, {item.stem: _read_file(item, None)[UNNAMED] for item in known})]
    blocks: list[Block] = []
    count = 0
    for item in known:
        arrays = _read_file(item, None if rows is None else rows - count)
        blocks.append(Block(f"{path.name}/{item.name}", arrays))
        count += max((len(array) if array.ndim else 1) for array in arrays.values())
        if rows is not None and count >= rows:
            break
    return blocks


def is_case_folder(path: Path) -> bool:
    """Whether a folder holds stored cases (as the monitor and reports write them)."""
    return (path / "shards").is_dir()


def _read_cases(path: Path, rows: int | None) -> Iterator[Block]:
    from sidecar.cases import iter_cases

    count, left_out = 0, 0
    for case in iter_cases(path):
        if not case.can_be_replayed or not case.inputs:
            left_out += 1
            continue
        yield Block(f"{path.name}#{case.id}", dict(case.inputs))
        count += max((len(array) if array.ndim else 1) for array in case.inputs.values())
        if rows is not None and count >= rows:
            return
    if not count:
        message = f"{path} holds no case with its inputs"
        if left_out:
            message += f": those of {left_out} were not kept (monitor.cases: keep them)"
        raise ValidationInputError(message)
