"""A balancer as a Service is one: TCP, a connection at a time, and no request ever tried again.

New connections go to the backends in turn that were ready when it last asked, which it does every
few seconds; what is open stays with its backend until one side closes it, whatever is ready. Where
a backend refuses, or none is ready, the client's connection is closed: that is its failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
import httpx

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.support import SERVICE
from tests.support.kubelet import Pod, grpc_probe

_CHUNK = 2**16


@dataclass(frozen=True)
class Backend:
    """One replica. ``ports``: of its listeners, by name."""

    name: str
    ports: dict[str, int] = field(hash=False)
    health: str

    @classmethod
    def of(cls, pod: Pod, names: Sequence[str] = ("grpc", "http")) -> Self:
        ports = {name: int(pod.address(name).rpartition(":")[2]) for name in names}
        return cls(pod.folder.name, ports, pod.address("health"))


class Balancer:
    """A context manager.

    Args:
        names: of the listeners.
        every_s: how often it asks each backend's health listener.

    Attributes:
        addresses: where it listens, by name.
        refused: connections that it could hand to nobody.
        connections: that it handed on, by backend.
    """

    def __init__(self, names: Sequence[str] = ("grpc", "http"), *, every_s: float) -> None:
        self._names = names
        self._every_s = every_s
        self._backends: list[Backend] = []
        self._ready: list[Backend] = []
        self._turn = 0
        self.addresses: dict[str, str] = {}
        self.refused = 0
        self.connections: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._listens = threading.Event()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True)
                         for work in (self._serve, self._ask)]  # fmt: skip

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        assert self._listens.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._loop.call_soon_threadsafe(self._loop.stop)
        for thread in self._threads:
            thread.join(30)

    def add(self, backend: Backend) -> None:
        """It gets connections once it has been found ready."""
        self._backends = [*self._backends, backend]

    def remove(self, backend: Backend) -> None:
        """It is not asked any more, and gets none after the next round."""
        self._backends = [each for each in self._backends if each != backend]

    def ready(self) -> list[str]:
        """The backends that get connections."""
        return [each.name for each in self._ready]

    # --- readiness ------------------------------------------------------------------------------

    def _ask(self) -> None:
        with ThreadPoolExecutor(8) as pool:
            while True:
                backends = self._backends
                answers = pool.map(lambda each: grpc_probe(each.health, "", 1.0), backends)
                self._ready = [each for each, ok in zip(backends, answers, strict=True) if ok]
                if self._closed.wait(self._every_s):
                    return

    # --- connections ----------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        servers = []
        for name in self._names:

            async def handle(
                reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str = name
            ) -> None:
                with contextlib.suppress(asyncio.CancelledError):  # at the end of all
                    await self._connected(name, reader, writer)

            server = self._loop.run_until_complete(
                asyncio.start_server(handle, "127.0.0.1", 0, limit=_CHUNK)
            )
            servers.append(server)
            self.addresses[name] = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._listens.set()
        self._loop.run_forever()
        for server in servers:
            server.close()
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.close()

    async def _connected(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        ready = self._ready
        self._turn += 1
        try:
            if not ready:
                self.refused += 1
                return
            backend = ready[self._turn % len(ready)]
            try:
                there = await asyncio.open_connection("127.0.0.1", backend.ports[name])
            except OSError:
                self.refused += 1
                return
            self.connections[backend.name] += 1
            try:
                await asyncio.gather(_pump(reader, there[1]), _pump(there[0], writer))
            finally:
                there[1].close()
        finally:
            writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction, to its end, which is handed on."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(OSError, RuntimeError):
        if writer.can_write_eof():
            writer.write_eof()


@dataclass
class Counted:
    """What a client's requests came to."""

    answered: int = 0
    failures: list[str] = field(default_factory=list)


class Load:
    """Clients that never stop sending until they are told to; a context manager.

    Args:
        grpc_address, http_address: of the balancer.
        request: a ``ModelInferRequest`` for gRPC; its JSON form for HTTP is ``body``.
        channels: gRPC clients, each with one long-lived channel; ``sessions``: HTTP clients that
            keep their connections alive.
        pause_s: between two requests of a client.
    """

    def __init__(
        self,
        addresses: dict[str, str],
        request: Any,
        body: dict[str, Any],
        *,
        channels: int = 4,
        sessions: int = 2,
        pause_s: float = 0.005,
    ) -> None:
        self._addresses, self._request, self._body = addresses, request, body
        self._pause_s = pause_s
        self._stopped = threading.Event()
        self.grpc, self.http = Counted(), Counted()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._over_grpc, daemon=True)
                         for _ in range(channels)]  # fmt: skip
        self._threads += [threading.Thread(target=self._over_http, daemon=True)
                          for _ in range(sessions)]  # fmt: skip

    @property
    def answered(self) -> int:
        return self.grpc.answered + self.http.answered

    @property
    def failures(self) -> list[str]:
        return self.grpc.failures + self.http.failures

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(90)

    def _count(self, counted: Counted, failure: str | None) -> None:
        with self._lock:
            if failure is None:
                counted.answered += 1
            else:
                counted.failures.append(failure)

    def _over_grpc(self) -> None:
        # As it comes, but for a connection of its own: nothing of the client's is tuned.
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(self._addresses["grpc"], options) as channel:
            call = channel.unary_unary(
                f"/{SERVICE}/ModelInfer",
                request_serializer=pb.ModelInferRequest.SerializeToString,
                response_deserializer=pb.ModelInferResponse.FromString,
            )
            while not self._stopped.wait(self._pause_s):
                failure = None
                try:  # not waiting for a connection: a refused one is a failure
                    call(self._request, timeout=60)
                except grpc.RpcError as error:
                    failure = f"{self._now()} {error}"
                self._count(self.grpc, failure)

    def _over_http(self) -> None:
        model = self._request.model_name
        url = f"http://{self._addresses['http']}/v2/models/{model}/infer"
        with httpx.Client(timeout=60) as client:
            while not self._stopped.wait(self._pause_s):
                failure = None
                try:
                    reply = client.post(url, json=self._body)
                    if reply.status_code != 200:
                        failure = f"{self._now()} {reply.status_code} {reply.text}"
                except httpx.HTTPError as error:
                    failure = f"{self._now()} {error!r}"
                self._count(self.http, failure)

    @staticmethod
    def _now() -> str:
        return dt.datetime.now(dt.UTC).isoformat()
