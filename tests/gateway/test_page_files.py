"""Pages as files: counts go on over restarts, begin anew with other variants, and harm nobody."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pytest

from sidecar.gateway.page_files import PageFiles, names_of, open_pages
from sidecar.gateway.pages import Page, Timing, page_bytes, sum_slot
from sidecar.gateway.registry import slots_of
from sidecar.monitor.measures import Measures
from tests.monitor.test_measures import config

NAMES = ["m:1/onnx", "m:2/onnx"]


@contextmanager
def gateway(folder, names=NAMES, count=1):
    """Its pages, as its workers have them."""
    descriptors = open_pages(folder, names, count)
    pages = [Page(descriptor, len(names), owner=True) for descriptor in descriptors]
    yield pages
    for page in pages:
        page.close()
    for descriptor in descriptors:
        os.close(descriptor)


def record(page, times=1):
    for _ in range(times):
        page.record(1, Timing(), 1000, 1, 10, 20)


def counted(files):
    return sum_slot(files.read(), 1).durations["success"][0]


def test_the_reader_follows_and_counts_go_on_over_restarts(tmp_path):
    files = PageFiles(tmp_path / "pages", NAMES)
    assert files.read() == []
    assert files.since_ns == 0
    with gateway(tmp_path / "pages", count=2) as pages:
        record(pages[0], 3)
        record(pages[1], 4)
        assert counted(files) == 7
        first_id, since_ns = pages[0].id, files.since_ns
        assert since_ns > 10**18
    with gateway(tmp_path / "pages", count=2) as pages:
        assert pages[0].id == first_id
        record(pages[0])
        assert counted(files) == 8
    with gateway(tmp_path / "pages") as pages:  # fewer workers: nothing is lost
        record(pages[0])
        assert counted(files) == 9
        assert files.since_ns == since_ns


def test_other_variants_begin_anew_and_are_not_taken_for_these(tmp_path, caplog):
    files = PageFiles(tmp_path, NAMES)
    with gateway(tmp_path) as pages:
        record(pages[0], 5)
        assert counted(files) == 5
    since_ns = files.since_ns
    others = ["m:1/onnx", "m:3/onnx"]
    with gateway(tmp_path, others) as pages:
        assert sum_slot(pages, 1).durations["success"][0] == 0
        record(pages[0])
        assert files.read() == []
        assert "another version or configuration" in caplog.text
        changed = PageFiles(tmp_path, others)
        assert counted(changed) == 1
        assert changed.since_ns > since_ns


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, page_bytes(2) - 8),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(b"x" * page_bytes(2)),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    ],
)
def test_what_is_no_page_ends_nobody(tmp_path, damage):
    files = PageFiles(tmp_path, NAMES)
    with gateway(tmp_path):
        pass
    damage(tmp_path / "worker-0.page")
    assert files.read() == []
    with gateway(tmp_path) as pages:  # in its place, or in memory
        record(pages[0], 2)
        assert sum_slot(pages, 1).durations["success"][0] == 2


def test_a_second_gateway_in_the_folder_counts_for_itself(tmp_path, caplog):
    files = PageFiles(tmp_path, NAMES)
    with gateway(tmp_path) as first, gateway(tmp_path) as second:
        assert "another gateway counts there" in caplog.text
        record(first[0])
        record(second[0], 5)
        assert counted(files) == 1


def test_a_folder_that_cannot_be_is_no_reason_not_to_serve(tmp_path, caplog):
    (tmp_path / "file").touch()
    with gateway(tmp_path / "file" / "pages") as pages:
        record(pages[0])
        assert sum_slot(pages, 1).durations["success"][0] == 1
    assert "requests are not told" in caplog.text


def test_what_is_told_of_files_is_what_is_told_of_mapped_pages(tmp_path):
    tree = config()
    names = names_of(tree)
    assert names == list(slots_of(tree))
    with gateway(tmp_path, names) as pages:
        record(pages[0], 3)
        pages[0].add_server("refused_bytes")
        files = PageFiles(tmp_path, names)
        measures = Measures(files, tree)
        told = list(measures.points())
        assert told == list(Measures(pages, tree, files.since_ns).points())
        assert measures.since_ns == files.since_ns
        assert measures.served() == Measures(pages, tree).served()
