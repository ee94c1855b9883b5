"""System shared memory that clients register: tensors that do not travel through a socket.

A client makes a POSIX shared-memory object, registers a part of it under a name, and then sends
references instead of bytes. The object stays the client's, who may write to it, truncate it or
remove it at any time; so by default every read is a copy (``preadv`` into a buffer of our own): a
mapping of a truncated object kills the process with SIGBUS at the first touch, a read just comes
back short.

``multiprocessing.shared_memory`` was rejected: its resource tracker removes the client's object
when this process ends. Buffers are not reused between reads either: measured at 4 MiB, a fresh
``numpy.empty`` and a kept buffer cost the same (0.28 and 0.24 ms), because malloc keeps the pages.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import numpy as np

from sidecar.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    PermissionDeniedError,
    UnsupportedError,
)
from sidecar.gateway.messages import RegionRef
from sidecar.runtimes.base import Array

if TYPE_CHECKING:
    from sidecar.config import SharedMemoryConfig

_DIRECTORY = Path("/dev/shm")  # noqa: S108  where Linux keeps POSIX shared-memory objects
_NAME_MAX = 255  # bytes of one path component
_MAX_READ_BYTES = 2**31 - 1  # as the largest message: shared memory is no way around that bound
# NONBLOCK: opening a FIFO or a device must not hang the call before it is seen to be no file.
_OPEN_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


@dataclass(frozen=True, slots=True)
class RegionDefinition:
    """What a client registered: ``byte_size`` bytes from ``offset`` of the object ``key``."""

    name: str
    key: str
    offset: int
    byte_size: int


class _Region:
    """A registered region and the open object behind it; closed when the last user is done."""

    __slots__ = ("definition", "fd", "gone", "mapping", "users")

    def __init__(self, definition: RegionDefinition, fd: int) -> None:
        self.definition = definition
        self.fd = fd
        self.users = 0  # requests that read or write now
        self.gone = False  # unregistered
        self.mapping: memoryview | None = None  # only with access="map", from the first read on


class SharedMemory:
    """The registered regions of one worker. Thread-safe.

    Args:
        config: whether it is offered, how regions are read, how many there may be.
        directory: where the objects lie; another one only in tests.
        max_read_bytes: the largest tensor that is read or written in one piece.
    """

    def __init__(
        self,
        config: SharedMemoryConfig,
        *,
        directory: Path = _DIRECTORY,
        max_read_bytes: int = _MAX_READ_BYTES,
    ) -> None:
        self._config = config
        self._directory = directory
        self._max_read_bytes = max_read_bytes
        self._lock = threading.Lock()
        self._regions: dict[str, _Region] = {}

    # --- the clients' calls ---------------------------------------------------------------------

    def check_register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Check what ``register`` would, and change nothing: for a change that must reach several
        workers or none.

        Raises:
            As ``register``.
        """
        os.close(self._open(RegionDefinition(name, key, offset, byte_size)))

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register ``byte_size`` bytes from ``offset`` of the object ``key`` under ``name``.

        Raises:
            ConflictError: the name is registered already, be it with the same definition: Triton
                answers so, and a client that lost track must learn it, since its object may be
                another one now.
            InvalidRequestError: a name, key or size that cannot be right, an object that is
                smaller than the region, or something that is no shared-memory object.
            NotFoundError: there is no such object.
            PermissionDeniedError: this process may not open it for reading and writing.
            OverloadedError: as many regions as allowed are registered.
            UnsupportedError: shared memory is switched off.
        """
        definition = RegionDefinition(name, key, offset, byte_size)
        fd = self._open(definition)
        try:
            with self._lock:
                self._check_free(name)
                self._regions[name] = _Region(definition, fd)
        except BaseException:
            os.close(fd)
            raise

    def unregister(self, name: str) -> None:
        """Forget a region, or all of them (``""``). A name that is not registered is no error.

        A request that uses the region goes on; the object is closed after it.

        Raises:
            UnsupportedError: shared memory is switched off.
        """
        self._check_enabled()
        self._forget(name)

    def close(self) -> None:
        """Forget every region. Idempotent."""
        self._forget("")

    def _forget(self, name: str) -> None:
        with self._lock:
            names = [name] if name else list(self._regions)
            for each in names:
                region = self._regions.pop(each, None)
                if region is None:
                    continue
                region.gone = True
                if region.users == 0:
                    self._dispose(region)

    def status(self, name: str = "") -> list[RegionDefinition]:
        """The region of that name, or all of them (``""``), ordered by name.

        Raises:
            NotFoundError: no region has that name.
            UnsupportedError: shared memory is switched off.
        """
        self._check_enabled()
        with self._lock:
            regions = dict(self._regions)
        if not name:
            return [regions[each].definition for each in sorted(regions)]
        if name not in regions:
            _unknown(name)
        return [regions[name].definition]

    # --- the request's path ---------------------------------------------------------------------

    def read_region(self, ref: RegionRef) -> Array:
        """``read``, as the decoder calls it."""
        return self.read(ref.region, ref.offset, ref.byte_size)

    def write_region(self, ref: RegionRef, data: bytes | bytearray | memoryview | Array) -> None:
        """``write``, as the request's path calls it."""
        self.write(ref.region, ref.offset, data)

    def read(self, region: str, offset: int, byte_size: int) -> Array:
        """Read ``byte_size`` bytes from ``offset`` (relative to the region's start).

        Returns:
            A uint8 array ``[byte_size]``, at least 16-byte aligned. By default a copy that nobody
            else can write to. With ``access: map`` a read-only view of the client's memory: the
            client sees to it that it does not change before the answer is there.

        Raises:
            NotFoundError: no region has that name.
            InvalidRequestError: it lies outside of the region, or the client has truncated the
                object since.
            UnsupportedError: shared memory is switched off.
        """
        with self._use(region) as used:
            self._check_bounds(used.definition, offset, byte_size)
            if self._config.access == "map" and byte_size:
                return self._map(used, offset, byte_size)
            return self._copy(used, offset, byte_size)

    def write(self, region: str, offset: int, data: bytes | bytearray | memoryview | Array) -> None:
        """Write contiguous bytes to ``offset`` (relative to the region's start).

        Raises:
            As ``read``.
        """
        view = memoryview(data)  # type: ignore[arg-type]  # arrays have buffers; mypy sees none
        if view.nbytes:  # a view without elements cannot be cast
            view = view.cast("B")
        with self._use(region) as used:
            definition = used.definition
            self._check_bounds(definition, offset, view.nbytes)
            start = definition.offset + offset
            # Checked each time: a write past the end would make the client's object grow.
            if os.fstat(used.fd).st_size < start + view.nbytes:
                _truncated(definition)
            written = 0
            try:
                while written < view.nbytes:  # one call takes 2 GiB at most
                    written += os.pwrite(used.fd, view[written:], start + written)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                # An object gets its pages when they are touched. With a mapping: SIGBUS.
                text = f"shared memory region '{region}' cannot be written: the machine's shared "
                text += "memory is full (a container has 64 MiB unless it is given more)"
                raise OverloadedError(text) from None

    def _copy(self, region: _Region, offset: int, byte_size: int) -> Array:
        # Not bytearray: it fills with zeros first, which costs as much as the read itself.
        buffer = np.empty(byte_size, np.uint8)
        start = region.definition.offset + offset
        view = buffer.data
        done = os.preadv(region.fd, [view], start)
        while done < byte_size:  # one call takes 2 GiB at most
            count = os.preadv(region.fd, [view[done:]], start + done)
            if count == 0:
                _truncated(region.definition)
            done += count
        return buffer

    def _map(self, region: _Region, offset: int, byte_size: int) -> Array:
        definition = region.definition
        # A fault beyond the end is SIGBUS, and no handler of Python's helps. This check narrows
        # the time in which a client can cause it; only ``access: read`` closes it.
        if os.fstat(region.fd).st_size < definition.offset + offset + byte_size:
            _truncated(definition)
        mapping = region.mapping
        if mapping is None:
            # Two threads may both get here: the loser's mapping goes with its last view.
            padding = definition.offset % mmap.ALLOCATIONGRANULARITY
            length = definition.byte_size + padding
            try:
                mapped = mmap.mmap(
                    region.fd, length, prot=mmap.PROT_READ, offset=definition.offset - padding
                )
            except ValueError:  # longer than the object is now
                _truncated(definition)
            # Never closed by hand: views outlive an unregistration, and the last one frees it.
            mapping = region.mapping = memoryview(mapped)[padding:]
        return np.frombuffer(mapping, np.uint8, count=byte_size, offset=offset)

    @contextmanager
    def _use(self, name: str) -> Iterator[_Region]:
        self._check_enabled()
        with self._lock:
            region = self._regions.get(name)
            if region is None:
                _unknown(name)
            region.users += 1
        try:
            yield region
        finally:
            with self._lock:
                region.users -= 1
                if region.gone and region.users == 0:
                    self._dispose(region)

    @staticmethod
    def _dispose(region: _Region) -> None:
        region.mapping = None
        os.close(region.fd)

    # --- checks ---------------------------------------------------------------------------------

    def _check_enabled(self) -> None:
        if not self._config.enabled:
            text = "shared memory is switched off on this server; send the tensors in the request"
            raise UnsupportedError(text)

    def _check_free(self, name: str) -> None:
        """With the lock held: whether one more region of that name may be registered."""
        if name in self._regions:
            text = f"shared memory region '{name}' already in manager; unregister it first"
            raise ConflictError(text)
        if len(self._regions) >= self._config.max_regions:
            text = f"{self._config.max_regions} shared memory regions are registered, which is the "
            text += "limit; unregister some first"
            raise OverloadedError(text)

    def _check_bounds(self, definition: RegionDefinition, offset: int, byte_size: int) -> None:
        if offset < 0 or byte_size < 0 or offset + byte_size > definition.byte_size:
            text = f"{byte_size} bytes at offset {offset} lie outside of shared memory region "
            text += f"'{definition.name}', which has {definition.byte_size} bytes"
            raise InvalidRequestError(text)
        if byte_size > self._max_read_bytes:
            text = f"{byte_size} bytes of shared memory region '{definition.name}' are more than "
            text += f"one tensor may take ({self._max_read_bytes})"
            raise InvalidRequestError(text)

    def _open(self, definition: RegionDefinition) -> int:
        """Check a definition and open its object; the caller closes it."""
        self._check_enabled()
        name, key = definition.name, definition.key
        if not name:
            text = "a shared memory region needs a name"
            raise InvalidRequestError(text)
        with self._lock:
            self._check_free(name)
        if definition.offset < 0 or definition.byte_size < 1:
            text = f"shared memory region '{name}' cannot have offset {definition.offset} and "
            text += f"byte_size {definition.byte_size}; it takes at least one byte"
            raise InvalidRequestError(text)
        try:
            fd = os.open(self._directory / _component(key), _OPEN_FLAGS)
        except OSError as error:
            _cannot_open(key, error)
        try:
            _check_object(fd, definition)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _component(key: str) -> str:
    """The file's name of a key (``/name``, or ``name``: ``shm_open`` takes both).

    Raises:
        InvalidRequestError: the key is no single path component.
    """
    component = key.removeprefix("/")
    try:
        length = len(os.fsencode(component))
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= _NAME_MAX or component in {".", ".."} or {"/", "\0"} & set(component):
        text = f"shared memory key {key!r} is none; it is one name after a slash, as in '/input0'"
        raise InvalidRequestError(text)
    return component


