"""Generated tokens: how far do two texts run together, and was the parting a close call?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from typing_extensions import override

from validators.comparators.base import Comparator, Comparison, MetricSpec

Array = npt.NDArray[Any]

#: A choice is decisive when the best score leads by more than this share of the scores' spread.
_NOISE_SHARE = 0.01
#: Tokens, after what both share at the ends, beyond which no edit distance is taken.
_EDIT_MAX = 2048


class TokenIdsComparator(Comparator):
    """[rows, tokens] of integers; the two sides may differ in length.

    Greedy decoding parts for good at the first token that differs, so what counts is whether that
    token was chosen clearly. With the option `logits` (the name of another output, [rows, tokens,
    vocabulary], that chose them) a divergence is decisive when the reference's best score led by
    more than `noise_margin` (default: 1 % of the spread of the scores). Without it, every
    divergence is decisive.

    `end`: a row ends with this token. `pad`: this token is taken off the end of rows.
    """

    kind: ClassVar[str] = "token_ids"
    metrics: ClassVar[tuple[MetricSpec, ...]] = (
        MetricSpec("divergence", "share", "higher", "1 when any token differs"),
        MetricSpec(
            "decisive_divergence", "share", "higher",
            "1 when the first that differs was no close call; without logits any",
        ),
        MetricSpec("prefix", "tokens", "lower", "tokens before the first that differs"),
        MetricSpec("prefix_share", "share", "lower", "the same, of the longer side"),
        MetricSpec("edit_distance", "tokens", "higher", "Levenshtein's, over at most 2,048"),
        MetricSpec("edit_share", "share", "higher", "the same, of the longer side"),
    )  # fmt: skip
    options: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"logits": None, "noise_margin": None, "end": None, "pad": None}
    )
    defaults: ClassVar[Mapping[str, str | float | Mapping[str, str | float]]] = MappingProxyType(
        {"decisive_divergence": 0}
    )
    accepts: ClassVar[frozenset[str]] = frozenset({"int"})
    variable_length: ClassVar[bool] = True

    @override
    def check_options(self) -> None:
        logits, noise = self.settings["logits"], self.settings["noise_margin"]
        if logits is not None and not (isinstance(logits, str) and logits):
            raise ValueError(f"token_ids: `logits` is the name of an output, not {logits!r}")
        number = isinstance(noise, int | float) and not isinstance(noise, bool)
        if noise is not None and not (number and math.isfinite(noise) and noise >= 0):
            raise ValueError(f"token_ids: `noise_margin` is a number from 0, not {noise!r}")
        for name in ("end", "pad"):
            token = self.settings[name]
            if token is not None and (not isinstance(token, int) or isinstance(token, bool)):
                raise ValueError(f"token_ids: `{name}` is a token, not {token!r}")

    @override
    def covers(self) -> frozenset[str]:
        logits = self.settings["logits"]
        return frozenset() if logits is None else frozenset({logits})

    @override
    def gather(self, output: str, arrays: Mapping[str, Array]) -> Array:
        """With `logits`: float64 [rows, tokens, 2], the token and whether it was a clear choice."""
        tokens, logits = _two_axes(arrays[output]), self.settings["logits"]
        if logits is None:
            return tokens
        scores = arrays[logits]
        if scores.ndim != 3 or scores.shape[:2] != tokens.shape or scores.shape[2] < 2:
            raise ValueError(
                f"token_ids: {logits!r} has shape {scores.shape}; to tell close calls it must be "
                f"[{tokens.shape[0]}, {tokens.shape[1]}, vocabulary]"
            )
        clear = [self._clear(row) for row in scores]  # one by one: vocabularies are large
        packed = np.stack([tokens.astype(np.float64), np.array(clear, np.float64)], axis=-1)
        return packed.reshape(*tokens.shape, 2)

    def _clear(self, scores: Array) -> Array:
        """bool [tokens] of the scores [tokens, vocabulary] that chose them."""
        if scores.size == 0:
            return np.zeros(scores.shape[0], np.bool_)
        values = scores.astype(np.float64)
        values[np.isnan(values)] = -np.inf
        top = np.partition(values, -2, axis=1)[:, -2:]
        noise = self.settings["noise_margin"]
        if noise is None:
            least = np.where(np.isfinite(values), values, np.inf).min(axis=1)
            noise = _NOISE_SHARE * np.where(np.isfinite(least), top[:, 1] - least, 0.0)
        with np.errstate(invalid="ignore"):  # −inf and −inf: nothing was chosen clearly
            return np.asarray(top[:, 1] - top[:, 0] > noise)

    @override
    def compare_rows(self, reference: Array, candidate: Array) -> Comparison:
        packed = self.settings["logits"] is not None
        if packed and (reference.ndim != 3 or reference.shape[2] != 2):
            raise ValueError("token_ids: with `logits` both sides go through `gather` first")
        rows = reference.shape[0]
        left, right = (
            (side[..., 0] if packed else _two_axes(side)) for side in (reference, candidate)
        )
        measured = np.zeros((6, rows))
        for row in range(rows):
            one, other = self._cut(left[row]), self._cut(right[row])
            shorter, longer = sorted((len(one), len(other)))
            parts = np.flatnonzero(one[:shorter] != other[:shorter])
            prefix = int(parts[0]) if parts.size else shorter
            diverges = prefix < longer
            known = packed and prefix < len(one)
            decisive = diverges and (not known or bool(reference[row, prefix, 1]))
            edits = _edit_distance(one[prefix:], other[prefix:])
            measured[:, row] = (
                diverges, decisive, prefix, prefix / longer if longer else 1.0,
                edits, edits / longer if longer else 0.0,
            )  # fmt: skip
        names = (spec.name for spec in self.metrics)
        return Comparison(rows, dict(zip(names, measured, strict=True)))

    def _cut(self, tokens: Array) -> Array:
        """Up to and with the end token, without padding."""
        end, pad = self.settings["end"], self.settings["pad"]
        if end is not None:
            ends = np.flatnonzero(tokens == end)
            tokens = tokens[: ends[0] + 1] if ends.size else tokens
        if pad is not None:
            kept = np.flatnonzero(tokens != pad)
            tokens = tokens[: kept[-1] + 1] if kept.size else tokens[:0]
        return tokens

    @override
    @classmethod
    def example(cls, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        reference = rng.integers(0, 30_000, (16, 12))
        worse = reference.copy()
        worse[:, 7] += 1
        return reference, reference.astype(np.int32), worse


def _two_axes(tokens: Array) -> Array:
    """[rows, tokens]; raises ValueError for more axes."""
    if tokens.ndim > 2:
        raise ValueError(
            f"token_ids needs [rows, tokens], not {tokens.shape}; with more axes (beams) use kind "
            "`exact`"
        )
    return tokens.reshape(tokens.shape[0], -1) if tokens.size else tokens.reshape(len(tokens), 0)


def _edit_distance(one: Array, other: Array) -> float:
    """Levenshtein's distance of two sequences; NaN beyond 2,048 tokens."""
    while_same = min(len(one), len(other))
    ends = one[len(one) - while_same :][::-1] == other[len(other) - while_same :][::-1]
    same = while_same if ends.all() else int(np.argmin(ends))
    one, other = one[: len(one) - same], other[: len(other) - same]
    if len(one) == 0 or len(other) == 0:
        return float(max(len(one), len(other)))
    if max(len(one), len(other)) > _EDIT_MAX:
        return math.nan
    # One row of the table at a time. What a row takes from its own left neighbour (an insertion)
    # is a running minimum, once each place is counted from the right end.
    places = np.arange(len(other) + 1)
    row = places.copy()
    for number, token in enumerate(one.tolist(), start=1):
        best = np.empty_like(row)
        best[0] = number
        np.minimum(row[1:] + 1, row[:-1] + (other != token), out=best[1:])
        row = np.minimum.accumulate(best - places) + places
    return float(row[-1])
