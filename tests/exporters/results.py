"""Results as a run makes them: compared by the real comparators, judged by the real judge."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from validators.comparators import make_policy
from validators.compare import compare_outputs
from validators.judge import Measured, Terms, judge_output, judge_run, judge_variant
from validators.results import (
    Artifact,
    GroupResult,
    InputSet,
    LabelResult,
    LatencySummary,
    OutputResult,
    RunResult,
    RunSettings,
    VariantResult,
    WorstCase,
    to_plain,
)
from validators.sequential.certificate import certify_offline
from validators.verdict import Verdict

ROWS = 400
TERMS = Terms(0.01, 0.05)
REFERENCE = "1/pytorch"
DATA = InputSet("data", "data", "held-out.npz", ROWS, batch_sizes=[1, 32])
EXTREMES = InputSet(
    "extremes", "extremes", "each input × 1e4", ROWS, seed=7, batch_sizes=[8], decides=False
)


def digits(rows=ROWS):
    """Images [rows, 1, 8, 8] float32 that could be digits."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:8, 0:8]
    radius = np.hypot(x - 3.5, y - 3.5)
    ring = np.exp(-((radius - 2.5) ** 2))
    return (16 * ring * rng.uniform(0.5, 1, (rows, 1, 8, 8))).astype(np.float32)


def answers(error, rows=ROWS, seed=1):
    """Outputs of a reference, and of one that differs by ``error`` times a normal number."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 4, (rows, 10)).astype(np.float32)
    features = rng.normal(0, 1, (rows, 32)).astype(np.float32)
    reference = {"logits": logits, "features": features}
    noise = np.random.default_rng(seed + 100)
    candidate = {
        name: (array + error * noise.standard_normal(array.shape)).astype(np.float32)
        for name, array in reference.items()
    }
    return reference, candidate


def policies(precision):
    return {
        "logits": make_policy("class_scores", precision, inferred="float [-1, 10]: scores"),
        "features": make_policy("tensor", precision),
    }


def compared(reference, candidate, precision, input_set):
    found = []
    chosen = policies(precision)
    for name, one in compare_outputs(reference, candidate, chosen).items():
        measured = Measured(
            name, one.kind, chosen[name].inferred if name in chosen else "", one.invalid,
            one.metrics, {key: sketch.to_plain() for key, sketch in one.sketches.items()},
            list(one.problems),
        )  # fmt: skip
        limits = chosen[name].limits if name in chosen else ()
        found.append(judge_output(measured, limits, TERMS, input_set))
    return found


def group(reference, candidate, precision="fp32", input_set=DATA):
    return GroupResult(
        input_set.name, compared(reference, candidate, precision, input_set),
        decides=input_set.decides,
    )  # fmt: skip


def variant(key, groups, precision="fp32", **changes):
    found = VariantResult(
        key, "onnxruntime", "cpu", precision, f"{precision}: declared in the configuration",
        artifacts=[Artifact("model.onnx", "ab" * 32, 123_456)], groups=groups,
        latency=[LatencySummary(1, 400, 0.31, 0.9)],
    )  # fmt: skip
    for name, value in changes.items():
        setattr(found, name, value)
    judge_variant(found)
    return found


def reference_variant():
    return VariantResult(
        REFERENCE, "pytorch", "cpu", "fp32", "fp32: weights of the program", is_reference=True,
        artifacts=[Artifact("model.pt2", "cd" * 32, 2_345_678)],
    )  # fmt: skip


def run(variants, inputs=(DATA,), noise=(), **changes):
    found = RunResult(
        model="digits", created_at="2027-01-15T08:00:00Z", tool_version="0.1.0",
        command="sidecar validate digits.yaml --input held-out.npz --report out",
        settings=RunSettings("production", TERMS.limit, TERMS.alpha, 7), reference=REFERENCE,
        environment={"python": "3.11", "cpu": "some cpu", "onnxruntime": "1.32"},
        inputs=list(inputs), noise=list(noise), variants=[reference_variant(), *variants],
        notes=["logits: taken for scores"],
    )  # fmt: skip
    for name, value in changes.items():
        setattr(found, name, value)
    judge_run(found)
    return found


def noise():
    reference, again = answers(1e-7)
    return compared(reference, again, "fp32", DATA)


def passing():
    return run([variant("1/onnx", [group(*answers(1e-6))])], noise=noise())


def labels(verdict_of=4):
    certificate = certify_offline(verdict_of, ROWS, TERMS.limit, TERMS.alpha)
    return LabelResult(
        "logits", ROWS, 0.9525, 0.965, 0.987, verdict_of + 3, 2, TERMS.limit,
        {**to_plain(certificate), "sentence": certificate.sentence}, certificate.verdict,
        [certificate.sentence],
    )  # fmt: skip


def divergence():
    layers = []
    for at in range(40):
        inherited = 0.0 if at <= 17 else 0.03 * 1.05 ** (at - 17)
        local = 0.031 if at == 17 else 1e-7 * (1 + at % 5)
        layers.append(
            {
                "value": f"val_{at}", "reference": f"node_{at}", "onnx_node": f"Conv_{at}",
                "op_type": "Conv", "module": f"features.{at // 4}", "metric": "max_rel_rms",
                "local_error": local, "inherited_error": inherited,
                "total_error": local + inherited, "local_out": at == 17, "total_out": at >= 17,
                "problem": "",
            }
        )  # fmt: skip
    return {
        "reference": REFERENCE, "candidate": "1/int8", "cause": "local", "aligned": 40, "total": 44,
        "text": "Conv_17 (features.4) is the first whose own error is out of limits: 0.031.",
        "seconds": 1.2, "first": {**layers[17], "source": "model.py:14: x = self.stem(x)"},
        "layers": layers, "outputs_differ": True, "limits": ["max_rel_rms <= 0.0001"], "notes": [],
    }  # fmt: skip


def failing():
    """Two variants, one bad; with labels, a divergence and worst cases. And the cases' arrays."""
    reference, candidate = answers(0.4)
    bad = group(reference, candidate, "int8")
    extremes = group(*answers(3.0, seed=2), "int8", EXTREMES)
    flips = np.flatnonzero(reference["logits"].argmax(1) != candidate["logits"].argmax(1))
    images, worst, cases = digits(), [], {}
    for number, row in enumerate(flips[:4]):
        case_id = f"20270115T080000-{number:08x}"
        worst.append(
            WorstCase(
                case_id, "data", int(row), "logits", "failure:flip",
                {"flip": 1.0, "margin": 0.12, "max_dp": 0.34},
                f"sidecar replay 'out/cases#{case_id}' --config digits.yaml",
            )
        )  # fmt: skip
        cases[case_id] = SimpleNamespace(
            inputs={"image": images[row : row + 1]},
            outputs={
                f"digits:{REFERENCE}": {k: v[row : row + 1] for k, v in reference.items()},
                "digits:1/int8": {k: v[row : row + 1] for k, v in candidate.items()},
            },
        )
    result = run(
        [
            variant("1/onnx", [group(*answers(1e-6))]),
            variant(
                "1/int8", [bad, extremes], "int8", labels=labels(), divergence=divergence(),
                worst=worst,
            ),
        ],
        inputs=[DATA, EXTREMES], noise=noise(),
    )  # fmt: skip
    return result, cases


