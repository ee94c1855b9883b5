"""The response cache: equal requests only, within its bytes, and nobody changes what it keeps."""

from __future__ import annotations

import gc
import random
import sys
import threading
import tracemalloc
import weakref
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sidecar.gateway.cache import ResponseCache, make_key

MIB = 2**20


def key(inputs=None, variant="m:1/a", outputs=("y",), parameters=None):
    inputs = {"x": np.zeros(3, np.float32)} if inputs is None else inputs
    return make_key(variant, inputs, list(outputs), parameters or {})


# --- keys -----------------------------------------------------------------------------------------


def test_equal_requests_have_equal_keys():
    one = {"a": np.arange(6).reshape(2, 3), "b": np.array([b"x", b""], object)}
    other = {"b": np.array([b"x", b""], object), "a": np.asfortranarray(one["a"])}
    one["a"].flags.writeable = False
    assert key(one, parameters={"p": 1, "q": "s"}) == key(other, parameters={"q": "s", "p": 1})
    assert key({"x": np.arange(10)[::2]}) == key({"x": np.array([0, 2, 4, 6, 8])})


DIFFERENT = [
    key(),
    key(variant="m:1/b"),
    key(variant="m:2/a"),
    key(outputs=["z"]),
    key(outputs=["y", "z"]),
    key(outputs=["z", "y"]),
    key(outputs=["yz"]),
    key(outputs=[]),
    key(parameters={"p": 1}),
    key(parameters={"p": True}),
    key(parameters={"p": 1.0}),
    key(parameters={"p": "1"}),
    key(parameters={"q": 1}),
    key({}),
    key({"y": np.zeros(3, np.float32)}),
    key({"x": np.zeros((3, 1), np.float32)}),
    key({"x": np.zeros((1, 3), np.float32)}),
    key({"x": np.zeros(3, np.int32)}),
    key({"x": np.zeros(3, np.uint32)}),
    key({"x": np.zeros(4, np.float32)}),
    key({"x": np.array([0, 0, -0.0], np.float32)}),
    key({"x": np.array([0, 0, np.nan], np.float32)}),
    key({"x": np.array([0, 0, 0x7FC00001], np.uint32).view(np.float32)}),  # another NaN
    key({"x": np.zeros(6, np.float16)}),
    key({"x": np.zeros(6, ml_dtypes.bfloat16)}),
    key({"x": np.zeros(6, np.uint16)}),
    key({"x": np.zeros(6, "V2")}),
    key({"x": np.zeros(6, ml_dtypes.int4)}),  # calls itself "<V1" ...
    key({"x": np.zeros(6, ml_dtypes.uint4)}),  # ... as this one does
    key({"x": np.zeros((), np.float32)}),
    key({"x": np.zeros((0, 3), np.float32)}),
    key({"x": np.zeros((3, 0), np.float32)}),
    key({"x": np.array([b"a", b"bc"], object)}),
    key({"x": np.array([b"ab", b"c"], object)}),
    key({"x": np.array([b"abc", b""], object)}),
    key({"x": np.array([b"abc"], object)}),
    key({"x": np.array([[b"a", b"bc"]], object)}),
    key({"x": np.zeros(3, np.float32), "z": np.zeros(0, np.float32)}),
    key({"x', 'y": np.zeros(3, np.float32)}),
    key({"x": np.zeros(1, np.uint8), "y": np.ones(1, np.uint8)}),
    key({"x": np.ones(1, np.uint8), "y": np.zeros(1, np.uint8)}),
]


def test_requests_that_differ_in_anything_have_different_keys():
    assert len(set(DIFFERENT)) == len(DIFFERENT)


