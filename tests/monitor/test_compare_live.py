"""Many answers compared at once give what comparing each alone gives; and evidence counts it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sidecar.monitor.compare import Comparer
from sidecar.monitor.evidence import Evidence
from sidecar.monitor.mirror_protocol import Answer
from sidecar.monitor.record import Recorder, whole_hash
from sidecar.monitor.rows import EvidenceKey
from sidecar.monitor.versions import NEW_MS, PREVIOUS_MS, WARM_UP_PAIRS, VersionPairs
from tests.monitor import making
from validators.comparators import make_policy
from validators.compare import compare_outputs
from validators.sequential import latency
from validators.sketches import LogHistogram

rng = np.random.default_rng(3)
POLICIES = {"y": make_policy("tensor", "fp32"), "z": make_policy("tensor", "int8")}
LOOSE = {"outputs": {"y": {"kind": "tensor", "limits": {"max_abs": 0.5}}}}


def answer(rows, width=4, **changes):
    return {
        "y": rng.normal(size=(rows, width)).astype(np.float32),
        "z": rng.normal(size=(rows, 3)).astype(np.float32),
        **changes,
    }


def changed(given, name, rows):
    """A copy in which these rows of one output are far off."""
    array = given[name].copy()
    array[rows] += 10
    return {**given, name: array}


# --- the comparer ---------------------------------------------------------------------------------


def test_joined_answers_give_each_what_it_gives_alone():
    truths = [answer(rows, width) for rows, width in [(1, 4), (3, 4), (2, 6), (5, 4), (1, 6)]]
    candidates = [dict(truth) for truth in truths]
    candidates[1] = changed(truths[1], "y", [0, 2])
    candidates[2] = changed(changed(truths[2], "y", [0]), "z", [0, 1])
    candidates[3]["y"] = truths[3]["y"].copy()
    candidates[3]["y"][4, 1] = np.nan
    result = Comparer(POLICIES, batched=True).compare(truths, candidates)
    assert result.rows.tolist() == [1, 3, 2, 5, 1]
    assert result.bad_rows.tolist() == [0, 2, 2, 1, 0]
    assert result.outputs["y"].bad_rows.tolist() == [0, 2, 1, 1, 0]
    assert result.outputs["y"].invalid_rows.tolist() == [0, 0, 0, 1, 0]
    assert result.outputs["z"].x.tolist() == [0, 0, 1, 0, 0]
    for position, (truth, candidate) in enumerate(zip(truths, candidates, strict=True)):
        for name, alone in compare_outputs(truth, candidate, POLICIES).items():
            found = result.outputs[name]
            bad = alone.disagrees(POLICIES[name].limits)
            assert found.bad_rows[position] == bad.sum()
            assert found.worst["max_abs"][position] == pytest.approx(
                np.nanmax(alone.metrics["max_abs"]), nan_ok=True
            )
            assert found.worst["sqnr_db"][position] == pytest.approx(
                np.nanmin(alone.metrics["sqnr_db"]), nan_ok=True
            )


def test_sketches_are_those_of_all_requests_together():
    truths = [answer(2), answer(3)]
    candidates = [changed(truths[0], "y", [1]), dict(truths[1])]
    result = Comparer(POLICIES, batched=True).compare(truths, candidates)
    expected = LogHistogram()
    for truth, candidate in zip(truths, candidates, strict=True):
        expected.merge(compare_outputs(truth, candidate, POLICIES)["y"].sketches["abs_error"])
    assert result.outputs["y"].sketches["abs_error"] == expected


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda a: {"y": a["y"]}, "lacks"),
        (lambda a: {**a, "more": a["y"]}, "no such output"),
        (lambda a: {"y": a["y"], "zed": a["z"]}, "renamed"),
        (lambda a: {**a, "z": a["z"][:, :2]}, "shape"),
        (lambda a: {**a, "z": a["z"][:1]}, "rows"),
        (lambda a: {**a, "z": a["z"].astype(np.int64)}, "int"),
        (lambda a: {**a, "z": np.float32(1)[...]}, "axes"),
    ],
)
def test_one_strange_answer_does_not_spoil_its_neighbours(spoil, word):
    truths = [answer(2) for _ in range(3)]
    candidates = [dict(truths[0]), spoil(truths[1]), dict(truths[2])]
    result = Comparer(POLICIES, batched=True).compare(truths, candidates)
    assert result.bad_rows.tolist() == [0, 2, 0]
    assert (result.x == [0, 1, 0]).all()
    texts = [text for found in result.outputs.values() for text in found.problems.values()]
    assert any(word in text for text in texts)
    assert not any(found.structural[[0, 2]].any() for found in result.outputs.values())


def test_an_answer_of_nothing_but_nan_is_nothing_compared():
    truths = [answer(2), answer(2, y=np.full((2, 4), np.nan, np.float32))]
    result = Comparer(POLICIES, batched=True).compare(truths, [dict(each) for each in truths])
    assert result.outputs["y"].structural.tolist() == [False, True]
    assert "no finite value" in result.outputs["y"].problems[1]


def test_without_a_batch_dimension_the_whole_answer_is_one_row():
    policies = {"y": POLICIES["y"]}
    truths = [{"y": answer(3)["y"]} for _ in range(4)]
    candidates = [dict(truths[0]), changed(truths[1], "y", [1]), dict(truths[2]), {}]
    result = Comparer(policies, batched=False).compare(truths, candidates)
    assert result.rows.tolist() == [1, 1, 1, 1]
    assert result.bad_rows.tolist() == [0, 1, 0, 1]


# --- what is counted ------------------------------------------------------------------------------


@pytest.fixture
def evidence():
    return Evidence("now", making.Clock())


def loose(*variants, **signatures):
    return making.plan(making.model(*variants, validation=LOOSE), **signatures)


def key(plan, candidate, baseline, metric="disagrees", output="y"):
    policies = next(
        p.policies for p in plan.pairs if (p.candidate, p.baseline) == (candidate, baseline)
    )
    source = baseline if metric == "noise" else candidate
    return EvidenceKey("m", source, baseline, output, metric, policies.hashes[output])


def y(*rows):
    return {"y": np.array([[row] * 4 for row in rows], np.float32)}


def test_served_answers_and_mirrors_are_counted_against_the_reference(evidence):
    plan = loose(("2", "ref", ["reference"]), ("2", "new", ["serving"]), ("2", "int8", ["mirror"]))
    items = [
        making.item(plan, "m:2/new", y(1, 2), {"m:2/ref": y(1, 2), "m:2/int8": y(1, 9)}),
        making.item(plan, "m:2/new", y(3), {"m:2/ref": y(3), "m:2/int8": y(3)}),
        making.item(plan, "m:2/new", None, {"m:2/ref": y(4), "m:2/int8": y(9)}),
    ]
    Recorder(evidence).certificates(items)
    served = evidence.cells(key(plan, "m:2/new", "m:2/ref"))
    assert served == {
        "n": 2, "k": 0, "wrong": 0, "rows": 3, "bad_rows": 0, "invalid": 0, "structural": 0,
    }  # fmt: skip
    mirrored = evidence.cells(key(plan, "m:2/int8", "m:2/ref"))
    assert mirrored == {
        "n": 3, "k": 1.5, "wrong": 2, "rows": 4, "bad_rows": 2, "invalid": 0, "structural": 0,
    }  # fmt: skip


def test_an_error_is_a_wrong_answer_and_a_timeout_is_none(evidence):
    plan = loose(("2", "ref", ["reference"]), ("2", "new", ["serving"]), ("2", "int8", ["mirror"]))
    failed = {kind: Answer(None, kind, "why") for kind in ("error", "timeout", "absent", "crash")}
    items = [
        making.item(plan, "m:2/new", y(1), {"m:2/ref": y(1), "m:2/int8": failed["error"]}),
        making.item(plan, "m:2/new", y(1), {"m:2/ref": y(1), "m:2/int8": failed["timeout"]}),
        making.item(plan, "m:2/new", y(1), {"m:2/ref": y(1), "m:2/int8": failed["absent"]}),
        making.item(plan, "m:2/new", y(1), {"m:2/ref": y(1), "m:2/int8": failed["crash"]}),
        making.item(plan, "m:2/new", y(1), {"m:2/ref": failed["error"], "m:2/int8": y(1)}),
    ]
    batches = Recorder(evidence).certificates(items)
    cells = evidence.cells(key(plan, "m:2/int8", "m:2/ref"))
    assert (cells["n"], cells["k"], cells["invalid"]) == (2, 2, 2)
    assert evidence.cells(key(plan, "m:2/new", "m:2/ref"))["n"] == 4
    failures = EvidenceKey("m", "m:2/int8", "m:2/ref", "", "failures")
    assert evidence.cells(failures) == {"candidate": 3, "baseline": 1}
    of_mirror = next(batch for batch in batches if batch.pair.candidate == "m:2/int8")
    assert [answer.failure for _, answer in of_mirror.failed] == ["error", "timeout", "crash"]


def test_noise_is_the_references_and_counted_under_the_same_limits(evidence):
    plan = loose(("2", "ref", ["reference"]), ("2", "new", ["serving"]), ("2", "int8", ["mirror"]))
    recorder = Recorder(evidence)
    items = [
        making.item(plan, "m:2/new", y(1), {"m:2/ref": y(1), "m:2/int8": y(9)}) for _ in range(3)
    ]
    for index, item in enumerate(items):
        item.noise = plan.served["m:2/new"].noise
        item.again = Answer(y(1 + (index == 2)))
    recorder.certificates(items)
    recorder.noise(items)
    noise = evidence.cells(key(plan, "m:2/int8", "m:2/ref", "noise"))
    assert (noise["n"], noise["k"]) == (3, 1)


def test_several_outputs_are_also_counted_as_a_whole(evidence):
    policies = {name: {"kind": "tensor", "limits": {"max_abs": 0.5}} for name in ("y", "z")}
    config = making.model(
        ("2", "ref", ["reference"]), ("2", "new", ["serving"]), validation={"outputs": policies}
    )
    both = making.signature(("y", "z"))
    plan = making.plan(config, ref=both, new=both)
    good = {**y(1, 2), "z": y(1, 2)["y"]}
    bad = {**y(9, 2), "z": y(1, 9)["y"]}
    items = [
        making.item(plan, "m:2/new", good, {"m:2/ref": good}),
        making.item(plan, "m:2/new", bad, {"m:2/ref": good}),
        # One that asked for z alone says nothing about y.
        making.item(plan, "m:2/new", {"z": good["z"]}, {"m:2/ref": good}, wanted=frozenset({"z"})),
    ]
    Recorder(evidence).certificates(items)
    [pair] = plan.pairs
    counts = {
        output: evidence.cells(key(plan, "m:2/new", "m:2/ref", output=output))
        for output in ("y", "z")
    }
    assert (counts["y"]["n"], counts["y"]["k"]) == (2, 0.5)
    assert (counts["z"]["n"], counts["z"]["k"]) == (3, 0.5)
    whole = evidence.cells(
        EvidenceKey(
            "m", "m:2/new", "m:2/ref", "", "disagrees",
            whole_hash(pair.identity, pair.policies.hashes),
        )
    )  # fmt: skip
    assert (whole["n"], whole["k"], whole["bad_rows"]) == (3, 1, 2)


def test_a_structural_problem_is_counted_and_remembered(evidence):
    plan = loose(("2", "ref", ["reference"]), ("2", "new", ["serving"]))
    recorder = Recorder(evidence)
    recorder.certificates([making.item(plan, "m:2/new", {"q": y(1)["y"]}, {"m:2/ref": y(1)})])
    cells = evidence.cells(key(plan, "m:2/new", "m:2/ref"))
    assert (cells["n"], cells["k"], cells["structural"]) == (1, 1, 1)
    remark = evidence.remarks(replace(key(plan, "m:2/new", "m:2/ref"), metric=""))
    assert "'q' has the same shape" in remark.problem


# --- versions -------------------------------------------------------------------------------------


def timed(outputs, milliseconds):
    return Answer(outputs, compute_ns=int(milliseconds * 1e6))


@pytest.fixture
def versions():
    return loose(("1", "old", ["previous"]), ("2", "new", ["serving"]))


def pair_cells(evidence, plan, metric, block=0):
    [pair] = plan.pairs
    policy = pair.policies.hashes["y"] if metric == "flip" else pair.identity
    output = "y" if metric == "flip" else ""
    return evidence.cells(EvidenceKey("m", "m:2/new", "m:1/old", output, metric, policy, block))


def test_a_pair_of_versions_counts_errors_flips_and_times(evidence, versions):
    counter = VersionPairs(evidence, Recorder(evidence), {"m": versions})
    failed = Answer(None, "error", "why")
    pairs = [
        (timed(y(1, 2), 1), timed(y(1, 2), 1)),
        (timed(y(1, 9), 1), timed(y(1, 2), 1)),
        (failed, timed(y(1), 1)),
        (timed(y(1), 1), failed),
        (failed, failed),
        (Answer(None, "timeout"), timed(y(1), 1)),
        (Answer(None, "crash"), timed(y(1), 1)),
        (Answer(None, "absent"), timed(y(1), 1)),
    ]
    items = [
        making.item(versions, "m:2/new", y(1), {"m:2/new": new, "m:1/old": old})
        for new, old in pairs
    ]
    counter.count(items, 1)
    assert pair_cells(evidence, versions, "error") == {"n11": 1, "n10": 3, "n01": 1, "n00": 2}
    assert pair_cells(evidence, versions, "flip") == {"n11": 0, "n10": 0.5, "n01": 0, "n00": 1.5}
    # The first pairs of a child are its warm-up: no times.
    assert pair_cells(evidence, versions, "slow") == {}
    assert not counter.has_counted(items[-1])


def test_times_count_after_the_warm_up_of_each_child(evidence, versions):
    counter = VersionPairs(evidence, Recorder(evidence), {"m": versions})

    def run(count, new_ms, child):
        answers = {"m:2/new": timed(y(1), new_ms), "m:1/old": timed(y(1), 10)}
        counter.count(
            [making.item(versions, "m:2/new", y(1), answers) for _ in range(count)], child
        )

    run(WARM_UP_PAIRS, 99, 1)
    run(30, 12, 1)  # 20 % slower, with a tolerance of 10 %
    assert pair_cells(evidence, versions, "slow") == {"n11": 0, "n10": 30, "n01": 0, "n00": 0}
    run(WARM_UP_PAIRS, 99, 2)
    run(latency.PAST_MIN, 10.5, 2)
    slow = pair_cells(evidence, versions, "slow")
    assert (slow["n10"], slow["n01"]) == (30, latency.PAST_MIN)
    # Thresholds exist by now: 12 ms are over 1.1 × any quantile of the previous version's 10.
    run(5, 12, 2)
    assert pair_cells(evidence, versions, "slow_p99")["n10"] == 5
    [pair] = versions.pairs
    sides = ("m", "m:2/new", "m:1/old", "")
    times = [
        evidence.sketch(EvidenceKey(*sides, side, pair.identity)) for side in (NEW_MS, PREVIOUS_MS)
    ]
    assert [sketch.count for sketch in times] == [35 + latency.PAST_MIN] * 2
    assert times[1].quantile(0.5) == pytest.approx(10, rel=0.05)


def test_a_timeout_is_infinitely_slow(evidence, versions):
    counter = VersionPairs(evidence, Recorder(evidence), {"m": versions})
    answers = {"m:2/new": Answer(None, "timeout"), "m:1/old": timed(y(1), 10)}
    items = [making.item(versions, "m:2/new", y(1), answers) for _ in range(WARM_UP_PAIRS + 3)]
    counter.count(items, 1)
    assert pair_cells(evidence, versions, "slow")["n10"] == 3


def test_blocks_go_on_where_earlier_lives_ended(evidence, versions):
    [pair] = versions.pairs
    name = EvidenceKey("m", "m:2/new", "m:1/old", "", "error", pair.identity, 0)
    evidence.add(name, {"n00": 998})
    counter = VersionPairs(evidence, Recorder(evidence), {"m": versions})
    answers = {"m:2/new": timed(y(1), 1), "m:1/old": timed(y(1), 1)}
    counter.count([making.item(versions, "m:2/new", y(1), answers) for _ in range(5)], 1)
    assert pair_cells(evidence, versions, "error", 0)["n00"] == 1000
    assert pair_cells(evidence, versions, "error", 1)["n00"] == 3
    assert pair_cells(evidence, versions, "flip", 1)["n00"] == 3
