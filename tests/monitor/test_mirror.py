"""The mirror child does whatever it wants; the monitor gets an outcome for every job."""

from __future__ import annotations

import contextlib
import os
import signal
import threading

import numpy as np
import psutil
import pytest
from onnx import helper

from sidecar.clock import SystemClock
from sidecar.monitor.bundle import pack_many, unpack_many
from sidecar.monitor.mirror import Stopped
from sidecar.monitor.mirror_protocol import Composition, Job, Page, Run
from sidecar.monitor.suspension import Suspensions
from tests.e2e.support import until
from tests.monitor import naughty
from tests.monitor.naughty import CRASH, RAISE, rows
from tests.support import models


@contextlib.contextmanager
def started(*args, **settings):
    process = naughty.mirror(*args, **settings)
    try:
        process.start()
        yield process
    finally:
        process.close()
        process.join()


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    folder = tmp_path_factory.mktemp("identity")
    good = naughty.identity(folder)
    missing = good.model_copy(
        update={"runtime": good.runtime.model_copy(update={"path": folder / "none.onnx"})}
    )
    with started({"m:1/good": good, "m:1/missing": missing}) as process:
        yield process


def test_a_run_that_hangs_is_that_versions_timeout(tmp_path):
    variants = {"m:1/bad": naughty.endless(tmp_path), "m:1/good": naughty.endless(tmp_path)}
    runs = [Run("m:1/good"), Run("m:1/bad")]
    jobs = [Job({"n": np.array([count])}, list(runs)) for count in (5, 6)]
    jobs.insert(1, Job({"n": np.array([2**60])}, [Run("m:1/bad")]))
    with started(variants, timeout_s=5) as process:
        first, hung, last = process.submit(jobs)
        counters, message = dict(process.counters), process.status().message
    for count, outcome in ((5, first), (6, last)):
        assert [answer.outputs["y"].tolist() for answer in outcome.answers] == [[count], [count]]
    [answer] = hung.answers
    assert (answer.failure, answer.outputs) == ("timeout", None)
    assert answer.compute_ns >= 5e9
    assert counters == {"timeouts": 1}
    assert message == "m:1/bad: no answer within 5 s"


def test_what_raises_answers_and_what_crashes_is_set_aside(tmp_path):
    variants = {"m:1/bad": naughty.naughty(tmp_path), "m:1/good": naughty.identity(tmp_path)}
    runs = [Run("m:1/good"), Run("m:1/bad")]
    jobs = [Job({"x": rows(first)}, list(runs)) for first in (1, RAISE, CRASH)]
    del jobs[2].runs[0]  # or a child that loads torch again would be waited for
    with started(variants) as process:
        before_ns = SystemClock().monotonic_ns()
        fine, raised = process.submit(jobs[:2])
        [crashed] = process.submit(jobs[2:])
        counters, copies = dict(process.counters), process.copies
    assert all(info.signature is not None for info in copies.values())
    for answer in fine.answers:
        assert np.array_equal(answer.outputs["y"], jobs[0].inputs["x"])
        assert answer.compute_ns > 0
        assert before_ns < answer.started_ns < SystemClock().monotonic_ns()
    good, bad = raised.answers
    assert np.array_equal(good.outputs["y"], jobs[1].inputs["x"])
    assert bad.failure == "error"
    assert "I do not like this one" in bad.error
    assert bad.started_ns > good.started_ns
    [bad] = crashed.answers
    assert (bad.failure, bad.error) == ("crash", crashed.set_aside)
    assert crashed.culprit == "m:1/bad"
    assert f"signal {int(signal.SIGSEGV)}" in crashed.set_aside
    assert counters == {"crashes": 1}


def test_the_rest_of_a_batch_is_done_after_a_crash(tmp_path):
    same = models.onnx_model(
        [helper.make_node("Identity", ["n"], ["y"])], [("n", "INT64", [1])], [("y", "INT64", [1])]
    )
    good = models.variant("onnxruntime", models.save(tmp_path, "same.onnx", same))
    variants = {"m:1/bad": naughty.endless(tmp_path), "m:1/good": good}
    runs = [Run("m:1/good"), Run("m:1/bad")]
    jobs = [Job({"n": np.array([count])}, list(runs)) for count in (5, 2**60, 6)]
    with started(variants) as process:
        outcomes: list = []
        thread = threading.Thread(target=lambda: outcomes.extend(process.submit(jobs)))
        thread.start()
        until(lambda: (process._page.executing() or ())[:2] == (1, 1), "it counts for ever")
        os.kill(process.status().pid, signal.SIGSEGV)
        thread.join(60)
    first, crashed, last = outcomes
    # The other one was asked again, of the child that followed; the culprit was not.
    assert [answer.failure for answer in crashed.answers] == ["", "crash"]
    assert crashed.answers[0].outputs["y"].tolist() == [2**60]
    assert crashed.culprit == "m:1/bad"
    for count, outcome in ((5, first), (6, last)):
        assert [answer.outputs["y"].tolist() for answer in outcome.answers] == [[count], [count]]


def test_what_was_killed_from_outside_is_nobodys_error(tmp_path):
    jobs = [Job({"n": np.array([2**60])}, [Run("m:1/bad")])]
    with started({"m:1/bad": naughty.endless(tmp_path)}) as process:
        outcomes: list = []
        thread = threading.Thread(target=lambda: outcomes.extend(process.submit(jobs)))
        thread.start()
        until(process._page.executing, "it counts for ever")
        os.kill(process.status().pid, signal.SIGKILL)
        thread.join(60)
    [outcome] = outcomes
    assert (outcome.answers, outcome.culprit) == ([], "m:1/bad")
    assert "signal 9" in outcome.set_aside


