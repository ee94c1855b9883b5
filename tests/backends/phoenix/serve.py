"""Phoenix on loopback alone; run by the interpreter of ``.venvs/phoenix``.

``PHOENIX_HOST`` narrows its HTTP listener only: the gRPC one is opened on every interface, and for
that there is no setting. A test opens nothing to the network.
"""

from __future__ import annotations

import sys

import grpc.aio
from phoenix.server.main import main

_opened = grpc.aio.server


def _server(*args: object, **options: object) -> grpc.aio.Server:
    server = _opened(*args, **options)
    add = server.add_insecure_port
    server.add_insecure_port = lambda address: add(address.replace("[::]", "127.0.0.1"))
    return server


grpc.aio.server = _server
sys.exit(main())
