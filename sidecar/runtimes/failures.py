"""From a library's exception to a message that a client may read."""

from __future__ import annotations

import re

from sidecar.errors import ExecutionError

_MAX_CHARACTERS = 400
#: Where in a library's source it failed (``/src/core/reshape_helper.h:47 ort::Helper::Helper(const
#: Shape&) ``): of use to nobody who calls a model, and it names build folders.
_SOURCE = re.compile(
    r"\S*/\S*\.(?:h|hpp|cuh|c|cc|cpp|cu|py):\d+:?(?:\s+[\w:~<>,&*\s]+\([^)]*\)(?:\s*const)?)?\s*"
)
_PATH = re.compile(r"(?<![\w/.'\"])(?:/[\w.@+-]+){2,}")
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def client_text(text: str) -> str:
    """Return a library's message without paths, source places or traces; bounded, on one line."""
    text = _ANSI.sub("", text)
    text = text.split("Exception raised from", 1)[0]
    text = _PATH.sub("…", _SOURCE.sub("", text))
    text = " ".join(text.split())
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"


def execution_error(text: str) -> ExecutionError:
    """Make the error of a failed execution out of a library's message."""
    what = client_text(text) or "the runtime gave no reason"
    return ExecutionError(f"the model failed on this input: {what}")
