"""Conditions as text: they mean what DuckDB takes them for, and mistakes are pointed at."""

from __future__ import annotations

import datetime
import operator
from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechmill.dataset.where import where_expression
from speechmill.errors import JobError

SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "name": pa.string(),
        "other name": pa.string(),
        "count": pa.int32(),
        "seconds": pa.float64(),
        "score": pa.float32(),
        "good": pa.bool_(),
        "flags": pa.list_(pa.field("element", pa.string())),
        "at": pa.timestamp("us", tz="UTC"),
        "token": pa.list_(pa.list_(pa.float32())),
    }
)
TEXTS = ("", "p", "p2", "p225", "P225", "it's", 'a"b', "a_b", "50%", "Zoë", "東 1", "and", "x\ny")
FLAGS = ("truncated", "trunc", "it's", "clipped")
NUMBERS = (-2, -1, 0, 1, 2, 3, 0.25, -1.5, 2.75)
LITERALS = {
    "name": TEXTS,
    '"other name"': TEXTS,
    "count": NUMBERS,
    "seconds": NUMBERS,
    "score": NUMBERS,
    "good": (True, False),
}


def rows() -> pa.Table:
    """All kinds of values against each other, nulls among them."""

    def cycle(values: tuple[Any, ...], i: int, stride: int) -> Any:
        return (*values, None)[(i * stride) % (len(values) + 1)]

    wholes = tuple(n for n in NUMBERS if isinstance(n, int))
    lists: tuple[list[str], ...] = ([], ["truncated"], ["trunc", "it's"], ["clipped", "truncated"])
    return pa.Table.from_pylist(
        [
            {
                "id": i,
                "name": cycle(TEXTS, i, 1),
                "other name": cycle(TEXTS, i, 5),
                "count": cycle(wholes, i, 3),
                "seconds": cycle(NUMBERS, i, 7),
                "score": cycle(NUMBERS, i, 1),
                "good": cycle((True, False), i, 1),
                "flags": cycle(lists, i, 2),
                "at": cycle((datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),), i, 1),
                "token": [[1.0]] if i % 2 else None,
            }
            for i in range(180)
        ],
        schema=SCHEMA,
    )


ROWS = rows()


def found(text: str, *, checked: bool = True) -> list[int]:
    expression = where_expression(text, SCHEMA if checked else None)
    ids: list[int] = (
        pads.dataset(ROWS).to_table(columns=["id"], filter=expression)["id"].to_pylist()
    )
    return ids


@pytest.fixture(scope="module")
def in_duckdb() -> Iterator[Callable[[str], list[int]]]:
    """What DuckDB finds."""
    with duckdb.connect() as connection:
        connection.register("rows", ROWS)
        yield lambda text: [
            i for (i,) in connection.sql(f"SELECT id FROM rows WHERE {text} ORDER BY id").fetchall()
        ]


def literal(value: Any) -> str:
    if isinstance(value, str):
        quoted = value.replace("'", "''")
        return f"'{quoted}'"
    return str(value).lower() if isinstance(value, bool) else str(value)


@st.composite
def predicates(draw: st.DrawFn) -> str:
    """A condition on one column, in both dialects."""
    column = draw(st.sampled_from(sorted(LITERALS)))
    values = st.sampled_from(LITERALS[column]).map(literal)
    negated = draw(st.sampled_from(["", "NOT ", "not "]))
    comparison = draw(st.sampled_from(["=", "==", "!=", "<>", "<", "<=", ">", ">="]))
    kinds = ["compare", "mirrored", "in", "between", "null", "flag", "contains"]
    if column.endswith(("name", 'name"')):
        kinds += ["like", "columns"]
    kind = draw(st.sampled_from(kinds))
    if kind == "compare":
        return f"{column}{comparison} {draw(values)}"
    if kind == "mirrored":
        return f"{draw(values)} {comparison} {column}"
    if kind == "columns":
        return f'name {comparison} "other name"'
    if kind == "in":
        return f"{column} {negated}IN ({', '.join(draw(st.lists(values, min_size=1, max_size=4)))})"
    if kind == "between":
        return f"{column} {negated}BETWEEN {draw(values)} AND {draw(values)}"
    if kind == "null":
        return f"{draw(st.sampled_from([*sorted(LITERALS), 'flags', 'token']))} IS {negated}NULL"
    if kind == "like":
        pattern = draw(st.text("p25a_%'ë東", max_size=4))
        return f"{column} {negated}LIKE {literal(pattern)}"
    flag = literal(draw(st.sampled_from(FLAGS)))
    return f"{flag} IN flags" if kind == "flag" else f"list_contains(flags, {flag})"


