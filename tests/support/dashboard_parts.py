"""What several dashboards have in common: what is chosen at their top, and what is marked in them.

Labels ``namespace`` and ``instance`` come from whoever scrapes. Where they are missing (metrics
sent by OTLP), *All* takes every series all the same: ``=~".*"`` is true of an absent label.
"""

from __future__ import annotations

from exporters import instruments as known
from tests.support.grafana import RED, event, variable

#: Every variant that was executed has it, by whom and wherever.
ANCHOR = f"{known.INFERENCE_DURATION.prometheus_name}_count"
_STATE = known.ROLLBACK_STATE.prometheus_name

#: Of the chosen namespaces.
SPACE = 'namespace=~"$namespace"'
#: Of the chosen pods.
PLACE = f'{SPACE},instance=~"$instance"'
#: Of the chosen models in them.
MODEL = f'{PLACE},model_name=~"$model"'


def places(of: str = ANCHOR) -> list[dict[str, object]]:
    """The variables of ``PLACE``, filled from a metric."""
    return [
        variable("namespace", "Namespace", f"label_values({of}, namespace)",
                 "Of which namespaces."),
        variable("instance", "Instance", f"label_values({of}{{{SPACE}}}, instance)",
                 "Of which sidecars; where the chart's monitors scrape, the pods' names."),
    ]  # fmt: skip


def models(of: str = ANCHOR) -> list[dict[str, object]]:
    """The variables of ``MODEL``, filled from a metric."""
    return [
        *places(of),
        variable(
            "model", "Model", f"label_values({of}{{{PLACE}}}, model_name)", "Of which models."
        ),
    ]


def _came(state: str) -> str:
    by = "model_name, new, previous, state"
    chosen = f'{_STATE}{{{MODEL},state=~"{state}"}}'
    now, before = (f"max by ({by}) ({chosen}{offset} == 1)" for offset in ("", " offset 1m"))
    return f"{now} unless {before}"


#: When a new version came to be in a state that somebody should know of.
ROLLBACKS = event(
    "Rollback", _came("suspect|regressed|rolled_back|blocked"),
    "{{model_name}}: {{new}} beside {{previous}} is {{state}}", RED,
)  # fmt: skip

__all__ = ["ANCHOR", "MODEL", "PLACE", "ROLLBACKS", "SPACE", "models", "places"]
