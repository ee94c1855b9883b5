"""Who is run and compared with whom, worked out from roles and from the copies that were loaded.

The truth for a candidate is the reference of its own version; without one, for a mirror, the answer
that was served. Candidates are the variant that served, judged by its served
answer (not by running it again: what users got is what counts), and every mirror of its version.
A new version and the previous one are another kind of pair: both are run again here, because a
served call meets load and deadlines that a mirror does not. So is a candidate, which answers nobody
yet, and the newest version that serves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from sidecar.config import ModelConfig, VariantConfig
from sidecar.monitor.mirror_protocol import CopyInfo
from sidecar.monitor.policies import PairPolicies, Precisions, pair_precision
from sidecar.runtimes.artifacts import fingerprint
from sidecar.runtimes.base import Signature, TensorSpec

_WATCHED = frozenset({"reference", "mirror", "previous", "candidate"})
#: A candidate answers once it is promoted, a previous version after a switch back to it; both may
#: happen while this runs.
_ANSWERING = frozenset({"serving", "fallback", "candidate", "previous"})


@dataclass(slots=True)
class Pair:
    """Two variants that are compared.

    Attributes:
        purpose: ``certificate`` (a side that served is judged by its served answer) or ``versions``
            (both are run here; the candidate is the new version, the baseline the one before).
        blocked: why it cannot be compared, empty otherwise.
        identity: changes with either artifact: what a file replaced since did is no evidence.
        policies: ``None`` while blocked.
        batched: the first axis of both counts rows.
    """

    model: str
    candidate: str
    baseline: str
    purpose: str
    blocked: str = ""
    identity: str = ""
    policies: PairPolicies | None = None
    batched: bool = True


@dataclass(slots=True)
class ServedPlan:
    """What to do with exchanges that one variant answered.

    Attributes:
        signature: of that variant, by which its bytes are read.
        pairs: to compare; those that are blocked too.
        runs: variant keys to execute, each once.
        noise: the variant to run a second time in another batch, and the pair it belongs to.
        calibrated: pairs of versions whose previous one runs twice, on the share
            ``calibration_rate`` of exchanges.
    """

    variant: str
    signature: Signature
    pairs: list[Pair]
    runs: list[str]
    noise: Pair | None = None
    calibrated: list[Pair] = field(default_factory=list)
    calibration_rate: float = 0.0


@dataclass(slots=True)
class ModelPlan:
    """All of one model.

    Attributes:
        message: what keeps it from being watched as configured, empty otherwise.
        reference: the key of the truth of its newest version, or empty.
    """

    config: ModelConfig
    reference: str
    served: dict[str, ServedPlan] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    message: str = ""


def wanted_copies(model: ModelConfig) -> dict[str, bool]:
    """The variants that the mirror child loads: ``version/name`` → whether it keeps the copy.

    Of one that serves, at least the signature is needed, by which its bytes are read. It is kept to
    be run beside the previous version, or again where its own answer is the truth. Without any role
    but serving and fallback nothing is watched.
    """
    roles = {role for variant in model.variants for role in variant.roles}
    if not roles & _WATCHED:
        return {}
    newest = [variant.key for variant in model.variants if "serving" in variant.roles][-1]
    return {
        variant.key: bool(_WATCHED & set(variant.roles))
        or "reference" not in roles
        or (bool(roles & {"previous", "candidate"}) and variant.key == newest)
        for variant in model.variants
    }


def make_plan(
    model: ModelConfig, copies: Mapping[str, CopyInfo], precisions: Precisions
) -> ModelPlan:
    """Work out the plan of one model.

    Args:
        copies: key (``model:version/name``) → what was loaded.
    """
    return _Planner(model, copies, precisions).plan()


class _Planner:
    def __init__(
        self, model: ModelConfig, copies: Mapping[str, CopyInfo], precisions: Precisions
    ) -> None:
        self._model = model
        self._copies = copies
        self._precisions = precisions
        self._variants = {self._key(variant): variant for variant in model.variants}
        self._made: dict[tuple[str, str, str], Pair] = {}
        self._messages: list[str] = []

    def _key(self, variant: VariantConfig) -> str:
        return f"{self._model.name}:{variant.key}"

    def _with(self, role: str) -> list[str]:
        return [key for key, variant in self._variants.items() if role in variant.roles]

    def plan(self) -> ModelPlan:
        answering = [
            key for key, variant in self._variants.items() if _ANSWERING & set(variant.roles)
        ]
        newest = self._with("serving")[-1]
        plan = ModelPlan(self._model, self._truth(newest)[0])
        for key in answering:
            served = self._served(key, newest)
            if served is not None:
                plan.served[key] = served
        plan.pairs = list(self._made.values())
        for key in self._variants:
            info = self._copies.get(key)
            if info is not None and info.signature is None:
                self._messages.append(f"no copy of {key}: {info.error}")
        plan.message = "; ".join(self._messages)
        return plan

    def _truth(self, candidate: str) -> tuple[str, str]:
        """The reference for a candidate, or ``""``; and what is to be said about it."""
        references = self._with("reference")
        version = self._variants[candidate].version
        same = [key for key in references if self._variants[key].version == version]
        if same:
            return same[0], ""
        if not references or "previous" in self._variants[candidate].roles:
            return "", ""
        # A version that was trained anew is meant to differ: another one's truth is none for it.
        said = f"{candidate} is not judged by {references[0]}, which is of another version"
        return "", said

    def _served(self, served: str, newest: str) -> ServedPlan | None:
        info = self._copies.get(served)
        if info is None or info.signature is None:
            # Its bytes cannot be read without knowing what it takes and gives.
            if info is not None:
                self._messages.append(f"what {served} answers cannot be read")
            return None
        pairs: list[Pair] = []
        if {"serving", "fallback"} & set(self._variants[served].roles):
            pairs += self._certificates(served, newest)
        pairs += self._versions(served, newest)
        plan = ServedPlan(served, info.signature, pairs, _runs(pairs, served))
        plan.noise = next((p for p in pairs if p.purpose == "certificate" and not p.blocked), None)
        rollback = self._model.rollback
        if rollback.enabled is not False:
            plan.calibrated = [p for p in pairs if p.purpose == "versions" and not p.blocked]
            plan.calibration_rate = rollback.calibration.rate
        return plan

    def _certificates(self, served: str, newest: str) -> list[Pair]:
        truth, said = self._truth(served)
        if said and said not in self._messages:
            self._messages.append(said)
        pairs: list[Pair] = []
        if truth and truth != served:
            pairs.append(self._pair(served, truth, "certificate"))
        for mirror in self._mirrors_beside(served, newest):
            baseline, said = self._truth(mirror)
            if said and said not in self._messages:
                self._messages.append(said)
            baseline = baseline or served
            if mirror not in {baseline, served}:
                pairs.append(self._pair(mirror, baseline, "certificate"))
        return pairs

    def _versions(self, served: str, newest: str) -> list[Pair]:
        """Pairs of versions that the inputs of this exchange are run on.

        Whoever answered: both sides are run here. So after a switch to the previous version, or the
        promotion of a candidate, evidence goes on to come.
        """
        previous, candidates = self._with("previous")[:1], self._with("candidate")
        if newest not in self._copies or served not in {newest, *previous, *candidates}:
            return []
        sides = [(newest, old) for old in previous] + [(new, newest) for new in candidates]
        return [self._pair(new, old, "versions") for new, old in sides]

    def _mirrors_beside(self, served: str, newest: str) -> list[str]:
        """Mirrors of the version that served; beside the newest also those of versions that nobody
        serves yet."""
        serving = {self._variants[key].version for key in self._with("serving")}
        own = self._variants[served].version
        return [
            key
            for key in self._with("mirror")
            if self._variants[key].version == own
            or (served == newest and self._variants[key].version not in serving)
        ]

    def _classes_differ(self, candidate: str, baseline: str) -> str:
        """Where both say what their classes are called, and not the same: in words."""
        new, old = (self._variants[key].classes for key in (candidate, baseline))
        for output in new.keys() & old.keys():
            if new[output] != old[output]:
                pairs = enumerate(zip_longest(old[output], new[output], fillvalue="nothing"))
                at, (was, now) = next((i, both) for i, both in pairs if both[0] != both[1])
                where = f"class {at} of output {output!r}"
                return f"{where} is {now} for {candidate}, {was} for {baseline}"
        return ""

    def _pair(self, candidate: str, baseline: str, purpose: str) -> Pair:
        key = (candidate, baseline, purpose)
        if key in self._made:
            return self._made[key]
        pair = Pair(self._model.name, candidate, baseline, purpose)
        self._made[key] = pair
        infos = [self._copies.get(candidate), self._copies.get(baseline)]
        for name, info in zip((candidate, baseline), infos, strict=True):
            if info is None or info.signature is None:
                pair.blocked = f"there is no copy of {name}"
                pair.blocked += f": {info.error}" if info is not None else ""
                return pair
        signatures = [info.signature for info in infos if info and info.signature]
        pair.blocked = _differ("input", candidate, baseline, *(s.inputs for s in signatures))
        if not pair.blocked and purpose == "versions":
            pair.blocked = _differ("output", candidate, baseline, *(s.outputs for s in signatures))
            pair.blocked = pair.blocked or self._classes_differ(candidate, baseline)
        pair.batched = all(signature.max_batch_size > 0 for signature in signatures)
        if not pair.blocked:
            variants = self._variants[candidate], self._variants[baseline]
            precision = pair_precision(self._precisions, self._model, *variants)
            pair.identity = pair_identity(*variants)
            pair.policies = PairPolicies(self._model, precision, signatures[1], pair.identity)
        return pair


def _runs(pairs: list[Pair], served: str) -> list[str]:
    """Each variant once, whose answer some pair needs and has not got from the gateway."""
    wanted: dict[str, None] = {}
    for pair in pairs:
        if not pair.blocked:
            sides = (pair.candidate, pair.baseline)
            run_both = pair.purpose == "versions"
            wanted |= {side: None for side in sides if run_both or side != served}
    return list(wanted)


def pair_identity(candidate: VariantConfig, baseline: VariantConfig) -> str:
    """Six hex digits of both artifacts' contents; of a remote variant, of where it is.

    Raises:
        SidecarError: an artifact cannot be read.
    """
    digest = hashlib.sha256()
    for variant in (candidate, baseline):
        runtime = variant.runtime
        if runtime.kind == "remote":
            where = (runtime.address, runtime.model_name, runtime.model_version)
            digest.update(repr(where).encode())
        else:
            digest.update(fingerprint(runtime.path).encode())
    return digest.hexdigest()[:6]


def _differ(
    kind: str, one: str, other: str, first: Sequence[TensorSpec], second: Sequence[TensorSpec]
) -> str:
    """Why two variants cannot have the same tensors, ``input`` or ``output``; empty: they can."""
    left = {spec.name: spec for spec in first}
    right = {spec.name: spec for spec in second}
    for name in dict.fromkeys((*left, *right)):
        if name not in left or name not in right:
            lacking = one if name not in left else other
            optional = (left.get(name) or right[name]).optional
            if not optional:
                return f"{lacking} has no {kind} {name!r}"
            continue
        if left[name].datatype != right[name].datatype:
            types = f"{left[name].datatype} for {one}, {right[name].datatype} for {other}"
            return f"{kind} {name!r} is {types}"
        shapes = left[name].shape, right[name].shape
        fixed = [(a, b) for a, b in zip(*shapes, strict=False) if a >= 0 and b >= 0]
        if len(shapes[0]) != len(shapes[1]) or any(a != b for a, b in fixed):
            told = f"{list(shapes[0])} for {one}, {list(shapes[1])} for {other}"
            return f"{kind} {name!r} has the shape {told}"
    return ""
