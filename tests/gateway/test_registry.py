"""Which copy answers what, on real models: loading, replacing, unloading, and who is freed when."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from sidecar.config import parse
from sidecar.errors import InvalidRequestError, NotFoundError, SidecarError
from sidecar.gateway.registry import Registry, slots_of
from tests.e2e.support import onnx_times, variant
from tests.support import models


@pytest.fixture
def make(tmp_path):
    onnx_times(tmp_path, 2, "m.onnx")

    def build(variants: list[dict], **settings) -> Registry:
        document = {"models": [{"name": "m", "variants": variants, **settings}]}
        return Registry(parse(document, base_dir=tmp_path), lambda *_: None)

    build.path = tmp_path / "m.onnx"  # type: ignore[attr-defined]
    return build


def test_the_last_serving_version_is_the_default(make):
    registry = make([variant("v", make.path, version=v) for v in ("9", "10", "2")])
    registry.commit(registry.prepare("m"))
    entry, copy = registry.find("m", "")
    assert (entry.default_version, copy.key) == ("2", "m:2/v")
    assert registry.find("m", "9")[1].key == "m:9/v"
    assert list(entry.serving) == ["9", "10", "2"]


def test_the_config_may_choose_the_default(make):
    variants = [variant("v", make.path, version=v) for v in ("1", "2")]
    registry = make(variants, default_version="1")
    registry.commit(registry.prepare("m"))
    assert registry.find("m", "")[1].version == "1"


def test_which_roles_are_loaded_and_answer(make):
    registry = make(
        [
            variant("old", make.path, version="1", roles=("previous",)),
            variant("new", make.path, version="2"),
            variant("safe", make.path, version="2", roles=("fallback",)),
            variant("truth", make.path, version="2", roles=("reference", "mirror")),
        ]
    )
    registry.commit(registry.prepare("m"))
    entry, copy = registry.find("m", "2")
    assert copy.key == "m:2/new"
    assert registry.find("m", "1")[1].key == "m:1/old"
    assert entry.fallback is not None
    assert [c.key for c in entry.copies] == ["m:1/old", "m:2/new", "m:2/safe"]


def test_errors_say_what_there_is(make):
    registry = make([variant("v", make.path)])
    with pytest.raises(NotFoundError, match="'m' is not loaded"):
        registry.find("m", "")
    registry.commit(registry.prepare("m"))
    with pytest.raises(NotFoundError, match="unknown model 'x'; this server has: 'm'"):
        registry.find("x", "")
    with pytest.raises(NotFoundError, match="no version '7'; it has: 1"):
        registry.find("m", "7")
    with pytest.raises(InvalidRequestError, match="names no model"):
        registry.find("", "")


def test_a_copy_is_freed_when_the_last_request_on_it_is_done(make):
    registry = make([variant("v", make.path)])
    registry.commit(registry.prepare("m"))
    held = registry.find("m", "")[1]
    runtime = held.runtime
    registry.commit(registry.prepare("m"))
    assert registry.find("m", "")[1] is not held
    # A request under way ends on the copy that it began with.
    assert runtime.infer({"x": np.ones((1, 1), np.float32)}, ["y"])[0].tolist() == [[2.0]]
    freed = weakref.ref(held)
    del held
    gc.collect()
    assert freed() is None
    with pytest.raises(SidecarError):
        runtime.infer({"x": np.ones((1, 1), np.float32)}, ["y"])


def test_what_was_replaced_is_not_found_in_the_cache(make):
    registry = make([variant("v", make.path)])
    registry.commit(registry.prepare("m"))
    before = registry.find("m", "")[1].cache_key
    registry.commit(registry.prepare("m"))
    assert registry.find("m", "")[1].cache_key != before


def test_readiness_minds_what_failed_but_not_what_was_unloaded(make):
    registry = make([variant("v", make.path)])
    assert not registry.ready()
    registry.commit(registry.prepare("m"))
    assert registry.ready()
    registry.fail("m", "loading failed")  # what serves goes on serving
    assert registry.ready()
    assert registry.find("m", "")[1].version == "1"
    registry.unload("m")
    assert registry.ready()
    registry.fail("m", "loading failed")  # a load that changed nothing takes no readiness away
    assert registry.ready()
    with pytest.raises(NotFoundError, match="loading failed"):
        registry.find("m", "")


def test_a_failed_load_leaves_what_serves(make):
    registry = make([variant("v", make.path)])
    registry.commit(registry.prepare("m"))
    copy = registry.find("m", "")[1]
    make.path.write_bytes(b"nonsense")
    with pytest.raises(SidecarError, match=r"m\.onnx"):
        registry.prepare("m")
    assert registry.find("m", "")[1] is copy


def test_a_fallback_must_take_and_give_the_same(make, tmp_path):
    other = models.onnx_mlp(tmp_path)
    fallback = variant("other", other, roles=("fallback",))
    fallback["runtime"]["path"] = str(models.onnx_identity(tmp_path, "INT8", ("batch", 1)))
    registry = make([variant("v", make.path), fallback])
    with pytest.raises(SidecarError, match="cannot be the fallback of m:1/v: their inputs differ"):
        registry.prepare("m")


def test_slots_are_the_same_whatever_is_loaded(tmp_path):
    path = onnx_times(tmp_path, 2, "m.onnx")
    document = {
        "models": [
            {"name": name, "variants": [
                variant("a", path), variant("b", path, roles=("mirror",))]}
            for name in ("m", "n")
        ]
    }  # fmt: skip
    assert slots_of(parse(document, base_dir=tmp_path)) == {
        "m:1/a": 0, "m:1/b": 1, "n:1/a": 2, "n:1/b": 3
    }  # fmt: skip
