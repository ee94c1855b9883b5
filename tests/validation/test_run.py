"""Runs: every way a variant can be right or wrong, and what is said about it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sidecar import runtimes
from sidecar.clock import SystemClock
from sidecar.validation import arbiter
from sidecar.validation.cause import explain
from sidecar.validation.files import ValidationInputError
from sidecar.validation.layout import Caller, layout_of
from sidecar.validation.options import Options
from sidecar.validation.plan import plans
from sidecar.validation.run import validate
from tests.support import models
from tests.validation import variants
from validators.comparators import make_policy
from validators.results import RunResult, metric_key
from validators.verdict import Verdict


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the right network, and 400 rows with the labels that it gives."""
    made = tmp_path_factory.mktemp("networks")
    variants.network(made, "right.onnx")
    scores = models.mlp_expected(variants.rows(400))
    variants.data(made)
    np.save(made / "labels.npy", scores.argmax(axis=1))
    return made


def compared(folder, name="other.onnx", *, validation=None, options=None, **how):
    """Run a variant made with ``how`` against the right network, on the given rows."""
    variants.network(folder, name, **how)
    document = variants.tree({"torch": "right.onnx", "other": name}, **(validation or {}))
    options = {
        "inputs": (folder / "rows.npz",),
        "labels": str(folder / "labels.npy"),
        **(options or {}),
    }
    outcome = variants.run(folder, document, **options)
    other = outcome.result.variant("1/other")
    assert other is not None
    return outcome, other


def output(variant, name="y", group="rows.npz"):
    found = next(item for item in variant.groups if item.input_set == group)
    return next(item for item in found.outputs if item.output == name)


# --- variants that agree -------------------------------------------------------------------------


def test_equal_variants_pass_with_a_certificate(folder):
    outcome, other = compared(folder)
    assert outcome.result.verdict is Verdict.PASS
    found = output(other)
    assert (found.rows, found.disagreements, found.invalid_rows) == (400, 0, 0)
    assert found.certificate is not None
    assert found.certificate["verdict"] == "PASS"
    assert found.certificate["bound"] == pytest.approx(1 - 0.05 ** (1 / 400))
    assert other.labels is not None
    assert other.labels.accuracy == other.labels.reference_accuracy == 1
    assert [item.batch_size for item in other.latency if item.calls > 10] == [32]


def test_pytorch_and_onnx_of_the_same_weights_pass_on_generated_inputs(tmp_path):
    models.torch_exported_mlp(tmp_path)
    models.onnx_mlp(tmp_path)
    torch_variant = {
        "runtime": {"kind": "pytorch", "path": "mlp.pt2"},
        "outputs": [models.tensor("y", "FP32", [-1, 10])],
        "roles": ["serving"],
    }
    document = variants.tree({"torch": torch_variant, "onnx": "mlp.onnx"}, outputs={})
    outcome = variants.run(tmp_path, document)
    result = outcome.result
    assert result.verdict is Verdict.PASS
    assert result.reference_note.startswith("no variant has the role reference: 1/torch, the PyT")
    kinds = [(item.kind, item.decides) for item in result.inputs]
    assert kinds == [
        ("random", True), ("batch", True), ("edges", False), ("extremes", False),
        ("nonfinite", False),
    ]  # fmt: skip
    assert "nothing is certified" in result.reasons[0]
    onnx = result.variant("1/onnx")
    assert onnx is not None
    assert all(item.outputs[0].certificate is None for item in onnx.groups)
    assert "is compared as tensor" in onnx.groups[0].outputs[0].inferred
    assert result.noise[0].rows > 0
    assert result.environment["torch"]
    assert [item.name for item in onnx.artifacts] == ["mlp.onnx"]


def test_generated_rows_are_the_same_for_the_same_seed(folder):
    def metrics(seed):
        variants.network(folder, "noisy.onnx", noise=1e-3)
        document = variants.tree({"torch": "right.onnx", "other": "noisy.onnx"})
        outcome = variants.run(folder, document, seed=seed)
        return outcome.metrics[metric_key("1/other", "random", "y", "margin")]

    assert np.array_equal(metrics(1), metrics(1))
    assert not np.array_equal(metrics(1), metrics(2))


