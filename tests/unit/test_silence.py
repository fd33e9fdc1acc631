"""Silence: whatever the order of signs, deafness, restarts and refused commits, it is told truly, and in pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import Source
from gateway.model import EventStatus, NewEvent
from gateway.sources.families import families, load_family
from gateway.sources.memory import Memory
from gateway.sources.silence import LATE_MS, LOOK_MS, Silence
from tests.unit.frigate_messages import NOW, message
from tests.unit.test_conditions import AnyPlan

SECOND, MINUTE = 1000, 60_000
AFTER = 10 * MINUTE


@dataclass(frozen=True)
class Camera(AnyPlan):
    table: str = "front"
    name: str = "front"
    source: str | None = "nvr"
    camera_id: str = "id"
    silence_after: float = AFTER / 1000


CAMERAS = [Camera(table=name, name=name) for name in ("front", "back", "side")]


@dataclass
class World:
    """Time, a broker, and a memory that survives as JSON; `truth` is what really was heard."""

    cameras: list[Camera] = field(default_factory=lambda: list(CAMERAS))
    ticks: int = 1_000_000
    wall: int = NOW
    hearing: bool = True
    memory: Memory = field(default_factory=Memory)
    rows: list[NewEvent] = field(default_factory=list)
    heard: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start()

    def start(self) -> None:
        self.memory = Memory(json.loads(json.dumps(dict(self.memory))))
        self.silence = Silence(
            self.cameras,
            ("nvr", "other"),
            find_plan=lambda source, camera: AnyPlan(table=None, camera_id="site"),
            location_id="L",
        )
        self.silence.load(self.memory, ticks=self.ticks, wall=self.wall)
        self.look()

    def hear(self, name: str, source: str = "nvr") -> None:
        self.heard[name] = self.ticks
        self.silence.hear(source, name, self.ticks)
        self.look()

    def look(self, *, refused: bool = False) -> list[NewEvent]:
        undo = []
        rows: list[NewEvent] = []
        for decision in self.silence.look(
            self.memory, ticks=self.ticks, wall=self.wall, hearing=self.hearing, in_company=False
        ):
            undo.append(self.memory.apply(decision.memory))
            rows += decision.events
        if refused:
            for changes in reversed(undo):
                self.memory.apply(changes)
            return []
        self.rows += rows
        return rows

    def passes(self, milliseconds: int, *, every: int = LOOK_MS, refused: bool = False) -> None:
        while milliseconds > 0:
            step = min(every, milliseconds)
            milliseconds -= step
            self.ticks += step
            self.wall += step
            self.look(refused=refused)

    def said(self) -> list[tuple[str | None, str]]:
        return [(row.camera, str(row.event_status)) for row in self.rows]


def test_a_refused_commit_forgets_neither_the_beginning_nor_the_end() -> None:
    world = World()
    for _ in range(65):
        world.hear("back")
        world.hear("side")
        world.passes(10 * SECOND, refused=True)
    assert world.said() == []
    world.passes(10 * SECOND)
    assert world.said() == [("front", "active")]
    world.silence.hear("nvr", "front", world.ticks)
    assert world.look(refused=True) == []
    world.passes(10 * SECOND)
    assert world.said() == [("front", "active"), ("front", "inactive")]


def test_a_camera_without_a_source_belongs_to_the_one_by_which_it_was_heard() -> None:
    world = World([Camera(source=None)])
    world.hear("front", "other")
    world.passes(AFTER + MINUTE)
    [row] = world.rows
    assert (row.source, row.camera) == ("other", "front")


def test_a_late_look_has_not_listened() -> None:
    world = World()
    world.passes(20 * AFTER, every=LATE_MS + 1)
    assert world.said() == []


def test_different_times_in_one_source_do_not_make_a_storm() -> None:
    slow = [Camera(table=f"s{n}", name=f"s{n}", silence_after=24 * 3600) for n in range(20)]
    quick = [Camera(table=f"q{n}", name=f"q{n}") for n in range(20)]
    world = World(slow + quick)
    world.passes(48 * 60 * MINUTE, every=30 * SECOND)
    assert world.said() == [(None, "active")]


actions = st.one_of(
    st.tuples(st.just("hear"), st.sampled_from(["front", "back", "side", "stranger"])),
    st.tuples(st.just("pass"), st.integers(1, 2 * AFTER)),
    st.tuples(st.just("deaf"), st.integers(1, 2 * AFTER)),
    st.tuples(st.just("restart"), st.integers(0, 2 * AFTER)),
    st.tuples(st.just("sleep"), st.integers(LATE_MS + 1, 3 * AFTER)),
)


@given(st.lists(actions, max_size=40))
def test_whatever_happens_it_is_true_and_in_pairs(steps: list[tuple[str, Any]]) -> None:
    world = World()
    for what, value in steps:
        before = len(world.rows)
        match what:
            case "hear":
                world.hear(value)
            case "pass":
                world.passes(value)
            case "deaf":
                world.hearing = False
                world.passes(value)
                world.hearing = True
                world.look()
            case "sleep":
                world.ticks += value
                world.wall += value
                world.look()
            case "restart":
                world.wall += value
                world.start()
        for row in world.rows[before:]:
            if row.event_status is EventStatus.ACTIVE:
                names = [row.camera] if row.camera else ["front", "back", "side", "stranger"]
                last = max((world.heard.get(name, 0) for name in names), default=0)
                assert row.received_ticks - last >= AFTER, "it was heard, in ticks of ours"
    open_now: set[str] = set()
    for row in world.rows:
        if row.event_status is EventStatus.ACTIVE:
            assert row.state_key not in open_now
            open_now.add(row.state_key)
        else:
            assert row.state_key in open_now
            open_now.remove(row.state_key)
    assert open_now == {key for key in world.memory if key.startswith("silence/")}
    # And nothing is forgotten: all of them speak, and all is over; then none does, and it is told.
    for camera in world.cameras:
        world.hear(camera.name)
    world.look()
    assert not [key for key in world.memory if key.startswith("silence/")]
    count = len(world.rows)
    world.passes(AFTER + MINUTE)
    assert len(world.rows) == count + 1


# What is a sign of life, by family


@pytest.mark.parametrize("name", sorted(families()))
def test_a_topic_that_is_only_a_sign_of_life_is_subscribed_where_it_is_asked_for(name: str) -> None:
    family = load_family(name)
    for dialect in family.dialects or (None,):
        source = Source(family=name, dialect=dialect, topic_prefix=None if family.facts.topic_prefix else "p")
        silent, watched = family.filters(source), family.filters(source, heartbeats=True)
        assert set(silent) <= set(watched)
        only = [r for r in family.facts.rule if r.heartbeat and r.ignored and (not r.dialects or dialect in r.dialects)]
        assert (silent != watched) is bool(only)
        assert (family.heartbeat(dialect) is not None) >= bool(only)


@pytest.mark.parametrize(
    ("family", "topic", "payload", "alive"),
    [
        ("hanwha", "AA:BB/heartbeat", "", ["AA:BB"]),
        ("frigate", "frigate/stats", {"cameras": {"a": {"camera_fps": 5}, "b": {"camera_fps": 0}, "c": 1}}, ["a"]),
        ("frigate", "frigate/stats", "no JSON", []),
        ("frigate", "frigate/stats", {}, []),
        ("frigate", "frigate/a/status/detect", "online", ["a"]),
        ("frigate", "frigate/a/status/detect", "offline", []),
        ("frigate", "frigate/a/status/audio", "offline", ["a"]),
        ("frigate", "frigate/available", "online", []),
        ("neolink", "neolink/Yard/status/motion", "unknown", ["Yard"]),
        ("neolink", "neolink/Yard/status", "disconnected", []),
        ("axis", "axis/AC/event/connection", {"connected": False}, []),
        ("axis", "axis/AC/event/tns:axis/Light", {"serial": "AC", "message": {"data": {}}}, ["AC"]),
        ("onvif-ej", "C/onvif-ej/VideoSource/SignalLoss/&1", {"Source": {}, "Data": {"State": "true"}}, []),
        ("onvif-ej", "C/onvif-ej/Device/Tampering", {"Source": {}, "Data": {"State": "true"}}, ["C"]),
    ],
)
def test_what_names_a_camera_is_a_sign_of_its_life(family: str, topic: str, payload: Any, alive: list[str]) -> None:
    source = load_family(family).compile_source("s", Source(family=family), UTC)
    heard: list[str] = []
    source.read(message(payload, topic, at=NOW, ticks=1), heard)
    assert heard == alive
