"""Domain errors. They know no transport: ``protocol/status.py`` turns them into codes.

::

    SidecarError
    ├── ConfigError            the configuration is wrong (all problems at once, each with its path)
    ├── ArtifactError          a model file is missing, corrupt, or of another kind
    ├── MissingExtraError      what a runtime needs is not installed
    └── RequestError           one request cannot be answered; the message is safe to send
        ├── InvalidRequestError    the request contradicts the protocol or the model
        ├── NotFoundError          no such model, version, region, …
        ├── ConflictError          it exists already, or is in use
        │   └── ChangedError           … or somebody else has changed it meanwhile
        ├── OverloadedError        a bound was reached; retrying here at once would not help
        ├── UnavailableError       draining: another replica may answer
        ├── DeadlineError          the time allowed was over
        ├── CancelledError         the caller went away
        ├── UnsupportedError       known to the protocol, not offered here
        ├── PermissionDeniedError  the call needs the admin token or listener
        │   └── UnauthenticatedError   … and came without a token
        └── ExecutionError         the runtime failed on a valid request
            └── UpstreamError      another server failed; keeps its status code name

A message says what was wrong, where, and what to do. A ``RequestError``'s text reaches clients: no
paths, no stack traces, and no text of foreign exceptions beyond what a client may act on.
"""

from __future__ import annotations

from dataclasses import dataclass

from typing_extensions import override


class SidecarError(Exception):
    """The root of what this package raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration: where (``models[0].name``), what, and the line if known."""

    path: str
    message: str
    line: int | None = None

    @override
    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class ConfigError(SidecarError):
    """The configuration is wrong; ``problems`` lists every mistake found, not just the first."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        noun = "problem" if len(problems) == 1 else "problems"
        lines = "\n".join(
            # file:line: is what editors and terminals make a link of.
            f"  {problem}" if problem.line is None else f"  {source}:{problem.line}: {problem}"
            for problem in problems
        )
        super().__init__(f"{source}: {len(problems)} {noun}\n{lines}")


class ArtifactError(SidecarError):
    """A model file cannot be loaded: says which file, what is wrong, and what would be right."""


class MissingExtraError(SidecarError):
    """What a runtime needs is not installed; the message says which extra brings it."""


class RequestError(SidecarError):
    """One request cannot be answered. ``str(error)`` is sent to the client."""


class InvalidRequestError(RequestError):
    """The request contradicts the protocol or the model's signature."""


class NotFoundError(RequestError):
    """No such model, version, or shared-memory region."""


class ConflictError(RequestError):
    """It exists already, or is in use."""


class ChangedError(ConflictError):
    """Somebody else has changed it meanwhile: look again, then decide again."""


class OverloadedError(RequestError):
    """A bound was reached (requests or bytes in flight, queue length)."""


class UnavailableError(RequestError):
    """Draining: a retry elsewhere may succeed."""


class DeadlineError(RequestError):
    """The caller's deadline, or a configured time limit, was over."""


class CancelledError(RequestError):
    """The caller went away before the answer was ready."""


class UnsupportedError(RequestError):
    """Known to the protocol, but not offered by this server or this model."""


class PermissionDeniedError(RequestError):
    """The call changes state and needs the admin token or the admin listener."""


class UnauthenticatedError(PermissionDeniedError):
    """It needs the admin token, and came with none; one that is wrong is denied."""


class ExecutionError(RequestError):
    """The runtime failed on a valid request."""


class UpstreamError(ExecutionError):
    """The server behind a ``remote`` variant failed.

    ``code`` is the gRPC status name it answered with (``"UNAVAILABLE"``), carried through to the
    client, so that a client sees what it would have seen without the sidecar.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code
