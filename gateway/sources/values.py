"""The functions of the rule language: names, words and numbers out of whatever a message holds.

None of them fails, each takes any decoded value, and each says None where there is nothing of its kind. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

MAX_TEXT: Final = 256  # characters of a text that may name something; longer is no name
MAX_WORDS: Final = 32  # elements that `words` and `texts` take; a review has a handful of objects
_LARGEST: Final = 10**18  # numbers beyond are no measurement, and not every reader of JSON can hold them


def number(value: Any) -> Decimal | int | None:
    """The number in a number or in a text such as `"0.75"`; None where there is none. True is not a number."""
    if type(value) is int or (type(value) is Decimal and value.is_finite()):
        return value
    if type(value) is float:
        return Decimal(repr(value)) if value == value and abs(value) != float("inf") else None
    if type(value) is str and len(value) <= 40:
        try:
            read = Decimal(value.strip())
        except InvalidOperation:
            return None
        return read if read.is_finite() else None
    return None


def text(value: Any) -> str | None:
    """A usable name: 1 to 256 printable characters, blanks at the ends taken off; a number as it was sent."""
    if type(value) is not str:
        if type(value) is not int and type(value) is not Decimal:
            return None
        try:
            value = str(value)
        except ValueError:  # an integer of thousands of digits
            return None
    if value.isprintable() and len(value) <= MAX_TEXT:  # the common case; surrogates are not printable
        return value.strip() or None
    # Camera ids with invisible characters come from copying out of web pages; they are taken off, not kept as names.
    shown = "".join(c for c in value[: 4 * MAX_TEXT] if c.isprintable()).strip()
    return shown if 0 < len(shown) <= MAX_TEXT else None


def word(value: Any) -> str | None:
    """What a value map looks up: `True`, `"ON "` and `1` are written in so many ways that one is needed."""
    if value is True:
        return "true"
    if value is False:
        return "false"
    read = text(value)
    return None if read is None else read.lower()


# Every way of writing yes and no that equipment was seen to use; "1" and "2" of one family are not among the twos.
_TRUE: Final = frozenset({"true", "1", "on", "yes", "active", "alarm", "detected", "open"})
_FALSE: Final = frozenset({"false", "0", "off", "no", "inactive", "clear", "cleared", "none", "closed", "idle"})


def truth(value: Any) -> str | None:
    """`true` or `false` for every spelling of them; any other word as it is, for the map to ignore with a reason."""
    said = word(value)
    if said in _TRUE:
        return "true"
    return "false" if said in _FALSE else said


def texts(value: Any, at_most: int = MAX_WORDS) -> list[str]:
    """The usable names of a list, at most 32; of a single name, a list of it."""
    if type(value) is not list:
        value = [value]
    elif len(value) > at_most:
        value = value[:at_most]
    return [name for element in value if (name := text(element)) is not None]


def words(*lists: Any) -> str | None:
    """Names of all lists as one: sorted, each once, joined by `+`."""
    found: list[str] = []
    for one in lists:
        if one:
            found += texts(one)
    if len(found) == 1:
        return found[0]
    return "+".join(sorted(set(found)))[:MAX_TEXT] or None


def without_suffix(value: Any, suffix: str) -> Any:
    if type(value) is list:
        return [e.removesuffix(suffix) if type(e) is str else e for e in value]
    return value.removesuffix(suffix) if type(value) is str else value


def without_prefix(value: Any, prefix: str) -> Any:
    return value.removeprefix(prefix) if type(value) is str else value


def starts_with(value: Any, prefix: str) -> bool:
    return type(value) is str and value.startswith(prefix)


def before(value: Any, separator: str) -> str | None:
    """The part of a text before the first separator; all of it where there is none."""
    return value.partition(separator)[0] if type(value) is str else None


def entries(value: Any) -> list[dict[str, Any]]:
    """An object as a list of its entries, each with `key` and `value`."""
    if not isinstance(value, Mapping):
        return []
    return [{"key": key, "value": of_it} for key, of_it in value.items()]


def first(value: Any) -> Any:
    """The first element of a list; anything else as it is. XML that became JSON wraps single values so."""
    return (value[0] if value else None) if type(value) is list else value


def joined(separator: str, *parts: Any) -> str | None:
    """The texts among the parts with the separator between them; None where there is none."""
    return separator.join(said for part in parts if (said := text(part)) is not None) or None


def levels(topic: Any, start: int, end: int) -> str | None:
    """Some levels of a topic, counted from 0; `end` is not among them."""
    return ("/".join(topic.split("/")[start:end]) or None) if type(topic) is str else None


def digits_after(value: Any, prefix: str) -> str | None:
    """`Device2Scenario1` after `Device` -> `2`; None where the text begins otherwise."""
    if type(value) is not str or not value.startswith(prefix):
        return None
    rest = value[len(prefix) :]
    return rest[: len(rest) - len(rest.lstrip("0123456789"))] or None


_NAMESPACE: Final = re.compile(r"(^|/)(?:tns:[a-z]+/|[A-Za-z][A-Za-z0-9_-]*:)")


def without_namespaces(topic: Any) -> str | None:
    """`tns1:Device/tnsaxis:Sensor/PIR`, and Axis's `tns:onvif/Device/tns:axis/Sensor/PIR` -> `Device/Sensor/PIR`."""
    return _NAMESPACE.sub(r"\1", topic) if type(topic) is str else None


def look_up(table: Any, *keys: Any) -> Any:
    """What a table of the family says of the first key that it has; keys are compared as words."""
    if isinstance(table, Mapping):
        for key in keys:
            found = table.get(word(key))
            if found is not None:
                return found
    return None


def reads_as(unix: Any, clock: Any) -> bool:
    """True if a unix time, read as UTC, shows the same date and time as a text of local time.

    So it does in equipment that writes its local time as if it were UTC.
    """
    seconds = number(unix)
    if seconds is None or not 0 <= seconds < 10**11 or type(clock) is not str:
        return False
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%d %H:%M:%S}" == clock.strip().replace("T", " ")[:19]


def coalesce(*values: Any) -> Any:
    return next((v for v in values if v is not None), None)


def overlaps(left: Any, right: Any) -> bool:
    """True if the two lists of names have one in common, in whatever capitals: people write `Person` in a setting."""
    return not {name.lower() for name in texts(left, 1000)}.isdisjoint(name.lower() for name in texts(right, 1000))


def plain(value: Any) -> Any:
    """What may go into a row as JSON: scalars and short lists of them; all else is left out."""
    if type(value) is str:
        return text(value)
    if type(value) is list:
        if len(value) > MAX_WORDS:
            value = value[:MAX_WORDS]
        return [
            said
            for e in value
            if (said := text(e) if type(e) is str else None if type(e) is list else plain(e)) is not None
        ]
    if type(value) is Decimal:
        return float(value) if abs(value) < _LARGEST else None
    if type(value) is int:
        return value if abs(value) < _LARGEST else None
    return value if type(value) is bool else None
