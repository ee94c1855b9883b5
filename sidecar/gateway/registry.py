"""The models a worker holds: which copies are loaded, and which one answers what.

Readers (the request's path) take the current ``Snapshot`` and see one consistent state; loading
and unloading replace it whole. A replaced copy is closed when its last request is done: requests
hold a reference, and the finalizer runs when the last one goes. (A counter would cost two locked
increments on each request, to learn the same.)
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import random
from typing import TYPE_CHECKING, Literal

from sidecar import route_table, runtimes
from sidecar.errors import InvalidRequestError, NotFoundError, SidecarError
from sidecar.gateway.batcher import Batcher
from sidecar.gateway.messages import OutputRequest
from sidecar.route_table import Split
from sidecar.runtimes.base import Array, ForwardingRuntime, Runtime, TensorSpec

if TYPE_CHECKING:
    from sidecar.config import ModelConfig, SidecarConfig, VariantConfig

logger = logging.getLogger(__name__)

#: The roles whose copies the gateway holds; the others live in the monitor.
GATEWAY_ROLES = frozenset({"serving", "previous", "fallback", "candidate"})

_SERIALS = itertools.count(1)

State = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


class Copy:
    """One loaded variant in this worker.

    Attributes:
        slot: its slot in the statistics pages: the same in every worker.
        inputs, outputs, output_names: by the signature; looked up on each request, so made once.
        all_outputs: what a request wants that names no outputs; never written to.
    """

    __slots__ = (
        "__weakref__", "all_outputs", "batcher", "cache_key", "cached", "config",
        "fallback_after_ms", "inputs", "key", "max_batch_size", "model", "output_names", "outputs",
        "runtime", "slot", "version",
    )  # fmt: skip

    def __init__(
        self, model: ModelConfig, config: VariantConfig, runtime: Runtime, slot: int
    ) -> None:
        self.model = model.name
        self.version = config.version
        self.key = f"{model.name}:{config.key}"
        # Of this loaded copy, not of the variant: an answer of a copy that was replaced meanwhile
        # must not be found by requests to the one that replaced it.
        self.cache_key = f"{self.key}#{next(_SERIALS)}"
        self.config = config
        self.runtime = runtime
        self.slot = slot
        self.cached = model.cache
        self.fallback_after_ms = model.fallback.after_ms
        self.inputs: dict[str, TensorSpec] = {s.name: s for s in runtime.signature.inputs}
        self.output_names = [spec.name for spec in runtime.signature.outputs]
        self.outputs: dict[str, TensorSpec] = {s.name: s for s in runtime.signature.outputs}
        self.all_outputs = [OutputRequest(name) for name in self.output_names]
        self.max_batch_size = runtime.signature.max_batch_size
        self.batcher: Batcher | None = None

    @property
    def forwards(self) -> bool:
        """Whether requests go on to another server as bytes."""
        return isinstance(self.runtime, ForwardingRuntime)


def _dispose(key: str, runtime: Runtime, batcher: Batcher | None) -> None:
    try:
        if batcher is not None:
            batcher.close()
        runtime.close()
    except Exception:
        logger.exception("closing a copy of %s failed", key)
    else:
        logger.debug("a copy of %s is closed", key)


@dataclass(frozen=True, slots=True)
class Entry:
    """One model in a snapshot.

    Attributes:
        serving: version → the copy that answers for it.
        default_version: answers requests that name none; of several, the one of the largest share.
        unloaded: on request: then it is no fault that nothing is loaded.
        held: ``serving``, and the candidates that nobody is answered by yet.
        split: which version answers requests that name none; ``None``: the default version does.
        shares: of each version, as they are followed; ``revision``: of the route that they follow.
        note: how that differs from the route as it was set; else empty.
    """

    config: ModelConfig
    state: State = "UNAVAILABLE"
    reason: str = ""
    serving: Mapping[str, Copy] = field(default_factory=dict)
    fallback: Copy | None = None
    default_version: str = ""
    unloaded: bool = False
    held: Mapping[str, Copy] = field(default_factory=dict)
    split: Split | None = None
    shares: Mapping[str, float] = field(default_factory=dict)
    revision: int = 0
    note: str = ""

    @property
    def copies(self) -> list[Copy]:
        """All copies that answer, each once."""
        copies = list(self.serving.values())
        if self.fallback is not None and self.fallback not in copies:
            copies.append(self.fallback)
        return copies

    @property
    def loaded(self) -> list[Copy]:
        """All copies, each once, with those that answer nobody yet."""
        waiting = [copy for version, copy in self.held.items() if version not in self.serving]
        return [*self.copies, *waiting]

    def follow(self, route: route_table.Route | None) -> Entry:
        """The same model by another route."""
        if not self.held:
            return self
        model = self.config
        shares, note = route_table.resolve(route, route_table.configured(model), self.held)
        waiting = {v for v in route_table.candidates(model) if v not in shares}
        serving = {v: copy for v, copy in self.held.items() if v not in waiting}
        return replace(
            self, serving=serving, shares=shares, note=note,
            default_version=max(shares, key=shares.__getitem__) if shares else self.default_version,
            # With one version there is nothing to draw, and a request pays for no more.
            split=Split(shares, self.held) if len(shares) > 1 else None,
            revision=0 if route is None else route.revision,
        )  # fmt: skip


def gateway_variants(model: ModelConfig) -> list[VariantConfig]:
    """The variants of which a worker holds a copy, in the config's order."""
    return [v for v in model.variants if GATEWAY_ROLES.intersection(v.roles)]


