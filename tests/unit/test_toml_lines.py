"""The finder of lines, proven against tomllib.

Documents of every form are written at random; the writer knows the line of each key because it wrote it there.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.toml_lines import Path, line_of, lines

Draw = Callable[..., Any]


def paths_of(value: Any, path: Path = ()) -> Iterator[Path]:
    """Every key and every element that tomllib sees."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    for key, below in inside:
        yield (*path, key)
        yield from paths_of(below, (*path, key))


# What a document says


@dataclass(frozen=True)
class Scalar:
    text: str  # as written


SCALARS = [
    "1",
    "-0.5e3",
    "true",
    "inf",
    "0xff",
    "1979-05-27T07:32:00Z",
    "1979-05-27 07:32:00.5",
    "07:32:00",
    '""',
    "''",
    r'"a \" # \\"',
    r"'C:\path\'",
    '"[table]"',
    "'key = 1, }'",
    '""""""',
    "''''''",
    '"""a\n[b]\nc = 1 # no\n"""',
    '"""\n"quoted" and ""twice"""""',
    '"""one\\\n   line \\""" still\n"""',
    "'''\n[[x]]\n'a' ''b''\n'''''",
    "'''\\\n\"\"\"\n'''",
]
KEYS = st.one_of(
    st.text("abAB01_-", min_size=1, max_size=3),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    st.sampled_from(
        ["", " ", ".", "a.b", '"', "'", "\\", "#", "=", "[x]", "]", "\n", "\t", "ü", "\x85", "\u2028", "1", "true"]
    ),
)
VALUES = st.recursive(
    st.sampled_from(SCALARS).map(Scalar),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(KEYS, inner, max_size=4),
        st.lists(st.dictionaries(KEYS, inner, max_size=3), min_size=1, max_size=3),  # may be an array of tables
    ),
    max_leaves=12,
)


# How it is written


@dataclass
class Writer:
    """Writes a document in forms drawn at random and notes each line as it goes."""

    draw: Draw
    text: str = ""
    expected: dict[Path, int] = field(default_factory=dict)

    def chance(self) -> bool:
        return bool(self.draw(st.booleans()))

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def mention(self, path: Path) -> None:
        self.expected.setdefault(path, self.line)

    def blanks(self) -> None:
        self.text += self.draw(st.sampled_from(["", " ", "\t", "  "]))

    def end_line(self) -> None:
        self.blanks()
        self.text += self.draw(st.sampled_from(["", "# [x] y = 'z'", '# """', "#"]))
        self.text += self.draw(st.sampled_from(["\n", "\r\n", "\n\n", "\n# a = 1\n", "\n \t\r\n"]))

    def gap(self) -> None:
        """Between the elements of an array, where newlines and comments may stand."""
        self.blanks()
        self.text += self.draw(st.sampled_from(["", "", "\n", "\r\n", "# ] , [\n", "\n\n# {\n "]))
        self.blanks()

    def key(self, name: str) -> str:
        forms = ["basic"]
        if name and all(c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-" for c in name):
            forms += ["bare"] * 4
        if "'" not in name and all(c == "\t" or (c >= " " and c != "\x7f") for c in name):
            forms.append("literal")
        form = self.draw(st.sampled_from(forms))
        if form == "bare":
            return name
        if form == "literal":
            return f"'{name}'"
        return '"' + "".join(self.escaped(c) for c in name) + '"'

    def escaped(self, character: str) -> str:
        short = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\b": "\\b", "\f": "\\f"}
        if character in short:
            return short[character]
        if character < " " or character == "\x7f" or self.chance():
            return f"\\U{ord(character):08x}"
        return character

    def dotted(self, names: tuple[str, ...]) -> None:
        for place, name in enumerate(names):
            if place:
                self.blanks()
                self.text += "."
                self.blanks()
            self.text += self.key(name)

    def value(self, value: Any, path: Path) -> None:
        if isinstance(value, Scalar):
            self.text += value.text
        elif isinstance(value, list):
            self.text += "["
            for index, element in enumerate(value):
                self.gap()
                self.mention((*path, index))
                self.value(element, (*path, index))
                self.gap()
                if index < len(value) - 1 or self.chance():
                    self.text += ","
            self.gap()
            self.text += "]"
        else:
            self.text += "{"
            for place, (name, below) in enumerate(value.items()):
                self.text += "," if place else ""
                self.blanks()
                self.pair((name,), below, (*path, name), is_inline=True)
                self.blanks()
            self.text += "}"

    def pair(self, names: tuple[str, ...], value: Any, path: Path, *, is_inline: bool) -> None:
        """`key = value`; a table may spread over several pairs with dotted keys."""
        self.mention(path)
        if isinstance(value, dict) and value and self.chance():
            for place, (name, below) in enumerate(value.items()):
                if place:
                    self.text += "," if is_inline else ""
                    self.blanks()
                self.pair((*names, name), below, (*path, name), is_inline=is_inline)
            return
        self.dotted(names)
        self.blanks()
        self.text += "="
        self.blanks()
        self.value(value, path)
        if not is_inline:
            self.end_line()

    def header(self, names: tuple[str, ...], path: Path, *, brackets: str = "[]") -> None:
        """Also mentions the tables on the way, which may have no header of their own."""
        self.blanks()
        for length in range(1, len(path)):
            self.mention(path[:length])
        self.expected[path] = self.line
        self.text += brackets[: len(brackets) // 2]
        self.blanks()
        self.dotted(names)
        self.blanks()
        self.text += brackets[len(brackets) // 2 :]
        self.end_line()

    def table(self, table: dict[str, Any], names: tuple[str, ...], path: Path, *, element: bool = False) -> None:
        """A table with what belongs to it: its pairs, then tables below it with headers of their own."""
        pairs: list[str] = []
        below: list[str] = []
        for name, value in table.items():
            can_have_header = isinstance(value, dict) or (
                isinstance(value, list) and value and all(isinstance(one, dict) for one in value)
            )
            (below if can_have_header and self.chance() else pairs).append(name)
        is_root = not path
        only_below = bool(below) and not pairs
        is_late = not is_root and not element and bool(below) and self.chance()
        if is_late:
            self.tables_below(table, below, names, path)
        if element:
            self.mention(path[:-1])
            self.header(names, path, brackets="[[]]")
        elif not is_root and (not only_below or self.chance()):
            self.header(names, path)
        for name in pairs:
            self.blanks()
            self.pair((name,), table[name], (*path, name), is_inline=False)
        if not is_late:
            self.tables_below(table, below, names, path)

    def tables_below(self, table: dict[str, Any], below: list[str], names: tuple[str, ...], path: Path) -> None:
        for name in below:
            value = table[name]
            if isinstance(value, dict):
                self.table(value, (*names, name), (*path, name))
            else:
                for length in range(1, len(path)):
                    self.mention(path[:length])
                for index, element in enumerate(value):
                    self.table(element, (*names, name), (*path, name, index), element=True)


@st.composite
def documents(draw: Draw) -> tuple[str, dict[Path, int]]:
    writer = Writer(draw)
    writer.table(draw(st.dictionaries(KEYS, VALUES, max_size=5)), (), ())
    return writer.text, writer.expected


slow_to_draw = settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)


@pytest.mark.slow
@settings(slow_to_draw, max_examples=250)
@given(documents())
def test_every_key_that_tomllib_sees_has_its_true_line_and_nothing_else_has_one(
    document: tuple[str, dict[Path, int]],
) -> None:
    text, expected = document
    seen = set(paths_of(tomllib.loads(text)))  # valid, or the test itself is wrong
    assert set(expected) == seen
    assert lines(text) == expected


@st.composite
def damaged(draw: Draw) -> str:
    """A document with a few characters changed: mostly still almost TOML."""
    text, _ = draw(documents())
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 2))
        text = text[:at] + draw(st.text("[]{}=.,\"'#\\\n\r \tab1", max_size=3)) + text[at + cut :]
    return str(text)


