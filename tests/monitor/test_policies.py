"""How outputs are compared, and who with whom."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from sidecar.config import parse
from sidecar.monitor.monitor import copies_to_load
from sidecar.monitor.plan import wanted_copies
from sidecar.monitor.policies import PairPolicies, Precisions, policy_hash
from sidecar.runtimes.base import TensorSpec
from tests.monitor import making
from tests.support import models
from validators.comparators import make_policy


def policies(outputs=("y",), precision="fp32", identity="abc", **declared):
    config = making.model(("1", "v", ["serving"]), validation={"outputs": declared})
    return PairPolicies(config, precision, making.signature(outputs), identity)


def ones(*names):
    return {name: np.ones((2, 4), np.float32) for name in names}


def test_what_is_declared_is_taken():
    made = policies(y={"kind": "tensor", "limits": {"max_abs": 0.5}})
    made.ensure(ones("y"), batched=True)
    assert made.policies["y"] == make_policy("tensor", "fp32", {"max_abs": 0.5})
    assert made.policies["y"].inferred == ""
    assert made.hashes["y"] == f"abc-{policy_hash(made.policies['y'])}"


def test_what_is_not_is_inferred_and_said_once(caplog):
    made = policies(("probs", "y"))
    with caplog.at_level(logging.INFO, "sidecar.monitor.policies"):
        made.ensure({"probs": np.full((2, 4), 0.25, np.float32)}, batched=True)
        made.ensure({"probs": np.full((2, 4), 0.25, np.float32)}, batched=True)
    assert made.policies["probs"].kind == "class_scores"
    [record] = caplog.records
    assert "'probs'" in record.getMessage()
    made.ensure(ones("y"), batched=True)  # an output that is seen later
    assert set(made.hashes) == {"probs", "y"}


def test_a_kind_may_be_inferred_for_limits_that_are_declared():
    made = policies(("probs",), probs={"limits": {"flip": 0}})
    made.ensure({"probs": np.full((2, 4), 0.25, np.float32)}, batched=True)
    assert made.policies["probs"].kind == "class_scores"
    assert [limit.metric for limit in made.policies["probs"].limits] == ["flip"]


def test_limits_that_do_not_fit_what_was_inferred_are_an_error_not_a_pass(caplog):
    made = policies(y={"limits": {"iou": ">= 0.9"}})
    with caplog.at_level(logging.ERROR, "sidecar.monitor.policies"):
        made.ensure(ones("y"), batched=True)
    assert made.policies == {}
    assert "no metric 'iou'" in caplog.text


def test_hashes_change_with_kind_limits_options_and_artifacts():
    plain = make_policy("tensor", "fp32")
    assert policy_hash(plain) == policy_hash(make_policy("tensor", "fp32"))
    others = [
        make_policy("tensor", "int8"),
        make_policy("regression", "fp32"),
        make_policy("tensor", "fp32", {"max_abs": 1}),
        make_policy("class_scores", "fp32", options={"k": 3}),
        make_policy("class_scores", "fp32"),
    ]
    assert len({policy_hash(policy) for policy in (plain, *others)}) == 6
    one, other = policies(identity="a"), policies(identity="b")
    for each in (one, other):
        each.ensure(ones("y"), batched=True)
    assert one.hashes != other.hashes


def test_a_pair_is_held_to_its_coarser_precision(tmp_path):
    path = models.onnx_mlp(tmp_path)
    precisions = Precisions()
    fine = models.variant("onnxruntime", path)
    assert precisions.of("m", fine) == "fp32"
    assert precisions.of("n", fine.model_copy(update={"precision": "int8"})) == "int8"
    path.unlink()
    assert precisions.of("m", fine) == "fp32"  # known already
    assert precisions.of("gone", fine) == "fp32"  # it cannot be read: the strictest that is usual


# --- the plan -------------------------------------------------------------------------------------


def pairs(plan):
    return {
        served: [(p.candidate, p.baseline, p.purpose) for p in of.pairs]
        for served, of in plan.served.items()
    }


def test_the_reference_of_the_same_version_is_the_truth():
    config = making.model(
        ("1", "ref", ["reference"]), ("1", "a", ["serving"]), ("2", "truth", ["reference"]),
        ("2", "b", ["serving"]), ("2", "int8", ["mirror"]),
    )  # fmt: skip
    plan = making.plan(config)
    assert pairs(plan) == {
        "m:1/a": [("m:1/a", "m:1/ref", "certificate")],
        "m:2/b": [
            ("m:2/b", "m:2/truth", "certificate"), ("m:2/int8", "m:2/truth", "certificate"),
        ],
    }  # fmt: skip
    assert plan.served["m:2/b"].runs == ["m:2/truth", "m:2/int8"]
    assert plan.reference == "m:2/truth"
    assert plan.message == ""


def test_a_reference_of_another_version_is_no_truth_and_that_is_said():
    config = making.model(
        ("1", "ref", ["reference"]), ("2", "b", ["serving"]), ("2", "int8", ["mirror"])
    )
    plan = making.plan(config)
    assert pairs(plan) == {"m:2/b": [("m:2/int8", "m:2/b", "certificate")]}
    assert "m:2/b is not judged by m:1/ref, which is of another version" in plan.message


def test_without_a_reference_mirrors_are_compared_with_the_served_answer():
    config = making.model(("2", "b", ["serving"]), ("2", "int8", ["mirror"]))
    plan = making.plan(config)
    assert pairs(plan) == {"m:2/b": [("m:2/int8", "m:2/b", "certificate")]}
    assert plan.served["m:2/b"].runs == ["m:2/int8"]
    assert plan.served["m:2/b"].noise.baseline == "m:2/b"


def test_a_version_that_nobody_serves_yet_is_mirrored_beside_the_newest():
    config = making.model(("1", "a", ["serving"]), ("2", "b", ["serving"]), ("3", "c", ["mirror"]))
    plan = making.plan(config)
    assert pairs(plan)["m:2/b"] == [("m:3/c", "m:2/b", "certificate")]
    assert pairs(plan)["m:1/a"] == []


def test_new_and_previous_are_both_run():
    config = making.model(("1", "a", ["previous"]), ("2", "b", ["serving"]))
    plan = making.plan(config)
    # After a switch the previous version answers: the same pair, on the requests that it gets.
    assert pairs(plan) == {key: [("m:2/b", "m:1/a", "versions")] for key in ("m:2/b", "m:1/a")}
    assert plan.served["m:2/b"].runs == ["m:2/b", "m:1/a"]
    assert plan.served["m:2/b"].noise is None


def test_a_candidate_is_run_beside_the_newest_version_and_serves_nobody():
    config = making.model(
        ("1", "old", ["previous"]), ("2", "a", ["serving"]), ("3", "c", ["candidate"])
    )
    plan = making.plan(config)
    both = [("m:2/a", "m:1/old", "versions"), ("m:3/c", "m:2/a", "versions")]
    assert pairs(plan) == {"m:2/a": both, "m:3/c": both, "m:1/old": both}
    assert sorted(plan.served["m:2/a"].runs) == ["m:1/old", "m:2/a", "m:3/c"]
    assert len({id(pair) for of in plan.served.values() for pair in of.pairs}) == 2


def test_versions_with_other_outputs_or_classes_are_not_compared():
    roles = ("1", "a", ["previous"]), ("2", "b", ["serving"])

    def blocked(new, *, classes=({}, {})):
        config = making.model(*roles)
        named = [
            variant.model_copy(update={"classes": {"y": of} if of else {}})
            for variant, of in zip(config.variants, classes, strict=True)
        ]
        config = config.model_copy(update={"variants": tuple(named)})
        return making.plan(config, b=new).pairs[0].blocked

    assert blocked(making.signature(("y", "z"))) == "m:1/a has no output 'z'"
    assert blocked(making.signature(("z",))) == "m:1/a has no output 'z'"
    five = making.signature().outputs[0]
    five = TensorSpec(five.name, "FP32", (-1, 5))
    wider = replace(making.signature(), outputs=(five,))
    told = "output 'y' has the shape [-1, 5] for m:2/b, [-1, 4] for m:1/a"
    assert blocked(wider) == told
    same = making.signature()
    assert blocked(same, classes=(("cat", "dog"), ("cat", "dog"))) == ""
    assert blocked(same, classes=(("cat", "dog"), ())) == ""  # one that says nothing
    told = "class 0 of output 'y' is dog for m:2/b, cat for m:1/a"
    assert blocked(same, classes=(("cat", "dog"), ("dog", "cat"))) == told
    told = "class 2 of output 'y' is eel for m:2/b, nothing for m:1/a"
    assert blocked(same, classes=(("cat", "dog"), ("cat", "dog", "eel"))) == told


@pytest.mark.parametrize(
    ("roles", "kept"),
    [
        (["serving", "fallback"], None),
        (["serving", "reference"], ["b"]),
        (["serving", "mirror"], ["a", "b"]),
        (["serving", "previous"], ["a", "b"]),
        (["serving", "candidate"], ["a", "b"]),
        (["serving", "reference", "candidate"], ["a", "b", "c"]),
        (["fallback", "serving", "reference", "previous"], ["b", "c", "d"]),
        (["serving", "serving", "reference", "previous"], ["b", "c", "d"]),
    ],
)
def test_copies_are_kept_of_what_is_executed(roles, kept):
    config = making.model(*((str(i), "abcd"[i], [role]) for i, role in enumerate(roles)))
    wanted = wanted_copies(config)
    names = [key.partition("/")[2] for key, keep in wanted.items() if keep]
    assert names == (kept or [])
    assert len(wanted) == (0 if kept is None else len(roles))


def test_a_missing_copy_blocks_its_pairs_only():
    config = making.model(
        ("2", "ref", ["reference"]), ("2", "b", ["serving"]), ("2", "int8", ["mirror"])
    )
    plan = making.plan(config, int8="int8.onnx does not exist")
    blocked = {pair.candidate: pair.blocked for pair in plan.pairs}
    assert blocked == {
        "m:2/b": "", "m:2/int8": "there is no copy of m:2/int8: int8.onnx does not exist",
    }  # fmt: skip
    assert plan.served["m:2/b"].runs == ["m:2/ref"]
    assert "no copy of m:2/int8" in plan.message


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (TensorSpec("q", "FP32", (-1, 4)), "m:2/b has no input 'q'"),
        (TensorSpec("x", "FP16", (-1, 4)), "input 'x' is FP32 for m:2/b, FP16 for m:2/ref"),
        (TensorSpec("x", "FP32", (-1,)), "input 'x' has the shape [-1, 4] for m:2/b, [-1] for"),
        (TensorSpec("x", "FP32", (-1, 5)), "input 'x' has the shape [-1, 4] for m:2/b, [-1, 5]"),
    ],
)
def test_other_inputs_block_a_pair(other, why):
    config = making.model(("2", "ref", ["reference"]), ("2", "b", ["serving"]))
    inputs = (other,) if other.name == "x" else (TensorSpec("x", "FP32", (-1, 4)), other)
    [pair] = making.plan(config, ref=making.signature(inputs=inputs)).pairs
    assert why in pair.blocked


@pytest.mark.parametrize("width", [-1, 4])
def test_sizes_that_may_vary_block_nothing(width):
    config = making.model(("2", "ref", ["reference"]), ("2", "b", ["serving"]))
    inputs = (TensorSpec("x", "FP32", (-1, width)),)
    [pair] = making.plan(config, ref=making.signature(inputs=inputs)).pairs
    assert pair.blocked == ""


# --- where copies live ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runtime", "device", "expected"),
    [
        ({"kind": "onnxruntime"}, None, "cpu"),
        ({"kind": "onnxruntime", "device": "cuda"}, None, "choose with monitor.mirror.device"),
        ({"kind": "onnxruntime", "device": "cuda"}, "cpu", "cpu"),
        ({"kind": "onnxruntime"}, "cuda:1", "cuda:1"),
        ({"kind": "tensorrt"}, "cpu", "TensorRT has no CPU"),
        ({"kind": "tensorrt"}, "cuda:0", "cuda:0"),
    ],
)
def test_a_copy_lives_where_the_monitors_copies_do(tmp_path, runtime, device, expected):
    tree = {**runtime, "path": str(models.onnx_mlp(tmp_path))}
    variants = [
        {"version": "1", "name": "v", "roles": ["serving", "reference"], "runtime": tree},
        {"version": "1", "name": "far", "roles": ["mirror"],
         "runtime": {"kind": "remote", "address": "127.0.0.1:1"}},
    ]  # fmt: skip
    config = parse(
        {
            "models": [{"name": "m", "variants": variants}],
            "monitor": {"mirror": {"device": device}},
        }
    )
    trees, refused, keep = copies_to_load(config)
    assert "device" not in trees["m:1/far"]["runtime"]
    found = refused["m:1/v"].error if "m:1/v" in refused else trees["m:1/v"]["runtime"]["device"]
    assert expected in found
    assert ("m:1/v" in keep) == ("m:1/v" in trees)
