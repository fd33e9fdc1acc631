"""One rule with the options of one source built in, ready to read messages; made by `gateway.sources.rules`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import tzinfo
from typing import Any

from gateway.model import EventStatus, EventType, Message, Reading
from gateway.sources import language
from gateway.sources.decode import DECODERS, Undecodable
from gateway.sources.expressions import BadExpression, Compiled, compile_expression, is_constant
from gateway.sources.times import read_time
from gateway.sources.values import plain, text, word


@dataclass(frozen=True, slots=True)
class Ignored:
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    reason: str


class BadKey(Exception):
    """`str()` is the key of the rule, and what is wrong with it."""


class _CompiledTime:
    __slots__ = ("formats", "of", "zone")

    def __init__(self, of: Compiled, formats: tuple[str, ...], zone: tzinfo) -> None:
        self.of, self.formats, self.zone = of, formats, zone

    def parse(self, value: Any) -> int | None:
        return None if value is None else read_time(value, self.formats, self.zone)

    def shares(self, other: _CompiledTime | None) -> bool:
        """True if what both read is the same time wherever it is the same value."""
        return other is not None and self.formats == other.formats


class CompiledRule:
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
                raise BadKey(f"{key}: {error}") from None

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
            value = plain(of(payload, captures, None))
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
                media[name] = plain(of(payload, captures, None))
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
