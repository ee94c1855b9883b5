"""A monitor that only takes samples in: ``python -m tests.faults.monitor_stand_in CONTROL_FD``.

What it is to do wrong is said by files in its state's folder: ``cannot-start``,
``sends-garbage``, ``will-not-end``.
It writes how many workers have connected to ``workers``, and at its end how many exchanges it was
given to ``received``.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from pathlib import Path

from sidecar.children import receive_descriptors
from sidecar.config import parse
from sidecar.control import Connection
from sidecar.monitor.channel import ExchangeListener
from sidecar.monitor.places import socket_path, state_dir


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    channel = socket.socket(fileno=int(sys.argv[1]))
    for descriptor in receive_descriptors(channel):
        os.close(descriptor)
    connection = Connection(channel)
    boot = connection.receive()
    if boot is None:
        return 1
    base_dir = Path(boot["base_dir"])
    config = parse(boot["tree"], source=boot["source"], base_dir=base_dir)
    folder = state_dir(config, base_dir)
    if (folder / "cannot-start").exists():
        connection.send({"type": "failed", "message": "an extra is missing"})
        return 1
    if (folder / "sends-garbage").exists():
        connection.send({"nonsense": 1})
        ended.wait()
    taken: list[int] = []
    listener = ExchangeListener(
        socket_path(config, base_dir), lambda one: taken.append(one.worker),
        max_exchange_bytes=config.monitor.channel.max_exchange_bytes, rate=1,
    )  # fmt: skip
    listener.start()
    address = boot["addresses"]["grpc"].replace(":0", ":47110")
    connection.send({"type": "ready", "addresses": {"grpc": address}, "copies": []})
    while not ended.wait(0.02):
        (folder / "workers").write_text(str(listener.workers()), encoding="utf-8")
    if (folder / "will-not-end").exists():
        threading.Event().wait()
    listener.close()
    (folder / "received").write_text(str(len(taken)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
