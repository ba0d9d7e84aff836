"""Where things lie: directories that nothing escapes from, and parts that never move."""

from __future__ import annotations

from collections import Counter
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from speechmill.dataset.layout import (
    agree_on_parts,
    data_key,
    directory,
    failures_key,
    folder_rule,
    path_component,
    read_layout,
)
from speechmill.errors import DatasetError
from speechmill.records import Part
from speechmill.storage import open_store
from tests.support.corpus import memory

names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300) | st.text(
    st.sampled_from("._-/%=~0a1x東"), min_size=1, max_size=12
)


@given(names)
@example(".")
@example("..")
@example("../../etc")
@example("/" * 300)
@example("." * 300)
def test_a_folder_is_one_component_that_leads_nowhere_else(name: str) -> None:
    for component in (path_component(name), directory(name)):
        assert component not in ("", ".", "..")
        assert not set("/\\\0\n") & set(component)
        assert component.isascii()
        assert component.isprintable()
        assert len(component) <= 200


@given(names)
@example("__HIVE_DEFAULT_PARTITION__")
@example("東" * 300)
@example("a" + "東" * 300)
def test_a_folder_is_decoded_to_its_name_or_to_the_beginning_of_it(name: str) -> None:
    decoded = unquote(path_component(name), errors="strict")
    if decoded != name:
        assert len(path_component(name)) > 140 or name == "__HIVE_DEFAULT_PARTITION__"
        start, _, digest = decoded.rpartition("-")
        assert name.startswith(start)
        assert len(digest) == 16


@given(st.sets(names, max_size=20), names, st.text(min_size=1, max_size=5))
def test_different_folders_have_different_directories(some: set[str], name: str, end: str) -> None:
    long = name * 200
    some |= {long, long + end, long + end + end, name, f"{name}_", "225", "225_", "225__", "-1"}
    assert len(set(map(directory, some))) == len(some)
    assert len(set(map(path_component, some))) == len(some)


def test_a_recording_belongs_to_its_part_for_good() -> None:
    """These values must never change: a sink's rows would be sought where they are not."""
    golden = {
        ("p225/p225_001.flac", 7): 2,
        ("p225/p225_002.flac", 7): 0,
        ("", 7): 0,
        ("Zoë/東.wav", 1000): 484,
        ("a//b/../\\xff.wav", 1000): 39,
    }
    for (name, count), index in golden.items():
        assert Part.of("f", name, count) == Part("f", index, count)
    assert data_key(Part("p225", 0, 1)) == "data/folder=p225/part-00-of-01.parquet"
    assert failures_key(Part("p225", 7, 123)) == "failures/folder=p225/part-07-of-123.parquet"
    assert data_key(Part("007", 0, 1)) == "data/folder=007_/part-00-of-01.parquet"
    assert data_key(Part("Zoë 50%", 0, 1)) == "data/folder=Zo%C3%AB%2050%25/part-00-of-01.parquet"
    assert directory("x" * 300) == f"folder={'x' * 163}-0d4e2ca9e9cbced7"


@given(st.integers(1, 40), st.sampled_from(["p{}/{}.wav", "{}/{}", "x{}y{}"]))
def test_parts_are_filled_evenly(count: int, pattern: str) -> None:
    filled = Counter(
        Part.of("f", pattern.format(a, b), count).index
        for a in range(10)
        for b in range(20 * count)
    )
    assert set(filled) == set(range(count))
    assert max(filled.values()) < 1.5 * 200
    assert min(filled.values()) > 0.5 * 200


@pytest.mark.parametrize(
    ("name", "parent", "first", "path"),
    [
        ("a.wav", "_root", "_root", "_root"),
        ("/a.wav", "_root", "_root", "_root"),
        ("//a.wav", "_root", "_root", "_root"),
        ("p225/a.wav", "p225", "p225", "p225"),
        ("/p225//a.wav", "p225", "p225", "p225"),
        ("en/p225/a.wav", "p225", "en", "en/p225"),
        ("en//p225/a.wav", "p225", "en", "en/p225"),
        ("./a.wav", ".", ".", "."),
        ("x/../a.wav", "..", "x", "x/.."),
        ("x/a b\t/\\xff.wav", "a b\t", "x", "x/a b\t"),
        ("x/y/", "y", "x", "x/y"),
    ],
)
def test_folder_names_of_odd_paths(name: str, parent: str, first: str, path: str) -> None:
    assert folder_rule("parent")(name) == parent
    assert folder_rule("first")(name) == first
    assert folder_rule("path")(name) == path


def test_a_regular_expression_names_folders_by_its_first_group() -> None:
    rule = folder_rule(r"^(?:(s\d+)_|optional)")
    assert rule("s5_001.wav") == "s5"
    assert rule("optional") == "_root"  # the group took no part
    assert rule("other") == "_root"
    assert folder_rule("(x*)y")("y") == "_root"  # an empty name is none


@given(names, st.sampled_from(["parent", "first", "path", "(.*)", "([^/]*)/"]))
def test_every_recording_has_a_folder(name: str, rule: str) -> None:
    assert folder_rule(rule)(name)


@given(st.dictionaries(names, st.integers(1, 9)), st.dictionaries(names, st.integers(1, 9)))
def test_who_comes_first_decides_on_the_number_of_parts(
    mine: dict[str, int], theirs: dict[str, int]
) -> None:
    store = open_store(memory())
    agree_on_parts(store, mine)
    agreed = agree_on_parts(store, theirs)
    assert agreed.folders == {**theirs, **mine}
    assert read_layout(store) == agreed


def test_a_layout_that_cannot_be_read_is_an_error_that_says_so() -> None:
    for damaged in (b"", b"{}", b"[]", b'{"folders": {"a": null}}', b"\xff"):
        store = open_store(memory({"_speechmill/layout.json": damaged}))
        with pytest.raises(DatasetError, match=r"layout\.json.*restore it from a backup"):
            read_layout(store)