arrays = st.one_of(
    hnp.arrays(
        st.sampled_from([np.dtype("u1"), np.dtype("<f4"), np.dtype("?"), np.dtype("<i2")]),
        hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    ),
    st.lists(st.binary(max_size=4), max_size=4).map(lambda items: np.array(items, object)),
)
requests = st.tuples(
    st.sampled_from(["m:1/a", "m:1/ab", "n:1/a"]),
    st.dictionaries(st.text(max_size=3), arrays, max_size=3),
    st.lists(st.text(max_size=2), max_size=3),
    st.dictionaries(
        st.text(max_size=2),
        st.one_of(st.booleans(), st.integers(), st.text(max_size=2)),
        max_size=2,
    ),
)


def content(request):
    """What a request says, in a form whose equality is plain."""
    variant, inputs, outputs, parameters = request
    return (
        variant,
        {
            name: (
                array.dtype.str,
                array.shape,
                array.tolist() if array.dtype == object else array.tobytes(),
            )
            for name, array in inputs.items()
        },
        outputs,
        {name: (type(value), value) for name, value in parameters.items()},
    )


@given(requests, requests)
@settings(max_examples=300, deadline=None)
def test_keys_are_equal_exactly_when_requests_are(one, other):
    assert (make_key(*one) == make_key(*other)) == (content(one) == content(other))


@given(requests)
@settings(max_examples=50, deadline=None)
def test_a_key_does_not_depend_on_the_order_of_names(request_):
    variant, inputs, outputs, parameters = request_
    turned = dict(reversed(inputs.items())), outputs, dict(reversed(parameters.items()))
    assert make_key(*request_) == make_key(variant, *turned)


# --- keeping --------------------------------------------------------------------------------------


def test_gives_back_what_was_put():
    cache = ResponseCache(MIB)
    outputs = [np.arange(4, dtype=np.float32), np.array([b"a", b"bb"], object), np.array(1.5)]
    assert cache.get(b"k") is None
    cache.put(b"k", outputs)
    got = cache.get(b"k")
    assert [a.tolist() for a in got] == [a.tolist() for a in outputs]
    assert [a.dtype for a in got] == [a.dtype for a in outputs]
    counters = cache.counters()
    assert (counters.hits, counters.misses, counters.inserts, counters.entries) == (1, 1, 1, 1)


def test_nobody_can_change_what_is_kept():
    cache = ResponseCache(MIB)
    array = np.zeros(3)
    cache.put(b"k", [array])
    array[:] = 7
    got = cache.get(b"k")
    with pytest.raises(ValueError, match="read-only"):
        got[0][0] = 1
    got.clear()
    assert cache.get(b"k")[0].tolist() == [0, 0, 0]


def test_a_row_kept_does_not_keep_its_batch():
    cache = ResponseCache(MIB)
    batch = np.zeros((64, 1000))
    gone = weakref.ref(batch)
    cache.put(b"k", [batch[3:4]])
    del batch
    gc.collect()
    assert gone() is None
    assert cache.counters().bytes < 10_000


def test_throws_out_the_least_recently_used():
    one = np.zeros(1000, np.uint8)
    probe = ResponseCache(MIB)
    probe.put(b"a", [one])
    cache = ResponseCache(3 * probe.counters().bytes)
    for name in (b"a", b"b", b"c"):
        cache.put(name, [one])
    cache.get(b"a")
    cache.put(b"d", [one])
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c", b"d")] == [1, 0, 1, 1]
    assert cache.counters().evictions == 1
    cache.put(b"c", [one])  # again: replaces, and becomes the newest
    cache.put(b"e", [one])
    assert [cache.get(name) is not None for name in (b"a", b"c", b"d", b"e")] == [0, 1, 1, 1]


def test_refuses_what_is_larger_than_the_cache_and_keeps_the_rest():
    cache = ResponseCache(10_000)
    cache.put(b"small", [np.zeros(10)])
    cache.put(b"large", [np.zeros(10_000, np.uint8)])
    assert cache.get(b"large") is None
    assert cache.get(b"small") is not None
    assert cache.counters().refused == 1
    assert cache.counters().evictions == 0
    nothing = ResponseCache(0)
    nothing.put(b"k", [])
    assert nothing.get(b"k") is None


