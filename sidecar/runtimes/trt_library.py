"""TensorRT and TensorRT for RTX behind one face: the module, its logger, its plugins, its dtypes.

Both modules have the same Python interface; only what differs is named here.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

from sidecar.config_runtime import TensorRTConfig, TensorRTRTXConfig
from sidecar.errors import ArtifactError, MissingExtraError

log = logging.getLogger(__name__)

TensorRTSettings = TensorRTConfig | TensorRTRTXConfig

#: TensorRT's DataType name → the protocol's.
_DATATYPES = {
    "FLOAT": "FP32", "HALF": "FP16", "BF16": "BF16", "INT8": "INT8", "UINT8": "UINT8",
    "INT32": "INT32", "INT64": "INT64", "BOOL": "BOOL",
}  # fmt: skip

_ERROR = 1  # ILogger.Severity: INTERNAL_ERROR 0, ERROR 1, WARNING 2, INFO 3, VERBOSE 4
_WARNING = 2
_INFO = 3


class Messages:
    """What the library said during one operation: the first errors, which name the cause."""

    _LIMIT = 20

    def __init__(self) -> None:
        self.errors: list[str] = []

    def add(self, text: str) -> None:
        """Keep ``text``; beyond the limit it is dropped (later errors only echo the first)."""
        if len(self.errors) < self._LIMIT and text not in self.errors:
            self.errors.append(text)

    def text(self, nothing: str = "the library gave no reason") -> str:
        """All errors in one line."""
        return "; ".join(self.errors) or nothing


class LogSink:
    """Sorts the library's messages: errors to whoever runs the operation, the rest to logging."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._lock = threading.Lock()
        self._captures: dict[int, list[Messages]] = {}

    def put(self, level: int, text: str) -> None:
        """Take one message. Called from any of the library's threads; must not raise."""
        if level > _INFO:
            return  # VERBOSE: several lines a layer, each under Python's lock
        line = " ".join(text.split())
        if level > _ERROR:
            log.log(logging.WARNING if level == _WARNING else logging.DEBUG, "%s", line)
            return
        with self._lock:
            own = self._captures.get(threading.get_ident())
            # The library's own worker threads belong to nobody: everyone who listens may need it.
            listeners = own[-1:] if own else [stack[-1] for stack in self._captures.values()]
            for messages in listeners:
                messages.add(line)
        # What is captured becomes part of an exception; said twice it reads like two faults.
        log.log(logging.DEBUG if listeners else logging.ERROR, "%s: %s", self._title, line)

    @contextmanager
    def capture(self) -> Iterator[Messages]:
        """Collect the errors that this thread's calls cause."""
        thread = threading.get_ident()
        messages = Messages()
        with self._lock:
            self._captures.setdefault(thread, []).append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                stack = self._captures[thread]
                stack.remove(messages)
                if not stack:
                    del self._captures[thread]


@dataclass(frozen=True, eq=False)
class Library:
    """One of the two libraries, loaded.

    Attributes:
        kind: the runtime kind (``"tensorrt_rtx"``).
        title: for people.
        module: the Python module.
        logger: the one ``ILogger`` of this process: TensorRT keeps the first it is given and
            ignores later ones.
        sink: where ``logger`` writes.
    """

    kind: str
    title: str
    module: Any
    logger: Any
    sink: LogSink

    @property
    def version(self) -> str:
        """The library's version; engines fit this one only."""
        return str(self.module.__version__)

    @property
    def builds_without_gpu(self) -> bool:
        """TensorRT for RTX builds engines that any RTX GPU finishes; TensorRT times kernels."""
        return self.kind == "tensorrt_rtx"

    @lru_cache  # noqa: B019 - one Library lives per kind, as long as the process
    def register_plugins(self) -> None:
        """Make the library's own plugins known to its parser and its deserializer."""
        register = getattr(self.module, "init_libnvinfer_plugins", None)
        if register is not None:
            register(self.logger, "")

    def datatype(self, dtype: Any, tensor: str, where: str) -> str:
        """The protocol's name of a TensorRT dtype.

        Raises:
            ArtifactError: the protocol has none (FP8, INT4, …).
        """
        try:
            return _DATATYPES[dtype.name]
        except KeyError:
            known = ", ".join(sorted(_DATATYPES.values()))
            message = (
                f"{where}: {tensor} is {dtype.name}, which the inference protocol cannot carry; "
                f"cast it inside the model to one of {known}"
            )
            raise ArtifactError(message) from None


_TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


@lru_cache
def load_library(kind: str) -> Library:
    """Import the module of a runtime kind, ``"tensorrt"`` or ``"tensorrt_rtx"``.

    Raises:
        MissingExtraError: it is not installed, or cannot be loaded on this machine.
    """
    title = _TITLES[kind]
    extra = kind.replace("_", "-")
    try:
        module = import_module(kind)
    except ModuleNotFoundError as error:
        if error.name != kind:
            message = f"{title} is installed, but a part is missing: {error}; reinstall it with "
            message += f"pip install --force-reinstall 'model-sidecar[{extra}]'"
            raise MissingExtraError(message) from error
        message = f"runtime kind {kind} needs {title}, which is not installed here; "
        message += f"pip install 'model-sidecar[{extra}]'"
        raise MissingExtraError(message) from None
    except (ImportError, OSError, RuntimeError) as error:
        message = f"{title} is installed, but cannot be loaded on this machine: {error}"
        raise MissingExtraError(message) from error
    sink = LogSink(title)

    base: Any = module.ILogger

    class ForwardingLogger(base):  # type: ignore[misc] # the base is untyped
        """Hands every message to the sink."""

        def __init__(self) -> None:
            base.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            sink.put(int(severity.value), msg)

    return Library(kind, title, module, ForwardingLogger(), sink)
