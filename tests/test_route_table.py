"""The route table: what is read, what is refused, and who gets which version."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

from sidecar import route_table
from sidecar.config import parse
from sidecar.route_table import DamagedError, Route, RouteFile, Split, point_of

ROUTE = Route(3, {"2": 0.9, "3": 0.1}, "operator", "a look", 7, {"pages": {"1": {}}})


def tree(**changes) -> dict:
    made = json.loads(route_table.dump({"m": ROUTE}))
    made["models"]["m"].update(changes)
    return made


def test_what_was_written_is_read_again():
    assert route_table.parse(route_table.dump({"m": ROUTE, "n": ROUTE})) == {"m": ROUTE, "n": ROUTE}
    assert route_table.parse(route_table.dump({})) == {}


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\x00", b"[]", b"null", b"{}", b'{"format": 1}', b"[" * 100_000,
        b'{"format": 1, "models": []}', b'{"format": 1, "models": {"m": null}}',
        json.dumps({**tree(), "format": 2}).encode(),
        *(
            json.dumps(tree(**changes)).encode()
            for changes in (
                {"revision": 0}, {"revision": True}, {"revision": 2**63}, {"shares": {}},
                {"shares": {"2": 0.5}}, {"shares": {"2": -1, "3": 2}}, {"shares": {"2": "1"}},
                {"shares": {"2": float("nan")}}, {"shares": {"2": True}}, {"shares": ["2"]},
                {"by": 1}, {"reason": None}, {"changed_wall_ns": -1}, {"since": []},
            )
        ),
    ],
)  # fmt: skip
def test_what_is_no_table_is_refused(data):
    with pytest.raises(DamagedError):
        route_table.parse(data)


def test_any_cut_and_any_flipped_byte_is_a_table_or_refused():
    whole = route_table.dump({"m": ROUTE})
    rng = np.random.default_rng(0)
    for at in range(len(whole)):
        with pytest.raises(DamagedError):
            route_table.parse(whole[:at])
        broken = bytearray(whole)
        broken[at] ^= int(rng.integers(1, 256))
        try:
            found = route_table.parse(bytes(broken))
        except DamagedError:
            continue
        assert all(abs(sum(r.shares.values()) - 1) < 1e-5 for r in found.values())


def test_a_table_that_nobody_would_read_is_not_written():
    huge = Route(1, {"2": 1.0}, "x", "", 0, {"pages": "x" * route_table.MAX_BYTES})
    with pytest.raises(DamagedError, match="over the"):
        route_table.dump({"m": huge})


def test_the_last_good_table_stands_and_damage_is_counted_once(tmp_path):
    path = tmp_path / "routes.json"
    file = RouteFile(path)
    assert not file.poll()
    assert (file.routes, file.damaged) == ({}, 0)

    def put(data: bytes) -> None:
        fresh = tmp_path / "fresh"
        fresh.write_bytes(data)
        fresh.replace(path)

    put(route_table.dump({"m": ROUTE}))
    assert file.poll()
    assert not file.poll()
    for turn, damage in enumerate((b"{", b" " * (route_table.MAX_BYTES + 1)), start=1):
        put(damage)
        assert not file.poll()
        assert not file.poll()
        assert (file.routes, file.damaged) == ({"m": ROUTE}, turn)
        assert str(path) in file.problem
    path.unlink()
    assert not file.poll()
    assert not file.poll()
    assert (file.damaged, file.routes) == (3, {"m": ROUTE})
    os.mkfifo(path)  # whoever reads one of these waits for ever
    assert not file.poll()
    assert "no file" in file.problem
    put(route_table.dump({"n": ROUTE}))
    assert file.poll()
    assert (file.routes, file.problem) == ({"n": ROUTE}, "")


# --- versions -------------------------------------------------------------------------------------


def model(*variants: tuple[str, str, str], **settings):
    document = {
        "models": [
            {
                "name": "m",
                "variants": [
                    {
                        "version": version, "name": name, "roles": [role],
                        "runtime": {"kind": "onnxruntime", "path": "/m.onnx"},
                    }
                    for version, name, role in variants
                ],
                **settings,
            }
        ]
    }  # fmt: skip
    return parse(document).models[0]


def test_who_answers_for_a_version_and_what_is_configured():
    found = model(
        ("1", "old", "previous"), ("2", "truth", "reference"), ("2", "fast", "serving"),
        ("3", "new", "candidate"), ("2", "safe", "fallback"),
    )  # fmt: skip
    assert {v: one.name for v, one in route_table.answering(found).items()} == {
        "1": "old", "2": "fast", "3": "new",
    }  # fmt: skip
    assert route_table.candidates(found) == ["3"]
    assert route_table.configured(found) == {"2": 1.0}
    shared = model(("1", "a", "serving"), ("2", "b", "serving"), route={"shares": {1: 3, "2": 1}})
    assert route_table.configured(shared) == {"1": 0.75, "2": 0.25}


@pytest.mark.parametrize(
    ("there", "shares", "said"),
    [
        ("123", {"2": 0.9, "3": 0.1}, ""),
        ("13", {"3": 1.0}, "no version 2 here: its share goes to the others"),
        ("1", {"1": 1.0}, "no version 2, 3 here, to which everything is routed: as configured"),
        ("", {}, "no version 2, 3"),
    ],
)
def test_the_share_of_a_version_that_is_gone_goes_to_the_rest(there, shares, said):
    found, note = route_table.resolve(ROUTE, {"1": 1.0}, list(there))
    assert found == shares
    assert said in note
    assert bool(said) == bool(note)


def test_points_go_to_versions_by_their_shares_and_move_no_further_than_they_must():
    points = [point_of(str(number).encode(), "m") for number in range(20_000)]
    assert all(0 <= point < 1 for point in points)
    order = ["1", "2", "3"]
    before = Split({"1": 0.6, "2": 0.4}, order)
    after = Split({"1": 0.5, "2": 0.5}, order)
    picks = [(before.pick(point), after.pick(point)) for point in points]
    # Five standard deviations each.
    assert abs(picks.count(("1", "2")) / len(points) - 0.1) < 0.011
    assert picks.count(("2", "1")) == 0
    assert abs(sum(a == "1" for a, _ in picks) / len(points) - 0.6) < 0.018
    assert Split({"3": 0.3, "1": 0.7}, order).pick(0.69) == "1"
    assert Split(dict.fromkeys(order, 1 / 3), order).pick(1 - 2**-53) == "3"


def test_a_point_is_the_same_everywhere_and_another_in_each_model():
    assert point_of(b"ada", "m") == 0.8443258436377984
    assert point_of(b"ada", "n") != point_of(b"ada", "m")
