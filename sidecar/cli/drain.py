"""``sidecar drain``: begin a gateway's drain, and wait until it is over. A pod's preStop hook.

It runs while a pod ends, often on a busy machine: so nothing is imported that is not needed, and
the configuration is read for where the socket is, not checked.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

from sidecar import config_text
from sidecar.cli import FAILED, OK
from sidecar.errors import ConfigError, Problem
from sidecar.monitor.places import HOOKS_NAME, address_of


def run(config: Path, timeout_s: float | None = None) -> int:
    """Return the exit code: 0 when it is drained, 1 when not (said on standard error).

    Args:
        config: the gateway's.
        timeout_s: the most it waits; ``None``: as long as the gateway does, which is bounded.

    Raises:
        ConfigError: the file cannot be read, or has no ``gateway.hooks``.
    """
    path = _socket(config)
    try:
        answer = _ask(path, timeout_s)
    except TimeoutError:
        return _say(f"not drained within {timeout_s:g} s; the drain goes on")
    except OSError as error:
        return _say(f"no gateway answers at {path} ({error.strerror or error}): nothing to drain")
    status, _, rest = answer.partition("\r\n")
    if " 200 " in status:
        return OK
    body = rest.partition("\r\n\r\n")[2].strip()
    return _say(f"not drained: {body}" if body else "the gateway ended without an answer")


def _socket(config: Path) -> Path:
    tree = config_text.read(config).tree
    if _at(tree, "gateway", "hooks") is None:
        message = "is needed for this: set it to an address, such as 127.0.0.1:9003"
        raise ConfigError(str(config), [Problem("gateway.hooks", message)])
    # As `config.AnyPath` and `places.hooks_path` work it out.
    base_dir = config.absolute().parent
    state_dir = _at(tree, "monitor", "state_dir")
    meeting = _at(tree, "monitor", "socket") or f"{state_dir or 'sidecar-state'}/tap.sock"
    return (base_dir / Path(meeting).expanduser()).resolve().parent / HOOKS_NAME


def _ask(path: Path, timeout_s: float | None) -> str:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock, address_of(path) as address:
        sock.settimeout(timeout_s)
        sock.connect(address)
        sock.sendall(b"POST /drain HTTP/1.1\r\nHost: sidecar\r\nContent-Length: 0\r\n\r\n")
        answer = b""
        while data := sock.recv(4096):
            answer += data
    return answer.decode("latin-1")


def _at(node: Any, *keys: str) -> Any:
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _say(text: str) -> int:
    print(text, file=sys.stderr)
    return FAILED
