"""The loop stays free while workers are busy; clients that leave."""

from __future__ import annotations

import asyncio
import json
import threading

import httpx
import pytest

from sidecar import errors
from sidecar.gateway.http_call import Inference
from sidecar.protocol.json_codec import Envelope
from tests.gateway.http.serving import BODY, INFER, both_parsers, connect, until
from tests.gateway.numpy_backend import NumpyBackend


def test_health_answers_while_every_worker_is_busy(
    client: httpx.Client, backend: NumpyBackend
) -> None:
    backend.gate.clear()
    backend.loads.clear()
    busy = [
        threading.Thread(target=client.post, args=(INFER,), kwargs={"json": BODY}) for _ in range(6)
    ]
    busy += [
        threading.Thread(target=client.post, args=("/v2/repository/models/identity/load",))
        for _ in range(3)
    ]
    for thread in busy:
        thread.start()
    for _ in range(4):
        assert backend.entered.acquire(timeout=60)
    until(lambda: len(backend.calls) == 2)  # the third load waits: they have two threads
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/stats"):
        assert client.get(path, timeout=30).status_code == 200
    backend.gate.set()
    backend.loads.set()
    for thread in busy:
        thread.join()


@both_parsers
def test_a_running_request_hears_that_its_client_left(
    address: str, client: httpx.Client, backend: NumpyBackend
) -> None:
    backend.gate.clear()
    body = json.dumps(BODY).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    leaves, stays = connect(address), connect(address)
    for sock in (leaves, stays):
        sock.sendall(head + body)
        assert backend.entered.acquire(timeout=60)
    leaves.close()
    until(lambda: backend.cancelled == 1)
    until(lambda: backend.in_flight == 1)  # its memory is free again
    backend.gate.set()
    assert stays.recv(65536).startswith(b"HTTP/1.1 200")
    stays.close()
    assert backend.cancelled == 1


def test_a_queued_request_whose_client_left_never_reaches_the_model(
    backend: NumpyBackend,
) -> None:
    async def scenario() -> None:
        body = json.dumps(BODY).encode()
        inference = Inference(backend, body, Envelope("identity", "", "id"), bytes, None)

        async def receive() -> dict[str, str]:
            return {"type": "http.disconnect"}

        answer = asyncio.create_task(inference.answer(receive))
        async with asyncio.timeout(10):
            while not inference.cancelled:  # noqa: ASYNC110 - a flag: threads read it
                await asyncio.sleep(0.005)
            assert not answer.done()  # it waits: admission must go on counting its memory
            inference()  # its turn on the pool
            with pytest.raises(errors.CancelledError):
                await answer

    asyncio.run(scenario())
    assert not backend.requests