def slots_of(config: SidecarConfig) -> dict[str, int]:
    """``model:version/name`` → slot in the pages: by the config's order, so all workers agree."""
    keys = [f"{model.name}:{v.key}" for model in config.models for v in model.variants]
    return {key: slot for slot, key in enumerate(keys)}


MakeBatcher = Callable[["ModelConfig", Copy], "Batcher | None"]


class Registry:
    """The models of one worker. Changes are made under one lock, one at a time."""

    def __init__(
        self, config: SidecarConfig, make_batcher: MakeBatcher, admin_token: str | None = None
    ) -> None:
        self._admin_token = admin_token
        self._slots = slots_of(config)
        self._make_batcher = make_batcher
        self._lock = threading.Lock()
        self._routes: route_table.Routes = {}
        self.entries: dict[str, Entry] = {m.name: Entry(m) for m in config.models}
        #: Model → the metadata key whose value says which version answers; only what is configured.
        self.sticky: Mapping[str, str] = {
            m.name: m.route.sticky for m in config.models if m.route.sticky is not None
        }

    def slot(self, model: ModelConfig, variant: VariantConfig) -> int:
        """A variant's slot in the pages."""
        return self._slots[f"{model.name}:{variant.key}"]

    def slots_of_versions(self, model: ModelConfig) -> list[tuple[int, str]]:
        """The slot and the version of each variant that may answer requests."""
        return [(self.slot(model, each), each.version) for each in gateway_variants(model)]

    # --- looking up -----------------------------------------------------------------------------

    def entry(self, name: str) -> Entry:
        """The entry of a model.

        Raises:
            NotFoundError: there is none of that name.
        """
        entry = self.entries.get(name)
        if entry is None:
            if not name:
                text = "the request names no model"
                raise InvalidRequestError(text)
            known = ", ".join(f"'{known}'" for known in self.entries)
            text = f"unknown model '{name}'; this server has: {known}"
            raise NotFoundError(text)
        return entry

    def find(self, name: str, version: str) -> tuple[Entry, Copy]:
        """Which copy answers for a model and version (``""``: the default version).

        Raises:
            NotFoundError: no such model or version, or the model is not loaded.
        """
        entry = self.entry(name)
        copy = entry.serving.get(version or entry.default_version)
        if copy is None:
            if not entry.serving:
                text = f"model '{name}' is not loaded ({entry.reason or 'not yet'}); load it first"
                raise NotFoundError(text)
            if version in entry.held:
                text = f"version '{version}' of model '{name}' is a candidate: it is compared, and "
                text += "answers nobody until it is promoted (sidecar route promote MONITOR "
                text += f"{name} {version})"
                raise NotFoundError(text)
            known = ", ".join(entry.serving)
            text = f"model '{name}' has no version '{version}'; it has: {known}"
            raise NotFoundError(text)
        return entry, copy

    def route(self, name: str, version: str, point: float | None = None) -> tuple[Entry, Copy]:
        """Which copy is to answer a request.

        Args:
            version: as asked for; ``""``: as the route says.
            point: where the request lies in [0, 1); ``None``: anywhere.

        Raises:
            NotFoundError: as of ``find``.
        """
        entry = self.entries.get(name)
        if entry is None:
            return self.find(name, version)
        if not version:
            split = entry.split
            if split is None:
                version = entry.default_version
            else:
                version = split.pick(random() if point is None else point)  # noqa: S311 - a share is no secret
        copy = entry.serving.get(version)
        return self.find(name, version) if copy is None else (entry, copy)

    def ready(self) -> bool:
        """Whether every model that should be is loaded (unloading on request is no fault)."""
        return all(e.state == "READY" or e.unloaded for e in self.entries.values())

    # --- changing -------------------------------------------------------------------------------

    def prepare(self, name: str) -> Entry:
        """Load fresh copies of a model's variants; nothing changes until ``commit``.

        Raises:
            SidecarError: a copy cannot be loaded; what was loaded before it is freed.
        """
        model = self.entry(name).config
        answering = route_table.answering(model)
        held: dict[str, Copy] = {}
        fallback: Copy | None = None
        for variant in gateway_variants(model):
            try:
                copy = self._load(model, variant)
            except SidecarError as error:
                _leave_out(model, variant, error)
                continue
            if answering.get(variant.version) is variant:
                held[variant.version] = copy
            if "fallback" in variant.roles:
                fallback = copy
        for version, copy in list(held.items()):
            try:
                _check_same_signature(copy, fallback)
            except SidecarError as error:
                _leave_out(model, copy.config, error)
                del held[version]
        held = {version: held[version] for version in answering if version in held}
        return Entry(model, "READY", "", fallback=fallback, held=held).follow(None)

    def _load(self, model: ModelConfig, variant: VariantConfig) -> Copy:
        logger.info("loading %s:%s on %s", model.name, variant.key, variant.runtime.kind)
        runtime = runtimes.build(variant, largest_batch=model.batching.max_size)
        if isinstance(runtime, ForwardingRuntime):
            runtime.admin_token = self._admin_token  # it is ours, and not for the server behind us
        copy = Copy(model, variant, runtime, self.slot(model, variant))
        copy.batcher = self._make_batcher(model, copy)
        weakref.finalize(copy, _dispose, copy.key, runtime, copy.batcher).atexit = False
        return copy

    def commit(self, entry: Entry) -> None:
        """Put a prepared entry in place. Requests under way end on the copies they began with."""
        name = entry.config.name
        self._replace(name, entry)
        if note := self.entries[name].note:
            logger.warning("%s: %s", name, note)

    def unload(self, name: str) -> None:
        """Take a model out of service; its copies go when their requests are done."""
        entry = self.entry(name)
        self._replace(name, Entry(entry.config, "UNAVAILABLE", "unloaded", unloaded=True))

    def fail(self, name: str, reason: str) -> None:
        """Note why a model could not be loaded; what served before goes on serving."""
        entry = self.entry(name)
        if not entry.serving:
            self._replace(name, replace(entry, state="UNAVAILABLE", reason=reason))

    def _replace(self, name: str, entry: Entry) -> None:
        with self._lock:
            entry = entry.follow(self._routes.get(name))
            self.entries = {**self.entries, name: entry}  # readers hold the old dict: never mutated

    def follow(self, routes: route_table.Routes) -> None:
        """Route by another table from now on; models that are loaded later, too."""
        with self._lock:
            before, self._routes = self._routes, routes
            changed = {
                name: entry.follow(routes.get(name))
                for name, entry in self.entries.items()
                if routes.get(name) != before.get(name)
            }
            self.entries = {**self.entries, **changed}
        for name, entry in changed.items():
            _say(name, routes.get(name), entry)
        for name in routes.keys() - self.entries.keys() - before.keys():
            logger.warning("the route table names model '%s', which is not served here", name)

    def clear(self) -> None:
        """Drop every copy."""
        with self._lock:
            self.entries = {n: Entry(e.config, "UNAVAILABLE") for n, e in self.entries.items()}


