"""Topic and payload -> reading, by the rules of a family (gateway/sources/families/*.toml).

Promises: everything wrong with a rule or a source's settings is found when it is compiled, with its key; `read`
never raises, whatever the message; what cannot be understood is `Unreadable` (kept as evidence), what is understood
and means nothing is `Ignored` with a reason. No memory: one message in, what it says out. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Final, Protocol

from pydantic import ValidationError

from gateway.model import Message, Reading
from gateway.sources import language
from gateway.sources.compiled import BadKey, CompiledRule, Ignored, Unreadable
from gateway.sources.topics import BadPattern, TopicPattern, compile_pattern, refuse_wildcards

__all__ = ["BadFamily", "BadSource", "CompiledSource", "Family", "Ignored", "Unreadable", "parse_family"]

# Options that a source may have beyond these are added here when a family needs them.
OPTIONS: Final[Mapping[str, Any]] = {"labels": (), "zones": (), "min_score": None}

# MQTT 5.0, 3.8.3.1: 0 = retained values at every subscribe, 1 = only for a new subscription, 2 = never.
RETAIN_HANDLING: Final = {"availability": 0, "arming": 0, "alarm_state": 1, "momentary": 2}

_REMEMBERED_TOPICS: Final = 2048  # a site has some hundred; the memory for matches stays below 2 MB
_REMEMBERED_LENGTH: Final = 512


class BadFamily(Exception):
    """A family file that cannot be used; `faults` are sentences with file, key and what is wrong."""

    def __init__(self, name: str, faults: list[str]) -> None:
        super().__init__("; ".join(f"families/{name}.toml: {fault}" for fault in faults))
        self.faults = faults


class BadSource(Exception):
    """A setting of a source that its family cannot follow: the key, and what is wrong."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key}: {why}")
        self.key, self.why = key, why


