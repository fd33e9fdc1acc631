"""Rows of a damaged file that no table leads to any more: read from its pages themselves.

Where an inner page of a table is gone, the rows below it are still there, each page complete in itself. Every leaf page
is looked at, those excepted that the file's own map calls free; a row belongs to a table if it has as many columns.
Values are decoded only of rows that are wanted: most have been read by their table already.
Source: sqlite.org "Database File Format", sections 1.6, 1.8 (the map) and 2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final

PAGE_BYTES: Final = 4_096  # SQLite's default, and so that of every file of ours
_LEAF: Final = 0x0D  # of a table
_FREE: Final = 2
_MAP_ENTRIES: Final = PAGE_BYTES // 5  # of five bytes, behind each page of the map
_IN_PAGE: Final = PAGE_BYTES - 35  # longer rows go on in pages of their own
_LEAST: Final = (PAGE_BYTES - 12) * 32 // 255 - 23
_FIXED: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8, 7: 8}

Row = tuple[int, list[Any]]  # its number, its values


class _Unreadable(Exception):
    pass


def rows(file: BinaryIO, width: int, known: Callable[[int], bool], step: Callable[[], None]) -> Iterator[Row]:
    """Rows of so many columns, without those whose number is known."""
    pages = file.seek(0, 2) // PAGE_BYTES
    for number in range(3, pages + 1):
        step()
        page = _page(file, number)
        if page[:1] != bytes((_LEAF,)) or _is_free(file, number):
            continue
        count = int.from_bytes(page[3:5], "big")
        cells = [int.from_bytes(page[at : at + 2], "big") for at in range(8, min(8 + 2 * count, PAGE_BYTES - 1), 2)]
        if not cells or _is_of_another_table(page, (cells[0], cells[-1]), width):
            continue
        for at in cells:
            try:
                size, begin = _varint(page, at)
                row, begin = _varint(page, begin)
                if not known(row) and _width(page, begin) == width:
                    yield row, _values(_payload(file, page, begin, size))
            except (_Unreadable, IndexError, UnicodeDecodeError):
                continue


def _is_of_another_table(page: bytes, ends: tuple[int, int], width: int) -> bool:
    """A page holds rows of one table. Where its first and its last row do not agree, each row is asked."""
    try:
        first, last = (_width(page, _varint(page, _varint(page, at)[1])[1]) for at in ends)
    except IndexError:
        return False
    return first == last != width


def _page(file: BinaryIO, number: int) -> bytes:
    file.seek((number - 1) * PAGE_BYTES)
    page = file.read(PAGE_BYTES)
    if len(page) < PAGE_BYTES:
        raise _Unreadable
    return page


def _is_free(file: BinaryIO, number: int) -> bool:
    ahead = (number - 2) % (_MAP_ENTRIES + 1)  # pages of the map stand at 2, 2 + 820, …
    if ahead == 0:
        return True  # it is one
    entry = _page(file, number - ahead)[(ahead - 1) * 5 : ahead * 5]
    return entry[0] == _FREE and entry[1:] == bytes(4)


def _width(page: bytes, at: int) -> int:
    """Of the row that begins here: how many columns its header tells."""
    size, begin = _varint(page, at)
    kinds = page[begin : at + size]
    if size > PAGE_BYTES or len(kinds) != at + size - begin:
        raise IndexError
    return sum(each < 0x80 for each in kinds)  # the last byte of each number


def _values(payload: bytes) -> list[Any]:
    end, at = _varint(payload, 0)
    kinds: list[int] = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    values: list[Any] = []
    for kind in kinds:
        value, at = _value(payload, at, kind)
        values.append(value)
    if at != len(payload):
        raise _Unreadable
    return values


def _payload(file: BinaryIO, page: bytes, at: int, size: int) -> bytes:
    if size <= _IN_PAGE:
        return page[at : at + size]
    here = _LEAST + (size - _LEAST) % (PAGE_BYTES - 4)
    here = here if here <= _IN_PAGE else _LEAST
    if size > 1 << 26 or at + here + 4 > PAGE_BYTES:
        raise _Unreadable
    payload = bytearray(page[at : at + here])
    follows = int.from_bytes(page[at + here : at + here + 4], "big")
    while len(payload) < size:
        if follows < 3:
            raise _Unreadable
        more = _page(file, follows)
        follows = int.from_bytes(more[:4], "big")
        payload += more[4 : 4 + size - len(payload)]
    return bytes(payload)


def _value(payload: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind == 0:
        return None, at
    if kind in (8, 9):
        return kind - 8, at
    if kind in (10, 11):
        raise _Unreadable
    end = at + (_FIXED[kind] if kind in _FIXED else (kind - 12) // 2)
    raw = payload[at:end]
    if end > len(payload) or kind == 7:  # no column of ours holds a fraction
        raise _Unreadable
    if kind in _FIXED:
        return int.from_bytes(raw, "big", signed=True), end
    return (raw if kind % 2 == 0 else raw.decode()), end


def _varint(data: Sequence[int], at: int) -> tuple[int, int]:
    value = 0
    for step in range(8):
        byte = data[at + step]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + step + 1
    value = value << 8 | data[at + 8]
    return (value - (1 << 64) if value >> 63 else value), at + 9
