"""What is on a broker: which families speak, under which prefix, in which dialect, of which cameras.

A family is recognised by what its rules read out of a message, never by a topic alone. Under the families' own
prefixes all are tried; under any other prefix those whose messages nobody else writes so. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC
from typing import Any, Final

from gateway.model import EventType, Message
from gateway.sources.rules import CompiledSource, Family
from gateway.sources.topics import BadPattern, TopicPattern, compile_pattern

# Under a prefix of the owner's choice: the payload shows the family.
DISTINCT: Final = frozenset(
    {"axis", "dahua", "frigate", "hikvision", "lightnvr", "shinobi", "unifi", "viseron", "zoneminder"}
)
# Their words of an alarm are their own, too, and each camera has another prefix.
DISTINCT_WORDS: Final = frozenset({"yihack"})
MAX_FOUND: Final = 64  # families and prefixes; beyond it something is wrong with us, not with the site
MAX_UNKNOWN: Final = 200  # first levels of topics that nobody knows


@dataclass(frozen=True, slots=True)
class _Settings:
    """A source as an owner would write it who sets nothing else."""

    dialect: str | None
    topic_prefix: str | None
    ignore: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    zones: tuple[str, ...] = ()
    min_score: float | None = None
    time_format: str | None = None


@dataclass
class Found:
    """One source that could be configured."""

    family: str
    topic_prefix: str | None  # None: the family's own
    own_prefixes: tuple[str, ...] = ()  # which, where its dialects have different ones: these are other equipment
    site_alarms: bool = False  # it speaks of alarms that are of no camera
    arms: bool = False  # and of arming
    messages: Counter[str] = field(default_factory=Counter)  # by dialect
    cameras: dict[str, dict[str, None]] = field(default_factory=dict)  # by dialect, in the order of their appearance

    @property
    def prefixes(self) -> tuple[str, ...]:
        return self.own_prefixes if self.topic_prefix is None else (self.topic_prefix,)

    def dialect(self, default: str | None) -> str:
        """The family's most common one if it was heard, else the one that was heard most."""
        if default is not None and self.messages[default]:
            return default
        return self.messages.most_common(1)[0][0]


class Recogniser:
    def __init__(self, families: Mapping[str, Family]) -> None:
        self._families = families
        self._candidates = [
            (name, dialect or "", family.compile_source(name, _Settings(dialect, None), UTC))
            for name, family in families.items()
            for dialect in family.dialects or (None,)
        ]
        self._wandering = [
            (name, dialect or "", pattern)
            for name in sorted((DISTINCT | DISTINCT_WORDS) & families.keys())
            for dialect in families[name].dialects or (None,)
            if (pattern := _anywhere(families[name], dialect)) is not None
        ]
        self._elsewhere: dict[tuple[str, str, str], CompiledSource] = {}
        self.found: dict[tuple[str, str | None, tuple[str, ...]], Found] = {}
        self.heard = 0
        self.unknown: Counter[str] = Counter()
        """By the first level of the topic, what nobody knows."""

    def hear(self, message: Message) -> bool:
        """Whether somebody knows what it says."""
        self.heard += 1
        message = replace(message, replay=False, retain=False)  # also what is retained shows who speaks
        known = False
        for family, dialect, source in self._candidates:
            known |= source.covers(message.topic) and self._note(family, dialect, None, source, message)
        known = known or self._hear_elsewhere(message)
        first = message.topic.partition("/")[0]
        if not known and (first in self.unknown or len(self.unknown) < MAX_UNKNOWN):
            self.unknown[first] += 1
        return known

    def _hear_elsewhere(self, message: Message) -> bool:
        known = False
        for family, dialect, pattern in self._wandering:
            captures = pattern.match(message.topic)
            if captures is None:
                continue
            key = (family, dialect, captures["found"])
            if key not in self._elsewhere and len(self._elsewhere) < MAX_FOUND * 8:
                settings = _Settings(dialect or None, captures["found"])
                self._elsewhere[key] = self._families[family].compile_source(family, settings, UTC)
            if key in self._elsewhere:
                known |= self._note(family, dialect, captures["found"], self._elsewhere[key], message)
        return known

    def _note(self, family: str, dialect: str, prefix: str | None, source: CompiledSource, message: Message) -> bool:
        alive: list[str] = []
        readings = source.read(message, alive)
        if not isinstance(readings, list):
            if not (alive and source.is_heartbeat(message.topic)):
                return False
            readings = []
        own = self._families[family].prefixes(dialect or None) if prefix is None else ()
        key = (family, prefix, own)
        if key not in self.found and len(self.found) >= MAX_FOUND:
            return True
        found = self.found.setdefault(key, Found(family, prefix, own))
        found.messages[dialect] += 1
        found.site_alarms |= any(r.camera is None and r.event_type is not EventType.TROUBLE for r in readings)
        found.arms |= any(r.event_type is EventType.ARMING for r in readings)
        cameras = found.cameras.setdefault(dialect, {})
        cameras |= {reading.camera: None for reading in readings if reading.camera is not None}
        cameras |= dict.fromkeys(alive)
        return True


def _anywhere(family: Family, dialect: str | None) -> TopicPattern | None:
    """What the rules of a dialect read as JSON or XML, or as words of their own, under whatever prefix."""
    rules: list[Any] = [
        rule
        for rule in family.facts.rule
        if (rule.decode in ("json", "xml") or (family.name in DISTINCT_WORDS and rule.event_type == "alarm"))
        and (not rule.dialects or dialect in rule.dialects)
    ]
    topics = [topic.replace("{prefix}", "{found...}") for rule in rules for topic in rule.topic if "{prefix}" in topic]
    try:
        return compile_pattern(topics, ()) if topics else None
    except BadPattern:
        return None