def test_one_at_a_time_gives_the_same_result(folder):
    variants.network(folder, "noisy.onnx", noise=0.05)
    variants.network(folder, "renamed.onnx", outputs={"y": "scores", "p": "p"})
    document = variants.tree(
        {"torch": "right.onnx", "noisy": "noisy.onnx", "renamed": "renamed.onnx"}
    )
    path = (folder / "rows.npz",)
    labels = str(folder / "labels.npy")
    at_once = variants.run(folder, document, inputs=path, labels=labels)
    singly = variants.run(folder, document, inputs=path, labels=labels, one_at_a_time=True)
    assert at_once.metrics.keys() == singly.metrics.keys()
    for key, values in at_once.metrics.items():
        assert np.array_equal(values, singly.metrics[key], equal_nan=True), key
    plain = [outcome.result.to_plain()["variants"] for outcome in (at_once, singly)]
    for listed in plain:
        for variant in listed:
            del variant["latency"]
    assert plain[0] == plain[1]


# --- variants that do not ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"outputs": {"y": "y"}}, "the candidate lacks it"),
        ({"outputs": {"y": "y", "p": "p", "top": "top"}}, "the reference has no such output"),
        ({"outputs": {"y": "scores", "p": "p"}}, "'scores' has the same shape and type"),
        ({"outputs": {"flat": "y", "p": "p"}}, "the reference has 2 axes, the candidate 3"),
        ({"outputs": {"whole": "y", "p": "p"}}, "the reference is float (float32), the candidate"),
    ],
)
def test_another_structure_is_invalid(folder, how, said):
    outcome, other = compared(folder, **how)
    assert outcome.result.verdict is Verdict.INVALID
    assert any(said in reason for reason in other.reasons), other.reasons


def test_nan_on_one_side_is_invalid_and_named_by_row(folder):
    x = variants.rows(400)
    _, other = compared(folder, nan_over=2.0)
    found = output(other)
    rows = np.flatnonzero(x[:, 0] > 2.0)
    assert 0 < len(rows) < 400
    assert found.invalid_rows == len(rows)
    assert found.verdict is Verdict.INVALID
    assert f"(the first: row {rows[0]})" in found.reasons[0]


def test_nan_on_both_sides_agrees(folder):
    variants.network(folder, "nan.onnx", nan_over=2.0)
    document = variants.tree({"torch": "nan.onnx", "other": "nan.onnx"})
    for batch_size in (1, 32):  # alone in its batch, such a row has nothing to compare
        outcome = variants.run(
            folder, document, inputs=(folder / "rows.npz",), batch_size=batch_size
        )
        assert outcome.result.verdict is Verdict.PASS, outcome.result.reasons


def test_nan_everywhere_is_not_a_pass(folder):
    variants.network(folder, "nan.onnx", nan_over=-100)
    document = variants.tree({"torch": "nan.onnx", "other": "nan.onnx"})
    outcome = variants.run(folder, document, inputs=(folder / "rows.npz",))
    assert outcome.result.verdict is Verdict.INVALID
    assert "nothing was compared" in outcome.result.reasons[0]


def test_ten_times_the_output_fails_although_no_class_changes(folder):
    _, other = compared(
        folder, scale=10, validation={"outputs": {"y": {"kind": "tensor"}}},
        options={"label_output": "y"},
    )  # fmt: skip
    found = output(other)
    assert found.disagreements == 400
    assert found.verdict is Verdict.FAIL
    assert any("sqnr_db is not >= 100 dB on 400 rows" in reason for reason in found.reasons)
    assert other.labels is not None
    assert other.labels.negative_flips == 0


def test_fp16_is_held_to_the_limits_of_fp16(folder):
    outcome, other = compared(folder, half=True, validation={"outputs": {"y": {"kind": "tensor"}}},
                              options={"label_output": "y"})  # fmt: skip
    assert other.precision == "fp16"
    limits = {limit.metric: limit.value for limit in output(other).limits}
    assert limits["sqnr_db"] == 50
    assert outcome.result.verdict is Verdict.PASS, other.reasons


