"""A drain that a hook begins, in both commands; probes that are answered before all is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
import yaml

from tests.e2e.support import (
    Client,
    Sleeper,
    await_ready,
    floats,
    launch,
    onnx_times,
    request,
    running,
    until,
    variant,
    write,
)
from tests.support.kubelet import grpc_probe
from tests.support.ports import free_addresses

COMMANDS = ["serve", "gateway"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("hooks")
    onnx_times(made, 2, "m.onnx")
    return made


@pytest.fixture
def settings(folder):
    hooks, health = free_addresses(2)
    return {
        "hooks": hooks, "health": health, "drain": {"delay_s": 1, "timeout_s": 60},
        "grpc": {"max_connection_age_s": 1},
    }  # fmt: skip


def serving(folder):
    return [{"name": "m", "variants": [variant("onnx", folder / "m.onnx")]}]


def drain(config, *options):
    command = [sys.executable, "-m", "sidecar", "drain", str(config), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(("command", "workers"), [("serve", 2), ("gateway", 1), ("gateway", 2)])
def test_a_hook_begins_the_drain_and_hears_of_its_end(folder, settings, command, workers):
    sleeper = Sleeper(folder)
    config = write(
        folder, [{"name": "m", "variants": [sleeper.variant()]}], workers=workers, **settings
    )
    with running(config, command) as server, Client(server.addresses["grpc"]) as client:
        heard = []

        def wait():
            url = f"http://{settings['hooks']}/drained"
            heard.append((httpx.get(url, timeout=60).status_code, time.monotonic()))

        models_hook = threading.Thread(target=wait)
        models_hook.start()
        with sleeper.holding():
            before = len(sleeper.executed())
            call = client.stub("ModelInfer").future(request("m", 2.0**20), timeout=60)
            until(lambda: len(sleeper.executed()) > before, "it is being executed")
            hook = subprocess.Popen([sys.executable, "-m", "sidecar", "drain", str(config)])
            until(lambda: server.text.count("draining") == workers, "the drain has begun")
            server.signal()  # SIGTERM meanwhile does not cut it
            until(lambda: not grpc_probe(settings["health"], "", 5), "it is not ready")
            assert grpc_probe(settings["health"], "live", 5)
            assert hook.poll() is None
            assert heard == []
            let_go_s = time.monotonic()
        assert floats(call.result()) == [2.0**21]
        client.channel.close()
        assert hook.wait(60) == 0
        models_hook.join(60)
        [(status, at_s)] = heard
        assert status == 200
        assert at_s > let_go_s
        assert server.wait() == 0
        assert "Traceback" not in server.text


@pytest.mark.parametrize("command", COMMANDS)
def test_drained_it_stays_until_the_signal_and_ends_at_once(folder, settings, command):
    config = write(folder, serving(folder), **settings)
    with running(config, command) as server:
        assert drain(config, "--timeout", "0.2").returncode == 1  # the drain goes on
        done = drain(config)
        assert (done.returncode, done.stderr) == (0, "")
        assert drain(config).returncode == 0  # kubelet may run its hook again
        assert httpx.get(f"http://{settings['hooks']}/drained", timeout=30).text == "drained\n"
        assert server.process.poll() is None
        server.signal()
        assert server.wait(within_s=15) == 0
    done = drain(config)
    assert done.returncode == 1
    assert "no gateway answers" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_hooks_that_wait_are_answered_when_a_signal_began_the_drain(folder, settings, number):
    config = write(folder, serving(folder), **settings)
    with running(config, "gateway") as server:
        heard = []
        url = f"http://{settings['hooks']}/drained"
        ask = threading.Thread(target=lambda: heard.append(httpx.get(url, timeout=60).status_code))
        ask.start()
        server.signal(number)
        assert server.wait() == 0
        ask.join(60)
        assert heard == [200]


@pytest.mark.parametrize("command", COMMANDS)
def test_it_lives_and_is_not_ready_while_its_model_is_not_there(folder, settings, command):
    [nobody] = free_addresses(1)
    runtime = {"kind": "remote", "address": nobody, "model_name": "m", "connect_timeout_s": 600}
    models = [{"name": "m", "variants": [
        {"name": "remote", "version": "1", "roles": ["serving"], "runtime": runtime}
    ]}]  # fmt: skip
    config = write(folder, models, **settings)
    server = launch(config, command)
    try:
        until(lambda: grpc_probe(settings["health"], "live", 1), "it lives")
        assert not grpc_probe(settings["health"], "", 5)
        # Nothing was served, so there is nothing to wait for.
        assert drain(config).returncode == 0
        server.signal()
        server.wait(within_s=30)
        assert "Traceback" not in server.text
    finally:
        server.kill()


def test_a_worker_that_is_started_again_fails_no_probe(folder, settings):
    config = write(folder, serving(folder), workers=2, **settings)
    with running(config) as server:
        failures, stop = [], threading.Event()

        def probe():
            while not stop.wait(0.02):
                failures.extend(
                    service for service in ("live", "")
                    if not grpc_probe(settings["health"], service, 5)
                )  # fmt: skip

        asking = threading.Thread(target=probe)
        os.kill(server.pids[0], signal.SIGKILL)
        until(lambda: server.pids[0] not in server.left(), "it is gone")
        asking.start()
        until(lambda: "is ready again" in server.text, "it is ready again")
        stop.set()
        asking.join(60)
        assert failures == []


def test_the_monitor_lives_before_it_watches(folder):
    [health] = free_addresses(1)
    config = write(folder, serving(folder), name="monitored.yaml")
    tree = yaml.safe_load(config.read_text())
    tree["monitor"] = {"enabled": True, "grpc": "127.0.0.1:0", "health": health}
    config.write_text(yaml.safe_dump(tree))
    server = launch(config, "monitor")
    try:
        until(lambda: grpc_probe(health, "live", 1), "it lives")
        await_ready(server)
        until(lambda: grpc_probe(health, "", 1), "it watches")
    finally:
        server.kill()
