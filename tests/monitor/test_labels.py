"""Late labels find their answers: early, late, repeated, too late, over a restart, and garbage."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from sidecar.errors import InvalidRequestError, NotFoundError
from sidecar.monitor import calls_labels, harms
from sidecar.monitor import labels as labels_module
from sidecar.monitor.events import EventLog
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.exchanges import Reader
from sidecar.monitor.keeper import Keeper
from sidecar.monitor.label_intake import Label, LabelCounts
from sidecar.monitor.label_store import LabelTables
from sidecar.monitor.labels import LateLabels
from sidecar.monitor.mirror_protocol import Answer
from sidecar.protocol.pb import monitor_pb2 as pb
from tests.monitor import making

NEW, OLD = "m:2/new", "m:1/old"
ROLES = ("1", "old", ["previous"]), ("2", "new", ["serving"])
CLASSES = {"outputs": {"y": {"kind": "class_scores"}}}


def config_of(*roles, labels=None, **settings):
    settings.setdefault("validation", CLASSES)
    return making.model(*(roles or ROLES), labels=labels or {}, **settings)


def scores(*classes):
    return {"y": np.eye(4, dtype=np.float32)[list(classes)]}


class Bench:
    """The labels of one model, and what is counted; in a folder, over lives."""

    def __init__(self, config=None, *, clock=None, folder=None):
        self.clock = clock or making.Clock()
        self.config = config or config_of()
        self.plan = making.plan(self.config)
        self.evidence = Evidence("now", self.clock)
        self.right: list = []
        self.labels = LateLabels(
            [self.config], self.evidence, self.clock, lambda *told: self.right.append(told)
        )
        self.keeper = None
        if folder is not None:
            events = EventLog(self.clock)
            self.keeper = Keeper(folder, self.evidence, events, self.clock, labels=self.labels)
            assert self.keeper.open()

    def see(self, request_id, new, old, *, served=None, variant=NEW):
        """An exchange that was run on both versions; the served answer is the new one's, unless."""
        answer = served if served is not None else (new if isinstance(new, dict) else None)
        item = making.item(self.plan, variant, answer, {NEW: new, OLD: old}, request_id=request_id)
        item.served = answer
        self.labels.see(item)

    def put(self, request_id, *values):
        return self.labels.put([Label("m", request_id, values)])

    def cells(self, metric, *, sides=(NEW, OLD)):
        total = {}
        for key in self.evidence.all_keys():
            if (key.candidate, key.baseline, key.metric) == (*sides, metric):
                for name, count in self.evidence.cells(key).items():
                    total[name] = total.get(name, 0) + count
        return total

    def counted(self):
        return {
            (point.attributes["outcome"], point.attributes["reason"]): point.value
            for point in self.labels.points()
            if point.instrument.name == "model_sidecar.labels"
        }

    def coverage(self):
        names = ("model_sidecar.labels.waiting", "model_sidecar.labels.coverage")
        found = {point.instrument.name: point.value for point in self.labels.points()}
        return tuple(found.get(name) for name in names)


MATCHED = LabelCounts(matched=1, refused={})
EARLY = LabelCounts(early=1, refused={})
REPEATED = LabelCounts(repeated=1, refused={})


@pytest.fixture
def bench():
    return Bench()


# --- matching -------------------------------------------------------------------------------------


def test_a_late_label_says_of_each_version_whether_it_was_wrong(bench):
    bench.see("a", scores(1, 2, 3, 0), scores(1, 2, 2, 1))
    assert bench.put("a", 1, 0, 2, 0) == MATCHED
    # Rows: both right, both wrong, only the new one wrong, only the previous one wrong.
    assert bench.cells("accuracy") == {"n11": 1, "n10": 1, "n01": 1, "n00": 1}
    assert bench.cells(harms.SERVED_ACCURACY, sides=(NEW, "")) == {"k": 2, "n": 4}
    assert bench.right == [("m", NEW, [True, False, False, True])]
    keys = {k.policy for k in bench.evidence.all_keys() if k.metric == "accuracy"}
    assert keys == {bench.plan.pairs[0].identity}


def test_accuracy_is_bet_on_by_blocks_in_order_of_the_labels(bench):
    for n in range(50):
        bench.see(f"r{n}", scores(0), scores(1 if n % 5 else 0))
    for n in reversed(range(50)):  # labels: always class 1, the previous version's mostly
        bench.put(f"r{n}", 1)
    assert bench.cells("accuracy") == {"n11": 10, "n10": 40, "n01": 0, "n00": 0}
    assert bench.cells("accuracy/20") == {"n11": 0, "n10": 2, "n01": 0, "n00": 0}
    assert bench.cells("accuracy/100") == {}


