"""`chekt-gateway explain`: what the gateway would make of messages, offline and without doing it.

One JSON object a line in, one line out for each: `{"event": …}`, `{"ignored": "reason"}` or `{"unreadable": "reason"}`.
A line that is no message is answered as unreadable, too: the tool is for finding out, and never stops half way.
`--stateful` adds memory: the messages follow each other, their `received_at` is the clock, and what the passing of
time comes to (a pulse that ends, a trouble that lasts) is printed in between, marked `"after_waiting": true`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from gateway.cli.asking import EX_CONFIG, add_config_option
from gateway.config import ConfigError, Settings, config_path
from gateway.model import EventStatus, EventType, Message, NewEvent, Reading, iso_utc
from gateway.sources.conditions import MISSED_LIMIT_MS, Decision, Memory, decide, due
from gateway.sources.known import known_families
from gateway.sources.plans import Plans, compile_sources
from gateway.sources.rows import Plan, unmapped_reason
from gateway.sources.rules import BadSource, CompiledSource, Ignored, Unreadable
from gateway.sources.times import judge_time

# A retained message within this time of the subscription is the broker's memory, later ones are live publishes that a
# broker forwards with the flag set (MQTT 5.0, 3.3.1.3).
REPLAY_SECONDS: Final = 5.0

_KEYS: Final = frozenset(
    {"topic", "payload", "retain", "qos", "received_at", "encoding", "seconds_since_subscribe", "dup"}
)
# mosquitto_sub(1), -F '%j': its lines can be explained as they are.
_OF_MOSQUITTO: Final = frozenset({"tst", "payloadlen", "mid", "properties"})

Answer = dict[str, Any]


class NotAMessage(Exception):
    """The line does not describe a message; `str()` says why."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "explain",
        help="dry run: what the gateway makes of messages, one JSON object a line",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="default: standard input")
    add_config_option(parser)
    parser.add_argument("--stateful", action="store_true", help="with memory: repeats, ends, hold-off, delays")
    parser.add_argument("--json", action="store_true", help="the output is JSON lines in any case")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    try:
        settings = Settings.load(
            config_path(args.config, os.environ), os.environ, known=known_families(), with_files=False
        )
        explainer = Explainer(settings, stateful=args.stateful)
    except ConfigError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return EX_CONFIG
    except BadSource as error:
        sys.stderr.write(f"{error}\n")
        return EX_CONFIG
    try:
        if args.file == "-":
            _print(explainer.explain(sys.stdin.buffer))
        else:
            with open(args.file, "rb") as file:
                _print(explainer.explain(file))
    except OSError as error:
        sys.stderr.write(f"{args.file}: {error.strerror or error}\n")
        return 1
    return 0


def _print(answers: Iterable[Answer]) -> None:
    for answer in answers:
        # ASCII only: names may hold what the terminal's encoding cannot write.
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


