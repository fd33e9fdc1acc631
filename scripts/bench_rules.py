"""What rules and conditions cost, in units of `json.loads` of the same messages in the same run.

Counted is everything from the received message to its Decision: which source it is for, decoding (which for Frigate is
JSON, too), reading, the camera's plan, the decision, and what it changes in memory. Not counted: the session before and
the commit after. All families are loaded, the site has several sources and 32 cameras with the settings that a camera
has by default. CPU time of this process; the least of some rounds of each, since the machine has other work as well.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gateway import config
from gateway.host.collector import spare_the_loop
from gateway.model import Message
from gateway.sources import conditions
from gateway.sources.decode import decode_json
from gateway.sources.families import families
from gateway.sources.memory import Memory
from gateway.sources.plans import Plans, compile_sources
from gateway.sources.rules import OfTopic
from tests.fakes.frigate import encode, review, tracked

CAMERAS: Final = 32
LIVES: Final = 200  # of alarms, in one round
ROUNDS: Final = 40
START: Final = 1_772_366_399.308396  # 2026-03-01, with the microseconds that Frigate writes
BETWEEN: Final = 30  # seconds from alarm to alarm; each camera's own are further apart than its hold-off
SITE: Final = {
    "site": {"location_id": "BENCH", "recorder_id": "R", "timezone": "UTC"},
    "cloud": {"url": "http://127.0.0.1:1", "token_url": "http://127.0.0.1:1", "audience": "a", "client_id": "c"},
    "broker": {"url": "mqtt://127.0.0.1:1"},
    "sources": {
        "nvr": {"family": "frigate"},
        "barn": {"family": "frigate", "dialect": "events", "topic_prefix": "barn"},
        "doors": {"family": "unifi"},
        "fence": {"family": "axis"},
        "gate": {"family": "hikvision"},
        "old": {"family": "zoneminder"},
    },
    "cameras": {f"cam{number}": {"camera_id": f"c{number}"} for number in range(CAMERAS)},
}

Form = Callable[..., dict[str, Any]]


def a_review(camera: str, name: str, **facts: Any) -> dict[str, Any]:
    return review(camera, review_id=name, **facts)


def an_object(camera: str, name: str, **facts: Any) -> dict[str, Any]:
    return tracked(camera, object_id=name, **facts)


class Cost(NamedTuple):
    what: str
    ratio: float
    without_decoding: float
    microseconds: float  # of `json.loads`


def life(topic: str, form: Form, updates: int, *, ends: bool = True) -> Iterator[Message]:
    """Alarm after alarm, each with its beginning, its updates and its end."""
    for number in range(LIVES if updates < 20 else LIVES // 10):
        start = round(START + number * BETWEEN, 6)
        name = f"{start}-{number:06x}"
        phases = ["new", *["update"] * updates, *["end"] * ends]
        for second, phase in enumerate(phases):
            end = start + second if phase == "end" else None
            payload = encode(form(f"cam{number % CAMERAS}", name, phase=phase, start=start, end=end))
            at = int(start * 1000) + 800 + 500 * second
            yield Message(topic, payload, 0, False, False, False, at, at - int(START * 1000))


def each(decode: Callable[[bytes], object], messages: Sequence[Message]) -> None:
    for message in messages:
        decode(message.payload)


def least(*works: Callable[[], object]) -> list[float]:
    """CPU seconds of each, the least of some rounds in which they take turns: what disturbs one disturbs all."""
    took: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS):
        for work, times in zip(works, took, strict=True):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
    return [min(times) for times in took]


def costs() -> list[Cost]:
    families()
    settings = config.Settings.model_validate(SITE)
    sources = compile_sources(settings).values()
    about = OfTopic(lambda topic: [source for source in sources if source.covers(topic)])
    plans = Plans(settings)
    spare_the_loop()  # as the gateway does when it has started

    def decide(messages: Sequence[Message]) -> None:
        memory = Memory()
        for message in messages:
            for source in about[message.topic]:
                readings = source.read(message, [])
                if isinstance(readings, list):
                    for reading in readings:
                        plan = plans.find(reading.source, reading.camera)
                        memory.apply(conditions.decide(reading, message, plan, memory, location_id="BENCH").memory)

    def measure(what: str, messages: Sequence[Message]) -> Cost:
        bare, decoding, all_of_it = least(
            lambda: each(json.loads, messages), lambda: each(decode_json, messages), lambda: decide(messages)
        )
        return Cost(what, all_of_it / bare, (all_of_it - decoding) / bare, 1e6 * bare / len(messages))

    reviews, events = "frigate/reviews", "barn/events"
    return [
        measure("a review that opens an alarm", list(life(reviews, a_review, 0, ends=False))),
        measure("a review's life of 3 messages", list(life(reviews, a_review, 1))),
        measure("a review's life of 10 messages", list(life(reviews, a_review, 8))),
        measure("a flood of an object's updates", list(life(events, an_object, 60))),
    ]


def main() -> None:
    for cost in costs():
        print(
            f"{cost.what:<32} {cost.ratio:5.2f} x json.loads ({cost.microseconds:.1f} us); "
            f"without decoding {cost.without_decoding:.2f}"
        )


if __name__ == "__main__":
    main()
