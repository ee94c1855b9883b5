"""docs/comparators.md says what the comparators say."""

from __future__ import annotations

from tests.support.comparator_tables import PAGE, kinds, named, render


def test_the_tables_are_those_of_the_comparators():
    page = PAGE.read_text(encoding="utf-8")
    assert render(page) == page, "run: python -m tests.support.comparator_tables"


def test_every_kind_has_a_section():
    assert named(PAGE.read_text(encoding="utf-8")) == kinds()
