"""Topic filters and retained replays: what a subscription matches, and which messages are only the broker's memory.

OASIS MQTT 5.0, 4.7 (filters), 3.3.1.3 (RETAIN), 4.8.2 (shared subscriptions). Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# A retained value follows the subscription within moments where nothing waits before it; some brokers set the flag on
# live messages too (NanoMQ, bridges), hence a limit at all.
REPLAY_MS: Final = 5_000
# Nothing outstanding and nothing new for this long: what had waited in the broker has all come. More than a round
# trip, less than the pause between two alarms.
QUIET_MS: Final = 500


@dataclass(frozen=True, slots=True)
class Filter:
    """`retain_handling` (MQTT 5 only): 0 retained values at every connect, 1 only at a new subscription, 2 never."""

    topic: str
    retain_handling: int


def unique(filters: Iterable[Filter]) -> tuple[Filter, ...]:
    """One subscription for each topic filter; the retain handling that tells most wins."""
    best: dict[str, Filter] = {}
    for filter_ in filters:
        known = best.get(filter_.topic)
        if known is None or filter_.retain_handling < known.retain_handling:
            best[filter_.topic] = filter_
    return tuple(best.values())


def filter_fault(topic: str) -> str | None:
    """Why this is no topic filter, or None (MQTT 5.0, 4.7.1 and 4.7.3)."""
    try:
        encoded = topic.encode()
    except UnicodeEncodeError:
        return "it is not text"
    if len(encoded) > 65535:
        return "it is longer than 65535 bytes"
    if "\0" in topic:
        return "it contains a null character"
    levels = topic.split("/")
    if levels[0] == "$share":
        if len(levels) < 3 or not levels[1] or set(levels[1]) & set("+#") or levels[2:] == [""]:
            return "a shared subscription is $share/NAME/FILTER"
        levels = levels[2:]
    if levels == [""]:
        return "it is empty"
    if any("#" in level for level in levels[:-1]) or ("#" in levels[-1] and levels[-1] != "#"):
        return "'#' stands alone, as the last level"
    if any("+" in level and level != "+" for level in levels):
        return "'+' stands alone in its level"
    return None


def matches(topic_filter: str, topic: str) -> bool:
    """Whether an ordinary subscription delivers this topic."""
    wanted = topic_filter.split("/")
    given = topic.split("/")
    if given[0].startswith("$") and wanted[0] in ("+", "#"):
        return False  # MQTT 5.0, 4.7.2
    for index, level in enumerate(wanted):
        if level == "#":
            return True
        if index >= len(given) or level not in ("+", given[index]):
            return False
    return len(wanted) == len(given)


class ReplayJudge:
    """Tells a retained value that came because we subscribed from a live message that carries the flag.

    A replay has the flag, is the first such message of its topic since the subscription, and comes within moments of
    the SUBACK, or behind the backlog of the session: what waited in the broker is sent before the retained values, at
    the speed of our acknowledgements. Messages without the flag do not count for "first": they are that backlog.
    Overlapping filters bring one retained copy each (MQTT 5.0, 3.3.4), so "first" means as many as there are filters.
    """

    def __init__(self, filters: Sequence[str]) -> None:
        self._filters = tuple(f for f in filters if not f.startswith("$share/"))  # these get no retained values
        self._until: int | None = None
        self._backlog = True
        self._last = 0
        self._copies: dict[str, int] = {}
        self._closed = False

    def subscribed(self, now: int) -> None:
        """The SUBACK has come. Retained values may also come before it (MQTT 5.0, 3.8.4)."""
        self._until = now + REPLAY_MS
        self._last = now

    def acknowledged(self, now: int) -> None:
        """We told the broker that it may send more."""
        self._last = now

    def arrived(self, topic: str, retain: bool, now: int, outstanding: int) -> bool:
        """Judges one message. `outstanding`: earlier ones that wait for us, so the broker may be waiting too."""
        if self._closed:
            return False
        if self._until is not None:
            if outstanding == 0 and now - self._last > QUIET_MS:
                self._backlog = False
            if now > self._until and not self._backlog:
                self._closed = True
                self._copies.clear()
                return False
        self._last = now
        if not retain:
            return False
        count = self._copies[topic] = self._copies.get(topic, 0) + 1
        return count <= max(1, sum(matches(f, topic) for f in self._filters))
