"""What changes a worker's state, in two phases, so that all workers change or none does.

A command is a dict with ``op``; ``prepare`` does what may fail and returns what ``commit`` must do,
which cannot fail. With one worker and no supervisor, ``LocalControl`` runs both in place.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any, Protocol

from sidecar import errors
from sidecar.control import MAX_COMMAND_BYTES, Connection, Message, encode

if TYPE_CHECKING:
    from sidecar.gateway.core import Gateway

logger = logging.getLogger(__name__)

#: Of an error's text, which may hold a name that the client chose.
_MAX_TEXT = 4096

Command = dict[str, Any]
Commit = Callable[[], None]


class Control(Protocol):
    """How a worker has a command carried out everywhere."""

    def apply(self, command: Command) -> None:
        """Return when every worker has carried it out.

        Raises:
            RequestError: it was refused, and no worker has changed.
        """
        ...


class Changes:
    """Carries commands out in this worker."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._prepared: dict[str, Commit] = {}
        self._lock = threading.Lock()  # one change at a time: loading twice at once helps nobody
        self._operations: dict[str, Callable[[Command], Commit]] = {
            "load": self._load,
            "unload": self._unload,
            "shm_register": self._shm_register,
            "shm_unregister": self._shm_unregister,
            "trace": self._trace,
            "log": self._log,
        }

    def prepare(self, transaction: str, command: Command) -> None:
        """Do what may fail; keep what is left to do under ``transaction``."""
        with self._lock:
            self._prepared[transaction] = self._operations[command["op"]](command)

    def commit(self, transaction: str) -> None:
        """Do what was prepared."""
        with self._lock:
            self._prepared.pop(transaction)()

    def abort(self, transaction: str) -> None:
        """Forget what was prepared (a loaded copy is freed with it)."""
        with self._lock:
            self._prepared.pop(transaction, None)

    # --- operations -----------------------------------------------------------------------------

    def _load(self, command: Command) -> Commit:
        registry, name = self._gateway.registry, command["model"]
        try:
            entry = registry.prepare(name)
        except errors.RequestError:
            raise
        except errors.SidecarError as error:
            logger.error("loading %s failed: %s", name, error)
            registry.fail(name, "loading failed; the server's log has the details")
            text = f"model '{name}' could not be loaded ({type(error).__name__}); what was loaded "
            text += "before goes on. The server's log has the details"
            raise errors.ExecutionError(text) from None

        def commit() -> None:
            registry.commit(entry)
            self._gateway.forget_cached(name)

        return commit

    def _unload(self, command: Command) -> Commit:
        self._gateway.registry.entry(command["model"])

        def commit() -> None:
            self._gateway.registry.unload(command["model"])
            self._gateway.forget_cached(command["model"])

        return commit

    def _shm_register(self, command: Command) -> Commit:
        shm = self._gateway.shm
        definition = (command["name"], command["key"], command["offset"], command["byte_size"])
        shm.check_register(*definition)

        def commit() -> None:
            try:
                shm.register(*definition)
            except errors.RequestError:  # the client removed it since: reads of it will say so
                logger.warning("shared-memory region %s went away", command["name"])

        return commit

    def _shm_unregister(self, command: Command) -> Commit:
        self._gateway.shm.status()  # refuses where shared memory is switched off: commit must not
        return lambda: self._gateway.shm.unregister(command["name"])

    def _trace(self, command: Command) -> Commit:
        return self._gateway.trace.prepare(command["settings"], command["model"])

    def _log(self, command: Command) -> Commit:
        return self._gateway.logs.prepare(command["settings"])


class LocalControl:
    """One worker without a supervisor."""

    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._numbers = itertools.count()

    def apply(self, command: Command) -> None:
        """Prepare and commit here."""
        transaction = f"local-{next(self._numbers)}"
        self._changes.prepare(transaction, command)
        self._changes.commit(transaction)


class SupervisedControl:
    """A worker under a supervisor: its thread answers the supervisor, and its calls go there.

    In place before the worker listens, or a change that comes with the first connection would be
    made in this worker only; started when the worker has loaded what it begins with.
    """

    def __init__(
        self, connection: Connection, changes: Changes, on_gone: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._changes = changes
        self._on_gone = on_gone
        self._numbers = itertools.count()
        self._calls: dict[int, futures.Future[None]] = {}

    def start(self) -> None:
        """Answer the supervisor from now on."""
        threading.Thread(target=self._listen, name="control", daemon=True).start()

    def apply(self, command: Command) -> None:
        """Ask the supervisor, and wait until all workers are done."""
        number = next(self._numbers)
        call: Message = {"type": "call", "call": number, "command": command}
        if (nbytes := len(encode(call))) > MAX_COMMAND_BYTES:
            text = f"this call takes {nbytes} bytes; the limit is {MAX_COMMAND_BYTES}"
            raise errors.InvalidRequestError(text)
        future: futures.Future[None] = futures.Future()
        self._calls[number] = future
        try:
            self._connection.send(call)
            future.result()
        except OSError:
            text = "the supervisor is gone; this process is about to stop"
            raise errors.UnavailableError(text) from None
        finally:
            del self._calls[number]

    def _listen(self) -> None:
        while (message := self._connection.receive()) is not None:
            match message["type"]:
                case "prepare":
                    self._prepare(message)
                case "commit":
                    self._commit(message["txn"])
                case "abort":
                    self._changes.abort(message["txn"])
                case "result":
                    self._resolve(message)
                case other:
                    logger.error("the supervisor sent %r, which is unknown here", other)
        for future in list(self._calls.values()):
            if not future.done():
                future.set_exception(errors.UnavailableError("the supervisor is gone"))
        self._on_gone()

    def _send(self, message: Message) -> None:
        try:
            self._connection.send(message)
        except OSError:
            logger.warning("the supervisor is gone")

    def _commit(self, transaction: str) -> None:
        try:
            self._changes.commit(transaction)
        except Exception:
            # The others have changed. A fresh process begins with what they have.
            logger.exception("a change failed half-way; this worker ends and is started again")
            self._on_gone()
        self._send({"type": "committed", "txn": transaction})

    def _prepare(self, message: Message) -> None:
        reply: Message = {"type": "prepared", "txn": message["txn"], "ok": True}
        try:
            self._changes.prepare(message["txn"], message["command"])
        except errors.RequestError as error:
            text = str(error)[:_MAX_TEXT]
            reply |= {"ok": False, "error": text, "kind": type(error).__name__}
        except Exception:
            logger.exception("preparing %s failed", message["command"].get("op"))
            reply |= {"ok": False, "error": "internal error", "kind": "ExecutionError"}
        self._send(reply)

    def _resolve(self, message: Message) -> None:
        future = self._calls.get(message["call"])
        if future is None:
            return
        if message["ok"]:
            future.set_result(None)
        else:
            kind = getattr(errors, message["kind"], errors.ExecutionError)
            future.set_exception(kind(message["error"]))
