"""Several workers on one port: changes reach all of them or none; figures are sums over them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory

import grpc
import httpx
import numpy as np
import pytest

from sidecar.protocol.pb import inference_pb2 as pb
from tests.e2e.support import (
    Client,
    fails,
    one_channel_a_worker,
    onnx_times,
    request,
    running,
    until,
    variant,
    write,
)
from tests.support import models

WORKERS = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workers")
    models.onnx_lookup(folder)
    for name in ("moved", "batched", "cached", "counted"):
        onnx_times(folder, 2, f"{name}.onnx")
    tree = [
        {"name": "lookup", "variants": [variant("onnx", folder / "lookup.onnx")]},
        *(
            {"name": name, "variants": [variant("onnx", folder / f"{name}.onnx")]}
            for name in ("moved", "counted")
        ),
        {
            "name": "batched", "variants": [variant("onnx", folder / "batched.onnx")],
            "batching": {"max_size": 4, "max_delay_ms": 5},
        },
        {"name": "cached", "variants": [variant("onnx", folder / "cached.onnx")], "cache": True},
    ]  # fmt: skip
    # Connections that are not renewed stay with their worker.
    config = write(
        folder, tree, workers=WORKERS, grpc={"max_connection_age_s": 3600},
        shared_memory={"max_regions": 4},
    )  # fmt: skip
    with running(config) as started:
        started.folder = folder
        yield started
        started.signal()
        assert started.wait() == 0
        assert "Traceback" not in started.text


@pytest.fixture(scope="module")
def workers(server):
    with one_channel_a_worker(server.addresses["grpc"], WORKERS, "moved", 1) as clients:
        yield clients


def states(client: Client, model: str) -> set[str]:
    index = client.call("RepositoryIndex").models
    return {row.state for row in index if row.name == model}


def test_loading_and_unloading_reach_every_worker_before_the_answer(workers):
    for turn in range(6):
        asked = workers[turn % WORKERS]
        asked.call("RepositoryModelUnload", {"model_name": "moved"})
        for client in workers:
            assert states(client, "moved") == {"UNAVAILABLE"}
            assert not client.call("ModelReady", {"name": "moved"}).ready
            assert client.call("ServerReady").ready  # unloading on request is no fault
            with fails(grpc.StatusCode.NOT_FOUND):
                client.infer("moved", 1)
        asked.call("RepositoryModelLoad", {"model_name": "moved"})
        for client in workers:
            assert states(client, "moved") == {"READY"}
            assert client.infer("moved", 1).model_version == "1"


def test_changes_at_one_time_leave_all_workers_alike(workers):
    def change(number: int) -> None:
        verb = "Load" if number % 2 else "Unload"
        workers[number % WORKERS].call(f"RepositoryModel{verb}", {"model_name": "moved"})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(change, range(12)))
    assert len({frozenset(states(client, "moved")) for client in workers}) == 1
    workers[0].call("RepositoryModelLoad", {"model_name": "moved"})
    assert all(client.infer("moved", 1) for client in workers)


def test_a_change_over_http_reaches_the_workers_behind_grpc(server, workers):
    base = f"http://{server.addresses['http']}/v2/repository/models/moved"
    assert httpx.post(f"{base}/unload", json={}, timeout=60).status_code == 200
    assert [states(client, "moved") for client in workers] == [{"UNAVAILABLE"}] * WORKERS
    assert httpx.post(f"{base}/load", json={}, timeout=60).status_code == 200
    assert [states(client, "moved") for client in workers] == [{"READY"}] * WORKERS


def test_a_load_that_fails_changes_no_worker(server, workers):
    path = server.folder / "moved.onnx"
    sound = path.read_bytes()
    path.write_bytes(sound[:50])
    try:
        with fails(grpc.StatusCode.INTERNAL) as failure:
            workers[0].call("RepositoryModelLoad", {"model_name": "moved"})
        assert str(server.folder) not in failure[0].details()
        for client in workers:
            assert client.infer("moved", 1).model_version == "1"
        # The same where it was unloaded: the other models, and with them the server, stay ready.
        workers[0].call("RepositoryModelUnload", {"model_name": "moved"})
        with fails(grpc.StatusCode.INTERNAL):
            workers[0].call("RepositoryModelLoad", {"model_name": "moved"})
        assert all(client.call("ServerReady").ready for client in workers)
    finally:
        path.write_bytes(sound)
    workers[0].call("RepositoryModelLoad", {"model_name": "moved"})
    assert all(client.infer("moved", 1) for client in workers)


def test_shared_memory_is_registered_everywhere_or_nowhere(workers):
    region = shared_memory.SharedMemory(create=True, size=64)
    try:
        fields = {"name": "r", "key": region.name, "offset": 0, "byte_size": 64}
        workers[0].call("SystemSharedMemoryRegister", fields)
        for client in workers:
            status = client.call("SystemSharedMemoryStatus", {"name": "r"})
            assert status.regions["r"].byte_size == 64
        with fails(grpc.StatusCode.ALREADY_EXISTS):
            workers[1].call("SystemSharedMemoryRegister", fields)
        with fails(grpc.StatusCode.INVALID_ARGUMENT):
            workers[1].call("SystemSharedMemoryRegister", {**fields, "name": "s", "byte_size": 99})
        with fails(grpc.StatusCode.NOT_FOUND):
            workers[1].call("SystemSharedMemoryRegister", {**fields, "name": "s", "key": "no"})
        for number in range(3):
            workers[2].call("SystemSharedMemoryRegister", {**fields, "name": f"more{number}"})
        with fails(grpc.StatusCode.RESOURCE_EXHAUSTED):
            workers[1].call("SystemSharedMemoryRegister", {**fields, "name": "too many"})
        expected = {"r", "more0", "more1", "more2"}
        for client in workers:
            assert set(client.call("SystemSharedMemoryStatus").regions) == expected
        workers[1].call("SystemSharedMemoryUnregister", {"name": "more1"})
        workers[1].call("SystemSharedMemoryUnregister", {"name": "more1"})  # no error, as in Triton
        for client in workers:
            assert set(client.call("SystemSharedMemoryStatus").regions) == expected - {"more1"}
        workers[2].call("SystemSharedMemoryUnregister")
        assert all(not client.call("SystemSharedMemoryStatus").regions for client in workers)
    finally:
        region.close()
        region.unlink()


def test_settings_are_the_same_everywhere(workers):
    change = pb.LogSettingsRequest()
    change.settings["log_verbose_level"].uint32_param = 1
    workers[0].call("LogSettings", change)
    trace = pb.TraceSettingRequest(model_name="counted")
    trace.settings["trace_rate"].value.append("7")
    workers[1].call("TraceSetting", trace)
    for client in workers:
        assert client.call("LogSettings").settings["log_verbose_level"].uint32_param == 1
        of_model = client.call("TraceSetting", {"model_name": "counted"})
        assert list(of_model.settings["trace_rate"].value) == ["7"]
        assert list(client.call("TraceSetting").settings["trace_rate"].value) == ["1000"]
    for value in ("--5", "²", "x", "9" * 5000):
        trace.settings["trace_rate"].value[:] = [value]
        with fails(grpc.StatusCode.INVALID_ARGUMENT):
            workers[2].call("TraceSetting", trace)
    change.settings["log_verbose_level"].uint32_param = 0
    workers[2].call("LogSettings", change)
    for client in workers:
        assert client.call("LogSettings").settings["log_verbose_level"].uint32_param == 0


def test_a_huge_change_is_refused_and_ends_nobody(server, workers):
    trace = pb.TraceSettingRequest()
    trace.settings["x" * (20 * 2**20)].value.append("1")
    fields = {"name": "r", "key": "k" * (20 * 2**20), "byte_size": 4}
    with fails(grpc.StatusCode.INVALID_ARGUMENT):
        workers[0].call("TraceSetting", trace)
    with fails(grpc.StatusCode.INVALID_ARGUMENT):
        workers[0].call("SystemSharedMemoryRegister", fields)
    trace = pb.TraceSettingRequest()
    trace.settings["\x01" * 9000].value.append("1")  # its JSON is six times as long
    with fails(grpc.StatusCode.INVALID_ARGUMENT):
        workers[0].call("TraceSetting", trace)
    assert server.process.poll() is None
    assert len(server.left()) == WORKERS + 1
    assert all(client.call("ServerReady").ready for client in workers)


def test_statistics_are_true_sums_over_the_workers(workers):
    for number in range(30):
        workers[number % WORKERS].infer("counted", np.ones((1 + number % 2, 1), np.float32))
    for client in workers:  # whoever is asked gives the same
        row = until(
            lambda client=client: (
                (found := client.statistics("counted")).inference_stats.success.count == 30
                and found
            ),
            "thirty successes are counted",
        )
        assert row.inference_count == 45
        assert row.execution_count == 30
        assert {b.batch_size: b.compute_infer.count for b in row.batch_stats} == {1: 15, 2: 15}
        stats = row.inference_stats
        assert {stats.queue.count, stats.compute_input.count, stats.compute_infer.count} == {30}
        assert stats.compute_output.count == 30
        total = stats.success.ns
        assert 0 < stats.compute_infer.ns < total
        assert stats.fail.count == stats.cache_hit.count == stats.cache_miss.count == 0
        assert row.last_inference > 1_600_000_000_000


def test_failures_are_counted_apart(workers):
    for number in range(9):
        message = request("lookup", np.array([99], np.int64), name="i")
        with fails(grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT):
            workers[number % WORKERS].call("ModelInfer", message)
    for number in range(6):
        message = request("lookup", np.array([number % 4], np.int64), name="i")
        workers[number % WORKERS].call("ModelInfer", message)
    stats = until(
        lambda: (
            (found := workers[0].statistics("lookup").inference_stats).success.count == 6
            and found.fail.count == 9
            and found
        ),
        "nine failures and six successes are counted",
    )
    assert stats.compute_infer.count == 6


def test_batches_are_counted_once_and_their_rows_all(workers):
    with ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(workers[n % WORKERS].infer, "batched", float(n)) for n in range(60)]
        answers = [call.result() for call in calls]
    values = [np.frombuffer(a.raw_output_contents[0], np.float32)[0] for a in answers]
    assert values == [2.0 * n for n in range(60)]
    row = until(
        lambda: (found := workers[1].statistics("batched")).inference_count == 60 and found,
        "sixty rows are counted",
    )
    assert row.execution_count < 60
    assert sum(b.batch_size * b.compute_infer.count for b in row.batch_stats) == 60
    assert sum(b.compute_infer.count for b in row.batch_stats) == row.execution_count
    assert all(1 <= b.batch_size <= 4 for b in row.batch_stats)


def test_a_batch_without_rows_does_not_spoil_the_figures(workers):
    """Served like any other shape, and counted as a batch of 0, not as whatever size comes next."""
    before = workers[0].statistics("counted")
    workers[0].infer("counted", np.ones((0, 1), np.float32))
    workers[0].infer("counted", np.ones((5, 1), np.float32))
    after = until(
        lambda: (
            (found := workers[0].statistics("counted")).execution_count
            == before.execution_count + 2
            and found
        ),
        "both are counted",
    )
    counts = {b.batch_size: b.compute_infer.count for b in after.batch_stats}
    assert (counts[0], counts[5]) == (1, 1)
    assert after.inference_count == before.inference_count + 5


def test_cache_hits_are_successes_but_no_inferences(workers):
    client = workers[0]
    for _ in range(4):
        assert np.frombuffer(client.infer("cached", 3).raw_output_contents[0], np.float32) == 6
    client.infer("cached", 4)
    row = until(
        lambda: (found := client.statistics("cached")).inference_stats.success.count == 5 and found,
        "five successes are counted",
    )
    stats = row.inference_stats
    assert (stats.cache_hit.count, stats.cache_miss.count) == (3, 2)
    assert (row.inference_count, row.execution_count) == (2, 2)
    assert stats.compute_infer.count == 2
    assert sum(b.compute_infer.count for b in row.batch_stats) == 2


def test_the_cache_forgets_when_a_model_is_loaded_again(server, workers):
    for client in workers:
        assert np.frombuffer(client.infer("cached", 3).raw_output_contents[0], np.float32) == 6
    path = server.folder / "cached.onnx"
    sound = path.read_bytes()
    onnx_times(server.folder, 5, "cached.onnx")
    try:
        workers[1].call("RepositoryModelLoad", {"model_name": "cached"})
        for client in workers:
            answer = client.infer("cached", 3)
            assert np.frombuffer(answer.raw_output_contents[0], np.float32) == 15
    finally:
        path.write_bytes(sound)