@pytest.mark.slow
@settings(slow_to_draw, max_examples=250)
@given(st.one_of(damaged(), st.text("[]{}=.,\"'#\\\n\r \tab1é", max_size=40), st.text(max_size=20)))
@example("a = 1\n[[b]]\n[b.c]\n[[b]]\nc.d = {e = [1, {f = 2}]}")
@example("a = {b = 1")
@example("[")
@example("[[a")
@example("a = [")
@example('a = """')
@example('"\\uD800" = 1')
@example('"\\q" = 1')
def test_it_never_raises_and_sees_just_what_tomllib_sees(text: str) -> None:
    found = lines(text)
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert set(found) == set(paths_of(document))
    last = text.count("\n") + 1
    assert all(1 <= line <= last for line in found.values())


def test_the_lines_of_an_everyday_file() -> None:
    text = (
        "# one\n"
        "[site]\n"
        'location_id = "L"  # id\n'
        "\n"
        "[cloud]\n"
        'extra_token_fields = { "https://x/y" = "z", plain = "[site]" }\n'
        "[sources.nvr]\n"
        "ignore = [\n"
        '  "cam1", # [cameras.no]\n'
        '  "cam2",\n'
        "]\n"
        '[cameras."front door"]\n'
        'camera_id = """\n'
        "[x]\n"
        '"""\n'
        "name = 'n'\n"
    )
    assert lines(text) == {
        ("site",): 2,
        ("site", "location_id"): 3,
        ("cloud",): 5,
        ("cloud", "extra_token_fields"): 6,
        ("cloud", "extra_token_fields", "https://x/y"): 6,
        ("cloud", "extra_token_fields", "plain"): 6,
        ("sources",): 7,
        ("sources", "nvr"): 7,
        ("sources", "nvr", "ignore"): 8,
        ("sources", "nvr", "ignore", 0): 9,
        ("sources", "nvr", "ignore", 1): 10,
        ("cameras",): 12,
        ("cameras", "front door"): 12,
        ("cameras", "front door", "camera_id"): 13,
        ("cameras", "front door", "name"): 16,
    }
    assert line_of(text, ("cloud", "extra_token_fields", "plain")) == 6
    assert line_of(text, ("cloud", "url")) is None


def test_a_header_of_its_own_outweighs_a_mention() -> None:
    text = "[a.b]\nc = 1\n[a]\nd = 2\n"
    assert lines(text) == {("a",): 3, ("a", "b"): 1, ("a", "b", "c"): 2, ("a", "d"): 4}


def test_tables_below_an_array_of_tables_belong_to_its_last_element() -> None:
    text = "[[a]]\n[[a]]\n[a.b]\nc = 1\n[[a.d]]\n[[a.d]]\n"
    assert lines(text)[("a", 1, "b", "c")] == 4
    assert lines(text)[("a", 1, "d", 1)] == 6
    assert lines(text)[("a", 0)] == 1


@pytest.mark.parametrize("separator", ["\x85", "\u2028", "\u2029"])
def test_only_a_newline_ends_a_line(separator: str) -> None:
    """An editor counts as TOML does; str.splitlines() would not."""
    assert lines(f"# a{separator}b\n'a{separator}b' = 1\n") == {(f"a{separator}b",): 2}


def test_depth_costs_no_stack() -> None:
    """Deeper than tomllib itself can follow."""
    text = "a = " + "[" * 3_000 + "]" * 3_000
    with pytest.raises(RecursionError):
        tomllib.loads(text)
    assert len(lines(text)) == 3_000
