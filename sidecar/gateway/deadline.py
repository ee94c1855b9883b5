"""When a request's answer is too late to be of use: one rule for every transport."""

from __future__ import annotations

from sidecar.gateway.messages import InferRequest

#: A limit further away than this is none: grpcio reports about 9.2e18 s where a call has no
#: deadline, and a lock cannot be waited on for so long.
NO_DEADLINE_S = 1e9


def set_deadline(
    request: InferRequest,
    now_ns: int,
    remaining_s: float | None,
    default_timeout_s: float | None,
) -> None:
    """Set ``deadline_ns``: the earlier of the call's and of the request's ``timeout``.

    Args:
        request: its parameter ``timeout`` is in microseconds; 0 means none. It, and the default,
            count from when the request was received: the time in the queue is part of them.
        now_ns: on the monotonic clock.
        remaining_s: what is left of the call's own deadline at ``now_ns``; ``None``: it has none.
        default_timeout_s: where a request comes with neither.
    """
    received_ns = request.received_ns or now_ns
    limits: list[int] = []
    if remaining_s is not None and remaining_s < NO_DEADLINE_S:
        limits.append(now_ns + int(remaining_s * 1e9))
    timeout_us = int(request.parameters.get("timeout", 0))
    if 0 < timeout_us < NO_DEADLINE_S * 1e6:
        limits.append(received_ns + timeout_us * 1000)
    if not limits and default_timeout_s is not None:
        limits.append(received_ns + int(default_timeout_s * 1e9))
    if limits:
        request.deadline_ns = min(limits)
