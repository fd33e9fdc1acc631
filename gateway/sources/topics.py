"""Topic patterns: `{prefix}/{camera}/status/{role}` -> the filter to subscribe to, and the reader of what matches.

`{prefix}` is the source's topic_prefix. `{name}` captures one level or a part of one (`{camera}_motion`);
`{name...}`, the last level only, captures the rest. MQTT 5.0, 4.7: `+` and `#` stand for whole levels, so a level with
a part captured is subscribed as `+` and sorted out here. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_CAPTURE: Final = re.compile(r"\{([a-z][a-z_]*)(\.\.\.)?\}")


class BadPattern(Exception):
    """Found at load; `str()` says what is wrong."""


@dataclass(frozen=True, slots=True)
class TopicPattern:
    filter: str
    captures: frozenset[str]
    reader: re.Pattern[str]

    def match(self, topic: str) -> dict[str, str] | None:
        """The captures, and the whole topic as `all`."""
        found = self.reader.fullmatch(topic)
        return None if found is None else {**found.groupdict(), "all": topic}


def compile_pattern(pattern: str, prefix: str | None) -> TopicPattern:
    if "{prefix}" in pattern:
        if prefix is None:
            raise BadPattern("names {prefix}, but there is no topic_prefix")
        refuse_wildcards(prefix)
    filters, readers, captures = [], [], set()
    levels = pattern.split("/")
    for position, level in enumerate(levels):
        if level == "{prefix}":
            filters.append(str(prefix))
            readers.append(re.escape(str(prefix)))
            continue
        found = list(_CAPTURE.finditer(level))
        for match in found:
            name = match[1]
            if name in captures or name in ("prefix", "all"):
                raise BadPattern(f"{{{name}}} is taken, or not a whole level")
            captures.add(name)
            if match[2] and not (match[0] == level and position == len(levels) - 1):
                raise BadPattern(f"{{{name}...}} is possible as the last level only")
        rest = _CAPTURE.sub("", level)
        if set(rest) & set("{}+#\0"):
            raise BadPattern(f"level {level!r} cannot be read")
        if not found:
            filters.append(level)
            readers.append(re.escape(level))
        elif found[0][2]:
            filters.append("#")
            readers.append(f"(?P<{found[0][1]}>.+)")
        else:
            filters.append("+")
            parts = _CAPTURE.split(level)  # text, name, dots, text, name, dots, text
            readers.append(
                "".join(re.escape(p) if n % 3 == 0 else f"(?P<{p}>[^/]+)" for n, p in enumerate(parts) if n % 3 != 2)
            )
    return TopicPattern("/".join(filters), frozenset(captures), re.compile("/".join(readers), re.DOTALL))


def refuse_wildcards(prefix: str) -> None:
    """Raises BadPattern for what cannot begin a topic of one source."""
    if not prefix or prefix.startswith("/") or prefix.endswith("/") or set(prefix) & set("+#\0"):
        raise BadPattern(f"topic_prefix {prefix!r}: levels separated by /, without + and #, without / at the ends")
