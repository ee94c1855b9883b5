"""How changes get to all workers, whatever starts and dies meanwhile: the queue by itself."""

from __future__ import annotations

import signal
import socket
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.launching import discard, launch, worker_environment
from sidecar.transactions import PREPARE_WITHIN_S, Transactions, Worker


class Group:
    """Workers whose processes are lists: what was sent to each, and what each has carried out."""

    def __init__(self, stack: ExitStack, count: int = 3) -> None:
        self._stack = stack
        self.workers = [Worker(index) for index in range(count)]
        self.inbox: list[list[dict]] = [[] for _ in self.workers]
        self.prepared: list[dict[str, dict]] = [{} for _ in self.workers]
        self.state: list[dict[str, object]] = [{} for _ in self.workers]
        self.results: list[list[dict]] = [[] for _ in self.workers]
        self.now_s = 1000.0
        self.transactions = Transactions(self.workers, self._send, lambda: self.now_s)
        for index in range(count):
            self.start(index)

    def _send(self, worker: Worker, message: dict) -> None:
        if worker.channel is not None:
            self.inbox[worker.index].append(message)

    def start(self, index: int) -> None:
        """As the supervisor's ``_spawn``: the state goes first, then what is under way."""
        worker = self.workers[index]
        worker.channel = self._stack.enter_context(socket.socket())
        self.inbox[index], self.prepared[index], self.results[index] = [], {}, []
        self.state[index] = {}
        for command in self.transactions.state():
            self._carry_out(index, command)
        self.transactions.join(worker)

    def kill(self, index: int) -> None:
        self.workers[index].channel = None
        self.inbox[index] = []
        self.transactions.forget(self.workers[index])

    def running(self) -> list[int]:
        return [w.index for w in self.workers if w.channel is not None]

    def call(self, index: int, call: int, command: dict) -> None:
        self.transactions.begin(self.workers[index], {"call": call, "command": command})

    def _carry_out(self, index: int, command: dict) -> None:
        if command["op"] in ("load", "unload"):
            self.state[index][command["model"]] = command["op"]
            if command["op"] == "load":  # as a fresh worker begins
                del self.state[index][command["model"]]

    def work(self, index: int, *, refuse: bool = False) -> bool:
        """A worker takes its next message; whether there was one."""
        if not self.inbox[index]:
            return False
        message = self.inbox[index].pop(0)
        worker, number = self.workers[index], message.get("txn", "")
        match message["type"]:
            case "prepare" if refuse:
                reply = {"txn": number, "ok": False, "error": "no", "kind": "ConflictError"}
                self.transactions.on_prepared(worker, reply)
            case "prepare":
                self.prepared[index][number] = message["command"]
                self.transactions.on_prepared(worker, {"txn": number, "ok": True})
            case "commit":
                self._carry_out(index, self.prepared[index].pop(number))
                self.transactions.on_committed(worker, number)
            case "abort":
                self.prepared[index].pop(number, None)
            case "result":
                self.results[index].append(message)
        return True

    def settle(self) -> None:
        while any(self.work(index) for index in self.running()):
            pass


@pytest.fixture
def group():
    with ExitStack() as stack:
        yield Group(stack)


UNLOAD = {"op": "unload", "model": "m"}
LOAD = {"op": "load", "model": "m"}


def test_a_worker_that_hangs_while_it_prepares_does_not_hold_up_later_changes(group):
    group.call(0, 1, UNLOAD)
    group.call(1, 2, {"op": "unload", "model": "other"})
    group.work(0)
    group.work(1)
    hung = group.inbox[2].pop(0)  # it has read the message, and is heard of no more
    assert hung["type"] == "prepare"
    assert group.transactions.pause_s() == PREPARE_WITHIN_S
    group.now_s += PREPARE_WITHIN_S - 1
    group.transactions.expire()
    assert not any(group.inbox[index] for index in (0, 1))
    group.now_s += 1
    group.transactions.expire()
    for index in (0, 1):
        while group.work(index):
            pass
    [failed] = group.results[0]
    assert (failed["call"], failed["ok"], failed["kind"]) == (1, False, "UnavailableError")
    assert "worker 2 " in failed["error"]
    assert group.state == [{}, {}, {}]
    # It goes on after all: what it prepared is dropped, and it takes part in the next change.
    group.transactions.on_prepared(group.workers[2], {"txn": hung["txn"], "ok": True})
    group.settle()
    assert group.state == [{"other": "unload"}] * 3
    assert group.results[1] == [{"type": "result", "call": 2, "ok": True}]
    assert group.transactions.pause_s() is None


def test_a_change_that_is_being_committed_does_not_expire(group):
    group.call(0, 1, UNLOAD)
    for index in group.running():
        group.work(index)
    assert [inbox[0]["type"] for inbox in group.inbox] == ["commit"] * 3
    group.now_s += 2 * PREPARE_WITHIN_S
    group.transactions.expire()
    group.settle()
    assert group.results[0] == [{"type": "result", "call": 1, "ok": True}]


def test_everybody_prepares_before_anybody_commits(group):
    group.call(0, 1, UNLOAD)
    assert [m["type"] for inbox in group.inbox for m in inbox] == ["prepare"] * 3
    group.work(0)
    group.work(1)
    assert not group.inbox[0]
    group.work(2)
    assert [inbox[0]["type"] for inbox in group.inbox] == ["commit"] * 3
    group.work(0)
    assert not group.results[0]  # not before the last one has changed
    group.settle()
    assert group.results == [[{"type": "result", "call": 1, "ok": True}], [], []]
    assert group.state == [{"m": "unload"}] * 3


