"""Labels: how often each variant is right, and which right answers it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sidecar.validation.files import ValidationInputError
from validators.dtypes import dtype_class
from validators.judge import Terms
from validators.results import LabelResult, to_plain
from validators.retention import judge_retention
from validators.statistics import requests_needed
from validators.verdict import Verdict

if TYPE_CHECKING:
    from sidecar.runtimes.base import Array
    from validators.policy import OutputPolicy


def label_output(
    policies: Mapping[str, OutputPolicy], sample: Mapping[str, Array], named: str | None
) -> str:
    """Return the output that holds the classes: [rows, classes] of scores, or [rows] of classes.

    Raises:
        ValidationInputError: the one that is named cannot be used, or none or several can.
    """
    if named is not None:
        if named not in sample:
            message = f"--label-output: there is no output {named!r}; outputs: {', '.join(sample)}"
            raise ValidationInputError(message)
        if not _usable(sample[named]):
            message = f"--label-output {named}: its shape is {list(sample[named].shape)}; [rows, "
            message += "classes] of scores or [rows] of classes are needed"
            raise ValidationInputError(message)
        return named
    kinds = {name: policies[name].kind for name in sample if name in policies}
    for kind in ("class_scores", "exact"):
        found = [name for name, own in kinds.items() if own == kind and _usable(sample[name])]
        if len(found) == 1:
            return found[0]
        if found:
            message = f"labels: {' and '.join(found)} may each hold the classes; say which: "
            raise ValidationInputError(message + f"--label-output {found[0]}")
    said = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
    message = f"labels: no output is of kind class_scores: {said}; declare the kind in the config, "
    raise ValidationInputError(message + "or name the output: --label-output NAME")


def check_range(labels: Array, sample: Array, output: str, where: str) -> None:
    """Refuse labels that no answer can be: they would count as mistakes of every variant.

    Args:
        labels: int64 [rows], or texts.
        sample: some of the output's answers; scores [rows, classes] say how many classes there are.
        output: its name.
        where: the set, for the message.

    Raises:
        ValidationInputError: a label is no index of a class.
    """
    if dtype_class(sample.dtype) != "float" or dtype_class(labels.dtype) != "int":
        return
    classes = sample.shape[1]
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        first = int(wrong[0])
        message = f"{where}: {wrong.size} labels are no class of output {output!r}, which has 0 to "
        message += f"{classes - 1} (the first: {labels[first]} in row {first})"
        from_one = labels.min() == 1 and labels.max() == classes
        raise ValidationInputError(message + ("; do they begin at 1?" if from_one else ""))


def _usable(array: Array) -> bool:
    kind = dtype_class(array.dtype)
    if kind == "float":
        return array.ndim == 2 and array.shape[1] > 1
    return array.ndim == 1 or (array.ndim == 2 and (array.shape[1] == 1 or kind == "int"))


def judge_labels(
    output: str,
    labels: Sequence[Array | None],
    reference: Sequence[Array],
    candidate: Sequence[Array],
    terms: Terms,
) -> LabelResult:
    """Judge how much accuracy is kept (``validators.retention``), over all labelled sets.

    Args:
        output: whose answers they are.
        labels, reference, candidate: of each labelled set.
        terms: of the certificate.

    Raises:
        ValidationInputError: the labels are texts and the answers numbers, or the reverse.
    """
    truth = np.concatenate([array for array in labels if array is not None])
    before, after = np.concatenate(list(reference)), np.concatenate(list(candidate))
    try:
        found = judge_retention(truth, before, after, terms.limit, terms.alpha)
    except ValueError as error:
        message = f"labels do not fit output {output!r}: {error}"
        raise ValidationInputError(message) from None
    reasons = [found.sentence]
    if found.verdict is Verdict.INCONCLUSIVE:
        missing = requests_needed(terms.limit, found.negative_flips, terms.alpha) - found.rows
        if missing > 0:
            reasons.append(f"{missing} more rows without a negative flip would certify it")
    return LabelResult(
        output=output,
        rows=found.rows,
        accuracy=found.candidate_accuracy,
        reference_accuracy=found.reference_accuracy,
        retention=found.retention,
        negative_flips=found.negative_flips,
        positive_flips=found.positive_flips,
        limit=terms.limit,
        certificate={**to_plain(found), "sentence": found.sentence},
        verdict=found.verdict,
        reasons=reasons,
    )
