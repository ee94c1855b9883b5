"""A KServe canary loses its traffic, over a real socket."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.monitor.actions.base import Outcome
from tests.monitor.actions.clusters import NAME, action, request
from tests.support.kubernetes_api import Fault, KubernetesApi, Object
from tests.support.kubernetes_controllers import kserve_controller


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as made:
        made.controllers.append(kserve_controller)
        yield made


def put(
    api: KubernetesApi, *, percent: int | None = 20, rolled_out: str = "rev-2",
    before: str = "", annotations: dict[str, str] | None = None, **changes: Any,
) -> None:  # fmt: skip
    spec: dict[str, Any] = {"predictor": {"model": {"storageUri": "s3://digits/3"}}}
    if percent is not None:
        spec["predictor"]["canaryTrafficPercent"] = percent
    predictor = {"latestReadyRevision": "rev-3", "latestRolledoutRevision": rolled_out}
    if before:
        predictor["previousRolledoutRevision"] = before
    status = {"components": {"predictor": predictor}, **changes}
    api.put("inferenceservices", {
        "apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
        "metadata": {**NAME, "annotations": annotations or {}}, "spec": spec, "status": status,
    })  # fmt: skip


def service(api: KubernetesApi) -> Object:
    return api.get("inferenceservices", "shop", "digits")


def percent(api: KubernetesApi) -> int | None:
    found: int | None = service(api)["spec"]["predictor"].get("canaryTrafficPercent")
    return found


def set_percent(api: KubernetesApi, value: int) -> None:
    api.change("inferenceservices", "shop", "digits",
               lambda o: o["spec"]["predictor"].update(canaryTrafficPercent=value))  # fmt: skip


def test_another_revision_is_left_alone_by_another_process_as_well(api, tmp_path):
    put(api)
    seen = action("kserve", api, tmp_path).check(request()).seen
    assert seen == "rev-3"

    def newer(document: Object) -> None:
        document["status"]["components"]["predictor"]["latestReadyRevision"] = "rev-4"

    api.change("inferenceservices", "shop", "digits", newer)
    next_one = action("kserve", api, tmp_path)
    done = next_one.perform(request(seen=seen))
    assert done.outcome is Outcome.BLOCKED
    assert "from revision rev-3 to rev-4 since this was decided" in done.text
    assert percent(api) == 20
    assert next_one.perform(request("d-2")).outcome is Outcome.DONE, "another decision's business"


def test_a_canary_loses_its_traffic(api, tmp_path):
    put(api)
    rollback = action("kserve", api, tmp_path)
    assert rollback.check(request()).outcome is Outcome.DONE
    assert percent(api) == 20
    done = rollback.perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert percent(api) == 0
    assert service(api)["spec"]["predictor"]["model"] == {"storageUri": "s3://digits/3"}
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.DONE, seen.text
    assert "rev-3 gets 0 % of the traffic, others 100 %" in seen.text


def test_what_was_rolled_out_wholly_goes_back_as_well(api, tmp_path):
    put(api, percent=None, rolled_out="rev-3", before="rev-2")
    rollback = action("kserve", api, tmp_path)
    done = rollback.perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert "rev-2 to 100 %" in done.text
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.DONE, seen.text
    # And an operator's undo takes the setting away again.
    assert rollback.undo(request()).outcome is Outcome.DONE
    assert percent(api) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}},
        {"annotations": {"serving.kserve.io/deploymentMode": "Standard"}},
        {"deploymentMode": "RawDeployment"},
        {"components": {"predictor": {}}},
    ],
)
def test_raw_deployments_would_ignore_it_and_are_refused(api, tmp_path, changes):
    api.controllers.clear()
    put(api, **changes)
    done = action("kserve", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "ignores canaryTrafficPercent" in done.text
    assert "action `deployment`" in done.text
    assert api.patches() == []


def test_without_another_revision_there_is_no_way_back(api, tmp_path):
    put(api, percent=None, rolled_out="rev-3")
    done = action("kserve", api, tmp_path).check(request())
    assert done.outcome is Outcome.BLOCKED
    assert "nothing to go back to" in done.text


def test_a_canary_without_traffic_needs_nothing(api, tmp_path):
    put(api, percent=0)
    assert action("kserve", api, tmp_path).perform(request()).outcome is Outcome.NOTHING


def test_it_is_done_once(api, tmp_path):
    put(api)
    assert action("kserve", api, tmp_path).perform(request(fence=4)).outcome is Outcome.DONE
    again = action("kserve", api, tmp_path).perform(request(fence=5))
    assert (again.outcome, "before" in again.text) == (Outcome.DONE, True)
    stale = action("kserve", api, tmp_path).perform(request(fence=2))
    assert (stale.outcome, "fence 4" in stale.text) == (Outcome.BLOCKED, True)
    assert len(api.patches()) == 1


def test_a_change_meanwhile_is_read_again(api, tmp_path):
    put(api)
    api.meanwhile = [lambda: set_percent(api, 40)]
    rollback = action("kserve", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert [call.status for call in api.calls if call.verb == "patch" and not call.dry_run] == [
        409,
        200,
    ]
    # What the other one set is what an undo gives back.
    assert rollback.undo(request()).outcome is Outcome.DONE
    assert percent(api) == 40


def test_another_revision_than_the_one_decided_about_keeps_its_traffic(api, tmp_path):
    put(api)
    rollback = action("kserve", api, tmp_path)
    assert rollback.check(request()).outcome is Outcome.DONE

    def newer(document: Object) -> None:
        document["status"]["components"]["predictor"]["latestReadyRevision"] = "rev-4"

    api.change("inferenceservices", "shop", "digits", newer)
    done = rollback.perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert percent(api) == 20


def test_traffic_that_somebody_gave_back_is_said(api, tmp_path):
    put(api, annotations={"argocd.argoproj.io/tracking-id": "shop"})
    rollback = action("kserve", api, tmp_path)
    assert "Argo CD" in rollback.perform(request()).text
    set_percent(api, 20)
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.BLOCKED
    assert "Argo CD" in seen.text
    assert rollback.undo(request()).outcome is Outcome.BLOCKED


def test_what_was_set_back_is_done_again_where_an_operator_has_it_checked_again(api, tmp_path):
    put(api)
    rollback = action("kserve", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    set_percent(api, 20)
    assert "before" in rollback.perform(request()).text
    assert percent(api) == 20
    assert rollback.check(request()).outcome is Outcome.DONE  # approved
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert percent(api) == 0
    set_percent(api, 20)
    assert "before" in rollback.perform(request()).text
    assert percent(api) == 20


def test_traffic_that_does_not_follow_is_waited_for(api, tmp_path):
    put(api)
    api.controllers.clear()
    rollback = action("kserve", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert rollback.verify(request()).outcome is Outcome.RETRY


def test_an_operator_takes_it_back_and_it_stays_taken_back(api, tmp_path):
    put(api)
    rollback = action("kserve", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert rollback.undo(request()).outcome is Outcome.DONE
    assert percent(api) == 20
    assert rollback.undo(request()).outcome is Outcome.DONE
    assert rollback.perform(request()).outcome is Outcome.BLOCKED
    assert len(api.patches()) == 2


def test_a_missing_right_is_named(api, tmp_path):
    put(api)
    api.rules = []
    done = action("kserve", api, tmp_path).check(request())
    assert done.outcome is Outcome.BLOCKED
    assert "may not get inferenceservices.serving.kserve.io" in done.text


def test_an_answer_that_was_lost_is_found_at_the_next_attempt(api, tmp_path):
    put(api)
    api.faults.append(Fault("patch", "die", dry_run=False))
    rollback = action("kserve", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.RETRY
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert len(api.patches()) == 1
