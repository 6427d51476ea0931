"""xRSL as text: the grammar of the Globus RSL v1 with ARC's use of it. Pure.

    &(executable="/bin/echo")(arguments="a" "b")(inputFiles=("in" "")("x" "/local/x"))
    +(&(executable=a))(&(executable=b))

What cannot be answered is refused, never guessed: disjunctions (``|``), variables (``$(X)``) and anything
left over behind the last parenthesis.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from edged.errors import BadRequest

MAX_DEPTH = 8
MAX_TOKENS = 200_000

Value: TypeAlias = "str | tuple[Value, ...]"


@dataclass(frozen=True, slots=True)
class Relation:
    """``attribute operator values``; the attribute in lower case."""

    attribute: str
    operator: str
    values: tuple[Value, ...]

    def words(self) -> tuple[str, ...]:
        """The values when they are plain strings. Raises BadRequest."""
        if any(not isinstance(value, str) for value in self.values):
            raise BadRequest(f"{self.attribute}: a list where a string belongs")
        return self.values  # type: ignore[return-value]

    def word(self) -> str:
        """The one value. Raises BadRequest."""
        words = self.words()
        if len(words) != 1:
            raise BadRequest(f"{self.attribute}: takes one value")
        return words[0]

    def rows(self) -> tuple[tuple[str, ...], ...]:
        """The values when they are lists of strings. Raises BadRequest."""
        for value in self.values:
            if isinstance(value, str) or any(not isinstance(part, str) for part in value):
                raise BadRequest(f"{self.attribute}: takes lists like (a b)")
        return self.values  # type: ignore[return-value]


Job: TypeAlias = list[Relation]

_TOKEN = re.compile(
    r"""\s+ | \(\*.*?\*\)
    | (?P<mark>[()&|+\#]) | (?P<operator>!=|<=|>=|[=<>])
    | "(?P<double>(?:[^"]|"")*+)" | '(?P<single>(?:[^']|'')*+)'
    | \^(?P<quote>.)(?P<custom>(?:(?!(?P=quote)).|(?P=quote)(?P=quote))*+)(?P=quote)
    | (?P<word>[^\s()&|+\#=<>!"'^$]++)""",
    re.VERBOSE | re.DOTALL,
)


def read(text: str) -> list[Job]:
    """One job (``&...``) or several (``+(...)(...)``). Raises BadRequest with where it went wrong."""
    parser = _Parser(text)
    return parser.specification()


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Kind, text and position."""
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            what = (
                "variables are not known here" if text[position] == "$" else f"unexpected {text[position]!r}"
            )
            raise BadRequest(f"xRSL: {what} at {_where(text, position)}")
        if (kind := match.lastgroup) is not None:
            yield _token(kind, match)
        position = match.end()


def _token(kind: str, match: re.Match[str]) -> tuple[str, str, int]:
    start = match.start()
    if kind in ("double", "single"):
        quote = '"' if kind == "double" else "'"
        return "string", match[kind].replace(quote * 2, quote), start
    if kind in ("custom", "quote"):
        quote = match["quote"]
        return "string", match["custom"].replace(quote * 2, quote), start
    return ("string" if kind == "word" else kind), match[kind], start


def _where(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"


class _Parser:
    """Recursive descent over the tokens, with a limit on depth."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_limited(_tokens(text)))
        self._at = 0

    def _peek(self) -> str:
        """The next mark or operator, ``string``, or nothing at the end."""
        if self._at >= len(self._tokens):
            return ""
        kind, text, _ = self._tokens[self._at]
        return "string" if kind == "string" else text

    def _take(self, wanted: str) -> str:
        if self._peek() != wanted:
            raise self._error(f"{wanted!r} expected" if wanted != "string" else "a name or value expected")
        self._at += 1
        return self._tokens[self._at - 1][1]

    def _error(self, what: str) -> BadRequest:
        if self._at >= len(self._tokens):
            return BadRequest(f"xRSL: {what}, but the text ends")
        return BadRequest(f"xRSL: {what} at {_where(self._text, self._tokens[self._at][2])}")

    def specification(self) -> list[Job]:
        jobs: list[Job] = []
        if self._peek() == "+":
            self._take("+")
            while self._peek() == "(":
                self._take("(")
                jobs.append(self._conjunction(1))
                self._take(")")
        else:
            jobs.append(self._conjunction(0))
        if self._peek():
            raise self._error("nothing more expected")
        if not jobs:
            raise BadRequest("xRSL: no job in it")
        return jobs

    def _conjunction(self, depth: int) -> Job:
        """``&(..)(..)``, the ``&`` being optional; conjunctions inside are the same conjunction."""
        if depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}")
        if self._peek() == "|":
            raise self._error("alternatives (|) are not supported; give one job")
        if self._peek() == "&":
            self._take("&")
        found: Job = []
        while self._peek() == "(":
            self._take("(")
            if self._peek() in ("&", "|", "("):
                found += self._conjunction(depth + 1)
            else:
                found.append(self._relation(depth + 1))
            self._take(")")
        if not found:
            raise self._error("(attribute=value) expected")
        return found

    def _relation(self, depth: int) -> Relation:
        attribute = self._take("string").lower()
        operator = self._peek()
        if operator not in ("=", "!=", "<", "<=", ">", ">="):
            raise self._error("an operator expected")
        self._at += 1
        return Relation(attribute, operator, self._values(depth))

    def _values(self, depth: int) -> tuple[Value, ...]:
        if depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}")
        found: list[Value] = []
        while (kind := self._peek()) in ("string", "("):
            if kind == "string":
                found.append(self._joined())
            else:
                self._take("(")
                found.append(self._values(depth + 1))
                self._take(")")
        return tuple(found)

    def _joined(self) -> str:
        """A string, or several joined by ``#``."""
        text = self._take("string")
        while self._peek() == "#":
            self._take("#")
            text += self._take("string")
        return text


def _limited(tokens: Iterator[tuple[str, str, int]]) -> Iterator[tuple[str, str, int]]:
    for number, token in enumerate(tokens):
        if number > MAX_TOKENS:
            raise BadRequest(f"xRSL: more than {MAX_TOKENS} words")
        yield token
