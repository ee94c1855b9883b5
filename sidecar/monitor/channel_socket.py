"""The Unix sockets of a sidecar: who may listen, and who may connect."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import stat
import struct
from pathlib import Path

from sidecar.errors import SidecarError
from sidecar.monitor.places import address_of

logger = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class ChannelError(SidecarError):
    """It cannot be listened on: says where and why."""


def listen(path: Path, who: str = "monitor") -> socket.socket:
    """Listen there, for this user alone; raises ``ChannelError``.

    Args:
        who: what listens there, for messages.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        message = f"cannot use the folder {path.parent} for {path.name}: {error.strerror}"
        raise ChannelError(message) from None
    try:
        # Two monitors that start at once must not each remove the other's socket as stale.
        fcntl.flock(folder, fcntl.LOCK_EX)
        _remove_stale(path, who)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # The file gets the mode of the socket, so that at no time others may connect; umask
            # would be the whole process's.
            os.fchmod(sock.fileno(), 0o600)
            with address_of(path) as address:
                sock.bind(address)
            sock.listen(64)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        message = f"cannot listen on {path}: {error.strerror}"
        raise ChannelError(message) from None
    finally:
        os.close(folder)
    return sock


def _remove_stale(path: Path, who: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        message = f"{path} exists and is no socket; remove it, or set monitor.socket to another"
        raise ChannelError(message)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe, address_of(path) as address:
        try:
            probe.connect(address)
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    message = f"another {who} listens on {path}; end it, or set monitor.socket to another path"
    raise ChannelError(message)


def peer_uid(sock: socket.socket) -> int:
    """The user of the process at the other end of a Unix socket, as it connected or listened."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    uid: int = _CREDENTIALS.unpack(raw)[1]
    return uid


def is_ours(sock: socket.socket) -> bool:
    """Whether this user's process is at the other end; says so when it is not."""
    uid = peer_uid(sock)
    if uid == os.geteuid():
        return True
    logger.warning("user %d may not hand over exchanges; the connection is closed", uid)
    return False


def limit_sends(sock: socket.socket, seconds: float) -> None:
    """Bound how long a send may wait. (A timeout of the socket would bound receiving as well.)"""
    whole, rest = divmod(seconds, 1)
    value = struct.pack("ll", int(whole), int(rest * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, value)
