"""Where gateway and monitor meet, worked out the same way by both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar import route_table

if TYPE_CHECKING:
    from sidecar.config import SidecarConfig

HOOKS_NAME = "hooks.sock"
#: What fits into a Unix address; longer paths go by their folder's descriptor.
_ADDRESS_BYTES_MAX = 107


def state_dir(config: SidecarConfig, base_dir: Path) -> Path:
    """Where evidence and cases are kept: as configured, or ``sidecar-state`` beside the config.

    Args:
        config: the whole tree.
        base_dir: the folder of the config's file, which the tree itself does not know.
    """
    configured = config.monitor.state_dir
    return base_dir / "sidecar-state" if configured is None else Path(configured)


def socket_path(config: SidecarConfig, base_dir: Path) -> Path:
    """Where the monitor listens for exchanges: as configured, or ``tap.sock`` in the state's."""
    configured = config.monitor.socket
    return state_dir(config, base_dir) / "tap.sock" if configured is None else Path(configured)


def hooks_path(config: SidecarConfig, base_dir: Path) -> Path:
    """Where a drain can be begun (``sidecar/hooks.py``): beside the monitor's socket."""
    return socket_path(config, base_dir).parent / HOOKS_NAME


def pages_dir(config: SidecarConfig, base_dir: Path) -> Path:
    """Where a gateway in a container of its own keeps its counts: as configured, or ``pages``
    beside the monitor's socket."""
    configured = config.monitor.pages
    beside = socket_path(config, base_dir).parent / "pages"
    return beside if configured is None else Path(configured)


def routes_path(config: SidecarConfig, base_dir: Path) -> Path:
    """Where the route table (``sidecar/route_table.py``) lies."""
    return state_dir(config, base_dir) / route_table.NAME


@contextmanager
def address_of(path: Path) -> Iterator[str]:
    """An address of ``path`` that a Unix socket can be bound or connected to, however long it is.

    Raises:
        OSError: its folder cannot be opened.
    """
    if len(os.fsencode(path)) <= _ADDRESS_BYTES_MAX:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
