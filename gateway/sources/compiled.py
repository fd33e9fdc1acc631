"""One rule with the options of one source built in, ready to read messages; made by `gateway.sources.rules`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any, Final, NamedTuple

from gateway.model import EventStatus, EventType, Message, Reading
from gateway.sources import language
from gateway.sources.decode import DECODERS, Undecodable, is_picture
from gateway.sources.expressions import ITEM, BadExpression, Compiled, compile_expression, is_constant
from gateway.sources.times import time_reader
from gateway.sources.values import number, plain, text, word

MAX_ELEMENTS: Final = 32  # of one message that speaks of several events; a recorder with all its channels sends fewer
_PICTURE: Final = "a picture, not an event"


@dataclass(frozen=True, slots=True)
class Ignored:
    reason: str


# MQTT 5.0, 3.3.1.3: who publishes nothing, retained, takes the retained value away; subscribers hear it as a message.
_TAKEN_AWAY: Final = Ignored("empty: a retained value was taken away")


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a rule is compiled with, beside itself: the source that it is for, and the tables of its family."""

    table: str
    options: Mapping[str, Any]
    ignored_cameras: frozenset[str]
    zone: tzinfo
    maps: Mapping[str, Mapping[str, Any]]


Answer = list[Reading] | Ignored | Unreadable | None


class BadKey(Exception):
    """What is wrong with one key of a rule."""

    def __init__(self, key: str, why: str) -> None:
        super().__init__(f"{key}: {why}")
        self.key, self.why = key, why


class _CompiledTime(NamedTuple):
    """Where a time stands in the message, and the reader of its formats."""

    of: Compiled
    parse: Callable[[Any], int | None]
    as_started: bool
    """What is the same value as the start is the same time, which has been read already."""


class _Map:
    """What a word of the message means: one of the values, or a reason for ignoring it."""

    __slots__ = ("missing", "of", "otherwise", "words")

    def __init__(
        self, of: Compiled, words: Mapping[str, Any], ignored: Mapping[str, str], otherwise: str, what: str
    ) -> None:
        self.of, self.otherwise, self.missing = of, otherwise, Unreadable(f"{what} is missing or no word")
        self.words: dict[str, Any] = {**words, **{w: Ignored(reason) for w, reason in ignored.items()}}

    def of_message(self, payload: Any, captures: Mapping[str, Any]) -> Any:
        value = self.of(payload, captures, None)
        found = self.words.get(value) if type(value) is str else None  # as most write it
        if found is not None:
            return found
        said = word(value)
        if said is None:
            return self.missing
        return self.words.get(said) or Ignored(f"{self.otherwise}: {said[:64]}")


