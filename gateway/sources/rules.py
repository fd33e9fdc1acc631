"""Topic and payload -> reading, by the rules of a family (gateway/sources/families/*.toml).

Promises: everything wrong with a rule or a source's settings is found when it is compiled, with its key; `read`
never raises, whatever the message; what cannot be understood is `Unreadable` (kept as evidence), what is understood
and means nothing is `Ignored` with a reason. No memory: one message in, what it says out. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from typing import Any, Final, Protocol, TypeVar

from pydantic import ValidationError

from gateway.model import Message, Reading
from gateway.sources import language
from gateway.sources.compiled import Answer, BadKey, CompiledRule, Ignored, Surroundings, Unreadable, strongest
from gateway.sources.mistakes import Mistake, mistakes_of
from gateway.sources.topics import (
    BadPattern,
    TopicPattern,
    compile_pattern,
    is_covered,
    refuse_wildcards,
    without_covered,
)
from gateway.sources.values import word

__all__ = ["BadFamily", "BadSource", "CompiledSource", "Family", "Ignored", "OfTopic", "Unreadable", "parse_family"]

# Options that a source may have beyond these are added here when a family needs them.
OPTIONS: Final[Mapping[str, Any]] = {"labels": (), "zones": (), "min_score": None, "time_format": None}

# MQTT 5.0, 3.8.3.1: 0 = retained values at every subscribe, 1 = only for a new subscription, 2 = never.
RETAIN_HANDLING: Final = {"availability": 0, "arming": 0, "alarm_state": 1, "momentary": 2}

_REMEMBERED_TOPICS: Final = 2048  # a site has some hundred; the memory for matches stays below 2 MB
_REMEMBERED_LENGTH: Final = 512


class BadFamily(Exception):
    """A family that cannot be used; `mistakes` are all that is wrong with it."""

    def __init__(self, name: str, mistakes: list[Mistake]) -> None:
        super().__init__("; ".join(f"families/{name}.toml: {mistake}" for mistake in mistakes))
        self.mistakes = mistakes


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
    @property
    def time_format(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Family:
    name: str
    facts: language.FamilyFile

    @property
    def dialects(self) -> tuple[str, ...]:
        return tuple(self.facts.dialects)

    @property
    def maps(self) -> dict[str, dict[str, Any]]:
        """As `look_up` wants them: by words."""
        return {name: {word(key) or key: to for key, to in table.items()} for name, table in self.facts.maps.items()}

    def options(self, dialect: str | None = None) -> frozenset[str]:
        """The options of a dialect; without one, of all dialects together."""
        chosen = self.facts.dialects.values() if dialect is None else [self.facts.dialects[dialect]]
        return frozenset(self.facts.options).union(*(d.options for d in chosen))

    def heartbeat(self, dialect: str | None) -> float | None:
        """About every so many seconds, or sooner, its cameras give a sign of life, whatever happens; None: no need."""
        return max((rule.heartbeat for rule in self._rules(dialect) if rule.heartbeat is not None), default=None)

    def filters(self, source: SourceSettings, *, heartbeats: bool = False) -> list[tuple[str, int]]:
        """Topic filters to subscribe, each with its MQTT 5 retain handling; nothing broader than the rules need.

        `heartbeats`: also what is only a sign of life.
        """
        handling: dict[str, int] = {}
        for rule in self._rules(self._dialect(source)):
            if rule.ignored is not None and not (heartbeats and rule.heartbeat):
                continue
            wanted = RETAIN_HANDLING[rule.topic_kind or "momentary"]
            if wanted == 1 and rule.event_type != "alarm":
                wanted = 0  # what says both: a retained trouble is the truth of now, a retained alarm is dropped
            for topic_filter in self._pattern(rule, source).filters:
                handling[topic_filter] = min(wanted, handling.get(topic_filter, wanted))
        kept = without_covered(handling)
        return [(f, min(h for other, h in handling.items() if is_covered(other, f))) for f in kept]

    def compile_source(self, table: str, source: SourceSettings, zone: tzinfo = UTC) -> CompiledSource:
        """Raises BadSource for settings that this family cannot follow."""
        dialect = self._dialect(source)
        known = self.options(dialect) if dialect is not None else frozenset(self.facts.options)
        options = {name: getattr(source, name) for name in OPTIONS}
        for name, value in options.items():
            if value != OPTIONS[name] and name not in known:
                spoken = f"{self.name} in dialect {dialect}" if dialect else self.name
                raise BadSource(name, f"{spoken} does not know it; it knows {', '.join(sorted(known)) or 'no options'}")
        around = Surroundings(table, options, frozenset(source.ignore), zone, self.maps)
        rules = [
            (self._pattern(rule, source), CompiledRule(rule, _captures(rule), around)) for rule in self._rules(dialect)
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

    def prefixes(self, dialect: str | None) -> tuple[str, ...]:
        """What `topic_prefix` is where a source sets none."""
        of_dialect = None if dialect is None else self.facts.dialects[dialect].topic_prefix
        return of_dialect or self.facts.topic_prefix or ()

    def _pattern(self, rule: language.Rule, source: SourceSettings) -> TopicPattern:
        prefixes = self.prefixes(self._dialect(source))
        try:
            if source.topic_prefix is not None:
                refuse_wildcards(source.topic_prefix)
                prefixes = (source.topic_prefix,)
            return compile_pattern(rule.topic, prefixes)
        except BadPattern as error:
            raise BadSource("topic_prefix", str(error)) from None


def parse_family(name: str, document: Mapping[str, Any]) -> Family:
    """A family from the parsed TOML of its file. Raises BadFamily with everything that is wrong with it."""
    try:
        facts = language.FamilyFile.model_validate(document)
    except ValidationError as error:
        raise BadFamily(name, mistakes_of(error, document)) from None
    mistakes = []
    if facts.dialects and facts.dialect not in facts.dialects:
        mistakes.append(Mistake(("dialect",), "the default is one of the dialects"))
    unknown = {*facts.options, *(o for d in facts.dialects.values() for o in d.options)} - OPTIONS.keys()
    known = ", ".join(OPTIONS)
    mistakes += [Mistake(("options",), f"{option} is no option; there are {known}") for option in sorted(unknown)]
    family = Family(name, facts)
    around = Surroundings("", OPTIONS, frozenset(), UTC, family.maps)
    names: set[str] = set()
    for position, rule in enumerate(facts.rule):
        here = ("rule", position)
        if rule.name in names:
            mistakes.append(Mistake((*here, "name"), f"two rules have one name: {rule.name}"))
        names.add(rule.name)
        strange = [d for d in rule.dialects if d not in facts.dialects]
        mistakes += [Mistake((*here, "dialects"), f"{dialect} is no dialect of this family") for dialect in strange]
        try:
            compile_pattern(rule.topic, facts.topic_prefix or ("any",))
            CompiledRule(rule, _captures(rule), around)
        except BadPattern as error:
            mistakes.append(Mistake((*here, "topic"), str(error)))
        except BadKey as error:
            mistakes.append(Mistake((*here, *error.key.split(".")), error.why))
    if mistakes:
        raise BadFamily(name, mistakes)
    return family


def _captures(rule: language.Rule) -> frozenset[str]:
    return compile_pattern(rule.topic, ("any",)).captures


T = TypeVar("T")


class OfTopic(dict[str, T]):
    """What a topic comes to, worked out at its first message and remembered for as many topics as a site has."""

    def __init__(self, find: Callable[[str], T]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, topic: str) -> T:
        found = self._find(topic)
        if len(topic) <= _REMEMBERED_LENGTH:
            if len(self) >= _REMEMBERED_TOPICS:
                self.clear()
            self[topic] = found
        return found


class CompiledSource:
    """One source of the configuration, ready to read messages."""

    def __init__(self, table: str, family: str, rules: list[tuple[TopicPattern, CompiledRule]]) -> None:
        self.table, self.family = table, family
        self._rules = rules
        self._matching = OfTopic(self._match)

    def covers(self, topic: str) -> bool:
        """True if a rule of this source is about the topic."""
        return bool(self._matching[topic])

    def is_heartbeat(self, topic: str) -> bool:
        """True if what comes on this topic is a sign of life, whatever else it says."""
        return any(rule.is_heartbeat for rule, _ in self._matching[topic][:1])

    def read(self, message: Message, heard: list[str] | None = None) -> list[Reading] | Ignored | Unreadable:
        """What the first rule that applies says; with `also`, what the next one says, too.

        To `heard` go the equipment's names of the cameras of which this is a sign of life.
        """
        matching = self._matching[message.topic]
        if not matching:
            return Ignored(f"no rule of {self.family} for this topic")
        readings: list[Reading] = []
        others: list[Answer] = []
        for rule, captures in matching:
            answer = rule.read(message, captures, heard)
            if answer is None:
                continue
            if not rule.also and not readings and not others:
                return answer
            if isinstance(answer, list):
                readings += answer
            else:
                others.append(answer)
            if not rule.also:
                break
        found = readings or strongest(others)
        return found or Ignored(f"no rule of {self.family} applies to this message")

    def _match(self, topic: str) -> list[tuple[CompiledRule, dict[str, str]]]:
        return [(rule, got) for pattern, rule in self._rules if (got := pattern.match(topic)) is not None]
