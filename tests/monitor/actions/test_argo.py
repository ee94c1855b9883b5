"""The update of an Argo Rollout is aborted, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.monitor.actions.base import Outcome
from tests.monitor.actions.clusters import NAME, action, request
from tests.support.kubernetes_api import Fault, KubernetesApi
from tests.support.kubernetes_controllers import rollout_controller


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as made:
        made.controllers.append(rollout_controller)
        yield made


def put(api: KubernetesApi, *, updated: str = "new", weights: bool = True) -> None:
    status: dict[str, Any] = {
        "stableRS": "old", "currentPodHash": updated, "phase": "Paused", "updatedReplicas": 1,
        "canary": {"weights": {"canary": {"weight": 20}, "stable": {"weight": 80}}},
    }  # fmt: skip
    if not weights:
        status["canary"] = {}
    api.put("rollouts", {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout",
                         "metadata": dict(NAME), "spec": {"replicas": 5},
                         "status": status})  # fmt: skip


def status(api: KubernetesApi) -> dict[str, Any]:
    found: dict[str, Any] = api.get("rollouts", "shop", "digits")["status"]
    return found


def change(api: KubernetesApi, **values: Any) -> None:
    api.change("rollouts", "shop", "digits", lambda o: o["status"].update(values))


@pytest.mark.parametrize("weights", [True, False])
def test_an_update_is_aborted_and_its_traffic_gone(api, tmp_path, weights):
    put(api, weights=weights)
    rollback = action("argo", api, tmp_path)
    assert rollback.check(request()).outcome is Outcome.DONE
    assert "abort" not in status(api)
    done = rollback.perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert status(api)["abort"] is True
    (patch,) = api.patches()
    assert (patch.resource, patch.body["status"]) == ("rollouts/status", {"abort": True})
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.DONE, seen.text
    assert "old gets everything" in seen.text


def test_another_update_is_left_alone_by_another_process_as_well(api, tmp_path):
    put(api)
    seen = action("argo", api, tmp_path).check(request()).seen
    assert seen == "new"
    change(api, currentPodHash="newer")
    next_one = action("argo", api, tmp_path)
    done = next_one.perform(request(seen=seen))
    assert done.outcome is Outcome.BLOCKED
    assert "from update new to newer since this was decided" in done.text
    assert api.patches() == []
    assert next_one.perform(request("d-2")).outcome is Outcome.DONE, "another decision's business"


def test_an_abort_that_does_not_show_yet_is_waited_for(api, tmp_path):
    put(api)
    api.controllers.clear()
    rollback = action("argo", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert rollback.verify(request()).outcome is Outcome.RETRY
    change(api, phase="Degraded", observedGeneration="1")
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.RETRY
    assert "weight is 20" in seen.text
    change(api, canary={"weights": {"canary": {"weight": 0}}})
    assert rollback.verify(request()).outcome is Outcome.DONE


def test_without_an_update_in_progress_there_is_nothing_to_abort(api, tmp_path):
    put(api, updated="old")
    done = action("argo", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "no update is in progress" in done.text
    assert api.patches() == []


def test_a_rollout_that_was_never_stable_has_no_way_back(api, tmp_path):
    put(api, updated="")
    assert action("argo", api, tmp_path).check(request()).outcome is Outcome.BLOCKED


def test_it_is_aborted_once(api, tmp_path):
    put(api)
    assert action("argo", api, tmp_path).perform(request()).outcome is Outcome.DONE
    again = action("argo", api, tmp_path).perform(request())
    assert again.outcome is Outcome.DONE
    assert "already" in again.text
    assert len(api.patches()) == 1


def test_a_status_written_meanwhile_is_read_again(api, tmp_path):
    put(api)
    api.meanwhile = [lambda: change(api, updatedReplicas=2)]
    assert action("argo", api, tmp_path).perform(request()).outcome is Outcome.DONE
    real = [call.status for call in api.calls if call.verb == "patch" and not call.dry_run]
    assert real == [409, 200]


def test_another_update_than_the_one_decided_about_goes_on(api, tmp_path):
    put(api)
    rollback = action("argo", api, tmp_path)
    assert rollback.check(request()).outcome is Outcome.DONE
    change(api, currentPodHash="newer")
    done = rollback.perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "from update new to newer" in done.text
    assert "abort" not in status(api)


def test_one_that_was_promoted_meanwhile_is_said(api, tmp_path):
    put(api)
    api.meanwhile = [lambda: change(api, stableRS="new")]
    done = action("argo", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "no update is in progress" in done.text


def test_an_abort_that_somebody_retried_is_said(api, tmp_path):
    put(api)
    rollback = action("argo", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    change(api, abort=False)
    assert rollback.verify(request()).outcome is Outcome.BLOCKED


def test_undo_takes_the_update_up_again(api, tmp_path):
    put(api)
    rollback = action("argo", api, tmp_path)
    assert rollback.undo(request()).outcome is Outcome.NOTHING
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert rollback.undo(request()).outcome is Outcome.DONE
    assert status(api)["abort"] is False
    assert status(api)["phase"] == "Paused"


def test_a_missing_right_names_the_subresource(api, tmp_path):
    put(api)
    api.rules = [{"apiGroups": ["argoproj.io"], "resources": ["rollouts"],
                  "verbs": ["get", "patch"]}]  # fmt: skip
    done = action("argo", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "may not patch rollouts/status.argoproj.io" in done.text
    assert '"resources": ["rollouts/status"]' in done.text


def test_no_such_rollout(api, tmp_path):
    done = action("argo", api, tmp_path).check(request())
    assert (done.outcome, "not there" in done.text) == (Outcome.BLOCKED, True)


@pytest.mark.parametrize("what", ["garbage", "drop", 503])
def test_a_server_that_is_not_well_is_asked_again(api, tmp_path, what):
    put(api)
    api.faults.append(Fault("get", what))
    rollback = action("argo", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.RETRY
    assert rollback.perform(request()).outcome is Outcome.DONE


def test_an_answer_that_was_lost_is_found_at_the_next_attempt(api, tmp_path):
    put(api)
    api.faults.append(Fault("patch", "die", dry_run=False))
    rollback = action("argo", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.RETRY
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert len(api.patches()) == 1
