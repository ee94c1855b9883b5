"""The dashboard of rolling back: evidence beside its thresholds, states, decisions, alerts."""

from __future__ import annotations

from exporters import instruments as known
from tests.support.dashboard_parts import MODEL, PLACE, ROLLBACKS, models
from tests.support.grafana import (
    GREEN,
    GREY,
    RED,
    YELLOW,
    Json,
    Panel,
    Query,
    dashboard,
    field_override,
    link,
    series,
    stat,
    table,
    timeline,
)

_EVIDENCE = known.ROLLBACK_EVIDENCE.prometheus_name
_ALERTS_AT = known.ROLLBACK_THRESHOLD.prometheus_name
_ACTS_AT = known.ROLLBACK_THRESHOLD_ACT.prometheus_name
_STATE = known.ROLLBACK_STATE.prometheus_name
_PAIRS = known.ROLLBACK_PAIRS.prometheus_name
_LAST = known.ROLLBACK_LAST_CHECK.prometheus_name
_STALE = known.ROLLBACK_STALE.prometheus_name
_FROZEN = known.ROLLBACK_FROZEN.prometheus_name
_DECISIONS = known.ROLLBACK_DECISIONS.prometheus_name
_ACTION = known.ROLLBACK_ACTION.prometheus_name
_WAITING = known.ALERTS_WAITING.prometheus_name
_LEADER = known.FLEET_LEADER.prometheus_name
_CHANGES = known.FLEET_LEADER_CHANGES.prometheus_name
_REPLICAS = known.FLEET_REPLICAS.prometheus_name
_EXCHANGED = known.FLEET_LAST_EXCHANGE.prometheus_name

BY_PAIR = "model_name, new, previous"
BY_HARM = f"{BY_PAIR}, metric"
PAIR = "{{model_name}} {{new}} beside {{previous}}"
#: States in the order of how bad they are, and how they are drawn.
STATES = (
    ("insufficient", "insufficient", YELLOW), ("ok", "ok", GREEN),
    ("suspect", "suspect", YELLOW), ("regressed", "regressed", RED),
    ("rolled_back", "rolled back", GREY), ("blocked", "blocked", RED),
)  # fmt: skip


def _largest(name: str, by: str, chosen: str = MODEL) -> str:
    """Replicas tell the same of a pair: the largest is one of them."""
    return f"max by ({by}) ({name}{{{chosen}}})"


def _now() -> list[Panel]:
    def pairs_in(states: str) -> str:
        one = f'max by ({BY_PAIR}) ({_STATE}{{{MODEL},state=~"{states}"}})'
        return f"count({one} == 1) or vector(0)"

    return [
        stat("Worse versions",
             "Pairs that are regressed: the evidence suffices to act. What is rolled back is over.",
             pairs_in("regressed"), "none", width=5, steps=((GREEN, None), (RED, 1))),
        stat("Suspect", "Pairs whose evidence suffices to alert, and not to act.",
             pairs_in("suspect"), "none", width=5, steps=((GREEN, None), (YELLOW, 1))),
        stat("Blocked", "Pairs that cannot be compared, or whose action a person must look at.",
             pairs_in("blocked"), "none", width=5, steps=((GREEN, None), (RED, 1))),
        stat("Not judged", "Pairs with too little data, or to which no new pair of answers comes.",
             pairs_in("insufficient"), "none", width=5, steps=((GREEN, None), (YELLOW, 1))),
        stat("Last check", "How long ago the pair that was looked at longest ago was.",
             f"time() - min({_LAST}{{{MODEL}}})", "s", width=4,
             steps=((GREEN, None), (YELLOW, 60), (RED, 600))),
    ]  # fmt: skip


def _evidence() -> list[Panel]:
    over = f"{_largest(_EVIDENCE, BY_HARM)} / {_largest(_ALERTS_AT, BY_HARM)}"
    return [
        series("Evidence over threshold",
               "What says that the new version is worse, of what it takes to alert (100 %, both on "
               "a logarithmic scale). The best that was ever seen counts, so a peak is enough.",
               [Query(over, f"{PAIR}: {{{{metric}}}}")], "percentunit", line=1, height=10,
               width=16),
        series("Pairs", "Requests per second that both versions were run on, by harm.",
               [Query(f"max by ({BY_HARM}) (rate({_PAIRS}{{{MODEL}}}[$__rate_interval]))",
                      f"{PAIR}: {{{{metric}}}}")], "reqps", height=10, width=8),
        table("By harm",
              "The latest look. Evidence is the natural logarithm of odds against chance; what may "
              "not act has no threshold for it.",
              [(over, "Of what alerts", "percentunit"),
               (_largest(_EVIDENCE, BY_HARM), "Evidence", "none"),
               (_largest(_ALERTS_AT, BY_HARM), "Alerts at", "none"),
               (_largest(_ACTS_AT, BY_HARM), "Acts at", "none")],
              (),
              {"model_name": "Model", "new": "New", "previous": "Previous", "metric": "Harm"},
              overrides=[
                  field_override("Of what alerts", custom__cellOptions={
                      "type": "gauge", "mode": "gradient"}, min=0, max=2,
                      thresholds={"mode": "absolute", "steps": [
                          {"color": GREEN, "value": None}, {"color": YELLOW, "value": 0.8},
                          {"color": RED, "value": 1}]}),
                  field_override("Model", links=[
                      link("Its traffic", "traffic", model="${__value.text}"),
                      link("Its drift", "drift", model="${__value.text}")]),
                  field_override("New", links=[
                      link("Its agreement", "agreement",
                           model='${__data.fields["Model"]}')]),
              ],
              sort=[{"displayName": "Of what alerts", "desc": True}], height=9),
    ]  # fmt: skip


