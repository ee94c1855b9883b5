"""One request and its response, as the bytes that went over the wire."""

from __future__ import annotations

from dataclasses import dataclass

Bytes = bytes | memoryview


@dataclass(slots=True)
class Exchange:
    """What the gateway hands to the monitor for one sampled request.

    Nothing is decoded on the request's path; ``decode.py`` does it in the monitor.

    Attributes:
        request_id: the request's identity; both halves of a fallback (the version that failed, and
            the one that answered) are exchanges of their own with the same one.
        traceparent: the W3C header that names the request's own span, and says whether it is
            recorded; as received, or ``""``, where nothing is traced.
        model: its name.
        variant: ``model:version/name`` that answered, or failed.
        transport: ``grpc`` (``ModelInferRequest``, ``ModelInferResponse``), ``stream``
            (``ModelInferRequest``, ``ModelStreamInferResponse``) or ``http`` (bodies without
            ``Content-Encoding``).
        request: the request's bytes.
        response: the response's bytes; ``None``: it failed by the server's fault.
        request_header_bytes, response_header_bytes: HTTP's binary extension: the length of the JSON
            before the binary data (0: a raw body); ``None``: gRPC, or JSON alone.
        outcome: ``"OK"`` or the name of the error's class.
        start_ns, end_ns: monotonic: the request's body was there, the answer was encoded.
        execute_ns: of that, spent on executing; 0 from the cache, and where it failed.
        wall_ns: when it ended, nanoseconds since the Unix epoch.
        worker: the gateway process's id.
    """

    request_id: str
    traceparent: str
    model: str
    variant: str
    transport: str
    request: Bytes
    response: Bytes | None
    request_header_bytes: int | None
    response_header_bytes: int | None
    outcome: str
    start_ns: int
    end_ns: int
    execute_ns: int
    wall_ns: int
    worker: int

    @property
    def nbytes(self) -> int:
        """Of request and response."""
        return len(self.request) + (0 if self.response is None else len(self.response))
