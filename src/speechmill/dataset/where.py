"""Conditions on rows as text, such as ``folder_name = 'p225' AND duration_s < 10``.

The language is the part of SQL's WHERE that needs only a row's own columns: comparisons,
``IN``, ``LIKE``, ``BETWEEN``, ``IS NULL``, ``AND``, ``OR``, ``NOT`` and parentheses, with SQL's
three-valued logic. Tests compare its results with DuckDB's.
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

import pyarrow as pa
import pyarrow.compute as pc

from speechmill.dataset.literals import Literal, any_of, is_text, is_texts, kind, typed
from speechmill.errors import JobError

__all__ = ["where_expression"]

MAX_DEPTH = 50  # parentheses and NOTs inside each other; far below what Python's stack takes
MAX_TERMS = 400
"""Comparisons in one condition. Arrow makes one chain of them, however they are joined, and walks
it by recursion, which ends the process where a thread's stack is full: 500 fit into 512 KB, which
threads have on macOS, 2,000 into 2 MB."""
_TOKEN = re.compile(
    r"""(?:
        (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?(?![\w.]))
      | (?P<string>'(?:[^']|'')*')
      | (?P<quoted>"(?:[^"]|"")+")
      | (?P<word>[^\W\d]\w*)
      | (?P<sign>==|!=|<>|<=|>=|[=<>(),+-])
      | (?P<end>$)
    )""",
    re.VERBOSE,
)
_NEXT_CHARACTER = re.compile(r"\S|$")
_KEYWORDS = frozenset(
    "AND BETWEEN CONTAINS FALSE ILIKE IN IS LIKE LIST_CONTAINS NOT NULL OR TRUE".split()  # noqa: SIM905 - short
)
_COMPARISONS: dict[str, Callable[[pc.Expression, pc.Expression], pc.Expression]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SEPARATOR = "\x1f"  # between the items of a list when one is looked for
_UNKNOWN = pc.scalar(pa.scalar(None, pa.bool_()))


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, string, column, keyword, sign or end
    text: str  # keywords in capitals; strings and columns without their quotes
    at: int  # its first character, from 0


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    type: pa.DataType | None  # None where no schema was given


def where_expression(text: str, schema: pa.Schema | None = None) -> pc.Expression:
    r"""Parse a condition to a filter for pyarrow's datasets and tables.

    ::

        folder_name = 'p225' AND duration_s < 10          -- also == != <> <= > >=
        language IN ('en', 'de') OR language IS NULL      -- also NOT IN, IS NOT NULL
        file_name LIKE 'p2%' AND NOT (duration_s BETWEEN 2 AND 4)
        'truncated' IN flags                              -- as contains(flags, 'truncated')

    Strings stand in single quotes ('' is one quote inside), names of columns bare or in double
    quotes; words such as AND may be in small letters. In LIKE, ``%`` is any text, ``_`` any
    character, and ``\`` takes the meaning of the next one away; ILIKE ignores case.

    As in SQL, a comparison with a null is neither true nor false, and such rows are left out.
    With ``schema`` columns and types are checked here, numbers are compared in the column's own
    type (``0.1`` finds the float32 that is printed so), and times may be compared with strings in
    ISO 8601, UTC where they do not say. Without it, pyarrow finds mistakes when it reads.

    Raises:
        JobError: the text is no condition, or does not fit the schema: it says at which character,
            and what was expected there.
    """
    return _Parser(text, schema).condition()


class _Parser:
    """Recursive descent over one text: each method parses what it is named after, and leaves
    ``_next`` at the token behind it."""

    def __init__(self, text: str, schema: pa.Schema | None) -> None:
        self._text, self._schema = text, schema
        self._end = 0
        self._depth = 0
        self._terms = 0
        self._next = self._read()

    def condition(self) -> pc.Expression:
        """Parse the whole text."""
        found = self._disjunction()
        if self._next.kind != "end":
            self._fail("AND, OR or the end")
        return found

    def _read(self) -> _Token:
        at = next(_NEXT_CHARACTER.finditer(self._text, self._end)).start()
        match = _TOKEN.match(self._text, at)
        if match is None:
            if self._text[at] in "'\"":
                self._fail(f"a closing {self._text[at]}", at, found="the end")
            self._fail("a column, a value or an operator", at, found=repr(self._text[at]))
        self._end = match.end()
        kind, text = str(match.lastgroup), match[str(match.lastgroup)]
        if kind == "string":
            return _Token(kind, text[1:-1].replace("''", "'"), at)
        if kind == "quoted":
            return _Token("column", text[1:-1].replace('""', '"'), at)
        if kind == "word":
            keyword = text.upper() in _KEYWORDS
            return _Token(*("keyword", text.upper()) if keyword else ("column", text), at)
        return _Token(kind, text, at)

    def _advance(self) -> _Token:
        token, self._next = self._next, self._next
        if token.kind != "end":
            self._next = self._read()
        return token

    def _peek(self, *texts: str) -> bool:
        return self._next.kind in ("keyword", "sign") and self._next.text in texts

    def _accept(self, *texts: str) -> bool:
        """Take the next token if it is one of these. Returns whether it was."""
        if not self._peek(*texts):
            return False
        self._advance()
        return True

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            self._fail(repr(sign))

    def _fail(self, expected: str, at: int | None = None, found: str | None = None) -> NoReturn:
        if at is None:
            at = self._next.at
        if found is None:
            ended = self._next.kind == "end"
            found = "the end" if ended else repr(self._text[at : self._end])
        raise JobError(
            f"the condition {_short(self._text)!r} cannot be understood: expected {expected} at "
            f"character {at + 1}, found {found}"
        )

    def _misfit(self, what: str, at: int) -> JobError:
        return JobError(
            f"the condition {_short(self._text)!r} does not fit the rows: {what} (character "
            f"{at + 1})"
        )

    def _disjunction(self) -> pc.Expression:
        found = [self._conjunction()]
        while self._accept("OR"):
            found.append(self._conjunction())
        return _join(operator.or_, found)

    def _conjunction(self) -> pc.Expression:
        found = [self._term()]
        while self._accept("AND"):
            found.append(self._term())
        return _join(operator.and_, found)

    def _term(self) -> pc.Expression:
        at = self._next.at
        if self._depth >= MAX_DEPTH:
            raise self._misfit(f"more than {MAX_DEPTH} parentheses and NOTs inside each other", at)
        self._depth += 1
        try:
            if self._accept("NOT"):
                return ~self._term()
            if self._accept("("):
                found = self._disjunction()
                self._expect(")")
                return found
            return self._predicate()
        finally:
            self._depth -= 1

    def _count(self, number: int, at: int) -> None:
        self._terms += number
        if self._terms > MAX_TERMS:
            raise self._misfit(
                f"more than {MAX_TERMS:,} comparisons; IN (…) takes any number of values", at
            )

    def _predicate(self) -> pc.Expression:
        at = self._next.at
        self._count(1, at)
        if self._accept("CONTAINS", "LIST_CONTAINS"):
            self._expect("(")
            column = self._column()
            self._expect(",")
            item = self._string()
            self._expect(")")
            return self._contains(column, item, at)
        left = self._operand()
        if isinstance(left, _Column):
            return self._column_predicate(left, at)
        if isinstance(left, str) and self._accept("IN"):
            return self._contains(self._column(), left, at)
        if isinstance(left, bool) and not self._peek(*_COMPARISONS):
            return pc.scalar(left)
        sign = self._comparison("a comparison (= != < <= > >=)")
        return self._compare(self._column(), _MIRRORED.get(sign, sign), left, at)

    def _column_predicate(self, column: _Column, at: int) -> pc.Expression:
        """Parse the predicate after a column's name."""
        field = pc.field(column.name)
        if self._accept("IS"):
            negated = self._accept("NOT")
            if not self._accept("NULL"):
                self._fail("NULL")
            return field.is_valid() if negated else field.is_null()
        if self._peek("NOT", "IN", "LIKE", "ILIKE", "BETWEEN"):
            negated = self._accept("NOT")
            found = self._range_predicate(column, at)
            return ~found if negated else found
        sign = self._comparison("= != < <= > >=, IN, LIKE, BETWEEN, IS or NOT")
        return self._compare(column, sign, self._operand(), at)

    def _range_predicate(self, column: _Column, at: int) -> pc.Expression:
        """Parse IN, LIKE, ILIKE or BETWEEN, after a column and maybe NOT."""
        if self._peek("LIKE", "ILIKE"):
            ignore_case = self._advance().text == "ILIKE"
            if column.type is not None and not is_text(column.type):
                raise self._misfit(f"LIKE is for text, and {column.name} is {column.type}", at)
            return pc.match_like(pc.field(column.name), self._string(), ignore_case=ignore_case)
        if self._accept("BETWEEN"):
            low = self._literal()
            if not self._accept("AND"):
                self._fail("AND")
            above = self._compare(column, ">=", low, at)
            return above & self._compare(column, "<=", self._literal(), at)
        if not self._accept("IN"):
            self._fail("IN, LIKE or BETWEEN")
        self._expect("(")
        values = [self._literal()]
        while self._accept(","):
            values.append(self._literal())
        self._expect(")")
        return self._in_list(column, values, at)

    def _in_list(self, column: _Column, values: Sequence[Literal], at: int) -> pc.Expression:
        if column.type is None and not all(isinstance(v, str) for v in values):
            self._count(len(values), at)
            return _join(operator.or_, [self._compare(column, "=", v, at) for v in values])
        try:
            found = any_of(values, column.name, column.type or pa.string())
        except ValueError as error:
            raise self._misfit(str(error), at) from None
        field = pc.field(column.name)
        return pc.if_else(field.is_null(), _UNKNOWN, field.isin(found))

    def _contains(self, column: _Column, item: str, at: int) -> pc.Expression:
        if column.type is not None and not is_texts(column.type):
            raise self._misfit(
                f"{column.name} is {column.type}, and only lists of text can be looked into", at
            )
        if not item or _SEPARATOR in item:
            raise self._misfit(f"{item!r} is in no list", at)
        # Arrow can look into a text, but not into a list.
        items = pc.binary_join(pc.field(column.name), _SEPARATOR)
        separator = pc.scalar(_SEPARATOR)
        enclosed = pc.binary_join_element_wise(separator, items, separator, pc.scalar(""))
        return pc.match_substring(enclosed, f"{_SEPARATOR}{item}{_SEPARATOR}")

    def _compare(
        self, column: _Column, sign: str, other: Literal | _Column, at: int
    ) -> pc.Expression:
        field = pc.field(column.name)
        if isinstance(other, _Column):
            if None not in (column.type, other.type) and kind(column.type) != kind(other.type):
                raise self._misfit(
                    f"{column.name} is {column.type}, and {other.name} {other.type}", at
                )
            return _COMPARISONS[sign](field, pc.field(other.name))
        if column.type is None:
            return _COMPARISONS[sign](field, pc.scalar(other))
        return _COMPARISONS[sign](field, pc.scalar(self._value(column, other, at)))

    def _value(self, column: _Column, value: Literal, at: int) -> pa.Scalar:
        try:
            return typed(value, column.name, column.type)
        except ValueError as error:
            raise self._misfit(str(error), at) from None

    def _operand(self) -> Literal | _Column:
        return self._column() if self._next.kind == "column" else self._literal(or_column=True)

    def _column(self) -> _Column:
        if self._next.kind != "column":
            self._fail("the name of a column")
        token = self._advance()
        if self._schema is None:
            return _Column(token.text, None)
        names = self._schema.names
        if token.text not in names:
            alike = difflib.get_close_matches(token.text, names, n=1, cutoff=0.5)
            hint = f"did you mean {alike[0]}?" if alike else f"there are {', '.join(names)}"
            hint += "; text stands in 'single quotes'"
            raise self._misfit(f"there is no column {token.text!r}: {hint}", token.at)
        return _Column(token.text, self._schema.field(token.text).type)

    def _comparison(self, expected: str) -> str:
        if not self._peek(*_COMPARISONS):
            self._fail(expected)
        return self._advance().text

    def _string(self) -> str:
        if self._next.kind != "string":
            self._fail("a text in single quotes")
        return self._advance().text

    def _literal(self, *, or_column: bool = False) -> Literal:
        if self._next.kind == "string":
            return self._advance().text
        if self._peek("TRUE", "FALSE"):
            return self._advance().text == "TRUE"
        at = self._next.at
        if self._peek("NULL"):
            self._fail("a value (nulls are found by IS NULL)")
        sign = -1 if self._peek("-") else 1
        self._accept("-", "+")
        if self._next.kind != "number":
            a_column = "a column or " if or_column and at == self._next.at else ""
            quotes = "; text stands in 'single quotes'" if self._next.kind == "column" else ""
            self._fail(f"{a_column}a value{quotes}")
        digits = self._advance().text
        if not digits.isdecimal():
            return sign * float(digits)
        if abs(whole := sign * int(digits[:20])) >= 2**63 or len(digits) > 20:
            raise self._misfit(f"{_short(digits)} is too large", at)
        return whole


def _join(
    join: Callable[[pc.Expression, pc.Expression], pc.Expression], found: list[pc.Expression]
) -> pc.Expression:
    """Join expressions in pairs: Arrow evaluates a filter by recursion, so it must not be deep."""
    while len(found) > 1:
        pairs = [join(a, b) for a, b in zip(found[::2], found[1::2], strict=False)]
        found = pairs + found[len(pairs) * 2 :]
    return found[0]


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}…"
