"""Runs the checks of one client script; the client's environment holds no pytest.

A check is a function ``check_*(target)``, plain or async. ``python SCRIPT TARGET [CHECK…]`` runs
them in the order of the file and prints one JSON line each: ``{"check", "ok", "detail"}``, where
``detail`` is the client's own traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Longer than any script takes on a busy machine; then the stacks are printed and the process ends,
#: before the test that waits for it gives up without a word.
HANG_S = 180


@dataclass(frozen=True)
class Target:
    """Where the server is, and what a client must know to be let in (paths of PEM files)."""

    grpc: str
    http: str
    health: str = ""
    admin: str = ""
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    token: str | None = None
    api: str = "grpc"  # for scripts that make the same calls over both: "grpc" or "http"
    access: str = "read"
    workers: int = 1


#: The protocol's statuses as tritonclient shows them, over gRPC and over HTTP.
HTTP_STATUS = {
    "INVALID_ARGUMENT": "400", "NOT_FOUND": "404", "ALREADY_EXISTS": "409", "UNIMPLEMENTED": "501",
    "UNAVAILABLE": "503", "PERMISSION_DENIED": "403", "RESOURCE_EXHAUSTED": "429",
}  # fmt: skip


def status_of(target: Target, name: str) -> str:
    """How the client of ``target.api`` reports a gRPC status."""
    return f"StatusCode.{name}" if target.api == "grpc" else HTTP_STATUS[name]


class WrongError(AssertionError):
    """The server's answer is not what the check expects."""


def equal(got: Any, expected: Any, what: str) -> None:
    """Compare values, or arrays with their dtype and shape."""
    if isinstance(expected, np.ndarray):
        got = np.asarray(got)
        if got.dtype != expected.dtype or got.shape != expected.shape:
            message = f"{what}: got {got.dtype}{got.shape}, expected "
            raise WrongError(message + f"{expected.dtype}{expected.shape}")
        same = np.array_equal(got, expected, equal_nan=expected.dtype.kind in "fc")
        if expected.dtype.kind in "fc":
            same = same and np.array_equal(np.signbit(got), np.signbit(expected))
    else:
        same = got == expected
    if not same:
        raise WrongError(f"{what}: got {got!r}, expected {expected!r}")


def holds(condition: object, what: str) -> None:
    """Say what should have been true."""
    if not condition:
        raise WrongError(what)


class Refusal:
    """What ``refused`` caught; ``error`` is set when its block has ended."""

    error: Exception

    @property
    def text(self) -> str:
        """What the server wrote (a grpc error's ``str`` adds the client's own debug text)."""
        details = getattr(self.error, "details", None)
        return str(details() if callable(details) else self.error)


@contextlib.contextmanager
def refused(
    kind: type[Exception],
    *statuses: str,
    about: str = "",
    status: Callable[[Any], str] | None = None,
) -> Iterator[Refusal]:
    """The block must raise ``kind`` with one of ``statuses``; the text must name ``about``.

    No refusal may show the server's insides to a client, so that is checked each time.
    """
    refusal = Refusal()
    try:
        yield refusal
    except kind as error:
        refusal.error = error
    else:
        raise WrongError(f"it was accepted; expected {' or '.join(statuses)}")
    got = status(refusal.error) if status is not None else str(refusal.error.status())  # type: ignore[attr-defined]
    if got not in statuses:
        message = f"got {got!r} ({refusal.text}), expected {' or '.join(statuses)}"
        raise WrongError(message) from refusal.error
    holds(about in refusal.text, f"the message does not name {about!r}: {refusal.text}")
    for leak in ("Traceback", 'File "', ".py", "/site-packages", ".onnx", "<class", "0x7f"):
        holds(leak not in refusal.text, f"the message shows {leak!r}: {refusal.text}")


def samples(bfloat16: Any) -> dict[str, np.ndarray]:
    """Per datatype, values at the ends of its range, shape (2, 3)."""
    arrays = {
        "BOOL": np.array([[True, False, True], [False, False, True]]),
        "FP16": np.array([[0.5, -0.0, np.inf], [np.nan, 65504, 6e-8]], np.float16),
        "FP32": np.array([[0.5, -0.0, -np.inf], [np.nan, 3.4e38, 1e-45]], np.float32),
        "FP64": np.array([[0.5, -0.0, np.inf], [np.nan, 1.7e308, 5e-324]], np.float64),
        "BF16": np.array([[0.5, -2.0, 3.0e38], [1.0, 0.25, -7.0]], bfloat16),
        "BYTES": np.array(
            [[b"", b"abc", b"a\x00b"], ["žluť".encode(), b"\n", b"x" * 300]], object
        ),
    }  # fmt: skip
    for bits in (8, 16, 32, 64):
        for name, kind in ((f"INT{bits}", "i"), (f"UINT{bits}", "u")):
            dtype = np.dtype(f"{kind}{bits // 8}")
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            arrays[name] = np.array([[low, high, 0], [1, high - 1, low + 1]], dtype)
    return arrays


def mlp(rows: np.ndarray) -> np.ndarray:
    """What the served 32→64→10 network answers; its weights are a formula, known to both sides."""
    first = np.sin(np.arange(32 * 64, dtype=np.float64)).reshape(32, 64).astype(np.float32)
    second = np.cos(np.arange(64 * 10, dtype=np.float64)).reshape(64, 10).astype(np.float32)
    return np.maximum(rows @ first, 0) @ second


def _run(check: Any, target: Target) -> None:
    result = check(target)
    if inspect.isawaitable(result):
        asyncio.run(asyncio.wait_for(result, 60))  # type: ignore[arg-type]


def main(namespace: dict[str, Any]) -> None:
    """Run the checks in ``namespace`` against the target on the command line."""
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    target = Target(**json.loads(sys.argv[1]))
    wanted = set(sys.argv[2:])
    for name, check in list(namespace.items()):
        if not name.startswith("check_") or (wanted and name not in wanted):
            continue
        try:
            _run(check, target)
            line = {"check": name, "ok": True, "detail": ""}
        except Exception:  # noqa: BLE001 - each check reports by itself
            line = {"check": name, "ok": False, "detail": traceback.format_exc()}
        print(json.dumps(line), flush=True)