def test_what_was_served_counts_for_the_version_that_served_it(bench):
    # Run again the new version says another thing: the pair is judged by that, users got this.
    bench.see("a", scores(1), scores(1), served=scores(0))
    bench.see("b", scores(1), scores(1), served=scores(0), variant=OLD)
    for name in "ab":
        bench.put(name, 1)
    assert bench.cells("accuracy") == {"n11": 0, "n10": 0, "n01": 0, "n00": 2}
    assert bench.cells(harms.SERVED_ACCURACY, sides=(NEW, "")) == {"k": 0, "n": 1}
    assert bench.cells(harms.SERVED_ACCURACY, sides=(OLD, "")) == {"k": 0, "n": 1}


def test_a_version_that_failed_makes_no_pair(bench):
    bench.see("a", scores(1), Answer(None, "error", "why"))
    assert bench.put("a", 1) == MATCHED
    assert bench.cells("accuracy") == {}
    assert bench.cells(harms.SERVED_ACCURACY, sides=(NEW, "")) == {"k": 1, "n": 1}


def test_an_early_label_waits_for_its_request(bench):
    assert bench.put("a", 1) == EARLY
    assert bench.put("a", 2) == REPEATED  # the first stands
    bench.see("a", scores(1), scores(0))
    assert bench.cells("accuracy") == {"n11": 0, "n10": 0, "n01": 1, "n00": 0}
    assert bench.counted() == {("early", ""): 1, ("repeated", ""): 1, ("matched", ""): 1}


def test_a_repeated_label_counts_once_and_so_does_a_repeated_answer(bench):
    bench.see("a", scores(1), scores(0))
    assert bench.put("a", 1) == MATCHED
    assert bench.put("a", 0) == REPEATED
    bench.see("a", scores(1), scores(0))  # a retry, or the other half of a fallback
    assert bench.put("a", 1) == REPEATED
    assert sum(bench.cells("accuracy").values()) == 1


def test_both_halves_of_a_fallback_are_one_request():
    roles = ("2", "new", ["serving"]), ("1", "old", ["fallback", "previous"])
    bench = Bench(config_of(*roles))
    item = making.item(bench.plan, NEW, None, {NEW: scores(1), OLD: scores(0)}, request_id="a")
    bench.labels.see(item)  # the new version failed while serving
    bench.see("a", scores(1), scores(0), served=scores(0), variant=OLD)
    assert bench.put("a", 0) == MATCHED
    assert sum(bench.cells("accuracy").values()) == 1
    assert bench.cells(harms.SERVED_ACCURACY, sides=(OLD, "")) == {"k": 1, "n": 1}


def test_scores_are_judged_by_which_is_nearer():
    bench = Bench(config_of(validation={"outputs": {"y": {"kind": "regression"}}}))
    column = lambda *values: {"y": np.array(values, np.float32)[:, None]}  # noqa: E731
    bench.see("a", column(1.0, 5.0, 2.0), column(2.0, 4.0, 2.0))
    assert bench.put("a", 1.2, 4, 7.5) == MATCHED
    assert bench.cells("accuracy") == {"n11": 0, "n10": 1, "n01": 1, "n00": 1}
    assert bench.cells(harms.SERVED_ACCURACY, sides=(NEW, "")) == {}
    bench.see("b", column(float("nan")), column(9.0))
    assert bench.put("b", "cat").refused == {"a text, where the answer is a score": 1}
    assert bench.put("b", 2.0) == MATCHED  # no number is farther than any
    assert bench.cells("accuracy")["n10"] == 2


def test_classes_may_be_told_by_name():
    config = config_of()
    named = [
        v.model_copy(update={"classes": {"y": ("cat", "dog", "eel", "fox")}})
        for v in config.variants
    ]
    bench = Bench(config.model_copy(update={"variants": tuple(named)}))
    bench.see("a", scores(2, 0), scores(1, 0))
    assert bench.put("a", "eel", "cat") == MATCHED
    assert bench.cells("accuracy") == {"n11": 0, "n10": 0, "n01": 1, "n00": 1}
    bench.see("b", scores(2), scores(1))
    assert bench.put("b", "cow").refused == {"a name that is no class of the variant": 1}


# --- garbage --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ((1,), "another number of labels than the request has rows"),
        ((1, 4), "no class: they are 0 to 3"),
        ((1, -1), "no class: they are 0 to 3"),
        ((1, "cat"), "a class's name, and `classes` of the variant does not say which it is"),
        ((1, 1.5), "a fraction, where the answer is a class"),
        ((1, float("nan")), "a score that is no number"),
        ((), "no values, or over 4096"),
    ],
)
def test_a_label_that_does_not_fit_is_refused_and_its_answer_waits_on(bench, values, why):
    bench.see("a", scores(1, 2), scores(1, 2))
    assert bench.put("a", *values) == LabelCounts(refused={why: 1})
    assert bench.put("a", 1.0, 2) == MATCHED  # a whole number may be written as a fraction
    assert bench.counted() == {("refused", "unfit"): 1, ("matched", ""): 1}


