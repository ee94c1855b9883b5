"""The console: one JSON object a line, on a stream."""

from __future__ import annotations

import threading
from typing import BinaryIO

from typing_extensions import override

from exporters.telemetry.delivery import Sender, SendError, Sent

#: One for all signals: lines of two threads must not be mixed.
_lock = threading.Lock()


class ConsoleSender(Sender):
    """Writes lines. A reader that does not read holds the thread, as a slow backend would."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    @override
    def send(self, payload: bytes, timeout_s: float) -> Sent:
        if not _lock.acquire(timeout=timeout_s):
            raise SendError("retries", "the console is not read", retry=True)
        try:
            self._stream.write(payload)
            self._stream.flush()
        except (OSError, ValueError) as error:  # closed, or a full disk behind it
            raise SendError("refused", f"the console: {error}", retry=False) from error
        finally:
            _lock.release()
        return Sent()

    @override
    def close(self) -> None:
        """Nothing: the stream is not ours."""