def _leave_out(model: ModelConfig, variant: VariantConfig, error: SidecarError) -> None:
    """A candidate answers nobody: what keeps it from being loaded must not keep others from
    serving. Anything else that cannot be loaded is an error."""
    if "candidate" not in variant.roles:
        raise error
    logger.error("the candidate %s:%s is left out: %s", model.name, variant.key, error)


def _say(name: str, route: route_table.Route | None, entry: Entry) -> None:
    if route is None:
        logger.info("%s is routed as configured", name)
        return
    why = f"{route.by}: {route.reason}" if route.reason else route.by
    shares, plain = route.shares, route_table.configured(entry.config)
    text = "" if shares == plain else f"; {route_table.words(plain)} is configured"
    logger.info("%s is routed %s (revision %d, by %s)%s", name, route_table.words(shares),
                route.revision, why, text)  # fmt: skip
    if entry.note:
        logger.warning("%s: %s", name, entry.note)


def _check_same_signature(copy: Copy, fallback: Copy | None) -> None:
    """A fallback must take and give what the serving variant does, or its answers are none."""
    if fallback is None or copy is fallback:
        return
    for kind in ("inputs", "outputs"):
        ours = {s.name: s.datatype for s in getattr(copy.runtime.signature, kind)}
        theirs = {s.name: s.datatype for s in getattr(fallback.runtime.signature, kind)}
        if ours != theirs:
            text = f"{fallback.key} cannot be the fallback of {copy.key}: their {kind} differ, "
            text += f"{theirs} and {ours}"
            raise SidecarError(text)


__all__ = ["Array", "Copy", "Entry", "Registry", "gateway_variants", "slots_of"]