class Explainer:
    """The rules of a configuration, with memory or without."""

    def __init__(self, settings: Settings, *, stateful: bool) -> None:
        self._sources: list[CompiledSource] = list(compile_sources(settings).values())
        self._plans = Plans(settings)
        self._tables = frozenset(settings.cameras)
        self._location_id = settings.site.location_id
        self._tells_arming = settings.arming.enabled
        self._max_message = settings.outbox.max_message
        self._memory: Memory | None = Memory() if stateful else None
        self._began_at: int | None = None
        self._ticks = 0

    def explain(self, lines: Iterable[bytes]) -> Iterator[Answer]:
        for position, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                message = self._message(line)
            except NotAMessage as error:
                yield {"unreadable": f"line {position} is not a message: {error}"}
                continue
            if self._memory is not None:
                yield from self._waiting(self._memory, message)
            yield self._answer(message)

    def _message(self, line: bytes) -> Message:
        message = read_message(line)
        if self._began_at is None:
            self._began_at = message.received_at
        self._ticks = max(self._ticks, message.received_at - self._began_at)
        return Message(
            topic=message.topic,
            payload=message.payload,
            qos=message.qos,
            retain=message.retain,
            dup=message.dup,
            replay=message.replay,
            received_at=message.received_at,
            received_ticks=self._ticks,
        )

    def _answer(self, message: Message) -> Answer:
        if len(message.payload) > self._max_message:
            return {"unreadable": f"{len(message.payload)} bytes: larger than outbox.max_message"}
        readings, rest = self._readings(message)
        if not readings:
            return rest
        if self._memory is None:
            return self._all_mapped(readings, message)
        return self._decided(self._memory, readings, message)

    def _readings(self, message: Message) -> tuple[list[Reading], Answer]:
        """The readings of all sources; where there are none, why not: what could not be read counts more."""
        readings: list[Reading] = []
        unreadable: Answer | None = None
        ignored: Answer | None = None
        for source in self._sources:
            if not source.covers(message.topic):
                continue
            match source.read(message):
                case Ignored(reason=reason):
                    ignored = ignored or {"ignored": reason}
                case Unreadable(reason=reason):
                    unreadable = unreadable or {"unreadable": reason}
                case found:
                    readings += found
        return readings, unreadable or ignored or {"ignored": "no rule of any source for this topic"}

    def _all_mapped(self, readings: list[Reading], message: Message) -> Answer:
        """A message may say several things: the first is the event, the others follow it."""
        answers = [self._mapped(reading, message) for reading in readings]
        events = [answer["event"] for answer in answers if "event" in answer]
        if not events:
            return answers[0]
        return {"event": events[0]} if len(events) == 1 else {"event": events[0], "then": events[1:]}

    def _mapped(self, reading: Reading, message: Message) -> Answer:
        if reading.event_status is EventStatus.ACTIVE and not reading.opens:
            return {"ignored": "continues an event: it would open one only if no beginning had been seen"}
        if reading.event_type is EventType.TROUBLE and not reading.opens:
            return {"ignored": "a sign of life: it only ends a trouble that is open"}
        if reading.event_type is EventType.ARMING and not self._tells_arming:
            return {"ignored": "arming is not told: [arming] is not enabled"}
        kept_for = message.received_at - (reading.event_at or 0) if reading.late else None
        if kept_for is not None and kept_for > MISSED_LIMIT_MS:
            return {"ignored": "the equipment kept it for more than an hour"}
        judged = judge_time(
            reading.event_at, reading.sent_at, received_at=message.received_at, waited_ms=kept_for, offset=None
        )
        plan = self._plan(reading)
        unmapped = {"unmapped": unmapped_reason(reading, self._tables)} if plan is None else {}
        return {
            "event": {
                "event_type": reading.event_type,
                "event_status": reading.event_status,
                "camera": reading.camera if plan is None else plan.table,
                "source_event_id": reading.source_id,
                "state_key": reading.state_key,
                "event_time": iso_utc(judged.event_at),
                "pulse": reading.pulse_seconds is not None,
                "source": reading.source,
                "kind": reading.kind,
                **unmapped,
            }
        }

    def _plan(self, reading: Reading) -> Plan | None:
        plan = self._plans.find(reading.source, reading.camera)
        return self._plans.find(reading.source, None) if plan is None and reading.of_device else plan

    def _decided(self, memory: Memory, readings: list[Reading], message: Message) -> Answer:
        events: list[Answer] = []
        reason: str | None = None
        for reading in readings:
            decision = decide(
                reading, message, self._plan(reading), memory, location_id=self._location_id, tables=self._tables
            )
            memory.apply(decision.memory)
            events += [_row(row, pulse=reading.pulse_seconds is not None) for row in decision.events]
            reason = reason or _why_nothing(decision)
        if not events:
            return {"ignored": reason or "nothing new"}
        return {"event": events[0]} if len(events) == 1 else {"event": events[0], "then": events[1:]}

    def _waiting(self, memory: Memory, message: Message) -> Iterator[Answer]:
        """What would have happened between the message before and this one."""
        began_at = self._began_at or 0
        while (ticks := memory.next_due()) is not None and ticks <= message.received_ticks:
            decisions = due(memory, ticks, now_wall=began_at + ticks, location_id=self._location_id)
            for decision in decisions:
                memory.apply(decision.memory)
                for row in decision.events:
                    yield {"event": _row(row, pulse=False), "after_waiting": True}