def invalid():
    """NaN on one side, a missing output, a variant that could not be loaded."""
    reference, candidate = answers(1e-6)
    candidate["logits"][5, 2] = np.nan
    del candidate["features"]
    broken = variant("1/fp16", [group(reference, candidate)], "fp16")
    absent = variant("1/trt", [], "fp16", errors=["engine.plan: of another GPU"])
    return run([broken, absent])


def inconclusive():
    reference, candidate = answers(1e-6, rows=120)
    few = InputSet("data", "data", "few.npz", 120)
    return run([variant("1/onnx", [group(reference, candidate, input_set=few)])], inputs=[few])


def generated():
    """No data was given: limits hold, nothing is certified."""
    random = InputSet("random", "random", "uniform in [0, 1)", ROWS, seed=7)
    return run([variant("1/onnx", [group(*answers(1e-6), input_set=random)])], inputs=[random])


def in_batches():
    """As ``failing`` in batches of other sizes, whose rows are those of the data again."""
    batch = InputSet("batch", "batch", "data, in batches of 1 to 32", ROWS, batch_sizes=[1, 32])
    again = group(*answers(0.4), "int8", batch)
    for output in again.outputs:
        output.verdict, output.reasons = Verdict.PASS, ["0 of 400 rows agree in data and not here"]
    return run([variant("1/onnx", [group(*answers(1e-6)), again])], inputs=[DATA, batch])


def nothing():
    return run([])


HOSTILE = "</script><img src=x onerror=alert(1)>\"'{{7*7}}$x_1$\u202e\0\ud800&amp;]]>"


def hostile():
    """Every text of the result is an attack."""
    reference, candidate = answers(0.4)
    reference = {HOSTILE: reference["logits"], "features": reference["features"]}
    candidate = {HOSTILE: candidate["logits"], "features": candidate["features"][:, :5]}
    data = InputSet(HOSTILE, "data", HOSTILE, ROWS)
    chosen = {HOSTILE: make_policy("class_scores", "fp32", inferred=HOSTILE),
              "features": make_policy("tensor", "fp32")}  # fmt: skip
    outputs: list[OutputResult] = []
    for name, one in compare_outputs(reference, candidate, chosen).items():
        sketches = {key: sketch.to_plain() for key, sketch in one.sketches.items()}
        measured = Measured(
            name, one.kind, chosen[name].inferred, one.invalid, one.metrics, sketches,
            [HOSTILE, *one.problems] if one.problems else [],
        )  # fmt: skip
        outputs.append(judge_output(measured, chosen[name].limits, TERMS, data))
    texts = np.array([[HOSTILE.encode("utf-8", "replace")]], object)
    bad = variant(
        HOSTILE, [GroupResult(HOSTILE, outputs)], errors=[HOSTILE], runtime=HOSTILE,
        device=HOSTILE, precision_note=HOSTILE, artifacts=[Artifact(HOSTILE, HOSTILE, 1)],
        divergence={"text": HOSTILE, "first": {"value": HOSTILE, "onnx_node": HOSTILE,
                    "module": HOSTILE, "source": HOSTILE}, "notes": [HOSTILE],
                    "layers": [{"value": HOSTILE, "module": HOSTILE, "metric": HOSTILE,
                                "local_error": 1.0, "total_error": "inf"}] * 3},
        worst=[WorstCase(HOSTILE, HOSTILE, 0, HOSTILE, HOSTILE, {HOSTILE: 1.0}, HOSTILE)],
    )  # fmt: skip
    cases = {
        HOSTILE: SimpleNamespace(
            inputs={HOSTILE: texts},
            outputs={HOSTILE: {HOSTILE: texts}, REFERENCE: {HOSTILE: texts}},
        )
    }
    result = run(
        [bad], inputs=[data], model=HOSTILE, command=HOSTILE, notes=[HOSTILE],
        environment={HOSTILE: HOSTILE}, tool_version=HOSTILE, reference_note=HOSTILE,
    )  # fmt: skip
    return result, cases
