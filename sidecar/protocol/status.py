"""The one table from domain errors to gRPC and HTTP codes.

Codes are chosen for what stock clients do with them: KServe's client retries UNAVAILABLE three
times, so a full server answers RESOURCE_EXHAUSTED, and UNAVAILABLE is kept for draining, where a
retry elsewhere is wanted.
"""

from __future__ import annotations

from typing import NamedTuple

from sidecar import errors


class Status(NamedTuple):
    """gRPC status (name and number) and HTTP status of one kind of error."""

    grpc: str
    grpc_code: int
    http: int


TABLE: dict[type[errors.RequestError], Status] = {
    errors.InvalidRequestError: Status("INVALID_ARGUMENT", 3, 400),
    errors.NotFoundError: Status("NOT_FOUND", 5, 404),
    errors.ConflictError: Status("ALREADY_EXISTS", 6, 409),
    errors.ChangedError: Status("ABORTED", 10, 409),
    errors.OverloadedError: Status("RESOURCE_EXHAUSTED", 8, 429),
    errors.UnavailableError: Status("UNAVAILABLE", 14, 503),
    errors.DeadlineError: Status("DEADLINE_EXCEEDED", 4, 504),
    errors.CancelledError: Status("CANCELLED", 1, 499),
    errors.UnsupportedError: Status("UNIMPLEMENTED", 12, 501),
    errors.PermissionDeniedError: Status("PERMISSION_DENIED", 7, 403),
    errors.UnauthenticatedError: Status("UNAUTHENTICATED", 16, 401),
    errors.ExecutionError: Status("INTERNAL", 13, 500),
}
INTERNAL = Status("INTERNAL", 13, 500)

_MESSAGE_BYTES_MAX = 2000

#: HTTP codes for the statuses another server may answer with, beyond those in ``TABLE``.
_UPSTREAM: dict[str, Status] = {status.grpc: status for status in TABLE.values()} | {
    "UNKNOWN": Status("UNKNOWN", 2, 500),
    "FAILED_PRECONDITION": Status("FAILED_PRECONDITION", 9, 400),
    "ABORTED": Status("ABORTED", 10, 409),
    "OUT_OF_RANGE": Status("OUT_OF_RANGE", 11, 400),
    "DATA_LOSS": Status("DATA_LOSS", 15, 500),
}


def status_of(error: BaseException) -> Status:
    """The status of an error; anything that is not a ``RequestError`` is INTERNAL."""
    if isinstance(error, errors.UpstreamError):
        return _UPSTREAM.get(error.code, INTERNAL)
    for kind in type(error).__mro__:
        if kind in TABLE:
            return TABLE[kind]
    return INTERNAL


def http_status(error: BaseException) -> int:
    """The HTTP status code of an error."""
    return status_of(error).http


def client_message(error: BaseException) -> str:
    """What a client may read: a ``RequestError``'s own text, and nothing of any other error.

    Bounded: texts quote what the client sent, a name of 60 MiB if it likes, and gRPC's clients
    refuse a status that is larger than their limit on headers (8 KiB) without showing any of it.
    """
    if isinstance(error, errors.RequestError):
        text = str(error)
        if len(text) * 4 <= _MESSAGE_BYTES_MAX:
            return text
        # In bytes, because on the wire each byte that is not ASCII takes three.
        data = text[:_MESSAGE_BYTES_MAX].encode("utf-8", "replace")
        if len(data) <= _MESSAGE_BYTES_MAX and len(text) <= _MESSAGE_BYTES_MAX:
            return text
        return data[:_MESSAGE_BYTES_MAX].decode("utf-8", "ignore") + "…"
    return "internal error; the server's log has the details"
