"""A Deployment is rolled back: over a real socket, by the real client."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.monitor.actions.base import Outcome
from sidecar.monitor.actions.cluster import MARK, VERSION
from tests.monitor.actions.clusters import (
    action,
    deploy,
    image,
    request,
    roll_out,
    template,
    touch,
)
from tests.support.kubernetes_api import Fault, KubernetesApi
from tests.support.kubernetes_controllers import REVISION

V1, V2, V3 = (template(f"digits:{n}") for n in (1, 2, 3))


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as made:
        yield made


def mark(api: KubernetesApi) -> dict[str, Any]:
    meta = api.get("deployments", "shop", "digits")["metadata"]
    found: dict[str, Any] = json.loads(meta["annotations"][MARK])
    return found


def test_it_goes_back_one_revision_and_only_that(api, tmp_path):
    deploy(api, V1, V2, V3)
    rollback = action("deployment", api, tmp_path)

    checked = rollback.check(request())
    assert checked.outcome is Outcome.DONE, checked.text
    assert image(api) == "digits:3", "a check changes nothing"
    assert [call.dry_run for call in api.calls if call.verb == "patch"] == [True]

    done = rollback.perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert "from revision 3" in done.text
    assert "to revision 2" in done.text
    deployed = api.get("deployments", "shop", "digits")
    # Whole, with the field that no client knows, and without the controller's label.
    assert deployed["spec"]["template"] == V2
    assert deployed["metadata"]["annotations"]["kubernetes.io/change-cause"].startswith(
        "model-sidecar: version 3 errs"
    )
    assert [call.manager for call in api.patches()] == ["model-sidecar"]
    # The dry run first, and the same patch then.
    dry, real = [call for call in api.calls if call.verb == "patch"][-2:]
    assert (dry.dry_run, real.dry_run, dry.body) == (True, False, real.body)

    seen = rollback.verify(request())
    assert seen.outcome is Outcome.DONE, seen.text
    assert "3 of 3 pods" in seen.text


def test_a_rollout_that_is_not_over_is_not_yet_verified(api, tmp_path):
    controller = deploy(api, V2, V3)
    controller.held = True
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.RETRY
    assert "0 of 3 pods" in seen.text
    controller.held = False
    touch(api)
    assert rollback.verify(request()).outcome is Outcome.DONE


def test_a_target_whose_pods_do_not_come_up_is_told(api, tmp_path):
    controller = deploy(api, V2, V3)
    rollback = action("deployment", api, tmp_path)
    controller.broken.add("digits:2")
    assert rollback.perform(request()).outcome is Outcome.DONE
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.BLOCKED
    assert "ProgressDeadlineExceeded" in seen.text


# --- which revision -------------------------------------------------------------------------------


def test_a_revision_that_never_came_up_is_passed_over(api, tmp_path):
    controller = deploy(api, V1)
    controller.broken = {"digits:2", "digits:3"}  # neither ever comes up: 1 keeps serving
    roll_out(api, V2)
    roll_out(api, V3)
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert image(api) == "digits:1"


def test_no_healthy_revision_is_said_for_each(api, tmp_path):
    controller = deploy(api, V2)
    controller.broken.add("digits:2")
    touch(api)
    controller.held = True
    roll_out(api, V3)
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "revision 1" in done.text
    assert "none is ready" in done.text
    assert api.patches() == []


def test_the_only_revision_cannot_be_rolled_back(api, tmp_path):
    deploy(api, V3)
    done = action("deployment", api, tmp_path).check(request())
    assert done.outcome is Outcome.BLOCKED
    assert "revisionHistoryLimit" in done.text


def test_what_was_taken_back_once_is_no_way_back(api, tmp_path):
    deploy(api, V1, V2, V3)
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request("first")).outcome is Outcome.DONE
    assert image(api) == "digits:2"
    # Version 2 is found wanting as well: the revision before it, by number, is version 3.
    done = rollback.perform(request("second", new="2/onnx", previous="1/onnx"))
    assert done.outcome is Outcome.DONE, done.text
    assert image(api) == "digits:1"
    assert len(mark(api)["taken_back"]) == 2


def versioned(n: int, image: str = "") -> dict[str, Any]:
    return template(image or f"digits:{n}", **{VERSION: str(n)})


def test_where_templates_say_their_version_it_decides(api, tmp_path):
    # A change of resources in between: the last revision before is of the same version.
    deploy(api, versioned(2), versioned(3, "digits:3-small"), versioned(3))
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert image(api) == "digits:2"


def test_a_version_that_no_longer_runs_is_not_rolled_back(api, tmp_path):
    deploy(api, versioned(2), versioned(3), versioned(4))
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.NOTHING
    assert "runs version 4" in done.text
    assert api.patches() == []


def test_replica_sets_of_others_with_the_same_labels_are_not_ours(api, tmp_path):
    deploy(api, V2, V3)
    stranger = api.all("replicasets", "shop")[0]
    stranger["metadata"].update(name="stranger", uid="other")
    stranger["metadata"]["ownerReferences"][0]["uid"] = "uid-of-another-deployment"
    stranger["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "2"
    stranger["spec"]["template"]["spec"]["containers"][0]["image"] = "stranger:1"
    api.put("replicasets", stranger)
    assert action("deployment", api, tmp_path).perform(request()).outcome is Outcome.DONE
    assert image(api) == "digits:2"


def test_many_revisions_come_in_pages(api, tmp_path):
    deploy(api, *(template(f"digits:{n}") for n in range(103)))
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.DONE, done.text
    assert image(api) == "digits:101"
    assert sum(call.verb == "list" for call in api.calls) == 2


# --- what keeps it from being done ----------------------------------------------------------------


def test_a_paused_deployment_is_left_alone(api, tmp_path):
    deploy(api, V2, V3)
    api.change("deployments", "shop", "digits", lambda o: o["spec"].update(paused=True))
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "kubectl rollout resume" in done.text
    assert api.patches() == []


def test_one_that_is_scaled_to_nothing_is_left_alone(api, tmp_path):
    deploy(api, V2, V3)
    api.change("deployments", "shop", "digits", lambda o: o["spec"].update(replicas=0))
    assert action("deployment", api, tmp_path).check(request()).outcome is Outcome.BLOCKED


def test_a_change_that_the_controller_has_not_seen_is_waited_for(api, tmp_path):
    controller = deploy(api, V1, V2)
    controller.asleep = True
    roll_out(api, V3)
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.RETRY
    assert api.patches() == []


@pytest.mark.parametrize(
    ("key", "tool"),
    [
        ("argocd.argoproj.io/tracking-id", "Argo CD"),
        ("kustomize.toolkit.fluxcd.io/name", "Flux"),
        ("helm.toolkit.fluxcd.io/name", "Flux"),
    ],
)
def test_that_git_will_set_it_back_is_said(api, tmp_path, key, tool):
    deploy(api, V2, V3, annotations={key: "shop"})
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.DONE
    assert f"{tool} manages it" in done.text


def test_what_git_has_set_back_is_blocked_and_said(api, tmp_path):
    deploy(api, V2, V3, annotations={"argocd.argoproj.io/tracking-id": "shop"})
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    roll_out(api, V3)
    seen = rollback.verify(request())
    assert seen.outcome is Outcome.BLOCKED
    assert "the revision that was taken away" in seen.text
    assert "Argo CD" in seen.text
    # And it is not done again by itself: that would be a fight.
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert image(api) == "digits:3"


def test_what_was_set_back_is_done_again_where_an_operator_has_it_checked_again(api, tmp_path):
    deploy(api, V2, V3)
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    roll_out(api, V3)
    assert rollback.verify(request()).outcome is Outcome.BLOCKED
    # Approved: then it is checked again, and only then.
    checked = rollback.check(request())
    assert checked.outcome is Outcome.DONE
    assert "can be done" in checked.text
    assert rollback.perform(request()).outcome is Outcome.DONE
    assert image(api) == "digits:2"
    assert rollback.verify(request()).outcome is Outcome.DONE
    roll_out(api, V3)
    assert "before" in rollback.perform(request()).text
    assert image(api) == "digits:3"


# --- once, and by one -----------------------------------------------------------------------------


def test_repeating_a_decision_changes_nothing_more(api, tmp_path):
    deploy(api, V1, V2, V3)
    first = action("deployment", api, tmp_path)
    assert first.perform(request()).outcome is Outcome.DONE
    # Another process, later, that knows nothing but the decision.
    again = action("deployment", api, tmp_path).perform(request())
    assert again.outcome is Outcome.DONE
    assert "before" in again.text
    assert (len(api.patches()), image(api)) == (1, "digits:2")


def test_an_owner_that_was_replaced_does_nothing(api, tmp_path):
    deploy(api, V1, V2, V3)
    assert action("deployment", api, tmp_path).perform(request(fence=7)).outcome is Outcome.DONE
    stale = action("deployment", api, tmp_path).perform(request(fence=3))
    assert stale.outcome is Outcome.BLOCKED
    assert "fence 7" in stale.text
    assert len(api.patches()) == 1


def test_a_status_written_meanwhile_is_read_again(api, tmp_path):
    deploy(api, V1, V2, V3)
    api.meanwhile = [lambda: touch(api), lambda: touch(api)]
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.DONE, done.text
    statuses = [call.status for call in api.calls if call.verb == "patch" and not call.dry_run]
    assert statuses == [422, 422, 200]
    assert image(api) == "digits:2"


def test_one_that_never_stands_still_is_tried_again_later(api, tmp_path):
    deploy(api, V2, V3)
    api.meanwhile = [lambda: touch(api)] * 3
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.RETRY
    assert image(api) == "digits:3"


def test_what_somebody_deploys_meanwhile_is_not_rolled_back(api, tmp_path):
    deploy(api, V1, V2, V3)
    api.meanwhile = [lambda: roll_out(api, template("digits:4"))]
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "not about it" in done.text
    assert image(api) == "digits:4"


def test_what_was_deployed_since_the_check_is_not_rolled_back(api, tmp_path):
    deploy(api, V1, V2, V3)
    rollback = action("deployment", api, tmp_path)
    assert rollback.check(request()).outcome is Outcome.DONE
    roll_out(api, template("digits:4"))
    assert rollback.perform(request()).outcome is Outcome.BLOCKED
    assert image(api) == "digits:4"


def test_of_two_at_once_one_patch_lands(api, tmp_path):
    deploy(api, V1, V2, V3)
    barrier = threading.Barrier(2)
    actors = [action("deployment", api, tmp_path) for _ in range(2)]
    results: dict[int, Any] = {}

    def act(index: int) -> None:
        barrier.wait()
        results[index] = actors[index].perform(request(fence=index + 1))

    # Both have passed their dry run before either patches.
    meet = threading.Barrier(2)
    api.meanwhile = [meet.wait, meet.wait]
    threads = [threading.Thread(target=act, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(api.patches()) == 1
    assert image(api) == "digits:2"
    outcomes = {result.outcome for result in results.values()}
    # The other one sees the mark: done before, or (where its fence is the older) not its own.
    assert outcomes <= {Outcome.DONE, Outcome.BLOCKED}
    assert Outcome.DONE in outcomes


# --- rights, and servers that fail ----------------------------------------------------------------


def test_a_missing_right_is_named_with_the_role_that_gives_it(api, tmp_path):
    deploy(api, V2, V3)
    api.rules = [
        {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]},
        {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["list"]},
    ]
    done = action("deployment", api, tmp_path).check(request())
    assert done.outcome is Outcome.BLOCKED
    assert "may not patch deployments.apps in namespace shop (403" in done.text
    assert '"verbs": ["get", "patch"], "resourceNames": ["digits"]' in done.text
    api.rules = api.rules[:1]
    done = action("deployment", api, tmp_path).check(request())
    assert "may not list replicasets.apps" in done.text


def test_a_token_that_is_not_taken_is_said(api, tmp_path):
    deploy(api, V2, V3)
    done = action("deployment", api, tmp_path, token="another").check(request())
    assert done.outcome is Outcome.BLOCKED
    assert "401" in done.text


def test_a_deployment_that_is_not_there_is_said(api, tmp_path):
    done = action("deployment", api, tmp_path).check(request())
    assert done.outcome is Outcome.BLOCKED
    assert 'deployments.apps "digits" not found' in done.text


def test_what_the_server_finds_invalid_is_blocked(api, tmp_path):
    deploy(api, V2, V3)

    def relabel(document: Any) -> None:
        document["spec"]["template"]["metadata"]["labels"].pop("app")

    owned = api.all("replicasets", "shop")
    name = min(owned, key=lambda one: one["metadata"]["annotations"][REVISION])["metadata"]["name"]
    api.controllers.clear()
    api.change("replicasets", "shop", name, relabel)
    done = action("deployment", api, tmp_path).perform(request())
    assert done.outcome is Outcome.BLOCKED
    assert "invalid (422)" in done.text
    assert api.patches() == []


@pytest.mark.parametrize("verb", ["get", "patch"])
def test_a_server_that_hangs_holds_nobody_longer_than_the_limit(api, tmp_path, verb):
    deploy(api, V2, V3)
    api.faults.append(Fault(verb, "hang"))
    done = action("deployment", api, tmp_path, timeout_s=0.5).perform(request())
    assert done.outcome is Outcome.RETRY
    assert "within 0.5 s" in done.text
    assert image(api) == "digits:3"


def test_hanging_calls_are_bounded(api, tmp_path):
    deploy(api, V2, V3)
    api.faults.append(Fault("get", "hang", times=100))
    rollback = action("deployment", api, tmp_path, timeout_s=0.1)
    texts = [rollback.perform(request()).text for _ in range(6)]
    # Each socket ends with its own limit too, so which of them still hang is a matter of time.
    assert all("within 0.1 s" in text or "still hang" in text for text in texts)


def test_an_answer_that_was_lost_is_found_at_the_next_attempt(api, tmp_path):
    deploy(api, V1, V2, V3)
    api.faults.append(Fault("patch", "die", dry_run=False))
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.RETRY
    assert image(api) == "digits:2", "it was applied before the connection ended"
    again = rollback.perform(request())
    assert again.outcome is Outcome.DONE
    assert (len(api.patches()), image(api)) == (1, "digits:2")


def test_a_patch_is_not_sent_again_behind_our_back(api, tmp_path):
    deploy(api, V2, V3)
    api.faults.append(Fault("patch", "drop", dry_run=False))
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.RETRY
    assert api.patches() == []
    assert rollback.perform(request()).outcome is Outcome.DONE


@pytest.mark.parametrize("what", ["garbage", 500, 503, 429])
def test_a_server_that_is_not_well_is_asked_again(api, tmp_path, what):
    deploy(api, V2, V3)
    api.faults.append(Fault("get", what))
    rollback = action("deployment", api, tmp_path)
    assert rollback.check(request()).outcome is Outcome.RETRY
    assert rollback.check(request()).outcome is Outcome.DONE


def test_a_server_that_is_gone_is_asked_again(api, tmp_path):
    deploy(api, V2, V3)
    rollback = action("deployment", api, tmp_path)
    api.stop()
    done = rollback.check(request())
    assert done.outcome is Outcome.RETRY
    assert "cannot be reached" in done.text


# --- undo -----------------------------------------------------------------------------------------


def test_an_operator_takes_it_back_and_it_stays_taken_back(api, tmp_path):
    deploy(api, V1, V2, V3)
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    done = rollback.undo(request())
    assert done.outcome is Outcome.DONE, done.text
    assert image(api) == "digits:3"
    assert rollback.undo(request()).outcome is Outcome.DONE
    again = rollback.perform(request())
    assert again.outcome is Outcome.BLOCKED
    assert "an operator undid it" in again.text
    assert len(api.patches()) == 2


def test_what_has_been_changed_since_is_not_undone(api, tmp_path):
    deploy(api, V1, V2, V3)
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    roll_out(api, template("digits:4"))
    assert rollback.undo(request()).outcome is Outcome.BLOCKED
    assert rollback.undo(request("another")).outcome is Outcome.BLOCKED
    assert image(api) == "digits:4"


def test_what_is_no_longer_kept_cannot_be_brought_back(api, tmp_path):
    deploy(api, V2, V3)
    rollback = action("deployment", api, tmp_path)
    assert rollback.perform(request()).outcome is Outcome.DONE
    gone = mark(api)["before"]
    del api.objects["replicasets", "shop", gone]
    done = rollback.undo(request())
    assert done.outcome is Outcome.BLOCKED
    assert "revisionHistoryLimit" in done.text
