"""The pages as files, where gateway and monitor are containers of their own and share a volume.

A gateway opens one file for each of its workers. Started again it goes on in them, so that counters
go on; where the variants are others by now, or a file is not whole, it begins another file in its
place. The monitor reads copies: what is mapped and becomes shorter ends its reader, and a monitor
must not depend on what lies in a folder. (A copy is some 10 KB a variant, and takes microseconds.)

In the header, behind the words of ``pages.py``: a digest of the variants, which says whose counts
these are, and since when they count.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import struct
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING

from typing_extensions import override

from sidecar.gateway.pages import LAYOUT_VERSION, MAGIC, Page, create_page, page_bytes

if TYPE_CHECKING:
    from sidecar.config import SidecarConfig

logger = logging.getLogger(__name__)

_DIGEST_AT, _BEGAN_AT = 6, 7
_HEADER = struct.Struct("<8Q")
#: As many as there can be workers; more is nobody's of ours.
_FILES_MAX = 256


def names_of(config: SidecarConfig) -> list[str]:
    """What each slot counts, in the order of ``registry.slots_of``."""
    return [f"{model.name}:{v.key}" for model in config.models for v in model.variants]


def _name(index: int) -> str:
    return f"worker-{index}.page"


def _digest(names: Sequence[str]) -> int:
    return int.from_bytes(blake2b("\0".join(names).encode(), digest_size=7).digest(), "little")


def _is_ours(header: Sequence[int], names: Sequence[str]) -> bool:
    wanted = [MAGIC, LAYOUT_VERSION, len(names)]
    return [*header[:3], header[_DIGEST_AT]] == [*wanted, _digest(names)]


# --- the gateway's side ---------------------------------------------------------------------------


def open_pages(folder: Path, names: Sequence[str], count: int) -> list[int]:
    """The pages of ``count`` workers, as descriptors; each holds its file's lock while it is open.

    Args:
        folder: made if need be.
        names: of the variants, by slot.

    A page that cannot be had as a file is one in memory, as without a monitor: nothing is told of
    it, which is said, and it serves as well.
    """
    descriptors = []
    for index in range(count):
        path = folder / _name(index)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptors.append(_open(path, names))
        except OSError as error:
            reason = "another gateway counts there" if _is_held(error) else error.strerror
            logger.warning("requests are not told: the counts cannot be in %s: %s", path, reason)
            descriptors.append(create_page(len(names)))
    return descriptors


def _is_held(error: OSError) -> bool:
    return isinstance(error, BlockingIOError)


def _open(path: Path, names: Sequence[str]) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        whole = stat.S_ISREG(state.st_mode) and state.st_size == page_bytes(len(names))
        if whole and _is_ours(_header(descriptor), names):
            # Also where the volume has been filled since: a page that is not there when it is
            # written to would end the process.
            os.posix_fallocate(descriptor, 0, state.st_size)
            return descriptor
        fresh = _make(path, names)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return fresh


def _make(path: Path, names: Sequence[str]) -> int:
    """A fresh file in the place of another: whoever reads that one has it whole to the end."""
    beside = path.with_suffix(".new")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(beside, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.posix_fallocate(descriptor, 0, page_bytes(len(names)))
        words = [MAGIC, LAYOUT_VERSION, len(names), 0, 0, 0, _digest(names), time_ns()]
        os.pwrite(descriptor, _HEADER.pack(*words), 0)
        beside.replace(path)
    except BaseException:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    return descriptor


def _header(descriptor: int) -> tuple[int, ...]:
    return _HEADER.unpack(os.pread(descriptor, _HEADER.size, 0))


# --- the monitor's side ---------------------------------------------------------------------------


class Snapshot(Page):
    """A copy of a page, for reading. ``data``: as long as a page of so many slots."""

    def __init__(self, data: bytes, slots: int) -> None:
        self.words = memoryview(data).cast("Q")
        self.slots = slots

    @override
    def close(self) -> None:
        """Nothing is held."""


class PageFiles:
    """The pages of a gateway elsewhere, read anew each time; for any thread.

    Args:
        folder: where they are, or will be.
        names: of the variants, by slot: counts of others are not taken.

    Attributes:
        since_ns: wall clock, since when what was read last counts; 0: nothing was there.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._folder = folder
        self._names = list(names)
        self._problem = ""
        self.since_ns = 0

    def read(self) -> list[Page]:
        """A copy of each page that is there now: none before a gateway has been started."""
        pages: list[Page] = []
        problem = ""
        for name in self._listed():
            data, why = self._read_one(name)
            if data is None:
                problem = problem or why
            else:
                pages.append(Snapshot(data, len(self._names)))
        self.since_ns = min((page.words[_BEGAN_AT] for page in pages), default=0)
        if problem and problem != self._problem:
            logger.warning("counts of the gateway are not told: %s", problem)
        self._problem = problem
        return pages

    def _listed(self) -> list[str]:
        try:
            names = os.listdir(self._folder)  # noqa: PTH208 - names only
        except OSError:  # no gateway has been here yet
            return []
        return sorted(name for name in names if name.endswith(".page"))[:_FILES_MAX]

    def _read_one(self, name: str) -> tuple[bytes | None, str]:
        """A page's bytes; else why not, which is nothing where it has just gone."""
        size = page_bytes(len(self._names))
        path = self._folder / name
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"{path}: {error.strerror}"
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None, f"{path} is no file"
            data = os.pread(descriptor, size, 0)
            if len(data) < _HEADER.size or not _is_ours(_HEADER.unpack_from(data), self._names):
                return None, f"{path} is of another version or configuration of the gateway"
            if len(data) != size:
                return None, f"{path} is shorter than its header says"
        except OSError as error:
            return None, f"{path}: {error.strerror}"
        finally:
            os.close(descriptor)
        return data, ""