def test_an_early_label_that_does_not_fit_is_refused_when_the_request_comes(bench):
    assert bench.put("a", 9) == EARLY
    bench.see("a", scores(1), scores(1))
    assert bench.cells("accuracy") == {}
    assert bench.put("a", 1) == MATCHED


def test_identities_are_bounded_and_empty_ones_match_nothing(bench):
    bench.see("", scores(1), scores(1))
    assert bench.put("", 1).refused == {"no request id": 1}
    assert bench.put("x" * 513, 1).refused == {"a request id of over 512 characters": 1}
    assert bench.coverage()[0] == 0


def test_only_models_that_are_configured_to_take_labels(bench):
    others = LateLabels(
        [bench.config, making.model(*ROLES).model_copy(update={"name": "n"})], bench.evidence,
        bench.clock,
    )  # fmt: skip
    others.check("m")
    with pytest.raises(InvalidRequestError, match=r"n takes no labels: give it `labels: \{\}`"):
        others.check("n")
    with pytest.raises(NotFoundError, match="there is no model 'z'; there is m, n"):
        others.check("z")
    refused = {"no such model, or one that takes no labels": 1}
    assert others.put([Label("n", "a", (1,))]).refused == refused


def test_an_answer_that_has_no_such_output_is_counted_and_said_once(bench, caplog):
    odd = {"y": np.zeros((1, 2, 3), np.float32), "z": np.zeros((1, 2, 3), np.float32)}
    with caplog.at_level(logging.WARNING, "sidecar.monitor.labels"):
        for n in range(3):
            bench.see(f"r{n}", odd, odd)
    [record] = caplog.records
    assert "not one output of classes or scores (it has y, z)" in record.getMessage()
    assert bench.counted() == {("unlabelled", "output"): 3}
    many = {"y": np.zeros((5000, 4), np.float32)}
    bench.see("many", many, many)
    assert bench.counted()["unlabelled", "rows"] == 1


# --- bounds ---------------------------------------------------------------------------------------


def test_what_waits_too_long_goes_and_is_counted():
    bench = Bench(config_of(labels={"within_s": 60}))
    bench.see("a", scores(1), scores(1))
    bench.put("early", 1)
    bench.clock.advance(59)
    bench.see("b", scores(1), scores(1))
    bench.labels.tick()
    assert bench.coverage() == (2, None)
    bench.clock.advance(2)
    bench.labels.tick()
    assert bench.coverage() == (1, 0.0)
    assert bench.put("a", 1) == EARLY
    assert bench.put("b", 1) == MATCHED
    assert bench.coverage() == (0, 0.5)
    assert bench.counted()["unlabelled", "expired"] == bench.counted()["lost", "expired"] == 1
    bench.see("early", scores(1), scores(1))
    assert sum(bench.cells("accuracy").values()) == 1


def test_of_too_many_the_oldest_go():
    bench = Bench(config_of(labels={"max_waiting": 10}))
    for n in range(15):
        bench.see(f"r{n}", scores(1), scores(1))
        bench.put(f"early{n}", 1)
    assert bench.put("r4", 1) == EARLY
    assert bench.put("r5", 1) == MATCHED
    assert bench.counted()["unlabelled", "full"] == 5
    assert bench.counted()["lost", "full"] == 6  # r4's label as well had to have room
    for n in range(15):
        bench.see(f"early{n}", scores(1), scores(1))
    assert sum(bench.cells("accuracy").values()) == 1 + 9


# --- the store ------------------------------------------------------------------------------------


def test_what_waits_survives_a_restart(tmp_path):
    clock = making.Clock()
    first = Bench(clock=clock, folder=tmp_path)
    for name in "abc":
        first.see(name, scores(1, 2), scores(1, 3))
    first.put("early", 1)
    first.put("a", 1, 2)
    first.keeper.close()
    clock.advance(10)
    second = Bench(clock=clock, folder=tmp_path)
    assert second.coverage()[0] == 2
    assert second.put("b", 1, 2) == MATCHED
    assert second.put("a", 1, 2) == EARLY  # whose answer is gone: it cannot count twice
    second.see("early", scores(1), scores(0))
    assert second.cells("accuracy") == {"n11": 0, "n10": 0, "n01": 3, "n00": 2}
    second.keeper.close()
    third = Bench(clock=clock, folder=tmp_path)
    assert third.coverage()[0] == 1
    assert third.put("c", 1, 2) == MATCHED
    assert third.cells("accuracy") == {"n11": 0, "n10": 0, "n01": 4, "n00": 3}
    third.keeper.close()


