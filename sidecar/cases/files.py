"""Writing files so that a crash leaves the old one or the new one, and nobody else reads them."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from sidecar.cases.case import CaseError

_TEMPORARY = ".tmp-"
_MODE = 0o600  # what clients sent may be personal


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under another name and rename it.

    Not synced: after a loss of power a case may be torn, which readers notice; to wait for the
    disk at every flush would cost more than a case is worth.

    Raises:
        OSError: the disk refused; no trace is left.
    """
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what a crash in the middle of a write left."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        with contextlib.suppress(OSError):
            path.unlink()


def lock(folder: Path) -> int:
    """Return a descriptor that holds the folder's lock while it is open (or its process lives).

    Raises:
        CaseError: another process has it.
        OSError: the lock's file cannot be made.
    """
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        message = f"another process writes cases to {folder}; give each its own folder"
        raise CaseError(message) from None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
