"""Topic and payload -> reading, by the rules of a family (gateway/sources/families/*.toml).

Promises: everything wrong with a rule or a source's settings is found when it is compiled, with its key; `read`
never raises, whatever the message; what cannot be understood is `Unreadable` (kept as evidence), what is understood
and means nothing is `Ignored` with a reason. No memory: one message in, what it says out. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, tzinfo
from decimal import Decimal
from typing import Any, Final, Protocol

from pydantic import ValidationError

from gateway.model import EventStatus, EventType, Message, Reading
from gateway.sources import language
from gateway.sources.decode import DECODERS, Undecodable
from gateway.sources.expressions import BadExpression, Compiled, compile_expression, is_constant, text, word
from gateway.sources.times import read_time
from gateway.sources.topics import BadPattern, TopicPattern, compile_pattern, refuse_wildcards

# Options that a source may have beyond these are added here when a family needs them.
OPTIONS: Final[Mapping[str, Any]] = {"labels": (), "zones": (), "min_score": None}

# MQTT 5.0, 3.8.3.1: 0 = retained values at every subscribe, 1 = only for a new subscription, 2 = never.
RETAIN_HANDLING: Final = {"availability": 0, "arming": 0, "alarm_state": 1, "momentary": 2}

_REMEMBERED_TOPICS: Final = 2048  # a site has some hundred; the memory for matches stays below 2 MB
_REMEMBERED_LENGTH: Final = 512
_LARGEST: Final = 10**18  # numbers beyond are no measurement, and not every reader of JSON can hold them


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
class Ignored:
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str


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
            (self._pattern(rule, source), _CompiledRule(table, rule, options, ignored, zone, self._captures(rule)))
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
            _CompiledRule("", rule, OPTIONS, frozenset(), UTC, family._captures(rule))
        except BadPattern as error:
            faults.append(f"{where}.topic: {error}")
        except _BadKey as error:
            faults.append(f"{where}.{error}")
    if faults:
        raise BadFamily(name, faults)
    return family


def _key(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).lstrip(".")


class CompiledSource:
    """One source of the configuration, ready to read messages."""

    def __init__(self, table: str, family: str, rules: list[tuple[TopicPattern, _CompiledRule]]) -> None:
        self.table, self.family = table, family
        self._rules = rules
        self._matches: dict[str, list[tuple[_CompiledRule, dict[str, str]]]] = {}

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

    def _matching(self, topic: str) -> list[tuple[_CompiledRule, dict[str, str]]]:
        known = self._matches.get(topic)
        if known is not None:
            return known
        found = [(rule, got) for pattern, rule in self._rules if (got := pattern.match(topic)) is not None]
        if len(topic) <= _REMEMBERED_LENGTH:
            if len(self._matches) >= _REMEMBERED_TOPICS:
                self._matches.clear()
            self._matches[topic] = found
        return found


class _BadKey(Exception):
    pass


class _CompiledTime:
    __slots__ = ("formats", "of", "zone")

    def __init__(self, of: Compiled, formats: tuple[str, ...], zone: tzinfo) -> None:
        self.of, self.formats, self.zone = of, formats, zone

    def parse(self, value: Any) -> int | None:
        return None if value is None else read_time(value, self.formats, self.zone)

    def shares(self, other: _CompiledTime | None) -> bool:
        """True if what both read is the same time wherever it is the same value."""
        return other is not None and self.formats == other.formats


class _CompiledRule:
    """One rule with the options of one source built in."""

    def __init__(
        self,
        table: str,
        rule: language.Rule,
        options: Mapping[str, Any],
        ignored_cameras: frozenset[str],
        zone: tzinfo,
        captures: frozenset[str],
    ) -> None:
        def expression(key: str, source: str) -> Compiled:
            try:
                return compile_expression(source, captures=captures, options=options)
            except BadExpression as error:
                raise _BadKey(f"{key}: {error}") from None

        def optional(key: str, source: str | None) -> Compiled | None:
            return None if source is None else expression(key, source)

        def time(key: str, source: language.Time | None) -> _CompiledTime | None:
            return None if source is None else _CompiledTime(expression(f"{key}.of", source.of), source.format, zone)

        self.source, self.rule, self.name = table, rule, rule.name
        self.decode = DECODERS[rule.decode]
        self.event_type = EventType(rule.event_type)
        self.momentary = rule.topic_kind == "momentary"
        self.seeds = rule.topic_kind == "alarm_state"
        self.when = optional("when", rule.when)
        self.status: EventStatus | None = None
        self.status_of: Compiled | None = None
        self.words: dict[str, EventStatus | Ignored] = {}
        self.otherwise = ""
        if isinstance(rule.status, language.Status):
            self.status_of = expression("status.of", rule.status.of)
            self.words |= {w: EventStatus(s) for w, s in rule.status.words.items()}
            self.words |= {w: Ignored(reason) for w, reason in rule.status.ignored.items()}
            self.otherwise = rule.status.otherwise
        else:
            self.status = EventStatus(rule.status)
        self.require = [(r, expression("require", r)) for r in rule.require]
        conditions = [(expression("ignore.when", i.when), Ignored(i.reason)) for i in rule.ignore]
        # A condition about an option that is not set is decided here, once.
        self.ignore = [(w, i) for w, i in conditions if not (is_constant(w) and not w(None, {}, None))]
        self.ignored_cameras = ignored_cameras
        self.camera = optional("camera", rule.camera)
        self.id = optional("id", rule.id)
        self.state_key = [expression("state_key", part) for part in rule.state_key]
        self.kind = optional("kind", rule.kind)
        self.opens = optional("opens", rule.opens)
        self.time, self.started = time("time", rule.time), time("started", rule.started)
        self.sent = time("sent", rule.sent)
        self.details = [(name, expression(f"details.{name}", of)) for name, of in rule.details.items()]
        self.strategy = rule.media.strategy if rule.media is not None else None
        media = rule.media or language.Media(strategy="")
        self.media_values = [(name, expression(f"media.values.{name}", of)) for name, of in media.values.items()]
        self.media_times = [
            (name, _CompiledTime(expression(f"media.times.{name}.of", of.of), of.format, zone))
            for name, of in media.times.items()
        ]

    def read(self, message: Message, captures: Mapping[str, str]) -> list[Reading] | Ignored | Unreadable | None:
        """None if the rule's `when` does not hold."""
        if self.momentary and message.replay:
            return Ignored("a retained value of something momentary: it may be of any age")
        try:
            payload = self.decode(message.payload)
        except Undecodable as error:
            return Unreadable(f"{self.name}: {error}")
        if self.when is not None and not self.when(payload, captures, None):
            return None
        status = self.status if self.status_of is None else self._look_up(self.status_of(payload, captures, None))
        if not isinstance(status, EventStatus):
            return status
        if self.seeds and message.replay and status is EventStatus.ACTIVE:
            return Ignored("a retained alarm state: it may be of any age; the next live one counts")
        for source, required in self.require:
            if text(required(payload, captures, None)) is None:
                return Unreadable(f"{self.name}: {source} is missing or no text")
        camera = source_id = None
        if self.camera is not None:
            camera = text(self.camera(payload, captures, None))
            if camera is None:
                return Unreadable(f"{self.name}: the camera ({self.rule.camera}) is missing or no text")
            if camera in self.ignored_cameras:
                return Ignored("the camera is left out on purpose (ignore)")
        if self.id is not None:
            source_id = text(self.id(payload, captures, None))
            if source_id is None:
                return Unreadable(f"{self.name}: the id ({self.rule.id}) is missing or no text")
        for when, ignored in self.ignore:
            if when(payload, captures, None):
                return ignored
        return [self._reading(payload, captures, status, camera, source_id)]

    def _look_up(self, value: Any) -> EventStatus | Ignored | Unreadable:
        found = self.words.get(value) if type(value) is str else None  # as most write it
        if found is not None:
            return found
        said = word(value)
        if said is None:
            return Unreadable(f"{self.name}: the status is missing or no word")
        return self.words.get(said) or Ignored(f"{self.otherwise}: {said[:64]}")

    def _reading(
        self,
        payload: Any,
        captures: Mapping[str, str],
        status: EventStatus,
        camera: str | None,
        source_id: str | None,
    ) -> Reading:
        details = {}
        for name, of in self.details:
            value = _plain(of(payload, captures, None))
            if value is not None and value != []:
                details[name] = value
        event_at = started_at = started = start = sent_at = None
        if self.started is not None:
            start = self.started.of(payload, captures, None)
            started, started_at = text(start), self.started.parse(start)
        if self.time is not None:
            when = self.time.of(payload, captures, None)
            event_at = started_at if when is start and self.time.shares(self.started) else self.time.parse(when)
            if event_at is None and when is not None:
                details["device_time"] = text(when) or "not a time"
        if self.sent is not None:
            when = self.sent.of(payload, captures, None)
            sent_at = started_at if when is start and self.sent.shares(self.started) else self.sent.parse(when)
        kind = None if self.kind is None else text(self.kind(payload, captures, None))
        media: dict[str, Any] = {}
        if self.strategy is not None:
            media["strategy"] = self.strategy
            for name, of in self.media_values:
                media[name] = _plain(of(payload, captures, None))
            for name, moment in self.media_times:
                when = moment.of(payload, captures, None)
                media[name] = started_at if when is start and moment.shares(self.started) else moment.parse(when)
        return Reading(
            source=self.source,
            event_type=self.event_type,
            event_status=status,
            camera=camera,
            source_id=source_id,
            started=started,
            state_key=self._state_key(payload, captures, source_id),
            kind=kind or self.name,
            event_at=event_at,
            topic_kind=self.rule.topic_kind,
            opens=self.opens is None or bool(self.opens(payload, captures, None)),
            started_at=started_at,
            sent_at=sent_at,
            pulse_seconds=self.rule.pulse_seconds,
            media=media,
            details=details,
        )

    def _state_key(self, payload: Any, captures: Mapping[str, str], source_id: str | None) -> str:
        if not self.state_key:
            return source_id or captures["all"]
        return "/".join(text(part(payload, captures, None)) or "-" for part in self.state_key)


def _plain(value: Any) -> Any:
    """What may go into a row as JSON: scalars and short lists of them; all else is left out."""
    if type(value) is str:
        return text(value)
    if type(value) is list:
        kept = [_plain(element) for element in value[:32] if type(element) is not list]
        return [element for element in kept if element is not None]
    if type(value) is Decimal:
        return float(value) if abs(value) < _LARGEST else None
    if type(value) is int:
        return value if abs(value) < _LARGEST else None
    return value if type(value) is bool else None