class CompiledRule:
    """One rule with the options of one source built in."""

    def __init__(self, rule: language.Rule, captures: frozenset[str], around: Surroundings) -> None:
        lets: dict[str, Compiled] = {}

        def expression(key: str, source: str, *, has_item: bool = rule.each is not None) -> Compiled:
            try:
                return compile_expression(
                    source, captures=captures, options=around.options, maps=around.maps, lets=lets, has_item=has_item
                )
            except BadExpression as error:
                raise BadKey(key, str(error)) from None

        def optional(key: str, source: str | None) -> Compiled | None:
            return None if source is None else expression(key, source)

        def time(key: str, source: language.Time) -> _CompiledTime:
            of_source = around.options.get("time_format")
            named = [of_source if name == "source" else name for name in source.format]
            formats = tuple(name for name in named if name)
            of = expression(f"{key}.of", source.of)
            as_started = rule.started is not None and source.format == rule.started.format
            return _CompiledTime(of, time_reader(formats, around.zone), as_started)

        self.source, self.rule, self.name = around.table, rule, rule.name
        self.ignored = None if rule.ignored is None else Ignored(rule.ignored)
        self.is_heartbeat = rule.heartbeat is not None
        self.also = rule.also
        self.decode = DECODERS[rule.decode or "binary"]
        self.topic_kind = rule.topic_kind or ""
        self.momentary = rule.topic_kind == "momentary"
        self.empty = None if rule.empty is None else Ignored(rule.empty)
        if rule.empty is None and not self.momentary and rule.decode != "binary":
            self.empty = _TAKEN_AWAY
        self.seeds = rule.topic_kind in ("alarm_state", "arming")
        self.each = None if rule.each is None else expression("each", rule.each, has_item=False)
        for name, source in rule.let.items():
            lets[name] = expression(f"let.{name}", source)
        self.when = optional("when", rule.when)
        self.event_type: EventType | None = None
        self.type_of: _Map | None = None
        if isinstance(rule.event_type, language.EventType):
            types = {w: EventType(t) for w, t in rule.event_type.words.items()}
            of = expression("event_type.of", rule.event_type.of)
            self.type_of = _Map(
                of, types, rule.event_type.ignored, rule.event_type.otherwise, f"{rule.name}: the type of event"
            )
        elif rule.event_type is not None:
            self.event_type = EventType(rule.event_type)
        self.status: EventStatus | None = None
        self.status_of: _Map | None = None
        if isinstance(rule.status, language.Status):
            statuses = {w: EventStatus(s) for w, s in rule.status.words.items()}
            of = expression("status.of", rule.status.of)
            self.status_of = _Map(of, statuses, rule.status.ignored, rule.status.otherwise, f"{rule.name}: the status")
        elif rule.status is not None:
            self.status = EventStatus(rule.status)
        self.require = [(r, expression("require", r)) for r in rule.require]
        conditions = [(expression("ignore.when", i.when), Ignored(i.reason)) for i in rule.ignore]
        # A condition about an option that is not set is decided here, once.
        self.ignore = [(w, i) for w, i in conditions if not (is_constant(w) and not w(None, {}, None))]
        self.ignored_cameras = around.ignored_cameras
        self.camera = optional("camera", rule.camera)
        self.id = optional("id", rule.id)
        self.state_key = [expression("state_key", part) for part in rule.state_key]
        self.kind = optional("kind", rule.kind)
        self.opens = optional("opens", rule.opens)
        self.twin = optional("twin", rule.twin)
        self.of_device = optional("of_device", rule.of_device)
        self.away = rule.away is True
        self.away_of = optional("away", rule.away) if isinstance(rule.away, str) else None
        self.time = None if rule.time is None else time("time", rule.time)
        self.started = None if rule.started is None else time("started", rule.started)
        self.sent = None if rule.sent is None else time("sent", rule.sent)
        self.clock, self.late = optional("clock", rule.clock), optional("late", rule.late)
        self.pulse_seconds = rule.pulse_seconds if isinstance(rule.pulse_seconds, float) else None
        self.pulse_of = optional("pulse_seconds", rule.pulse_seconds) if isinstance(rule.pulse_seconds, str) else None
        self.quiet_seconds = rule.quiet_seconds if isinstance(rule.quiet_seconds, float) else None
        self.quiet_of = optional("quiet_seconds", rule.quiet_seconds) if isinstance(rule.quiet_seconds, str) else None
        self.repeats = {True: None, False: 0.0}[rule.repeats] if isinstance(rule.repeats, bool) else rule.repeats
        self.details = [(name, expression(f"details.{name}", of)) for name, of in rule.details.items()]
        self.strategy = rule.media.strategy if rule.media is not None else None
        media = rule.media or language.Media(strategy="")
        self.media_values = [(name, expression(f"media.values.{name}", of)) for name, of in media.values.items()]
        self.media_times = [(name, time(f"media.times.{name}", of)) for name, of in media.times.items()]

    def read(self, message: Message, captures: Mapping[str, Any], heard: list[str] | None = None) -> Answer:
        """None if the rule's `when` does not hold. To `heard` go the cameras of which this is a sign of life."""
        if self.ignored is not None:
            if self.is_heartbeat and heard is not None:
                heard += self._alive(message, captures)
            return self.ignored
        if self.momentary and message.replay:
            return Ignored("a retained value of something momentary: it may be of any age")
        if self.empty is not None and not message.payload:
            return self.empty
        try:
            payload = self.decode(message.payload)
        except Undecodable as error:
            return Ignored(_PICTURE) if is_picture(message.payload) else Unreadable(f"{self.name}: {error}")
        if self.each is not None:
            return self._several(self.each(payload, captures, None), message, payload, captures, heard)
        answer = self._one(message, payload, captures)
        if heard is not None:
            self._note(answer, payload, captures, heard)
        return answer

    def _alive(self, message: Message, captures: Mapping[str, Any]) -> list[str]:
        """Of a message that is nothing but a sign of life: whose."""
        try:
            payload = self.decode(message.payload)
        except Undecodable:
            return []
        said = None if self.camera is None else self.camera(payload, captures, None)
        names = [text(name) for name in (said if isinstance(said, list) else [said])]
        return [name for name in names if name is not None]

    def _note(self, answer: Answer, payload: Any, captures: Mapping[str, Any], heard: list[str]) -> None:
        """Whatever names a camera is a sign of its life, also what means nothing; not the word that it is gone."""
        if isinstance(answer, list):
            heard += [r.camera for r in answer if r.camera and not (r.away and r.event_status is EventStatus.ACTIVE)]
        elif isinstance(answer, Ignored) and self.camera is not None:
            name = text(self.camera(payload, captures, None))
            if name is not None:
                heard.append(name)

    def _several(
        self,
        elements: Any,
        message: Message,
        payload: Any,
        captures: Mapping[str, Any],
        heard: list[str] | None,
    ) -> Answer:
        listed = elements[:MAX_ELEMENTS] if isinstance(elements, list) else [elements]
        answers = []
        for element in listed:
            around = {**captures, ITEM: element}
            answers.append(self._one(message, payload, around))
            if heard is not None:
                self._note(answers[-1], payload, around, heard)
        readings = [reading for answer in answers if isinstance(answer, list) for reading in answer]
        return readings or strongest(answers)

    def _one(self, message: Message, payload: Any, captures: Mapping[str, Any]) -> Answer:
        if self.when is not None and not self.when(payload, captures, None):
            return None
        event_type: Any = self.event_type
        if self.type_of is not None:
            event_type = self.type_of.of_message(payload, captures)
            if not isinstance(event_type, EventType):
                return self._without_pictures(event_type, message)
        status: Any = self.status
        if self.status_of is not None:
            status = self.status_of.of_message(payload, captures)
            if not isinstance(status, EventStatus):
                return self._without_pictures(status, message)
        if self.seeds and message.replay and status is EventStatus.ACTIVE and event_type is EventType.ALARM:
            return Ignored("a retained alarm state: it may be of any age; the next live one counts")
        for source, required in self.require:
            if text(required(payload, captures, None)) is None:
                return Unreadable(f"{self.name}: {source} is missing or no text")
        camera = None
        if self.camera is not None:
            camera = text(self.camera(payload, captures, None))
            if camera is None:
                return Unreadable(f"{self.name}: the camera ({self.rule.camera}) is missing or no text")
            if camera in self.ignored_cameras:
                return Ignored("the camera is left out on purpose (ignore)")
        for when, ignored in self.ignore:
            if when(payload, captures, None):
                return ignored
        return [self._reading(payload, captures, event_type, status, camera)]

    @staticmethod
    def _without_pictures(answer: Any, message: Message) -> Answer:
        said: Answer = answer
        return Ignored(_PICTURE) if isinstance(said, Unreadable) and is_picture(message.payload) else said

    def _reading(
        self,
        payload: Any,
        captures: Mapping[str, Any],
        event_type: EventType,
        status: EventStatus,
        camera: str | None,
    ) -> Reading:
        unread: str | None = None
        event_at = started_at = started = start = sent_at = None
        if self.started is not None:
            start = self.started.of(payload, captures, None)
            started, started_at = text(start), self.started.parse(start)
        if self.time is not None:
            when = self.time.of(payload, captures, None)
            event_at = started_at if when is start and self.time.as_started else self.time.parse(when)
            if event_at is None and when is not None:
                unread = text(when) or "not a time"
        if self.sent is not None:
            when = self.sent.of(payload, captures, None)
            sent_at = started_at if when is start and self.sent.as_started else self.sent.parse(when)
        source_id = None if self.id is None else text(self.id(payload, captures, None))
        kind = None if self.kind is None else text(self.kind(payload, captures, None))
        pulse = self.pulse_seconds if self.pulse_of is None else _positive(self.pulse_of(payload, captures, None))
        quiet = self.quiet_seconds if self.quiet_of is None else _positive(self.quiet_of(payload, captures, None))
        opens = self.opens is None or bool(self.opens(payload, captures, None))
        clock = None if self.clock is None else text(self.clock(payload, captures, None))
        late = self.late is not None and bool(self.late(payload, captures, None))
        twin = None if self.twin is None else text(self.twin(payload, captures, None))
        of_device = away = False
        if event_type is EventType.TROUBLE:
            of_device = self.of_device is not None and bool(self.of_device(payload, captures, None))
            away = self.away if self.away_of is None else bool(self.away_of(payload, captures, None))
        # In the order of the fields: by name it would be a tenth of what a whole message costs.
        return Reading(
            self.source,
            event_type,
            status,
            camera,
            source_id,
            started,
            self._state_key(payload, captures, source_id),
            kind or self.name,
            event_at,
            self.topic_kind,
            opens,
            started_at,
            sent_at,
            pulse,
            quiet,
            self.repeats,
            clock,
            late,
            twin,
            of_device,
            away,
            dict if self.strategy is None else lambda: self._media(payload, captures, start, started_at),
            lambda: self._details(payload, captures, unread),
        )

    def _details(self, payload: Any, captures: Mapping[str, Any], unread: str | None) -> dict[str, Any]:
        details: dict[str, Any] = {} if unread is None else {"device_time": unread}
        for name, of in self.details:
            found = of(payload, captures, None)
            if found is None or found == []:  # most are absent or empty, and cost next to nothing
                continue
            value = plain(found)
            if value is not None and value != []:
                details[name] = value
        return details

    def _media(self, payload: Any, captures: Mapping[str, Any], start: Any, started_at: int | None) -> dict[str, Any]:
        media: dict[str, Any] = {"strategy": self.strategy}
        for name, of in self.media_values:
            media[name] = plain(of(payload, captures, None))
        for name, moment in self.media_times:
            value = moment.of(payload, captures, None)
            media[name] = started_at if value is start and moment.as_started else moment.parse(value)
        return media

    def _state_key(self, payload: Any, captures: Mapping[str, Any], source_id: str | None) -> str:
        if not self.state_key:
            return str(source_id or captures["all"])
        return "/".join(text(part(payload, captures, None)) or "-" for part in self.state_key)


def _positive(value: Any) -> float | None:
    said = number(value)
    return None if said is None or said <= 0 else float(said)


def strongest(answers: Sequence[Answer]) -> Answer:
    """Of answers without a reading the one to show: what could not be read counts more than what means nothing."""
    for kind in (Unreadable, Ignored):
        for answer in answers:
            if isinstance(answer, kind):
                return answer
    return None