def _decided() -> list[Panel]:
    numbered = " + ".join(
        f'{number} * max by ({BY_PAIR}) ({_STATE}{{{MODEL},state="{state}"}})'
        for number, (state, _, _) in enumerate(STATES)
        if number
    )
    words = {number: (word, color) for number, (_, word, color) in enumerate(STATES)}
    yes = {0: ("no", GREEN), 1: ("yes", YELLOW)}
    return [
        timeline("States", "How each new version stood beside its previous one.",
                 Query(numbered, PAIR), words=words, height=7),
        timeline("Stale", "Requests come, and none of them is run on both versions.",
                 Query(_largest(_STALE, BY_PAIR), PAIR), words=yes, height=6, width=12),
        timeline("Frozen", "Nobody but an operator may act.",
                 Query(_largest(_FROZEN, "model_name"), "{{model_name}}"), words=yes, height=6,
                 width=12),
        series("Decisions", "What was decided, by what decided.",
               [Query(f"sum by (model_name, state, metric) (increase({_DECISIONS}{{{MODEL}}}"
                      "[$__rate_interval]))", "{{model_name}} {{state}} {{metric}}")],
               "none", width=8),
        series("Actions", "How far the action of each pair's decision is.",
               [Query(f"max by ({BY_PAIR}, action, state) ({_ACTION}{{{MODEL}}})",
                      f"{PAIR}: {{{{action}}}} {{{{state}}}}")], "none", width=8),
        series("Alerts that wait", "That their channel has not taken yet; of all models.",
               [Query(f"sum by (channel) ({_WAITING}{{{PLACE}}})", "{{channel}}")], "none",
               width=8),
    ]  # fmt: skip


def _labels() -> list[Panel]:
    labels = known.LABELS.prometheus_name
    waiting = known.LABELS_WAITING.prometheus_name
    coverage = known.LABELS_COVERAGE.prometheus_name
    return [
        series("Labels", "Late labels per second, by what became of them.",
               [Query(f"sum by (model_name, outcome, reason) (rate({labels}{{{MODEL}}}"
                      "[$__rate_interval]))", "{{model_name}} {{outcome}} {{reason}}")],
               "ops", width=8),
        series("Answers that wait", "For their label; then none will come.",
               [Query(f"sum by (model_name) ({waiting}{{{MODEL}}})", "{{model_name}}")],
               "none", width=8),
        series("Coverage", "Of the answers that wait no longer, the share that got its label.",
               [Query(f"min by (model_name) ({coverage}{{{MODEL}}})", "{{model_name}}")],
               "percentunit", width=8, most=1),
    ]  # fmt: skip


def _fleet() -> list[Panel]:
    where = "namespace, job"
    return [
        timeline("Leader", "Which replica decides for all that share its store.",
                 Query(f"max by (namespace, job, instance) ({_LEADER}{{{PLACE}}})", "{{instance}}"),
                 words={0: ("follows", GREY), 1: ("leads", GREEN)}, height=8, width=8),
        series("Replicas", "That are alive, as the one that knows of most has heard.",
               [Query(f"max by ({where}) ({_REPLICAS}{{{PLACE}}})", "{{namespace}} {{job}}")],
               "none", height=8, width=5),
        series("Changes of leader",
               "One when a pod is replaced; again and again: a database or monitors that are slow.",
               [Query(f"max by ({where}) (increase({_CHANGES}{{{PLACE}}}[$__rate_interval]))",
                      "{{namespace}} {{job}}")], "none", height=8,
               width=5),
        series("Age of the last exchange",
               "Since a replica's counts were written to the shared store, and the others' read.",
               [Query(f"time() - max by (namespace, job, instance) ({_EXCHANGED}{{{PLACE}}})",
                      "{{instance}}")], "s", height=8, width=6),
    ]  # fmt: skip


def rollback() -> Json:
    """Whether new versions are worse, and what was done about it."""
    return dashboard(
        "model-sidecar-rollback", "Model sidecar / Rollback",
        "Each new version beside the previous one: evidence, states, decisions and actions.",
        models(_STATE),
        [("Now", _now()), ("Evidence", _evidence()), ("Decisions", _decided()),
         ("Fleet", _fleet()), ("Late labels", _labels())],
         [ROLLBACKS],
    )  # fmt: skip


__all__ = ["rollback"]