conditions = st.recursive(
    predicates(),
    lambda inner: st.one_of(
        inner.map(lambda c: f"NOT ({c})"),
        inner.map(lambda c: f"({c})"),
        st.tuples(inner, st.sampled_from(["AND", "OR", "and", "Or"]), inner).map(" ".join),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(conditions)
def test_a_condition_finds_the_rows_that_duckdb_finds(
    in_duckdb: Callable[[str], list[int]], text: str
) -> None:
    expected = in_duckdb(text)
    assert found(text) == expected
    assert found(text, checked=False) == expected


@settings(max_examples=150, deadline=None)
@given(
    st.text(max_size=30)
    | st.lists(
        st.sampled_from(
            [
                *("name", "count", "flags", "=", "<", "(", ")", ",", "'x'", "'", '"', "1", "-"),
                *("1.5e3", "AND", "OR", "NOT", "IN", "LIKE", "IS", "NULL", "BETWEEN", "TRUE"),
                "contains",
            ]
        ),
        max_size=12,
    ).map(" ".join)
)
def test_any_text_is_a_condition_or_a_mistake_in_one_line(text: str) -> None:
    problem = ""
    try:
        found(text)
    except JobError as error:
        problem = str(error)
    assert "\n" not in problem


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected a column or a value at character 1, found the end"),
        ("name", r"expected = != .* at character 5, found the end"),
        ("name = p225", r"no column 'p225': .*'single quotes' \(character 8\)"),
        ("name = 'p225", r"expected a closing ' at character 8, found the end"),
        ("name = 'a' count > 2", r"expected AND, OR or the end at character 12, found 'count'"),
        ("(name = 'a'", r"expected '\)' at character 12, found the end"),
        ("name = NULL", r"IS NULL.* at character 8, found 'NULL'"),
        ("name IN ()", r"expected a value at character 10, found '\)'"),
        ("name IN ('a' 'b')", r"expected '\)' at character 14"),
        ("count > 2; drop", r"at character 10, found ';'"),
        ("count > 12abc", r"at character 9"),
        ("name LIKE 5", r"expected a text in single quotes at character 11, found '5'"),
        ("5 = 6", r"expected the name of a column at character 5, found '6'"),
        ("name NOT NULL", r"expected IN, LIKE or BETWEEN at character 10"),
        ("count > 99999999999999999999", "too large"),
        ("nam = 'a'", r"no column 'nam': did you mean name\?.*character 1\b"),
        ("name = 5", r"name is string, and 5 is a number"),
        ("count = '5'", r"count is int32, and '5' is text"),
        ("good = 1", r"good is bool, and 1 is a number"),
        ("count LIKE '5'", r"LIKE is for text, and count is int32"),
        ("token = 5", "token is list"),
        ("'x' IN name", "only lists of text"),
        ("'' IN flags", "is in no list"),
        ("at > 'yesterday'", "'yesterday' is no time such as"),
        ("count = name", "count is int32, and name string"),
        ("(" * 60 + "count = 1" + ")" * 60, "more than 50 parentheses"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(JobError, match=message):
        where_expression(text, SCHEMA)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("at >= '2026-01-01'", True),
        ("at = '2026-01-01T01:00:00+01:00'", True),
        ("at < '2026-01-01T00:00:00Z'", False),
        ("score = 0.1", True),
        ("score IN (0.1, 7)", True),
        ("name ILIKE 'P2%'", True),
        (r"name LIKE 'p2\%'", False),
        ("name LIKE 'p2_5'", True),
        ("TRUE", True),
        ("NOT TRUE", False),
        ("contains(flags, 'truncated') and not 'trunc' in flags", True),
    ],
)
def test_times_small_floats_and_capitals(text: str, expected: bool) -> None:
    row = {
        "name": "p225",
        "score": 0.1,
        "at": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "flags": ["truncated"],
    }
    table = pa.Table.from_pylist([row], schema=SCHEMA)
    assert table.filter(where_expression(text, SCHEMA)).num_rows == int(expected)


def test_a_long_list_and_a_long_chain_are_no_trouble() -> None:
    many = ", ".join(f"'{i}'" for i in range(5_000))
    assert found(f"name IN ({many})") == []
    chain = " OR ".join(f"count = {i + 10}" for i in range(399))
    assert found(f"{chain} OR id = 3") == [3]


@pytest.mark.parametrize("column", ["count", "id", "seconds", "score"])
def test_a_list_of_many_numbers_is_no_trouble(column: str) -> None:
    many = ", ".join(str(i) for i in range(1, 20_000))
    expected = [i for i, row in enumerate(ROWS[column].to_pylist()) if row in range(1, 20_000)]
    assert found(f"{column} IN ({many})") == expected


def test_no_number_of_comparisons_ends_the_process() -> None:
    for one, join in (("count = 1", " OR "), ("count IS NULL", " AND "), ("TRUE", " OR ")):
        with pytest.raises(JobError, match=r"more than 400 comparisons; IN \(…\) takes any"):
            where_expression(join.join([one] * 20_000), SCHEMA)
    with pytest.raises(JobError, match="more than 400"):
        where_expression(f"count IN ({', '.join(['1.5'] * 20_000)})")  # of an unknown type


Truth = bool | None
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, ">=": operator.ge,
}  # fmt: skip
numbers = st.integers(-3, 4) | st.sampled_from(
    [0.25, -1.5, 2.75, -0.0, 1e300, 1e999, 2**31, 2**63 - 1]
)


