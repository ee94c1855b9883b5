"""What an output is taken for, and that it is said."""

from __future__ import annotations

import numpy as np
import pytest

from validators.comparators import BUILTIN
from validators.inference import infer_policy
from validators.limits import default_limits

PROBABILITIES = np.array([[0.2, 0.8], [0.5, 0.5]], np.float32)
SCORES = np.array([[2.0, 8.0], [5.0, -5.0]], np.float32)


@pytest.mark.parametrize(
    ("name", "datatype", "shape", "sample", "kind", "why"),
    [
        ("text", "BYTES", (-1, 1), None, "exact", "texts are equal"),
        ("label", "INT64", (-1,), None, "exact", "integers are equal"),
        ("y", "UINT8", (-1, 3), None, "exact", "integers are equal"),
        ("flag", "BOOL", (-1, 1), None, "exact", "truth values"),
        ("masks", "BOOL", (-1, 8, 8), None, "masks", "its name says 'masks'"),
        ("attention_mask", "INT64", (-1, 8), None, "exact", "integers are equal"),
        ("output_ids", "INT64", (-1, 20), None, "token_ids", "its name says 'ids'"),
        ("generatedTokens", "INT32", (-1, -1), None, "token_ids", "its name says 'generated'"),
        ("token_ids", "INT64", (-1,), None, "exact", "integers are equal"),
        ("tokens", "FP32", (-1, 20), None, "tensor", "nothing says"),
        ("y", "FP32", (-1, 2), PROBABILITIES, "class_scores", "add up to 1"),
        ("y", "FP32", (-1, 2), SCORES, "tensor", "nothing says"),
        ("logits", "FP32", (-1, 2), SCORES, "class_scores", "its name says 'logits'"),
        ("probabilities:0", "FP16", (-1, 10), None, "class_scores", "its name says"),
        ("logits", "FP32", (-1, 7, 900), None, "tensor", "nothing says"),
        ("score", "FP32", (-1, 1), None, "regression", "one number a row"),
        ("price", "FP64", (-1,), None, "regression", "one number a row"),
        ("sentence_embedding", "FP32", (-1, 384), None, "embedding", "its name says 'embedding'"),
        ("pooler_output", "FP32", (-1, 768), None, "embedding", "its name says 'pooler'"),
        ("Features", "BF16", (-1, 7, 768), None, "embedding", "its name says 'features'"),
        ("embeddings", "FP32", (-1, 2), PROBABILITIES, "embedding", "its name says"),
        ("dets", "FP32", (-1, 100, 5), None, "boxes", "its name says 'dets', with 5 columns"),
        ("boxes", "FP32", (-1, 100, 6), None, "boxes", "with 6 columns"),
        ("boxes", "FP32", (-1, 84, 8400), None, "tensor", "nothing says"),
        ("mask", "FP32", (-1, 1, 8, 8), None, "masks", "its name says 'mask'"),
        ("bitmask", "FP32", (-1, 8, 8), None, "tensor", "nothing says"),
        ("hidden", "FP32", (), None, "tensor", "nothing says"),
    ],
)
def test_kinds_are_inferred_and_the_reason_is_said(name, datatype, shape, sample, kind, why):
    found = infer_policy(name, datatype, shape, sample, "fp16")
    assert found.kind == kind
    assert why in found.inferred
    assert f"is compared as {kind}" in found.inferred
    assert f"set validation.outputs.{name}.kind" in found.inferred
    assert found.limits == default_limits(kind, "fp16")


def test_every_kind_can_be_inferred():
    kinds = {
        infer_policy(name, datatype, shape, None, "fp32").kind
        for name, datatype, shape in [
            ("y", "FP32", (-1, 3, 3)),
            ("scores", "FP32", (-1, 3)),
            ("embedding", "FP32", (-1, 3)),
            ("boxes", "FP32", (-1, 3, 6)),
            ("masks", "FP32", (-1, 3, 3)),
            ("ids", "INT64", (-1, 3)),
            ("y", "FP32", (-1, 1)),
            ("y", "INT64", (-1, 1)),
        ]
    }
    assert kinds == set(BUILTIN)


def test_masks_of_logits_and_of_classes_get_their_options():
    logits = np.array([[[-3.0, 4.0]]], np.float32)
    assert infer_policy("mask", "FP32", (-1, 1, 2), logits, "fp32").options == {"threshold": 0.0}
    inside = np.array([[[0.1, 0.9]]], np.float32)
    assert infer_policy("mask", "FP32", (-1, 1, 2), inside, "fp32").options == {}
    classes = np.array([[[0, 3], [7, 3]]])
    assert infer_policy("mask", "INT64", (-1, 2, 2), classes, "fp32").options == {"labels": True}
    two = np.array([[[0, 255], [255, 0]]], np.uint8)
    assert infer_policy("mask", "UINT8", (-1, 2, 2), two, "fp32").options == {}


def test_the_sentence_shows_type_and_shape():
    found = infer_policy("y", "FP32", (-1, -1, 4), None, "fp32")
    assert found.inferred.startswith("'y' (FP32 [rows, ?, 4]) is compared as tensor: ")


def test_a_sample_of_nothing_decides_nothing():
    assert infer_policy("y", "FP32", (-1, 3), np.zeros((0, 3)), "fp32").kind == "tensor"
    half = np.array([[0.2, 0.8], [0.2, 0.3]])
    assert infer_policy("y", "FP32", (-1, 2), half, "fp32").kind == "tensor"
    broken = np.array([[np.nan, 0.8]])
    assert infer_policy("y", "FP32", (-1, 2), broken, "fp32").kind == "tensor"


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="no precision 'fp12'"):
        infer_policy("y", "FP32", (-1, 2), None, "fp12")