def test_a_limit_of_the_command_line_replaces_the_same_metric_alone(folder):
    limits = {"y": {"sqnr_db": ">= 500"}}
    _, other = compared(
        folder, half=True, validation={"outputs": {"y": {"kind": "tensor"}}},
        options={"limits": limits, "label_output": "y"},
    )  # fmt: skip
    found = {limit.metric: limit for limit in output(other).limits}
    assert found["sqnr_db"].value == 500
    assert found["sqnr_db"].source == "command line"
    assert len(found) > 1
    assert output(other).verdict is Verdict.FAIL


def test_too_few_rows_are_inconclusive_and_say_how_many_more(folder):
    outcome, other = compared(folder, options={"rows": 100})
    assert outcome.result.verdict is Verdict.INCONCLUSIVE
    found = output(other)
    assert found.rows == 100
    assert "199 more rows without a disagreement would certify it" in found.reasons


def test_the_retention_class_says_how_many_are_enough(folder):
    outcome, _ = compared(
        folder, validation={"retention_class": "edge"}, options={"rows": 59, "labels": None}
    )
    assert outcome.result.verdict is Verdict.PASS
    outcome, _ = compared(
        folder, validation={"retention_class": "edge"}, options={"rows": 58, "labels": None}
    )
    assert outcome.result.verdict is Verdict.INCONCLUSIVE


def test_labels_settle_what_disagreements_leave_open(folder):
    # The other variant flips some rows, most of which the labels call wrong in the reference.
    variants.network(folder, "noisy.onnx", noise=0.01)
    x = variants.rows(400)
    document = variants.tree({"torch": "right.onnx", "other": "noisy.onnx"})
    only_y = {"outputs": {"y": {"kind": "class_scores"}, "p": {"kind": "tensor",
              "limits": {"max_abs": 1}}}}  # fmt: skip
    document = variants.tree({"torch": "right.onnx", "other": "noisy.onnx"}, **only_y)
    plain = variants.run(folder, document, inputs=(folder / "rows.npz",)).result
    other = plain.variant("1/other")
    assert other is not None
    flips = output(other).disagreements
    assert 2 <= flips <= 10, "the test needs a variant that flips a few rows"
    assert output(other).verdict is Verdict.INCONCLUSIVE
    # Where the reference is wrong anyway, a flip loses nothing.
    scores = models.mlp_expected(x)
    margin = np.sort(scores, axis=1)
    unsure = (margin[:, -1] - margin[:, -2]) < 0.5
    labels = scores.argmax(axis=1)
    labels[unsure] = (labels[unsure] + 5) % 10
    np.savez(folder / "labelled.npz", x=x, label=labels)
    labelled = variants.run(
        folder, document, inputs=(folder / "labelled.npz",), labels="label"
    ).result.variant("1/other")
    assert labelled is not None
    assert labelled.labels is not None
    assert labelled.labels.verdict is Verdict.PASS, labelled.labels
    assert output(labelled, group="labelled.npz").verdict is Verdict.INCONCLUSIVE
    assert labelled.verdict is Verdict.PASS


def test_lost_accuracy_fails_by_labels(folder):
    _, other = compared(folder, noise=0.5, options={"label_output": "y"})
    assert other.labels is not None
    labels = other.labels
    assert labels.verdict is Verdict.FAIL
    assert labels.accuracy == pytest.approx(1 - labels.negative_flips / 400)
    assert labels.retention == pytest.approx(labels.accuracy)


def test_labels_of_something_else_are_no_certificate(folder):
    x = variants.rows(400)
    worst = models.mlp_expected(x).argmin(axis=1)
    np.savez(folder / "wrong.npz", x=x, label=worst)
    _, other = compared(folder, options={"inputs": (folder / "wrong.npz",), "labels": "label"})
    assert other.labels is not None
    assert other.labels.verdict is Verdict.INVALID
    assert "are these their labels" in other.labels.reasons[0]


