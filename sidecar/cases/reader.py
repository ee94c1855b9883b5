"""Reading cases; nothing in the folder is changed or trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sidecar.cases.case import Case, CaseEntry, CaseError, is_case_id
from sidecar.cases.index import CorruptIndexError, read_index, rebuild_index
from sidecar.cases.shards import FOLDER, SUFFIX, read_case, shard_path


def read_cases(folder: Path | str) -> list[CaseEntry]:
    """Return the index of a folder of cases, the oldest first.

    Where the index is missing or corrupt, what the cases' files say of themselves.

    Raises:
        CaseError: there is no such folder, or the extra that reads it is not installed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        message = f"{folder} is not a folder of cases"
        raise CaseError(message)
    try:
        return read_index(folder).entries
    except (FileNotFoundError, CorruptIndexError):
        return rebuild_index(folder)[0].entries
    except OSError as error:
        message = f"{folder} cannot be read: {error.strerror}"
        raise CaseError(message) from None


def iter_cases(folder: Path | str) -> Iterator[Case]:
    """Return the cases of a folder with their arrays, the oldest first, one in memory at a time.

    A case that its writer deletes meanwhile is left out.

    Raises:
        CaseError: as ``read_cases`` and ``load_case``.
    """
    for entry in read_cases(folder):
        try:
            yield read_case(entry.path)
        except CaseError:
            if entry.path.exists():
                raise


def load_case(where: Path | str, folder: Path | str | None = None) -> Case:
    """Return one case with its arrays.

    Args:
        where: a case's file, ``FOLDER#ID``, or an id within ``folder``.
        folder: the folder of cases, where ``where`` is an id.

    Raises:
        CaseError: there is no such case, or it cannot be read; says what was found.
    """
    text = str(where)
    if folder is not None and is_case_id(text):
        return _load(Path(folder), text)
    before, sign, case_id = text.rpartition("#")
    if sign and not Path(text).exists():
        return _load(Path(before or "."), case_id)
    path = Path(text)
    if path.is_file():
        return read_case(path)
    if path.is_dir():
        message = f"{path} is a folder; say which case of it: {path}#ID{_some(path)}"
        raise CaseError(message)
    message = f"there is no case {text}: write the path of its file, or FOLDER#ID"
    raise CaseError(message)


def _load(folder: Path, case_id: str) -> Case:
    path = shard_path(folder, case_id)
    if not path.is_file():
        message = f"{folder} has no case {case_id}{_some(folder)}"
        raise CaseError(message)
    return read_case(path)


def _some(folder: Path) -> str:
    names = sorted(path.stem for path in (folder / FOLDER).glob(f"*{SUFFIX}"))
    if not names:
        return "; it has none"
    return f"; it has {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