def number(value: float) -> str:
    return "1e999" if value == float("inf") else repr(value)


def negated(truth: Truth) -> Truth:
    return None if truth is None else not truth


def both(one: Truth, other: Truth) -> Truth:
    return False if False in (one, other) else None if None in (one, other) else True


@st.composite
def judged(draw: st.DrawFn) -> tuple[str, Callable[[dict[str, Any]], Truth]]:
    """A condition on numbers, and whether Python finds that a row fulfils it; None: unknown."""
    name = draw(st.sampled_from(["id", "count", "seconds"]))
    kind = draw(st.sampled_from(["in", "compare", "between", "null"]))
    if kind == "null":
        return f"{name} IS NULL", lambda row: row[name] is None
    if kind == "in":
        values = draw(st.lists(numbers, min_size=1, max_size=40))
        text = f"{name} IN ({', '.join(map(number, values))})"
        return text, lambda row: None if row[name] is None else row[name] in values
    one = draw(numbers)
    if kind == "between":
        other = draw(numbers)
        text = f"{name} BETWEEN {number(one)} AND {number(other)}"
        return text, lambda row: None if row[name] is None else one <= row[name] <= other
    sign = draw(st.sampled_from(sorted(SIGNS)))
    text = f"{name} {sign} {number(one)}"
    return text, lambda row: None if row[name] is None else SIGNS[sign](row[name], one)


@settings(max_examples=150)
@given(
    st.recursive(
        judged(),
        lambda inner: st.one_of(
            inner.map(lambda c: (f"NOT ({c[0]})", lambda row: negated(c[1](row)))),
            st.tuples(inner, inner).map(
                lambda c: (f"({c[0][0]} AND {c[1][0]})", lambda r: both(c[0][1](r), c[1][1](r)))
            ),
            st.tuples(inner, inner).map(
                lambda c: (
                    f"({c[0][0]} OR {c[1][0]})",
                    lambda r: negated(both(negated(c[0][1](r)), negated(c[1][1](r)))),
                )
            ),
        ),
        max_leaves=8,
    )
)
def test_a_condition_finds_the_rows_that_python_finds(
    condition: tuple[str, Callable[[dict[str, Any]], Truth]],
) -> None:
    text, fulfils = condition
    assert found(text) == [row["id"] for row in ROWS.to_pylist() if fulfils(row)]