def test_a_baked_batch_size_is_found_by_the_batch_set(folder):
    outcome, other = compared(folder, baked_batch=32, options={"rows": 320, "labels": None})
    assert output(other).verdict is Verdict.PASS, "in full batches it is right"
    assert outcome.result.verdict is Verdict.INVALID
    assert other.errors[0].startswith("batch: in a batch of 1: the model failed")


def test_a_variant_that_raises_is_invalid_and_the_others_go_on(folder):
    variants.network(folder, "raises.onnx", baked_batch=7)
    variants.network(folder, "renamed-input.onnx", input_name="pixels")
    (folder / "broken.onnx").write_bytes(b"\x08\x0agarbage" * 10)
    document = variants.tree(
        {
            "truth": "right.onnx", "raises": "raises.onnx", "inputs": "renamed-input.onnx",
            "broken": "broken.onnx", "good": "right.onnx",
        }
    )  # fmt: skip
    outcome = variants.run(folder, document, inputs=(folder / "rows.npz",))
    verdicts = {item.key: item.verdict for item in outcome.result.variants}
    assert verdicts == {
        "1/truth": Verdict.PASS, "1/raises": Verdict.INVALID, "1/inputs": Verdict.INVALID,
        "1/broken": Verdict.INVALID, "1/good": Verdict.PASS,
    }  # fmt: skip
    said = {item.key: item.errors[0] for item in outcome.result.variants if item.errors}
    assert said["1/raises"].startswith("rows.npz: row 0: the model failed on this input")
    assert said["1/inputs"].startswith("its inputs are pixels; those of the reference are x (ren")
    assert said["1/broken"].startswith("it cannot be loaded: ")
    assert outcome.result.verdict is Verdict.INVALID


def test_a_reference_that_fails_leaves_nothing_to_judge(folder):
    variants.network(folder, "raises.onnx", baked_batch=7)
    document = variants.tree({"truth": "raises.onnx", "other": "right.onnx"})
    outcome = variants.run(folder, document, inputs=(folder / "rows.npz",))
    assert outcome.result.verdict is Verdict.INVALID
    assert "the reference did not answer row 0 of rows.npz" in outcome.result.reasons[0]
    (folder / "broken.onnx").write_bytes(b"\x08\x0agarbage" * 10)
    document = variants.tree({"truth": "broken.onnx", "other": "right.onnx"})
    outcome = variants.run(folder, document)
    assert outcome.result.verdict is Verdict.INVALID
    assert "it cannot be loaded" in outcome.result.reasons[0]


def test_rows_that_only_extremes_break_are_warnings(folder):
    # Infinite where the first input is over 100, which only the extremes and edges are.
    outcome, other = compared(folder, inf_over=100.0, options={"inputs": (), "labels": None})
    assert outcome.result.verdict is Verdict.PASS
    assert output(other, group="extremes").verdict is Verdict.INVALID
    assert any(text.startswith("extremes, 'y': ") for text in other.warnings)


def test_what_the_reference_refuses_is_left_out_and_said(tmp_path):
    models.onnx_lookup(tmp_path)
    document = variants.tree({"one": "lookup.onnx", "other": "lookup.onnx"}, outputs={})
    outcome = variants.run(tmp_path, document)
    assert outcome.result.verdict is Verdict.PASS
    assert "integers 0 to 1" in outcome.result.inputs[0].source
    assert any("edges: the reference refused 2 (largest, smallest)" in n
               for n in outcome.result.notes)  # fmt: skip


def test_a_model_without_batch_is_compared_tensor_by_tensor(tmp_path):
    models.onnx_many(tmp_path)
    document = variants.tree({"one": "many.onnx", "other": "many.onnx"}, outputs={})
    outcome = variants.run(tmp_path, document)
    assert outcome.result.verdict is Verdict.PASS, outcome.result.reasons
    assert "batch" not in [item.kind for item in outcome.result.inputs]
    path = tmp_path / "one.npz"
    np.savez(path, a=np.ones((5, 2), np.float32), b=np.ones((5, 2), np.float32))
    outcome = variants.run(tmp_path, document, inputs=(path,))
    assert outcome.result.inputs[0].rows == 1, "the whole tensors are one row"