def _why_nothing(decision: Decision) -> str | None:
    if decision.outcome == "closing":
        return f"closes what is open: {decision.reason or 'no restore is wanted (send_restore)'}"
    return decision.reason


def _row(row: NewEvent, *, pulse: bool) -> Answer:
    return {
        "event_type": row.event_type,
        "event_status": row.event_status,
        "camera": row.camera or row.source_camera,
        "source_event_id": row.source_id,
        "state_key": row.state_key,
        "event_time": iso_utc(row.event_at),
        "pulse": pulse,
        "source": row.source,
        "kind": row.kind,
        "event_id": row.event_id,
        "state": row.state,
        "reason": row.reason,
        "follows": row.follows,
    }


def read_message(line: bytes) -> Message:
    """One line of input. Raises NotAMessage."""
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise NotAMessage(f"not JSON: {error}") from None
    if not isinstance(given, dict):
        raise NotAMessage("not a JSON object")
    unknown = sorted(given.keys() - _KEYS - _OF_MOSQUITTO)
    if unknown:
        raise NotAMessage(f"unknown key {unknown[0]!r}; there are {', '.join(sorted(_KEYS))}")
    topic = given.get("topic")
    if not isinstance(topic, str) or not topic:
        raise NotAMessage("topic is missing or no text")
    qos, retain, dup = given.get("qos", 0), given.get("retain", False), given.get("dup", False)
    if qos not in (0, 1, 2) or isinstance(qos, bool):
        raise NotAMessage("qos is 0, 1 or 2")
    if retain not in (False, True, 0, 1) or dup not in (False, True, 0, 1):
        raise NotAMessage("retain and dup are true or false")
    since = given.get("seconds_since_subscribe")
    if since is not None and (isinstance(since, bool) or not isinstance(since, (int, float))):
        raise NotAMessage("seconds_since_subscribe is a number")
    return Message(
        topic=topic,
        payload=_payload(given),
        qos=qos,
        retain=bool(retain),
        dup=bool(dup),
        replay=bool(retain) and (since is None or since <= REPLAY_SECONDS),
        received_at=_received_at(given.get("received_at")),
        received_ticks=0,
    )


def _payload(given: Mapping[str, Any]) -> bytes:
    payload = given.get("payload", "")
    encoding = given.get("encoding", "text" if isinstance(payload, str) else "json")
    try:
        if encoding == "json":
            return json.dumps(payload, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if encoding == "text" and isinstance(payload, str):
            return payload.encode("utf-8", "surrogatepass")
        if encoding == "base64" and isinstance(payload, str):
            return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise NotAMessage(f"payload is not base64: {error}") from None
    except (ValueError, RecursionError):
        raise NotAMessage("payload cannot be written as JSON") from None
    raise NotAMessage("encoding is json, or text or base64 with a payload that is a text")


def _received_at(given: Any) -> int:
    if given is None:
        return (datetime.now(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    try:
        read = datetime.fromisoformat(given)
        read = read if read.tzinfo is not None else read.replace(tzinfo=UTC)
        at = (read - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    except (TypeError, ValueError, OverflowError):
        raise NotAMessage("received_at is a time such as 2026-03-01T12:00:00.000Z") from None
    if not 0 <= at < 4_102_444_800_000:
        raise NotAMessage("received_at is a time between 1970 and 2100")
    return at
