"""Whether a GitOps tool manages an object, and would set back what we change."""

from __future__ import annotations

from typing import Any

_TOOLS = {
    "argocd.argoproj.io/": "Argo CD",
    "kustomize.toolkit.fluxcd.io/": "Flux",
    "helm.toolkit.fluxcd.io/": "Flux",
}


def git_ops(document: dict[str, Any]) -> str:
    """A warning to be added to what is said; empty where no such tool left its sign.

    Argo CD may also be told to track by the label `app.kubernetes.io/instance`, which Helm sets as
    well: it is no sign of either.
    """
    meta = document["metadata"]
    for key in (*(meta.get("annotations") or {}), *(meta.get("labels") or {})):
        for prefix, tool in _TOOLS.items():
            if key.startswith(prefix):
                return (
                    f". {tool} manages it ({key}) and sets it back to what Git says at its next "
                    "sync: revert it in Git as well"
                )
    return ""
