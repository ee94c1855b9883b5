"""A backend that takes whatever it is sent over OTLP/gRPC and looks at none of it.

``python -m tests.benchmarks.otlp_sink PORT``: in a process of its own, at the lowest priority,
since a real one is on another machine. It prints how many bytes of each signal came, when it ends.
"""

from __future__ import annotations

import collections
import json
import os
import signal
import sys
import threading
from concurrent import futures

import grpc


class _Handler(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        self.bytes: collections.Counter[str] = collections.Counter()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        # /opentelemetry.proto.collector.trace.v1.TraceService/Export
        name = handler_call_details.method.split(".")[3]

        def take(body: bytes, _: grpc.ServicerContext) -> bytes:
            self.bytes[name] += len(body)
            return b""

        return grpc.unary_unary_rpc_method_handler(take)


def main(port: str) -> None:
    os.nice(19)
    handler = _Handler()
    server = grpc.server(
        futures.ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)]
    )
    server.add_generic_rpc_handlers((handler,))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    print("ready", flush=True)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    ended.wait()
    print(json.dumps(handler.bytes), flush=True)
    server.stop(0)


if __name__ == "__main__":
    main(sys.argv[1])