def test_a_fixed_batch_is_compared_with_a_dynamic_one(tmp_path):
    models.onnx_mlp(tmp_path)
    models.onnx_mlp(tmp_path, batch=8, name="eight.onnx")
    models.onnx_mlp(tmp_path, batch=1, name="single.onnx")
    named = {"any": "mlp.onnx", "eight": "eight.onnx", "single": "single.onnx"}
    path = variants.data(tmp_path, 301)  # no multiple of 8
    for first, path_of_first in named.items():
        order = {first: path_of_first, **named}
        document = variants.tree(order, outputs={"y": {"kind": "tensor"}})
        outcome = variants.run(tmp_path, document, inputs=(path,))
        assert outcome.result.verdict is Verdict.PASS, (first, outcome.result.reasons)
        assert {item.rows for item in outcome.result.inputs if item.kind == "data"} == {301}


def test_the_worst_rows_are_kept_with_their_tensors(folder):
    x = variants.rows(400)
    outcome, _ = compared(folder, nan_over=2.0)
    kept = [row for row in outcome.rows if row.output == "y"]
    assert len(kept) == 5
    assert {row.reason for row in kept} == {"failure:not finite"}
    for row in kept:
        if row.input_set == "rows.npz":
            assert np.array_equal(row.inputs["x"], x[row.row : row.row + 1])
        assert np.isnan(row.outputs["1/other"]["y"]).all()
        assert np.isfinite(row.outputs["1/torch"]["y"]).all()


def test_the_cause_is_named_and_an_input_shrunk(folder):
    variants.network(folder, "other.onnx", nan_over=2.0)
    document = variants.tree({"torch": "right.onnx", "other": "other.onnx"})
    plan = plans(variants.config(folder, document))[0][0]
    outcome = validate(plan, Options(inputs=(folder / "rows.npz",)))
    explain(outcome, plan)
    other = outcome.result.variant("1/other")
    assert other is not None
    assert other.divergence is not None, outcome.result.notes
    assert other.divergence["first"]["value"] == "is_nan"
    shrunk = [row for row in outcome.rows if row.reason == "failure:shrunk"]
    assert np.count_nonzero(shrunk[0].inputs["x"]) == 1, "the first input alone makes it NaN"


def test_a_wrong_policy_is_bad_use(folder):
    document = variants.tree({"torch": "right.onnx", "other": "right.onnx"}, outputs={"z": {}})
    with pytest.raises(ValidationInputError, match="'z', which the reference does not give"):
        variants.run(folder, document)
    document = variants.tree({"torch": "right.onnx", "other": "right.onnx"})
    with pytest.raises(ValidationInputError, match="no output 'z'; outputs: y, p"):
        variants.run(folder, document, limits={"z": {"sqnr_db": "1"}})


def test_versions_are_compared_within_themselves(folder):
    document = variants.tree({"a": "right.onnx", "b": "right.onnx"})
    listed = document["models"][0]["variants"]
    listed.append({**listed[0], "name": "c", "version": "2", "roles": ["serving"]})
    config = variants.config(folder, document)
    made, notes = plans(config)
    assert [(plan.reference.key, [v.key for v in plan.candidates]) for plan in made] == [
        ("1/a", ["1/b"])
    ]
    assert notes == ["net: version 2 has one variant, 2/c"]
    made, _ = plans(config, reference="1/a", variants=["2/c"])
    assert [v.key for v in made[0].candidates] == ["2/c"]
    with pytest.raises(ValidationInputError, match="no variant '3/x'; its variants: 1/a, 1/b, 2/c"):
        plans(config, reference="3/x")
    with pytest.raises(ValidationInputError, match="nothing to compare"):
        plans(config, variants=["1/a"])
    with pytest.raises(ValidationInputError, match="no model 'other'; its models: net"):
        plans(config, model="other")


