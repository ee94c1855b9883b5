"""How each output of a pair is compared: as the config declares it, or as it was inferred.

An inferred kind needs to see an answer, so policies are made when the first one is there; they then
stand for the life of the process. The precision is the coarser of both variants': their difference
shows both their errors.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.config import ModelConfig, VariantConfig
from sidecar.errors import SidecarError
from sidecar.runtimes.base import Array, Signature
from sidecar.validation.precision import coarser, infer_precision
from validators.comparators import build, make_policy
from validators.limits import limits_hash
from validators.policy import OutputPolicy

logger = logging.getLogger("sidecar.monitor.policies")


def policy_hash(policy: OutputPolicy) -> str:
    """12 hex digits that change with kind, options and limits: these keep evidence apart."""
    options = sorted((name, repr(value)) for name, value in policy.options.items())
    plain = json.dumps([policy.kind, options, limits_hash(policy.limits)])
    return hashlib.sha256(plain.encode()).hexdigest()[:12]


@dataclass(slots=True)
class Precisions:
    """What each variant computes in, told once by its artifact."""

    _known: dict[str, tuple[str, str]] = field(default_factory=dict)

    def of(self, model: str, variant: VariantConfig) -> str:
        """The precision's name; how it is known is logged the first time."""
        key = f"{model}:{variant.key}"
        if key not in self._known:
            try:
                found = infer_precision(variant)
            except SidecarError as error:
                found = "fp32", f"fp32: {error}"
            self._known[key] = found
            logger.info("%s is held to the limits of %s", key, found[1])
        return self._known[key][0]


class PairPolicies:
    """The policies of one pair of variants; made output by output, when an answer has it.

    Args:
        model: its configuration.
        precision: of the pair.
        signature: of the side whose answers are the truth: datatypes and shapes.
        identity: of both artifacts; it begins every hash.

    Attributes:
        policies: output → how it is compared, so far.
        hashes: output → what its evidence is kept under.
    """

    def __init__(
        self, model: ModelConfig, precision: str, signature: Signature, identity: str = ""
    ) -> None:
        self._identity = identity
        self._model = model
        self._declared = model.validation.outputs
        self.precision = precision
        self._specs = {spec.name: spec for spec in signature.outputs}
        self.policies: dict[str, OutputPolicy] = {}
        self.hashes: dict[str, str] = {}
        self._refused: set[str] = set()

    def ensure(self, answer: Mapping[str, Array], *, batched: bool) -> None:
        """Make policies for the outputs of ``answer`` that have none yet."""
        new = [n for n in answer if n not in self.policies and n not in self._refused]
        if not new:
            return
        for name in new:
            try:
                policy = self._make(name, answer[name] if batched else answer[name][None])
            except ValueError as error:
                # Without a policy comparing says so, for each answer: INVALID, never a pass.
                logger.error("%s, output %r cannot be compared: %s", self._model.name, name, error)
                self._refused.add(name)
                continue
            self.policies[name] = policy
            if policy.inferred:
                logger.info("%s: %s", self._model.name, policy.inferred)
        covered: set[str] = set()
        for policy in self.policies.values():
            covered |= build(policy.kind, policy.options).covers()
        for name in covered - self._declared.keys():
            self.policies.pop(name, None)
            self._refused.add(name)
        self.hashes = {
            name: f"{self._identity}-{policy_hash(policy)}"
            for name, policy in self.policies.items()
        }

    def _make(self, name: str, sample: Array) -> OutputPolicy:
        declared = self._declared.get(name)
        if declared is not None and declared.kind is not None:
            return make_policy(declared.kind, self.precision, declared.limits, declared.options)
        spec = self._specs.get(name)
        datatype = spec.datatype if spec is not None else ""
        shape = spec.shape if spec is not None else sample.shape
        from validators.inference import infer_policy

        inferred = infer_policy(name, datatype, shape, sample, self.precision)
        if declared is None:
            return inferred
        options = {**inferred.options, **declared.options}
        return make_policy(
            inferred.kind, self.precision, declared.limits, options, inferred.inferred
        )

    def comparable(self, wanted: frozenset[str] | None) -> frozenset[str] | None:
        """Of the outputs that a request asked for, those whose comparison needs no others.

        ``None``: the request asked for all of them.
        """
        if wanted is None:
            return None
        needed = {
            name: build(policy.kind, policy.options).covers()
            for name, policy in self.policies.items()
        }
        return frozenset(name for name in wanted if needed.get(name, frozenset()) <= wanted)


def pair_precision(
    precisions: Precisions, model: ModelConfig, one: VariantConfig, other: VariantConfig
) -> str:
    """The coarser of both."""
    return coarser(precisions.of(model.name, one), precisions.of(model.name, other))
