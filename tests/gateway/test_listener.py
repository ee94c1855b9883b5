"""Closing listening sockets under a real gRPC server, and counting its connections."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from sidecar.gateway.listener import connections, stop_listening

PATIENCE_S = 60


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


@pytest.fixture(params=["tcp", "unix"])
def address(request, tmp_path):
    """Where an echo server listens."""
    unix = f"unix:{tmp_path / 'grpc.sock'}"
    with ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        echo = grpc.unary_unary_rpc_method_handler(lambda body, _: body)
        stream = grpc.stream_stream_rpc_method_handler(lambda bodies, _: bodies)
        handlers = {"Echo": echo, "Stream": stream}
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("test.Echo", handlers)]
        )
        port = server.add_insecure_port(unix if request.param == "unix" else "127.0.0.1:0")
        server.start()
        yield unix if request.param == "unix" else f"127.0.0.1:{port}"
        server.stop(0).wait()


class Client:
    """A channel with a connection of its own (channels to one target would share one)."""

    def __init__(self, address):
        options = [("grpc.use_local_subchannel_pool", 1)]
        self.channel = grpc.insecure_channel(address, options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def echo(self, body):
        return self.channel.unary_unary("/test.Echo/Echo")(body, timeout=PATIENCE_S)

    def stream(self, bodies):
        return self.channel.stream_stream("/test.Echo/Stream")(bodies, timeout=PATIENCE_S)


def connect(address):
    """A plain connection, as the kernel gives or refuses it: gRPC would try again."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(address.removeprefix("unix:"))
        except OSError:
            sock.close()
            raise
        return sock
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def open_files():
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


def test_nobody_new_gets_in_and_who_is_in_goes_on(address):
    with Client(address) as old:
        assert old.echo(b"before") == b"before"
        connect(address).close()
        assert stop_listening([address]) == 1
        with pytest.raises(ConnectionRefusedError):
            connect(address).close()
        with Client(address) as new, pytest.raises(grpc.RpcError) as refused:
            new.echo(b"new")
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        for number in range(50):
            assert old.echo(b"%d" % number) == b"%d" % number


def test_a_stream_that_is_open_goes_on(address):
    def bodies():
        yield b"before"
        assert stop_listening([address]) == 1
        yield b"after"

    with Client(address) as client:
        assert list(client.stream(bodies())) == [b"before", b"after"]


def test_who_is_connected_is_counted(address):
    assert connections([address]) == 0
    with Client(address) as first, Client(address) as second:
        first.echo(b"1")
        assert connections([address]) == 1
        second.echo(b"2")
        assert connections([address]) == 2
        first.channel.close()
        until(lambda: connections([address]) == 1)
        stop_listening([address])
        assert connections([address]) == 1  # a listener that was shut down is no connection
        assert second.echo(b"3") == b"3"
    until(lambda: connections([address]) == 0)


def test_other_sockets_of_this_process_are_left_alone(address, tmp_path):
    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        unix.bind(str(tmp_path / "other.sock"))
        others = [f"127.0.0.1:{tcp.getsockname()[1]}", f"unix:{tmp_path / 'other.sock'}"]
        for listener in (tcp, unix):
            listener.listen()
        assert stop_listening([address]) == 1
        for other in others:
            with connect(other):
                assert connections([address]) == 0
        assert stop_listening(others) == 2


def test_several_addresses_are_taken_together(address):
    with socket.create_server(("127.0.0.1", 0)) as other:
        both = [address, f"127.0.0.1:{other.getsockname()[1]}"]
        with Client(address) as client, connect(both[1]), other.accept()[0]:
            client.echo(b"")
            assert connections(both) == 2
        assert stop_listening(both) == 2


def test_counting_again_and_again_keeps_no_file_open(address):
    with Client(address) as client:
        client.echo(b"")  # what gRPC opens for a first call is open now
        before = open_files()
        for _ in range(200):
            assert connections([address]) == 1
        assert open_files() == before
        assert stop_listening([address]) == 1
        for _ in range(200):
            assert connections([address]) == 1
        assert len(open_files()) <= len(before)
        assert client.echo(b"still") == b"still"