def test_rows_of_the_store_that_make_no_sense_are_left_out_and_deleted(tmp_path, caplog):
    clock = making.Clock()
    first = Bench(clock=clock, folder=tmp_path)
    first.see("good", scores(1), scores(1))
    first.keeper.flush()
    tables = first.keeper._store.part(LabelTables)
    tables.put("m", [("answer", "bad", 1, {"answers": 3}), ("label", "worse", 2, [])], [])
    first.keeper.close()
    with caplog.at_level(logging.ERROR, "sidecar.monitor.labels"):
        second = Bench(clock=clock, folder=tmp_path)
    assert "m: 2 answers that wait cannot be read" in caplog.text
    assert second.coverage()[0] == 1
    second.keeper.flush()
    assert [row[1] for row in second.keeper._store.part(LabelTables).load("m")] == ["good"]
    second.keeper.close()


def test_a_store_that_refuses_is_tried_again(tmp_path):
    bench = Bench(folder=tmp_path)
    bench.see("a", scores(1), scores(1))
    store = bench.keeper._store
    database = store.database
    database._engine.dispose()
    engine, database._engine = database._engine, None
    bench.keeper.flush()
    database._engine = engine
    bench.keeper.flush()
    assert [row[1] for row in store.part(LabelTables).load("m")] == ["a"]
    bench.keeper.close()


def test_a_flush_of_many_is_several_transactions(tmp_path, monkeypatch):
    monkeypatch.setattr(labels_module, "FLUSH_ROWS", 10)
    clock = making.Clock()
    bench = Bench(clock=clock, folder=tmp_path)
    for n in range(35):
        bench.see(f"r{n}", scores(1), scores(1))
    bench.keeper.flush()
    assert len(bench.keeper._store.part(LabelTables).load("m")) == 35
    for n in range(35):
        bench.put(f"r{n}", 1)
    bench.keeper.flush()
    assert bench.keeper._store.part(LabelTables).load("m") == []
    bench.keeper.close()


# --- the call -------------------------------------------------------------------------------------


def test_the_call_takes_every_kind_of_value_and_refuses_one_that_is_none(bench):
    [(name, method)] = calls_labels.methods(bench.labels).items()
    assert (name, method.changes) == ("PutLabels", True)
    bench.see("a", scores(1, 2, 3), scores(1, 2, 3))
    request = pb.PutLabelsRequest(model="m")
    values = request.labels.add(request_id="a").values
    values.add(index=1)
    values.add(score=2.0)
    values.add()
    with pytest.raises(InvalidRequestError, match="request 'a' has a value that is no"):
        method.call(request)
    values[2].name = "eel"
    why = "a class's name, and `classes` of the variant does not say which it is"
    assert method.call(request) == pb.PutLabelsResponse(refused={why: 1})
    values[2].index = 3
    assert method.call(request) == pb.PutLabelsResponse(matched=1)
    with pytest.raises(NotFoundError, match="there is no model ''; there is m"):
        method.call(pb.PutLabelsRequest())


# --- exchanges that are only served ---------------------------------------------------------------


def served(request_id, *classes, variant, **changes):
    x = np.zeros((len(classes), 4), np.float32)
    return making.exchange(
        request_id, variant=variant, request=making.request(x),
        response=making.response(**scores(*classes)), **changes,
    )  # fmt: skip


def test_of_two_versions_that_share_the_traffic_each_is_counted_by_itself():
    roles = ("1", "a", ["serving"]), ("2", "b", ["serving"])
    bench = Bench(config_of(*roles))
    reader = Reader({}, None, bench.labels)  # nothing is watched, so there is no plan
    for n in range(10):
        variant = "m:1/a" if n % 2 else "m:2/b"
        assert reader.read(served(f"r{n}", 1, n % 4, variant=variant)) is None
    reader.read(served("failed", 1, variant="m:1/a", outcome="ExecutionError"))
    reader.read(making.exchange("odd", variant="m:1/a", request=b"\xff", response=b"\xff"))
    assert bench.coverage()[0] == 10
    for n in range(10):
        assert bench.put(f"r{n}", 1, 1) == MATCHED
    assert bench.cells(harms.SERVED_ACCURACY, sides=("m:1/a", "")) == {"k": 5 + 3, "n": 10}
    assert bench.cells(harms.SERVED_ACCURACY, sides=("m:2/b", "")) == {"k": 5, "n": 10}
    assert bench.cells("accuracy") == {}
