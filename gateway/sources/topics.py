"""Topic patterns: `{prefix}/{camera}/status/{role}` -> the filters to subscribe to, and the reader of what matches.

`{prefix}` is the source's topic_prefix. `{name}` captures one level or a part of one (`{camera}_motion`); `{name...}`
captures several, at most 8 where something follows. `[...]` may be absent, with what it captures; where it holds
`{prefix}`, the setting decides. MQTT 5.0, 4.7: `+` and `#` stand for whole levels, so a level with a part captured is
subscribed as `+`, and several levels before a known one as one to four `+`; the rest is sorted out here. Pure.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

_CAPTURE: Final = re.compile(r"\{([a-z][a-z_]*)(\.\.\.)?\}")
_OPTIONAL: Final = re.compile(r"\[([^\[\]]*)\]")
_MAX_OPTIONAL: Final = 3
_DEPTH: Final = 4  # levels of an unknown prefix that we subscribe to; sites have one or two
# Several levels in the middle: more than any equipment has, and reading an endless topic stays cheap.
_SEVERAL: Final = "(?P<{}>[^/]+(?:/[^/]+){{0,7}}?)"


class BadPattern(Exception):
    """Found at load; `str()` says what is wrong."""


@dataclass(frozen=True, slots=True)
class TopicPattern:
    filters: tuple[str, ...]
    captures: frozenset[str]
    readers: tuple[re.Pattern[str], ...]

    def match(self, topic: str) -> dict[str, str] | None:
        """The captures, and the whole topic as `all`."""
        for reader in self.readers:
            found = reader.fullmatch(topic)
            if found is not None:
                return {**found.groupdict(), "all": topic}
        return None


def compile_pattern(patterns: Sequence[str], prefixes: Sequence[str]) -> TopicPattern:
    """One or several patterns as one. `prefixes`: what `{prefix}` may be; none where there is no topic_prefix."""
    forms = [form for pattern in patterns for form in _forms(pattern, with_prefix=bool(prefixes))]
    if not forms:
        raise BadPattern("names {prefix}, but there is no topic_prefix")
    filters: dict[str, None] = {}
    readers: list[re.Pattern[str]] = []
    captures: set[str] = set()
    for form, prefix in itertools.product(forms, prefixes or [""]):
        if prefix:
            refuse_wildcards(prefix)
        form_filters, reader = _one_form(form, prefix)
        filters |= dict.fromkeys(form_filters)
        readers.append(reader)
        captures |= reader.groupindex.keys()
    if "#" in filters:
        raise BadPattern("is every topic of the broker; at least one level has to be a text or {prefix}")
    return TopicPattern(tuple(without_covered(filters)), frozenset(captures), tuple(readers))


def _forms(pattern: str, *, with_prefix: bool) -> list[str]:
    """The pattern with and without each optional part; with them first. An optional prefix goes by the setting."""
    parts = _OPTIONAL.split(pattern)  # text, optional, text, optional, text
    optional = parts[1::2]
    if len(optional) > _MAX_OPTIONAL:
        raise BadPattern(f"more than {_MAX_OPTIONAL} optional parts")
    forms = []
    for present in itertools.product((True, False), repeat=len(optional)):
        if any("{prefix}" in part and here is not with_prefix for part, here in zip(optional, present, strict=True)):
            continue
        kept = [part if here else "" for part, here in zip(optional, present, strict=True)]
        form = "".join(itertools.chain.from_iterable(itertools.zip_longest(parts[::2], kept, fillvalue="")))
        if "{prefix}" not in form or with_prefix:
            forms.append(form)
    return forms


def _one_form(form: str, prefix: str) -> tuple[list[str], re.Pattern[str]]:
    filters: list[list[str]] = [[]]
    readers: list[str] = []
    captures: set[str] = set()
    levels = form.split("/")
    open_end = False  # the filter ends in "#" already
    for position, level in enumerate(levels):
        last = position == len(levels) - 1
        if level == "{prefix}":
            readers.append(f"(?P<prefix>{re.escape(prefix)})")
            filters = filters if open_end else [[*f, prefix] for f in filters]
            continue
        found = list(_CAPTURE.finditer(level))
        for match in found:
            name = match[1]
            if name in captures or name in ("prefix", "all"):
                raise BadPattern(f"{{{name}}} is taken, or not a whole level")
            captures.add(name)
            if match[2] and (len(found) > 1 or match.end() != len(level)):
                raise BadPattern(f"{{{name}...}} ends its level, and is alone in it but for a text before")
        rest = _CAPTURE.sub("", level)
        if set(rest) & set("{}[]+#\0") or (not level and len(levels) > 1):
            hint = "; write {name} for +, {name...} for #" if level in ("+", "#") else ""
            raise BadPattern(f"level {level!r} cannot be read{hint}")
        if not found:
            readers.append(re.escape(level))
            filters = filters if open_end else [[*f, level] for f in filters]
        elif found[0][2]:
            name = found[0][1]
            readers.append(re.escape(rest) + (f"(?P<{name}>.+)" if last else _SEVERAL.format(name)))
            follows = any(not _CAPTURE.search(later) for later in levels[position + 1 :])
            if open_end:
                pass
            elif follows:
                filters = [[*f, *["+"] * depth] for f in filters for depth in range(1, _DEPTH + 1)]
            else:
                filters, open_end = [[*f, "#"] for f in filters], True
        else:
            parts = _CAPTURE.split(level)  # text, name, dots, text, name, dots, text
            readers.append(
                "".join(re.escape(p) if n % 3 == 0 else f"(?P<{p}>[^/]+)" for n, p in enumerate(parts) if n % 3 != 2)
            )
            filters = filters if open_end else [[*f, "+"] for f in filters]
    return ["/".join(f) for f in filters], re.compile("/".join(readers), re.DOTALL)


def without_covered(filters: Iterable[str]) -> list[str]:
    """Filters without those that another one hears, too: overlapping ones bring a message twice (MQTT 5.0, 3.3.4)."""
    every = list(dict.fromkeys(filters))
    return [f for f in every if not any(other != f and is_covered(f, other) for other in every)]


def is_covered(narrow: str, wide: str) -> bool:
    """True if the wide filter hears all that the narrow one does."""
    given = narrow.split("/")
    wanted = wide.split("/")
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given) or given[index] == "#" or (level != "+" and level != given[index]):
            return False
    return len(wanted) == len(given)


def refuse_wildcards(prefix: str) -> None:
    """Raises BadPattern for what cannot begin a topic of one source."""
    if not prefix or prefix.startswith("/") or prefix.endswith("/") or set(prefix) & set("+#\0"):
        raise BadPattern(f"topic_prefix {prefix!r}: levels separated by /, without + and #, without / at the ends")