def _check_object(fd: int, definition: RegionDefinition) -> None:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        text = f"'{definition.key}' is no shared-memory object"
        raise InvalidRequestError(text)
    if definition.offset + definition.byte_size > status.st_size:
        text = f"shared memory region '{definition.name}' takes {definition.byte_size} bytes at "
        text += f"offset {definition.offset}, but '{definition.key}' has {status.st_size} bytes"
        raise InvalidRequestError(text)


def _cannot_open(key: str, error: OSError) -> NoReturn:
    """Say why an object could not be opened, without its path."""
    if error.errno == errno.ENOENT:
        text = f"there is no shared-memory object '{key}'; it must be made on this machine (in a "
        text += "pod: on a volume that both containers mount) before it is registered"
        raise NotFoundError(text) from None
    if error.errno in {errno.EACCES, errno.EPERM}:
        text = f"this server may not open shared-memory object '{key}' for reading and writing"
        raise PermissionDeniedError(text) from None
    if error.errno in {errno.EMFILE, errno.ENFILE}:
        text = "this server has as many files open as it may; unregister regions that are not used"
        raise OverloadedError(text) from None
    # ELOOP: a symbolic link; EISDIR: a folder; ENXIO: a socket.
    text = f"'{key}' is no shared-memory object"
    raise InvalidRequestError(text) from None


def _unknown(name: str) -> NoReturn:
    text = f"unable to find shared memory region '{name}'; register it first"
    raise NotFoundError(text)


def _truncated(definition: RegionDefinition) -> NoReturn:
    text = f"shared memory region '{definition.name}' is shorter than when it was registered "
    text += f"({definition.byte_size} bytes at offset {definition.offset}): '{definition.key}' was "
    text += "truncated"
    raise InvalidRequestError(text)
