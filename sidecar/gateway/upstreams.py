"""Whether the servers behind ``remote`` variants are ready: asked aside, told at once.

A probe must be answered in milliseconds, and a server that hangs answers in none. So nobody waits
for one: ``check`` asks them all, once a second, and everything else reads what it has found.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sidecar.gateway.registry import Copy, Registry

#: Asked at one time: one that hangs takes a second, and the others' news must not wait for it.
_THREADS_MAX = 16


class Upstreams:
    """The last known readiness of each remote copy."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        #: By copy, not by variant: one that was loaded meanwhile has just been found ready.
        self._ready: dict[str, bool] = {}

    def check(self) -> None:
        """Ask them all. Called by one thread at a time; takes as long as the slowest answer."""
        copies = [
            copy
            for entry in self._registry.entries.values()
            for copy in entry.loaded
            if copy.forwards
        ]
        if len(copies) < 2:
            answers = [_ask(copy) for copy in copies]
        else:
            with ThreadPoolExecutor(min(len(copies), _THREADS_MAX), "upstream-ready") as pool:
                answers = list(pool.map(_ask, copies))
        self._ready = {copy.cache_key: ready for copy, ready in zip(copies, answers, strict=True)}

    def ready(self, copy: Copy) -> bool:
        """Whether a copy can answer, as far as its server is concerned."""
        return not copy.forwards or self._ready.get(copy.cache_key, True)

    def all_ready(self) -> bool:
        """Whether every model's default version can be answered, by its fallback if need be."""
        for entry in self._registry.entries.values():
            serving = entry.serving.get(entry.default_version)
            if serving is None or self.ready(serving):
                continue
            if entry.fallback is None or not self.ready(entry.fallback):
                return False
        return True


def _ask(copy: Copy) -> bool:
    runtime: Any = copy.runtime
    return bool(runtime.ready())
