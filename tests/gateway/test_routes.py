"""Which version answers, in one worker: drawn, sticky, exact; candidates; streams; fallbacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest

from sidecar.errors import ExecutionError, NotFoundError
from sidecar.gateway.registry import Registry
from sidecar.route_table import Route
from tests.e2e.support import fails
from tests.gateway.served import (
    FunctionRuntime,
    Served,
    configure,
    make_models,
    model,
    request,
    serving,
    variant,
)
from tests.support.upstream import Model, Upstream

ROW = np.ones((2, 3), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(folder)
    return folder


def follow(registry: Registry, revision: int = 1, **shares: float) -> None:
    """Route ``m``: versions are named ``v1``, ``v2`` here."""
    route = Route(revision, {name[1:]: share for name, share in shares.items()}, "test", "", 0)
    registry.follow({"m": route})


def answered(served: Served, count: int = 1, version: str = "", **call: Any) -> Counter[str]:
    asked = request("m", {"x": ROW}, model_version=version)
    return Counter(served.infer(asked, **call).model_version for _ in range(count))


def three(**settings: Any) -> dict[str, Any]:
    variants = (variant("any", "1"), variant("any", "2"), variant("any", "3", "candidate"))
    return model("m", *variants, **settings)


def test_shares_are_drawn_and_an_exact_version_is_served_as_before(folder):
    with serving(configure(folder, three(route={"shares": {"1": 0.8, "2": 0.2}}))) as served:
        seen = answered(served, 500)
        assert 50 < seen["2"] < 150  # 100 ± 9
        assert seen["1"] == 500 - seen["2"]
        assert answered(served, 5, "2") == {"2": 5}
        entry = served.gateway.registry.entry("m")
        assert entry.default_version == "1"  # of the largest share
        follow(served.gateway.registry, v2=1.0)
        entry = served.gateway.registry.entry("m")
        assert (entry.default_version, entry.split, entry.revision) == ("2", None, 1)
        assert answered(served, 20) == {"2": 20}
        assert answered(served, 5, "1") == {"1": 5}


def test_a_sticky_value_decides_and_without_one_it_is_drawn(folder):
    route = {"shares": {"1": 0.5, "2": 0.5}, "sticky": "x-user"}
    with serving(configure(folder, three(route=route))) as served:
        ways = {user: answered(served, 3, metadata=(("x-user", f"u{user}"),)) for user in range(40)}
        assert all(len(seen) == 1 for seen in ways.values())
        assert {next(iter(seen)) for seen in ways.values()} == {"1", "2"}
        assert len(answered(served, 60)) == 2
        assert len(answered(served, 60, metadata=(("x-user", ""),))) == 2


def test_a_candidate_answers_nobody_until_it_has_a_share(folder):
    with serving(configure(folder, three())) as served:
        registry = served.gateway.registry
        assert [copy.version for copy in registry.entry("m").loaded] == ["1", "2", "3"]
        with fails(grpc.StatusCode.NOT_FOUND) as refused:
            answered(served, 1, "3")
        assert "it is compared, and answers nobody until it is promoted" in refused[0].details()
        assert not served.call("ModelReady", name="m", version="3").ready
        versions = [row.version for row in served.call("ModelStatistics", name="m").model_stats]
        assert versions == ["1", "2"]
        follow(registry, v2=0.5, v3=0.5)
        assert answered(served, 1, "3") == {"3": 1}
        assert set(answered(served, 60)) == {"2", "3"}
        assert served.call("ModelReady", name="m", version="3").ready
        follow(registry, 2, v2=1.0)
        with pytest.raises(NotFoundError, match="candidate"):
            registry.find("m", "3")


def test_a_candidate_that_cannot_be_loaded_keeps_nobody_from_serving(folder, caplog):
    (folder / "broken.onnx").write_bytes(b"no model")
    broken = variant("broken", "3", "candidate")
    with serving(configure(folder, model("m", variant("any", "1"), broken))) as served:
        assert "the candidate m:3/onnx is left out" in caplog.text
        assert answered(served, 3) == {"1": 3}
        # Its share goes to those that are there.
        follow(served.gateway.registry, v1=0.1, v3=0.9)
        assert answered(served, 20) == {"1": 20}
        assert "no version 3 here: its share goes" in served.gateway.registry.entry("m").note


def test_a_table_is_followed_by_what_is_loaded_later(folder):
    with serving(configure(folder, three())) as served:
        registry = served.gateway.registry
        registry.unload("m")
        follow(registry, v1=1.0)
        assert registry.entry("m").unloaded
        registry.commit(registry.prepare("m"))
        assert answered(served, 10) == {"1": 10}
        registry.follow({})
        assert answered(served, 10) == {"2": 10}  # as configured


def test_who_was_drawn_may_be_answered_for_by_the_fallback_of_another_version(folder):
    safe = variant("any", "1", "serving", "fallback")
    tree = model("m", safe, variant("any", "2"), route={"shares": {"1": 0.5, "2": 0.5}})

    def fail(_: Any) -> Any:
        text = "on purpose"
        raise ExecutionError(text)

    with serving(configure(folder, tree)) as served:
        copy = served.gateway.registry.entry("m").serving["2"]
        copy.runtime = FunctionRuntime(fail, copy.runtime.signature)
        assert answered(served, 40) == {"1": 40}
        with fails(grpc.StatusCode.INTERNAL):  # who names a version gets that or none
            answered(served, 1, "2")
        assert served.gateway.counts(copy.slot).counters["fallbacks"] > 0


# --- in front of another server -------------------------------------------------------------------


@pytest.fixture
def other() -> Iterator[Upstream]:
    with Upstream(Model(name="m")) as made:
        yield made


def remote(other: Upstream, version: str) -> dict[str, Any]:
    return {
        "name": "there", "version": version, "roles": ["serving"],
        "runtime": {"kind": "remote", "address": other.address},
    }  # fmt: skip


def wide(**names: str) -> bytes:
    row = np.ones((1, 4), np.float32)
    return request("m", {"x": row}, **names).SerializeToString()


def test_a_request_that_may_be_forwarded_is_drawn_once(folder, other):
    tree = model("m", variant("any", "1"), remote(other, "2"))
    tree["route"] = {"shares": {"1": 0.5, "2": 0.5}}
    with serving(configure(folder, tree)) as served:
        seen = Counter(served.infer_bytes(wide()).model_version for _ in range(400))
        assert 140 < seen["2"] < 260  # 200 ± 10; drawn twice it would be 300
        assert seen.total() == 400


def test_a_forwarded_stream_stays_with_its_version_until_that_gets_no_more(folder, other):
    shares = {"1": 0.5, "2": 0.5}
    tree = model("m", remote(other, "1"), remote(other, "2"), route={"shares": shares})
    with serving(configure(folder, tree)) as served:
        registry = served.gateway.registry
        for _ in range(4):
            elements = served.stream(iter([wide()] * 10))
            assert len({each.infer_response.model_version for each in elements}) == 1

        asked: SimpleQueue[bytes | None] = SimpleQueue()
        elements = served.stream(iter(asked.get, None))
        asked.put(wide())
        gone = next(elements).infer_response.model_version
        follow(registry, **{f"v{3 - int(gone)}": 1.0})
        asked.put(wide())
        with fails(grpc.StatusCode.UNAVAILABLE) as ended:
            next(elements)
        assert f"version '{gone}' of model 'm'" in ended[0].details()
        with fails(grpc.StatusCode.INVALID_ARGUMENT):
            list(served.stream(iter([wide(), wide(model_version=gone)])))