class SourceSettings(Protocol):
    """What the rules need of `gateway.config.Source`."""

    @property
    def dialect(self) -> str | None: ...
    @property
    def topic_prefix(self) -> str | None: ...
    @property
    def ignore(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def zones(self) -> tuple[str, ...]: ...
    @property
    def min_score(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    facts: language.FamilyFile

    @property
    def dialects(self) -> tuple[str, ...]:
        return tuple(self.facts.dialects)

    def options(self, dialect: str | None = None) -> frozenset[str]:
        """The options of a dialect; without one, of all dialects together."""
        chosen = self.facts.dialects.values() if dialect is None else [self.facts.dialects[dialect]]
        return frozenset(self.facts.options).union(*(d.options for d in chosen))

    def filters(self, source: SourceSettings) -> list[tuple[str, int]]:
        """Topic filters to subscribe, each with its MQTT 5 retain handling; nothing broader than the rules need."""
        handling: dict[str, int] = {}
        for rule in self._rules(self._dialect(source)):
            topic_filter = self._pattern(rule, source).filter
            wanted = RETAIN_HANDLING[rule.topic_kind]
            handling[topic_filter] = min(wanted, handling.get(topic_filter, wanted))
        return list(handling.items())

    def compile_source(self, table: str, source: SourceSettings, zone: tzinfo = UTC) -> CompiledSource:
        """Raises BadSource for settings that this family cannot follow."""
        dialect = self._dialect(source)
        known = self.options(dialect) if dialect is not None else frozenset(self.facts.options)
        options = {name: getattr(source, name) for name in OPTIONS}
        for name, value in options.items():
            if value != OPTIONS[name] and name not in known:
                spoken = f"{self.name} in dialect {dialect}" if dialect else self.name
                raise BadSource(name, f"{spoken} does not know it; it knows {', '.join(sorted(known)) or 'no options'}")
        ignored = frozenset(source.ignore)
        rules = [
            (self._pattern(rule, source), CompiledRule(table, rule, options, ignored, zone, self._captures(rule)))
            for rule in self._rules(dialect)
        ]
        return CompiledSource(table, self.name, rules)

    def _dialect(self, source: SourceSettings) -> str | None:
        if source.dialect is None:
            return self.facts.dialect
        if source.dialect not in self.facts.dialects:
            raise BadSource("dialect", f"{self.name} has {', '.join(self.facts.dialects) or 'no dialects'}")
        return source.dialect

    def _rules(self, dialect: str | None) -> list[language.Rule]:
        return [rule for rule in self.facts.rule if not rule.dialects or dialect in rule.dialects]

    def _pattern(self, rule: language.Rule, source: SourceSettings) -> TopicPattern:
        prefix = source.topic_prefix if source.topic_prefix is not None else self.facts.topic_prefix
        try:
            if source.topic_prefix is not None:
                refuse_wildcards(source.topic_prefix)
            return compile_pattern(rule.topic, prefix)
        except BadPattern as error:
            raise BadSource("topic_prefix", str(error)) from None

    def _captures(self, rule: language.Rule) -> frozenset[str]:
        return compile_pattern(rule.topic, "any").captures


def parse_family(name: str, document: Mapping[str, Any]) -> Family:
    """A family from the parsed TOML of its file. Raises BadFamily with everything that is wrong with it."""
    try:
        facts = language.FamilyFile.model_validate(document)
    except ValidationError as error:
        raise BadFamily(name, [f"{_key(e['loc'])}: {e['msg']}" for e in error.errors()]) from None
    faults = []
    if facts.dialects and facts.dialect not in facts.dialects:
        faults.append("dialect: the default is one of the dialects")
    options = {*facts.options, *(o for d in facts.dialects.values() for o in d.options)} - OPTIONS.keys()
    faults += [f"options: {option} is no option; there are {', '.join(OPTIONS)}" for option in sorted(options)]
    if len({rule.name for rule in facts.rule}) != len(facts.rule):
        faults.append("rule: two rules have one name")
    family = Family(name, facts)
    for position, rule in enumerate(facts.rule):
        where = f"rule[{position}] ({rule.name})"
        unknown = [d for d in rule.dialects if d not in facts.dialects]
        faults += [f"{where}.dialects: {dialect} is no dialect of this family" for dialect in unknown]
        try:
            compile_pattern(rule.topic, facts.topic_prefix or "any")
            CompiledRule("", rule, OPTIONS, frozenset(), UTC, family._captures(rule))
        except BadPattern as error:
            faults.append(f"{where}.topic: {error}")
        except BadKey as error:
            faults.append(f"{where}.{error}")
    if faults:
        raise BadFamily(name, faults)
    return family


def _key(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


class CompiledSource:
    """One source of the configuration, ready to read messages."""

    def __init__(self, table: str, family: str, rules: list[tuple[TopicPattern, CompiledRule]]) -> None:
        self.table, self.family = table, family
        self._rules = rules
        self._matches: dict[str, list[tuple[CompiledRule, dict[str, str]]]] = {}

    def covers(self, topic: str) -> bool:
        """True if a rule of this source is about the topic."""
        return bool(self._matching(topic))

    def read(self, message: Message) -> list[Reading] | Ignored | Unreadable:
        matching = self._matching(message.topic)
        if not matching:
            return Ignored(f"no rule of {self.family} for this topic")
        for rule, captures in matching:
            answer = rule.read(message, captures)
            if answer is not None:
                return answer
        return Ignored(f"no rule of {self.family} applies to this message")

    def _matching(self, topic: str) -> list[tuple[CompiledRule, dict[str, str]]]:
        known = self._matches.get(topic)
        if known is not None:
            return known
        found = [(rule, got) for pattern, rule in self._rules if (got := pattern.match(topic)) is not None]
        if len(topic) <= _REMEMBERED_LENGTH:
            if len(self._matches) >= _REMEMBERED_TOPICS:
                self._matches.clear()
            self._matches[topic] = found
        return found
