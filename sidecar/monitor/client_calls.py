"""What the parts of the client have in common: one call of the service."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import grpc

from sidecar.monitor.service import SERVICE


class Calls(ABC):
    """The base of the parts of ``MonitorClient``, which gives them a connection."""

    _channel: Any
    _timeout_s: float

    @abstractmethod
    def _failed(self, error: Any, timeout_s: float | None = None) -> Exception:
        """What a failed call is told as; ``error`` is gRPC's."""

    def _ask(
        self,
        method: str,
        request: Any,
        kind: Any,
        token: str = "",
        timeout_s: float | None = None,
    ) -> Any:
        """Call a method; ``kind`` is its answer's class, ``token`` the admin's."""
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=kind.FromString,
        )
        metadata = [("authorization", f"Bearer {token}")] if token else []
        try:
            return call(request, timeout=timeout_s or self._timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise self._failed(error, timeout_s) from None
