"""Where in a TOML text each key stands, so that a fault can name its line.

`tomllib` gives values without positions. This scanner walks a text that `tomllib` accepts and notes the line of every
key, table and array element; it judges nothing, and decodes only keys. A table with a header of its own stands at that
header, any other table where it is first mentioned. Lines count from 1 and end at "\\n" only, as in TOML.

Promises, proven against `tomllib` in tests/unit/test_toml_lines.py: for valid TOML exactly the paths that `tomllib`
sees, each with its true line; for any other text no exception. Follows TOML v1.0.0 (https://toml.io/en/v1.0.0). Pure.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Final

Path = tuple[str | int, ...]

# Possessive quantifiers keep every pattern linear, whatever the text.
_BLANK: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*+)*+")  # also newlines and comments
_SPACE: Final = re.compile(r"[ \t]*+")
_KEY: Final = re.compile(r"""[A-Za-z0-9_-]++|"(?:[^"\\\n]|\\[^\n])*+"|'[^'\n]*+'""")
# A multi-line string may end in up to five quotation marks: two of its own and the three that close it.
_STRING: Final = re.compile(
    r'''"""(?:[^"\\]|\\[\s\S]|"{1,2}(?!"))*"{3,5}'''
    r"""|'''(?:[^']|'{1,2}(?!'))*'{3,5}"""
    r'''|"(?:[^"\\\n]|\\[^\n])*+"'''
    r"""|'[^'\n]*+'"""
)
_BARE: Final = re.compile(r"[^,\[\]{}\n#]++")  # a number, a date (which may hold a space), true, false


def line_of(text: str, path: Path) -> int | None:
    """The line of one key; None where the text has no such key."""
    return lines(text).get(path)


def lines(text: str) -> dict[Path, int]:
    """The line of every key, table and array element."""
    scan = _Scan(text)
    scan.document()
    return scan.found


@dataclass
class _Open:
    """An array or inline table that has begun and not ended."""

    path: Path
    is_array: bool
    next_index: int = 0


@dataclass
class _Scan:
    text: str
    at: int = 0
    found: dict[Path, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._newlines = [match.start() for match in re.finditer("\n", self.text)]
        self._elements: dict[Path, int] = {}  # array of tables -> how many elements so far

    def document(self) -> None:
        table: Path = ()
        while self._skip(_BLANK) < len(self.text):
            begin = self.at
            if self.text[begin] == "[":
                table = self._header()
            else:
                path = self._keys(table)
                self._skip(_SPACE)
                if self._take("="):
                    self._value(path)
            if self.at == begin:  # not TOML: go on, so that the scan always ends
                self.at += 1

    def _header(self) -> Path:
        begin = self.at
        self.at += 1
        is_element = self._take("[")
        names = self._names()
        if not names:
            return ()  # not TOML
        path: Path = ()
        for place, name in enumerate(names):
            path += (name,)
            is_last = place == len(names) - 1
            if is_last:
                break
            self._note(path, begin)
            if path in self._elements:  # "[fruit.apple]" below "[[fruit]]" speaks of the last fruit
                path += (self._elements[path] - 1,)
        if is_element:
            self._note(path, begin)
            index = self._elements.get(path, 0)
            self._elements[path] = index + 1
            path += (index,)
        self.found[path] = self._line(begin)  # a header of its own outweighs a mention
        self._skip(_SPACE)
        while self._take("]"):
            pass
        return path

    def _names(self) -> list[str]:
        """A key, dotted or not: the decoded names."""
        names: list[str] = []
        while True:
            self._skip(_SPACE)
            match = _KEY.match(self.text, self.at)
            if match is None:
                return names
            self.at = match.end()
            names.append(_decoded(match[0]))
            self._skip(_SPACE)
            if not self._take("."):
                return names

    def _keys(self, table: Path) -> Path:
        """Notes a key in `table`, with the tables that its dots imply; returns its path."""
        begin = self.at
        path = table
        for name in self._names():
            path += (name,)
            self._note(path, begin)
        return path

    def _value(self, path: Path) -> None:
        """Passes over one value and notes what stands inside. A loop, not a recursion: depth costs no stack."""
        opened: list[_Open] = []
        while True:
            self._skip(_BLANK if opened else _SPACE)
            if opened:
                inner = opened[-1]
                if self._take("]") or self._take("}"):
                    opened.pop()
                    if not opened:
                        return
                    continue
                if self._take(","):
                    continue
                if inner.is_array:
                    path = (*inner.path, inner.next_index)
                    inner.next_index += 1
                    self._note(path, self.at)
                else:
                    path = self._keys(inner.path)
                    self._skip(_SPACE)
                    if not self._take("="):
                        return  # not TOML
                    self._skip(_SPACE)
            if self._take("["):
                opened.append(_Open(path, is_array=True))
                continue
            if self._take("{"):
                opened.append(_Open(path, is_array=False))
                continue
            match = _STRING.match(self.text, self.at) or _BARE.match(self.text, self.at)
            if match is None:
                return  # not TOML
            self.at = match.end()
            if not opened:
                return

    def _note(self, path: Path, position: int) -> None:
        if path:
            self.found.setdefault(path, self._line(position))

    def _line(self, position: int) -> int:
        return bisect_left(self._newlines, position) + 1

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        if match:
            self.at = match.end()
        return self.at

    def _take(self, character: str) -> bool:
        if self.text.startswith(character, self.at):
            self.at += 1
            return True
        return False


def _decoded(token: str) -> str:
    """A bare or quoted key as `tomllib` reads it."""
    if token[0] not in "\"'":
        return token
    if "\\" not in token:
        return token[1:-1]
    try:
        return next(iter(tomllib.loads(f"{token} = 0")))
    except tomllib.TOMLDecodeError:
        return token[1:-1]