def test_one_refusal_changes_nobody_and_is_remembered_by_nobody(group):
    group.call(1, 7, UNLOAD)
    group.work(0)
    group.work(1, refuse=True)
    group.settle()
    [result] = group.results[1]
    assert (result["ok"], result["error"], result["kind"]) == (False, "no", "ConflictError")
    assert group.state == [{}] * 3
    assert group.prepared == [{}] * 3
    assert group.transactions.state() == []


def test_changes_are_made_one_after_another(group):
    group.call(0, 1, UNLOAD)
    group.call(1, 1, LOAD)
    assert [len(inbox) for inbox in group.inbox] == [1, 1, 1]
    group.settle()
    assert group.state == [{}] * 3
    assert group.results[0][0]["ok"]
    assert group.results[1][0]["ok"]


def test_who_dies_holds_nothing_up(group):
    group.call(0, 1, UNLOAD)
    group.work(0)
    group.work(1)
    group.kill(2)
    group.settle()
    assert group.results[0][0]["ok"]
    group.call(0, 2, LOAD)
    group.settle()
    group.call(0, 3, UNLOAD)
    for _ in range(2):  # prepared, and then it dies before it commits
        group.work(0)
    group.kill(1)
    group.settle()
    assert [r["call"] for r in group.results[0]] == [1, 2, 3]


def test_who_starts_amid_a_change_has_it_in_the_end(group):
    group.kill(2)
    group.call(0, 1, UNLOAD)
    group.start(2)  # not decided yet: it takes part
    group.work(0)
    group.work(1)
    assert not group.results[0]
    group.settle()
    assert group.state == [{"m": "unload"}] * 3
    group.kill(2)
    group.call(0, 2, LOAD)
    group.work(0)
    group.work(1)
    group.start(2)  # decided: it starts with it, and is not asked to commit what it never prepared
    assert group.inbox[2] == []
    group.settle()
    assert group.state == [{}] * 3


def test_a_successor_does_not_get_the_answers_of_its_predecessor(group):
    group.call(0, 1, UNLOAD)
    group.call(1, 1, LOAD)
    group.kill(1)
    group.start(1)
    group.settle()
    assert group.results[0][0]["ok"]
    assert group.results[1] == []


def test_the_state_is_the_net_effect(group):
    calls = [
        UNLOAD,
        {"op": "shm_register", "name": "a", "key": "k", "offset": 0, "byte_size": 1},
        {"op": "shm_register", "name": "b", "key": "k", "offset": 0, "byte_size": 1},
        {"op": "trace", "model": "", "settings": {"trace_rate": ["1"], "trace_count": ["2"]}},
        {"op": "trace", "model": "m", "settings": {"trace_rate": ["5"]}},
        {"op": "trace", "model": "", "settings": {"trace_rate": ["3"]}},
        {"op": "log", "settings": {"log_info": False}},
        {"op": "shm_unregister", "name": "a"},
        {"op": "unload", "model": "n"},
        LOAD,
    ]
    for number, command in enumerate(calls):
        group.call(0, number, command)
    group.settle()
    assert group.transactions.state() == [
        {"op": "shm_register", "name": "b", "key": "k", "offset": 0, "byte_size": 1},
        {"op": "trace", "model": "", "settings": {"trace_rate": ["3"]}},
        {"op": "trace", "model": "", "settings": {"trace_count": ["2"]}},
        {"op": "trace", "model": "m", "settings": {"trace_rate": ["5"]}},
        {"op": "log", "settings": {"log_info": False}},
        {"op": "unload", "model": "n"},
    ]
    group.call(0, 99, {"op": "shm_unregister", "name": ""})
    group.settle()
    assert all(command["op"] != "shm_register" for command in group.transactions.state())


STEPS = st.lists(
    st.tuples(st.sampled_from(["work", "refuse", "kill", "start", "call"]), st.integers(0, 2)),
    max_size=60,
)


@settings(max_examples=300)
@given(STEPS, st.lists(st.tuples(st.sampled_from("mn"), st.booleans()), min_size=60, max_size=60))
def test_whatever_happens_all_workers_end_alike_and_every_caller_is_answered(steps, changes):
    with ExitStack() as stack:
        group = Group(stack)
        asked: list[set[int]] = [set(), set(), set()]
        for number, (step, index) in enumerate(steps):
            alive = index in group.running()
            if step in ("work", "refuse") and alive:
                group.work(index, refuse=step == "refuse")
            elif step == "kill" and alive:
                group.kill(index)
                asked[index] = set()
            elif step == "start" and not alive:
                group.start(index)
            elif step == "call" and alive:
                model, loads = changes[number]
                op = "load" if loads else "unload"
                group.call(index, number, {"op": op, "model": model})
                asked[index].add(number)
        for index in set(range(3)) - set(group.running()):
            group.start(index)
        group.settle()
        assert group.state[0] == group.state[1] == group.state[2]
        expected = {c["model"]: "unload" for c in group.transactions.state()}
        assert group.state[0] == expected
        assert [{r["call"] for r in results} for results in group.results] == asked
        assert group.prepared == [{}, {}, {}]


# --- processes ------------------------------------------------------------------------------------


def test_a_process_started_ahead_ends_when_it_is_not_needed():
    process, channel = launch()
    discard((process, channel))
    assert process.returncode == -signal.SIGKILL
    assert channel.fileno() == -1
    discard(None)


def test_a_process_started_ahead_ends_with_whoever_started_it():
    process, channel = launch()
    channel.close()
    assert process.wait(30) == 1


def test_the_environment_is_handed_on_with_defaults_that_give_way():
    made = worker_environment({"OPENBLAS_NUM_THREADS": "4", "HOME": "h"})
    assert made["OPENBLAS_NUM_THREADS"] == "4"
    assert made["HOME"] == "h"
    assert made["MALLOC_ARENA_MAX"] == "2"
