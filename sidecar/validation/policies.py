"""How each output is compared: as the config declares it, else as inferred; and limits as text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from sidecar.validation.files import ValidationInputError
from validators.comparators import build, make_policy, metric_specs
from validators.inference import infer_policy
from validators.limits import Limit, parse_limit
from validators.policy import OutputPolicy
from validators.rejudge import replaced

if TYPE_CHECKING:
    from sidecar.config_validation import ValidationConfig
    from sidecar.runtimes.base import Array, Signature

#: output → metric → what was written (``">= 40"``, ``"off"``).
LimitTexts = dict[str, dict[str, str]]

_LIMIT = re.compile(r"(?P<output>.+)\.(?P<metric>\w+)\s*(?P<text>=.+|[<>]=.+)")
OFF = "off"
#: Fewer values say too little of how far they can lie apart.
_RANGE_VALUES = 16


def parse_limits(texts: Iterable[str]) -> LimitTexts:
    """Read ``OUTPUT.METRIC=">= 40"`` (also ``=40``, ``>=40``, ``=off``).

    Raises:
        ValidationInputError: it is not written so, or a metric is given twice.
    """
    found: LimitTexts = {}
    for text in texts:
        match = _LIMIT.fullmatch(text.strip())
        if match is None:
            message = f"--limit {text!r} is not understood; write OUTPUT.METRIC='>= 40' (or =off "
            raise ValidationInputError(message + "to judge by the other metrics alone)")
        written = match["text"]
        if written.startswith("="):
            written = written[1:].strip()
        metrics = found.setdefault(match["output"], {})
        if match["metric"] in metrics:
            message = f"--limit: {match['output']}.{match['metric']} is given twice"
            raise ValidationInputError(message)
        metrics[match["metric"]] = written
    return found


def limits_from(
    texts: LimitTexts, kinds: Mapping[str, str], source: str = "command line"
) -> dict[str, list[Limit]]:
    """Turn limits as written into limits; one of infinite value stands for ``off``.

    Args:
        texts: as written.
        kinds: output → kind of its comparator.
        source: where they come from.

    Raises:
        ValidationInputError: no such output or metric, or not a limit.
    """
    found: dict[str, list[Limit]] = {}
    for output, metrics in texts.items():
        if output not in kinds:
            message = f"--limit: there is no output {output!r}; outputs: {', '.join(kinds)}"
            raise ValidationInputError(message)
        specs = metric_specs(kinds[output])
        for metric, text in metrics.items():
            where = f"--limit {output}.{metric}"
            if metric not in specs:
                message = f"{where}: {kinds[output]} has no such metric; it has: {', '.join(specs)}"
                raise ValidationInputError(message)
            try:
                spec = specs[metric]
                if text == OFF:
                    operator = "<=" if spec.worse == "higher" else ">="
                    value = math.inf if spec.worse == "higher" else -math.inf
                    limit = Limit(metric, operator, value, source)  # type: ignore[arg-type]
                else:
                    limit = parse_limit(metric, text, spec, source)
            except ValueError as error:
                message = f"{where}: {error}"
                raise ValidationInputError(message) from None
            found.setdefault(output, []).append(limit)
    return found


def policies_for(
    config: ValidationConfig,
    signature: Signature,
    sample: Mapping[str, Array],
    precision: str,
    texts: LimitTexts,
) -> dict[str, OutputPolicy]:
    """Work out how every output of the reference is compared.

    Args:
        config: what the configuration declares.
        signature: the reference's.
        sample: some of the reference's answers, rows first.
        precision: the coarser of the two variants'.
        texts: limits of the command line, which replace those of the same metrics.

    Raises:
        ValidationInputError: an output, metric or option that does not exist.
    """
    names = [spec.name for spec in signature.outputs]
    for name in config.outputs:
        if name not in names:
            message = f"validation.outputs names {name!r}, which the reference does not give; its "
            raise ValidationInputError(message + f"outputs: {', '.join(names)}")
    chosen: dict[str, OutputPolicy] = {}
    for spec in signature.outputs:
        declared = config.outputs.get(spec.name)
        try:
            if declared is not None and declared.kind is not None:
                chosen[spec.name] = make_policy(
                    declared.kind, precision, declared.limits, declared.options
                )
                continue
            array = sample.get(spec.name)
            shape = spec.shape if signature.max_batch_size else (-1, *spec.shape)
            found = infer_policy(spec.name, spec.datatype, shape, array, precision)
            if declared is not None and (declared.limits or declared.options):
                options: dict[str, Any] = {**found.options, **declared.options}
                made = make_policy(found.kind, precision, declared.limits, options)
                found = replace(made, inferred=found.inferred)
            chosen[spec.name] = found
        except ValueError as error:
            message = f"output {spec.name!r}: {error}"
            raise ValidationInputError(message) from None
    chosen = {name: _with_range(name, policy, sample) for name, policy in chosen.items()}
    chosen = _without_covered(chosen, set(config.outputs))
    given = limits_from(texts, {name: policy.kind for name, policy in chosen.items()})
    for name, limits in given.items():
        merged = _merged(name, chosen[name].limits, limits)
        chosen[name] = replace(chosen[name], limits=merged)
    return chosen


def _with_range(name: str, policy: OutputPolicy, sample: Mapping[str, Array]) -> OutputPolicy:
    """Give a quantity of unknown unit the range of the reference's first answers.

    Its comparator alone knows one call's answers: what a row is held to would depend on the rows
    beside it, and of a single row on its own size.
    """
    options = policy.options
    given = options.get("unit") is not None or options.get("range") is not None
    if policy.kind != "regression" or given or name not in sample:
        return policy
    values = np.asarray(sample[name], np.float64)
    values = values[np.isfinite(values)]
    # Zero included, as the comparator does: given rows may be sorted, and the first lie together.
    span = float(values.max(initial=0) - values.min(initial=0))
    if values.size < _RANGE_VALUES or not span:
        return policy
    said = f"{name!r} is judged in units of 0.1 % of {span:.4g}, the range of zero and the "
    said += f"reference's first {len(sample[name])} answers (better: option `unit` or `range`)"
    inferred = f"{policy.inferred}. {said}" if policy.inferred else said
    return replace(policy, options={**options, "range": span}, inferred=inferred)


def _merged(name: str, limits: Sequence[Limit], by: Sequence[Limit]) -> tuple[Limit, ...]:
    merged = tuple(replaced(limits, by))
    if not merged:
        message = f"--limit: output {name!r} would have no limit left, so that nothing is judged"
        raise ValidationInputError(message)
    return merged


def _without_covered(
    policies: dict[str, OutputPolicy], declared: set[str]
) -> dict[str, OutputPolicy]:
    """Leave out outputs that another one's comparator packs in (the scores of boxes)."""
    covered: set[str] = set()
    for policy in policies.values():
        covered |= build(policy.kind, policy.options).covers()
    return {n: p for n, p in policies.items() if n in declared or n not in covered}
