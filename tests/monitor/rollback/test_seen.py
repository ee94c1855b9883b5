"""What an action first saw at its target is kept with the decision: the next leader acts on that
and nothing else. Two monitors on one store, each with an action of its own, on one cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.monitor.actions.clusters import NAME, action, deploy, image, roll_out, template, touch
from tests.monitor.rollback.bench import Bench, Clock
from tests.support.kubernetes_api import Fault, KubernetesApi

LEASE_S = 10.0
#: Where the first leader gets before it is heard of no more: what goes wrong with its next call.
GETS_TO = {
    "pending": Fault("patch", 503, dry_run=True),
    "acting": Fault("patch", "drop", dry_run=False),
}


class Monitors:
    """The first leads, until only the second is ticked."""

    def __init__(self, folder: Path, api: KubernetesApi) -> None:
        self.clock = Clock()
        settings = {"lease_s": LEASE_S, "action": {"kind": "deployment", **NAME}}
        lever = action("deployment", api, folder)
        self.first = Bench(folder, self.clock, lever, **settings)
        lever = action("deployment", api, folder)
        self.second = Bench(folder, self.clock, lever, beside=self.first, **settings)

    def tick(self, one: Bench) -> None:
        self.clock.advance(0.5)
        one.leadership.tick()
        one.book.follow(one.store)
        one.desk.check()
        one.actor.tick()

    def decided(self, api: KubernetesApi, until: str) -> None:
        """Version 2 is worse; the first leader gets as far as that, and ends."""
        for one in (self.first, self.second):
            one.pairs(2000, new_only=60)
        api.faults.append(GETS_TO[until])
        self.tick(self.first)
        assert self.first.decision().action_state == until
        assert api.faults == []
        assert image(api) == "digits:2"

    def goes_on(self) -> None:
        """The second takes over, and acts."""
        for _ in range(60):
            self.tick(self.second)
            if self.second.decision().action_state not in GETS_TO:
                assert self.second.book.leads
                return
        raise AssertionError(self.second.decision())


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    with KubernetesApi() as made:
        deploy(made, template("digits:1"), template("digits:2"))
        yield made


@pytest.fixture
def monitors(tmp_path: Path, api: KubernetesApi) -> Iterator[Monitors]:
    made = Monitors(tmp_path, api)
    yield made
    made.first.close()


@pytest.mark.parametrize("until", GETS_TO)
def test_what_was_deployed_before_the_next_leader_is_not_rolled_back(monitors, api, until):
    monitors.decided(api, until)
    roll_out(api, template("digits:3"))  # a person has repaired it
    monitors.goes_on()
    decision = monitors.second.decision()
    assert decision.action_state == "blocked"
    assert "the decision is not about it" in decision.action_text
    assert image(api) == "digits:3"
    assert api.patches() == []


@pytest.mark.parametrize("until", GETS_TO)
def test_the_next_leader_goes_on_with_the_same_one(monitors, api, until):
    monitors.decided(api, until)
    touch(api)
    monitors.goes_on()
    monitors.tick(monitors.second)
    decision = monitors.second.decision()
    assert (decision.action_state, image(api)) == ("done", "digits:1")
    assert decision.fence == 2


def test_it_is_kept_also_where_nothing_else_is_to_be_said_anew(monitors, api):
    """The same words twice, the second time after the target was seen."""
    for one in (monitors.first, monitors.second):
        one.pairs(2000, new_only=60)
    api.faults += [Fault("get", 503), Fault("patch", 503, dry_run=True)]
    monitors.tick(monitors.first)
    assert monitors.first.decision().seen == ""
    monitors.tick(monitors.first)
    kept = monitors.first.decision()
    assert kept.action_state == "pending"
    assert kept.seen.startswith("digits-")
    roll_out(api, template("digits:3"))
    monitors.goes_on()
    assert (monitors.second.decision().action_state, image(api)) == ("blocked", "digits:3")