def test_the_bytes_of_elements_count():
    cache = ResponseCache(MIB)
    cache.put(b"k", [np.array([b"x" * 100_000], object)])
    assert cache.counters().bytes > 100_000


def test_the_bound_is_about_what_is_really_taken():
    """Many small answers: the objects around them weigh more than they do."""
    gc.collect()
    tracemalloc.start()
    try:
        cache = ResponseCache(2 * MIB)
        before = tracemalloc.get_traced_memory()[0]
        for number in range(4000):
            cache.put(make_key("m:1/a", {"x": np.array([number])}, ["y"], {}), [np.zeros(10)])
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = cache.counters().bytes
    assert cache.counters().entries > 1000
    assert taken < 1.1 * counted


def test_clear_drops_what_belongs_to_a_prefix():
    cache = ResponseCache(MIB)
    variants = ["digits:1/a", "digits:2/a", "digits2:1/a", "other:1/a"]
    keys = [key(variant=variant) for variant in variants]
    for each in keys:
        cache.put(each, [np.zeros(2)])
    assert cache.clear("digits:") == 2
    assert [cache.get(each) is not None for each in keys] == [0, 0, 1, 1]
    assert cache.clear() == 2
    assert cache.counters().bytes == 0
    assert cache.counters().entries == 0
    assert cache.counters().evictions == 0


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "put", "get", "clear"]),
            st.integers(0, 12),
            st.integers(0, 3000),
        ),
        max_size=80,
    )
)
@settings(max_examples=100, deadline=None)
def test_behaves_like_an_ordered_dict_with_a_bound(operations):
    cache, model = ResponseCache(8000), OrderedDict()
    overhead = cache_overhead()
    expected = {"hits": 0, "misses": 0, "inserts": 0, "evictions": 0, "refused": 0}
    for kind, number, size in operations:
        name = b"%c:%02d" % (b"ab"[number % 2], number)
        if kind == "put":
            cache.put(name, [np.full(size, number, np.uint8)])
            if size + overhead > 8000:
                expected["refused"] += 1
                continue
            model.pop(name, None)
            model[name] = size
            expected["inserts"] += 1
            while sum(model.values()) + overhead * len(model) > 8000:
                model.popitem(last=False)
                expected["evictions"] += 1
        elif kind == "get":
            got = cache.get(name)
            assert (got is not None) == (name in model)
            expected["hits" if name in model else "misses"] += 1
            if got is not None:
                assert got[0].tolist() == [number] * model[name]
                model.move_to_end(name)
        elif number == 0:
            cache.clear("a:")
            for each in [each for each in model if each.startswith(b"a:")]:
                del model[each]
    counters = cache.counters()
    assert {name: getattr(counters, name) for name in expected} == expected
    assert counters.entries == len(model)
    assert counters.bytes == sum(model.values()) + overhead * len(model) <= 8000


def cache_overhead():
    cache = ResponseCache(MIB)
    cache.put(b"a:00", [np.zeros(0, np.uint8)])
    assert cache.counters().bytes > sys.getsizeof(b"a:00")
    return cache.counters().bytes


def test_many_threads_at_once():
    cache = ResponseCache(20_000)
    failures = []

    def work(seed):
        rng = random.Random(seed)
        try:
            for _ in range(2000):
                number = rng.randrange(50)
                name = b"%d" % number
                got = cache.get(name)
                if got is None:
                    cache.put(name, [np.full(rng.randrange(500), number, np.int16)])
                else:
                    assert (got[0] == number).all()
                if rng.random() < 0.01:
                    cache.clear(str(rng.randrange(5)))
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    counters = cache.counters()
    assert counters.hits + counters.misses == 8000
    assert counters.inserts == counters.misses
    assert 0 <= counters.bytes <= 20_000
    cache.clear()
    assert cache.counters().bytes == 0