def test_a_copy_that_cannot_be_loaded_is_reported_and_the_others_go_on(identities):
    assert "none.onnx does not exist" in identities.copies["m:1/missing"].error
    [outcome] = identities.submit([Job({"x": rows(1)}, [Run("m:1/missing"), Run("m:1/good")])])
    missing, good = outcome.answers
    assert missing.failure == "absent"
    assert "does not exist" in missing.error
    assert np.array_equal(good.outputs["y"], rows(1))


def test_of_what_is_not_executed_only_the_signature_is_kept(tmp_path):
    good = naughty.identity(tmp_path)
    with started({"m:1/good": good, "m:1/served": good}, keep=["m:1/good"]) as process:
        served, kept = process.copies["m:1/served"], process.copies["m:1/good"]
        assert served.signature == kept.signature
        assert (served.device, served.memory_bytes) == ("", 0)
        assert (kept.device, kept.memory_bytes > 0) == ("cpu", True)
        [outcome] = process.submit([Job({"x": rows(1)}, [Run("m:1/served"), Run("m:1/good")])])
        assert [answer.failure for answer in outcome.answers] == ["absent", ""]


def test_a_composition_gives_back_the_jobs_own_rows(identities):
    inputs = [rows(10, 2), rows(20, 1), rows(30, 3)]
    compositions = [
        Composition(others=(1, 2), before=0),
        Composition(others=(0, 2, 2), before=2),
        Composition(times=3),
    ]
    jobs = [
        Job({"x": x}, [Run("m:1/good", composition)])
        for x, composition in zip(inputs, compositions, strict=True)
    ]
    for x, outcome in zip(inputs, identities.submit(jobs), strict=True):
        assert np.array_equal(outcome.answers[0].outputs["y"], x)


def test_one_that_was_killed_between_batches_is_started_again(identities):
    before = identities.status()
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: psutil.Process(before.pid).status() == psutil.STATUS_ZOMBIE, "it is dead")
    [outcome] = identities.submit([Job({"x": rows(7)}, [Run("m:1/good")])])
    assert np.array_equal(outcome.answers[0].outputs["y"], rows(7))
    after = identities.status()
    assert after.pid != before.pid
    assert after.restarts == before.restarts + 1
    assert "signal 9" in after.message


def test_closing_ends_a_batch_under_way(tmp_path):
    process = naughty.mirror({"m:1/endless": naughty.endless(tmp_path)})
    process.start()
    child = process.status().pid
    ended: list[type[BaseException]] = []

    def work():
        try:
            process.submit([Job({"n": np.array([2**60])}, [Run("m:1/endless")])])
        except Stopped as stopped:
            ended.append(type(stopped))

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: process.status().state == "busy", "it works")
    process.close()
    thread.join(30)
    assert ended == [Stopped]
    process.join()
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_over_its_memory_it_is_started_anew_and_the_batch_given_up(tmp_path):
    variants = {"m:1/endless": naughty.endless(tmp_path)}
    with started(variants, memory_max_bytes=2**20) as process:
        jobs = [Job({"n": np.array([2**60])}, [Run("m:1/endless")])]
        [outcome] = process.submit(jobs)
        assert "could not be kept alive" in outcome.set_aside
        assert outcome.culprit == ""
        assert process.counters["memory"] == 2


# --- the parts ------------------------------------------------------------------------------------


def test_bundles_are_what_went_in():
    sets = [
        {"x": np.ones((2, 3), np.float32), "s": np.array([b"a", b"bc"], dtype=object)},
        {"x": np.zeros((1, 3), np.float32), "s": np.array([b""], dtype=object)},
        {"x": np.zeros((1, 4), np.float32)},
        {"n": np.array(5)},
        {"n": np.array(6)},
        {},
    ]
    described, parts = pack_many(sets)
    assert len(parts) == 4  # one a tensor and structure, not one a set
    back = unpack_many(described, [bytes(part) for part in parts])
    assert [list(arrays) for arrays in back] == [list(arrays) for arrays in sets]
    for got, sent in zip(back, sets, strict=True):
        for name, array in sent.items():
            assert got[name].dtype == array.dtype
            assert got[name].shape == array.shape
            assert got[name].tolist() == array.tolist()


def test_the_page_says_what_is_executing():
    descriptor = Page.create()
    child, monitor = Page(descriptor), Page(descriptor)
    try:
        assert monitor.executing() is None
        child.begin(3, 1, 12345)
        assert monitor.executing() == (3, 1, 12345)
        child.end()
        assert monitor.executing() is None
        child.loading(0)
        assert monitor.loads() == 0
        child.loading(None)
        assert monitor.loads() is None
    finally:
        child.close()
        monitor.close()
        os.close(descriptor)


class Clock(SystemClock):
    ns = 0

    def monotonic_ns(self) -> int:
        return self.ns


def test_three_strikes_in_a_row_suspend_for_longer_each_time():
    clock = Clock()
    suspensions = Suspensions(clock)
    assert [suspensions.blame("a") for _ in range(2)] == [False, False]
    suspensions.forgive("a")
    assert [suspensions.blame("a") for _ in range(3)] == [False, False, True]
    assert suspensions.suspended() == ["a"]
    assert not suspensions.is_suspended("b")
    clock.ns += int(30e9)
    assert not suspensions.is_suspended("a")
    assert suspensions.blame("a")  # one more is enough
    clock.ns += int(59e9)
    assert suspensions.is_suspended("a")
    clock.ns += int(1e9)
    assert not suspensions.is_suspended("a")