def test_a_result_survives_json(folder):
    outcome, _ = compared(folder, nan_over=2.0)
    plain = outcome.result.to_plain()
    again = RunResult.from_plain(plain)
    assert again.to_plain() == plain
    with pytest.raises(ValueError, match="schema 99"):
        RunResult.from_plain({**plain, "schema": 99})
    plain["variants"][1]["verdict"] = "MAYBE"
    with pytest.raises(ValueError, match=r"variants\[1\].verdict is 'MAYBE'; it must be one of"):
        RunResult.from_plain(plain)


def test_the_references_own_noise_widens_default_limits_only(folder):
    # What a row answers depends on the rows beside it, by up to a thousandth.
    variants.network(folder, "right.onnx")
    variants.network(folder, "noisy.onnx", beside=1e-3)
    kinds = {"y": {"kind": "tensor"}, "p": {"kind": "tensor", "limits": {"max_abs": 1}}}
    document = variants.tree({"truth": "noisy.onnx", "other": "right.onnx"}, outputs=kinds)
    outcome = variants.run(folder, document, inputs=(folder / "rows.npz",))
    other = outcome.result.variant("1/other")
    assert other is not None
    limits = {limit.metric: limit for limit in output(other).limits}
    assert limits["sqnr_db"].value < 100
    assert "the reference against itself" in limits["sqnr_db"].source
    assert [limit.value for limit in output(other, "p").limits] == [1]
    assert any("'y': the limit sqnr_db >= 100 became" in note for note in outcome.result.notes)
    assert outcome.result.noise[0].metrics["max_abs"].max > 1e-5
    # The other way round: a candidate noisier than its limit fails.
    document = variants.tree({"truth": "right.onnx", "other": "noisy.onnx"}, outputs=kinds)
    outcome = variants.run(folder, document, inputs=(folder / "rows.npz",))
    assert outcome.result.verdict is Verdict.FAIL


def test_float64_arbitrates_on_an_exported_program(tmp_path):
    models.torch_exported_mlp(tmp_path)
    models.onnx_mlp(tmp_path)
    exported = {
        "runtime": {"kind": "pytorch", "path": "mlp.pt2"},
        "outputs": [models.tensor("y", "FP32", [-1, 10])],
        "roles": ["serving", "reference"],
    }
    document = variants.tree({"torch": exported, "onnx": "mlp.onnx"}, outputs={})
    found = variants.config(tmp_path, document)
    plan = plans(found)[0][0]
    outcome = validate(plan, Options(arbiter=True))
    assert outcome.result.verdict is Verdict.PASS
    assert outcome.result.notes == []
    x = variants.rows(300)
    side = _loaded(plan.reference)
    policies = {"y": make_policy("tensor", "fp32")}
    tally, said = arbiter.measure(plan.reference, side, {"x": x}, policies)
    side.runtime.close()
    assert (tally is not None, said) == (True, "")
    rmse = tally.measured()[0].metrics["rmse"]
    assert len(rmse) == 256
    assert 0 < rmse.max() < 1e-6, "fp32 is not float64, and near it"
    other = _loaded(plan.candidates[0])
    tally, said = arbiter.measure(plan.candidates[0], other, {"x": x}, policies)
    other.runtime.close()
    assert tally is None
    assert "an exported program is needed" in said


def _loaded(variant):
    runtime = runtimes.build(variant)
    return Caller(variant.key, runtime, layout_of(runtime.signature), SystemClock())


def test_progress_reaches_its_end(folder):
    document = variants.tree({"torch": "right.onnx", "other": "right.onnx"})
    plan = plans(variants.config(folder, document))[0][0]
    told = []
    validate(
        replace(plan), Options(inputs=(folder / "rows.npz",)),
        on_progress=lambda done, total, what: told.append((done, total, what)),
    )  # fmt: skip
    assert told[-1][0] == told[-1][1] > 400
    assert told[0][2] == "loading 1/torch"
