"""Which variants are compared with which reference.

A version is cross-validated within itself: another version is another model, and may rightly answer
otherwise. Naming a reference, or variants, compares just those, across versions too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sidecar.validation.files import ValidationInputError

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, SidecarConfig, VariantConfig


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        model: its configuration.
        reference: whose answers are the truth.
        candidates: what is compared with it, at least one.
        note: how the reference was chosen, where no role says it.
    """

    model: ModelConfig
    reference: VariantConfig
    candidates: tuple[VariantConfig, ...]
    note: str = ""


def plans(
    config: SidecarConfig,
    *,
    model: str | None = None,
    reference: str | None = None,
    variants: Sequence[str] = (),
) -> tuple[list[Plan], list[str]]:
    """Work out the runs, one for each version that has several variants.

    Args:
        config: the configuration.
        model: only this one.
        reference: a key (``version/name``) to compare with.
        variants: keys to compare.

    Returns:
        The runs, and notes on what is left out.

    Raises:
        ValidationInputError: an unknown name, or nothing to compare.
    """
    models = [item for item in config.models if model in {None, item.name}]
    if not models:
        known = ", ".join(item.name for item in config.models)
        message = f"the config has no model {model!r}; its models: {known}"
        raise ValidationInputError(message)
    if (reference is not None or variants) and len(models) > 1:
        message = f"the config has {len(models)} models; say which one the keys are of: --model "
        raise ValidationInputError(message + " or --model ".join(item.name for item in models))
    found: list[Plan] = []
    notes: list[str] = []
    for item in models:
        if reference is None and not variants:
            made, said = _by_version(item)
            found += made
            notes += said
        else:
            found.append(_named(item, reference, variants))
    if not found:
        message = f"there is nothing to compare: {'; '.join(notes)}; add another variant (with the "
        message += "role mirror, if it is not to answer anybody)"
        raise ValidationInputError(message)
    return found, notes


def _by_version(model: ModelConfig) -> tuple[list[Plan], list[str]]:
    versions: dict[str, list[VariantConfig]] = {}
    for variant in model.variants:
        versions.setdefault(variant.version, []).append(variant)
    made, notes = [], []
    for version, members in versions.items():
        if len(members) < 2:
            notes.append(f"{model.name}: version {version} has one variant, {members[0].key}")
        else:
            made.append(_plan(model, members))
    return made, notes


def _plan(model: ModelConfig, members: Sequence[VariantConfig]) -> Plan:
    chosen, note = choose_reference(members)
    return Plan(model, chosen, tuple(v for v in members if v.key != chosen.key), note)


def choose_reference(members: Sequence[VariantConfig]) -> tuple[VariantConfig, str]:
    """The variant with the role, else the first PyTorch one, else the serving one, else the first.

    Returns:
        It, and a sentence that says why, ``""`` where the role does.
    """
    for variant in members:
        if "reference" in variant.roles:
            return variant, ""
    for variant in members:
        if variant.runtime.kind == "pytorch":
            return variant, f"no variant has the role reference: {variant.key}, the PyTorch one"
    for variant in members:
        if "serving" in variant.roles:
            return variant, f"no variant has the role reference: {variant.key}, the serving one"
    return members[0], f"no variant has the role reference: {members[0].key}, the first one"


def _named(model: ModelConfig, reference: str | None, keys: Sequence[str]) -> Plan:
    by_key = {variant.key: variant for variant in model.variants}
    for key in (*keys, *([reference] if reference else [])):
        if key not in by_key:
            message = f"{model.name} has no variant {key!r}; its variants: {', '.join(by_key)}"
            raise ValidationInputError(message)
    named = [by_key[key] for key in dict.fromkeys(keys)]
    if reference is not None:
        chosen, note = by_key[reference], f"--reference {reference}"
    else:
        versions = {variant.version for variant in named}
        members = [v for v in model.variants if v.version in versions]
        chosen, note = choose_reference(members)
    others = named or [v for v in model.variants if v.version == chosen.version]
    candidates = tuple(variant for variant in others if variant.key != chosen.key)
    if not candidates:
        message = f"there is nothing to compare {chosen.key} with: it is the reference; name "
        message += "another variant with --variant, or another reference with --reference"
        raise ValidationInputError(message)
    return Plan(model, chosen, candidates, note)
