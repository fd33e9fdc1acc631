"""Intake on a real store, with a session that a test leads: what is acknowledged when, counted as what, kept how."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from gateway import config
from gateway.deciding import Decider
from gateway.intake import AGAIN_BYTES, Intake
from gateway.model import UNBOUNDED_MS, EventStatus, EventType, Message, Reading
from gateway.outbox.store import Store
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.families import load_family
from gateway.sources.rules import CompiledSource, Ignored, Unreadable
from tests.fakes.frigate import encode, review
from tests.fakes.waiting import until
from tests.step.outbox_kit import Outbox, open_outbox

ENDS = ("stored", "duplicate", "closing", "ignored", "unmapped", "unreadable")


@dataclass
class Line:
    """A session with the broker as intake sees it; `drop` and `lose` end a connection."""

    clock: Any
    connected: bool = True
    generation: int = 1
    waiting: deque[Received] = field(default_factory=deque)
    acknowledged: list[AckToken] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    _mid: int = 0
    _bell: asyncio.Event = field(default_factory=asyncio.Event)

    async def receive(self, limit: int) -> list[Received]:
        while not self.waiting:
            self._bell.clear()
            await self._bell.wait()
        return [self.waiting.popleft() for _ in range(min(limit, len(self.waiting)))]

    def acknowledge(self, tokens: Sequence[AckToken]) -> None:
        self.acknowledged += [token for token in tokens if token.mid]

    def is_current(self, token: AckToken) -> bool:
        return token.mid == 0 or token.generation == self.generation

    def drop(self, reason: str) -> None:
        self.drops.append(reason)
        self.generation += 1

    def message(self, topic: str, payload: bytes, *, qos: int = 1, dup: bool = False) -> Received:
        self._mid += 1
        message = Message(topic, payload, qos, False, dup, False, self.clock.wall_ms(), self.clock.ticks_ms())
        return Received(message, AckToken(self.generation, self._mid if qos else 0))

    def again(self, lost: Received) -> Received:
        """The same message, on this connection: under its own packet id (MQTT 5.0, 4.4)."""
        message = replace(
            lost.message, dup=True, received_at=self.clock.wall_ms(), received_ticks=self.clock.ticks_ms()
        )
        return replace(lost, message=message, token=replace(lost.token, generation=self.generation))

    def arrive(self, *received: Received) -> None:
        self.waiting += received
        self._bell.set()


class Bells(CompiledSource):
    """Equipment whose messages have neither id nor time: every ON is another alarm."""

    def __init__(self) -> None:
        self.table = "bells"

    def covers(self, topic: str) -> bool:
        return topic.startswith("bell/")

    def read(self, message: Message, heard: list[str] | None = None) -> list[Reading] | Ignored | Unreadable:
        words = message.payload.decode().split()
        if words == ["noise"]:
            return Ignored("says nothing")
        if words == ["rubbish"]:
            return Unreadable("rubbish")
        camera = message.topic.removeprefix("bell/")
        return [self._reading(camera, word, number) for number, word in enumerate(words)]

    @staticmethod
    def _reading(camera: str, word: str, number: int) -> Reading:
        return Reading(
            source="bells",
            event_type=EventType.ALARM,
            event_status=EventStatus.INACTIVE if word == "OFF" else EventStatus.ACTIVE,
            camera=camera,
            source_id=None,
            started=None,
            state_key=f"{camera}/{number}",
            kind=f"ring{number}",
            event_at="no number" if word == "bug" else None,  # type: ignore[arg-type]
            topic_kind="momentary",
        )


def camera(name: str, **changes: Any) -> config.ResolvedCamera:
    resolved = config.ResolvedCamera(
        table=name,
        name=name,
        source=None,
        camera_id=f"cam-{name}",
        recorder_id="R",
        signal=True,
        snapshots=0,
        short_mp4=False,
        event_mp4=False,
        hold_off=None,
        send_restore=False,
        short_before=2,
        short_after=4,
        clip_before=10,
        clip_after=20,
        max_open=900,
        trouble_delay=60,
        silence_after=None,
        dedupe_window=86_400,
    )
    return replace(resolved, **changes)


class Place:
    """A store, a line to the broker, and the intake between them."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self.line = Line(outbox.clock)
        self.cameras = {"door": camera("door")}
        self.rung = self.hurried = 0
        self.lock = sqlite3.connect(outbox.path, isolation_level=None)

    @property
    def store(self) -> Store:
        return self.outbox.store

    async def begin(self) -> None:
        """A process starts, on what is on disk."""
        clock = self.line.clock = self.outbox.clock
        sources = [load_family("frigate").compile_source("nvr", config.Source(family="frigate"), UTC), Bells()]
        self.backlog = BacklogJudge(await self.store.last_heard_at())
        decider = Decider(
            sources=sources,
            find_plan=lambda _, name: self.cameras.get(name or ""),
            location_id="L",
            backlog=self.backlog,
            clock=clock,
        )
        self.intake = Intake(
            session=self.line,
            store=self.store,
            decider=decider,
            backlog=self.backlog,
            on_stored=self._ring,
            on_store_back=self._hurry,
        )
        await self.intake.load()

    def _ring(self) -> None:
        self.rung += 1

    def _hurry(self) -> None:
        self.hurried += 1

    async def crash(self) -> None:
        await self.outbox.again()
        self.line.generation += 1
        await self.begin()

    def ring(self, word: str = "ON", *, qos: int = 1, dup: bool = False, at: str = "door") -> Received:
        return self.line.message(f"bell/{at}", word.encode(), qos=qos, dup=dup)

    def review(self, name: str = "door", *, qos: int = 1, dup: bool = False, **said: Any) -> Received:
        said.setdefault("start", self.line.clock.wall_ms() / 1000)
        return self.line.message("frigate/reviews", encode(review(name, **said)), qos=qos, dup=dup)

    def refuse(self, refusing: bool) -> None:
        """The real store, locked by another connection for longer than it waits."""
        if refusing:
            self.store._writer._db.execute("PRAGMA busy_timeout = 20")
            self.lock.execute("BEGIN IMMEDIATE")
        else:
            self.lock.rollback()

    async def counts(self) -> dict[str, int]:
        """The counters of messages; conserved, or this fails."""
        await self.store.flush()
        counters = await self.store.counters()
        assert counters.get("received", 0) == sum(counters.get(name, 0) for name in ENDS), counters
        return {name: counters[name] for name in ("received", *ENDS) if counters.get(name)}


@asynccontextmanager
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        made = Place(outbox)
        await made.begin()
        with closing(made.lock):
            yield made


async def test_an_alarm_is_on_disk_before_it_is_acknowledged(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        message = house.review()
        seen: list[list[Any]] = []
        house.line.acknowledge = lambda tokens: seen.append(house.outbox.look("SELECT state FROM event"))  # type: ignore[method-assign]
        assert await house.intake.take([message])
        assert seen == [["pending"]]
        assert house.rung == 1
        assert await house.counts() == {"received": 1, "stored": 1}


async def test_a_store_that_refuses_means_no_acknowledgement_and_a_reconnect(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        message = house.review()
        house.refuse(True)
        assert not await house.intake.take([message])
        assert house.line.acknowledged == []
        assert len(house.line.drops) == 1
        assert not house.outbox.look("SELECT 1 FROM event")
        house.refuse(False)
        again = replace(message, message=replace(message.message, dup=True), token=AckToken(2, 1))
        assert await house.intake.take([again])
        assert house.line.acknowledged == [AckToken(2, 1)]
        assert await house.counts() == {"received": 1, "stored": 1}


async def test_a_store_that_found_out_by_itself_that_it_works_again_is_told_to_the_session(tmp_path: Path) -> None:
    """Everything was left to the broker: without a word nobody here would ask the store again."""
    async with place(tmp_path) as house:
        stop = asyncio.Event()
        running = asyncio.create_task(house.intake.run(stop))
        house.refuse(True)
        house.line.arrive(house.review())
        await until(lambda: house.line.drops)
        assert house.hurried == 0
        house.refuse(False)
        await until(lambda: house.hurried)
        stop.set()
        await running


async def test_what_was_published_with_qos_0_waits_for_a_store_that_refuses(tmp_path: Path) -> None:
    """It never comes again. It is counted once, and nobody is told to send it again."""
    async with place(tmp_path) as house:
        house.refuse(True)
        assert not await house.intake.take([house.ring(qos=0)])
        assert not await house.intake.take([house.review(qos=0)])
        assert house.line.drops == []
        house.refuse(False)
        assert await house.intake.take([])
        assert await house.counts() == {"received": 2, "stored": 2}


async def test_what_waits_for_the_store_is_bounded_and_the_oldest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with place(tmp_path) as house:
        house.refuse(True)
        size = AGAIN_BYTES // 4
        messages = [house.line.message("frigate/reviews", bytes([number]) * size, qos=0) for number in range(6)]
        for message in messages:
            assert not await house.intake.take([message])
        house.refuse(False)
        assert await house.intake.take([])
        kept = house.outbox.look("SELECT substr(raw, 1, 1) FROM event ORDER BY seq")
        assert kept == [b"\0", b"\1", b"\2"]
        assert "messages_given_up" in capsys.readouterr().out
        assert await house.counts() == {"received": 3, "unreadable": 3}


async def test_what_an_older_connection_left_here_is_kept_too_and_not_doubled(tmp_path: Path) -> None:
    """The broker may have lost the session, or may send it again: ON without an id is then the same ON."""
    async with place(tmp_path) as house:
        left = house.ring()
        house.line.generation += 1
        house.refuse(True)
        assert not await house.intake.take([left])
        house.refuse(False)
        again = house.line.again(left)
        assert await house.intake.take([again])
        assert house.line.acknowledged == [again.token]
        assert await house.counts() == {"received": 2, "stored": 1, "duplicate": 1}


async def test_a_redelivery_without_an_id_is_recognised_once_also_after_a_crash(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        lost = house.ring()
        house.line.generation += 1  # the connection ends before the acknowledgement
        assert await house.intake.take([lost])
        assert house.line.acknowledged == []
        await house.crash()
        house.line.clock.advance(1)
        assert await house.intake.take([house.line.again(lost), house.ring("OFF")])
        assert await house.counts() == {"received": 3, "stored": 1, "duplicate": 1, "closing": 1}
        # The story of the first has ended: another ON with DUP is another alarm.
        assert await house.intake.take([house.line.again(lost)])
        assert await house.counts() == {"received": 4, "stored": 2, "duplicate": 1, "closing": 1}


async def test_an_equal_message_that_was_never_stored_is_not_the_one_before_it(tmp_path: Path) -> None:
    """The power fails after the first was acknowledged, before the note of that, and before the second is stored."""
    async with place(tmp_path) as house:
        house.store.acknowledged = lambda *_: None  # type: ignore[method-assign]  # the note that the power cut took
        assert await house.intake.take([house.ring(), house.ring("OFF")])
        second = house.ring()
        await house.crash()
        assert await house.intake.take([house.line.again(second)])
        assert await house.counts() == {"received": 3, "stored": 2, "closing": 1}


async def test_a_lost_session_forgets_what_will_never_be_sent_again(tmp_path: Path) -> None:
    """Else a later alarm with the same bytes, redelivered for another reason, would be taken for the old one."""
    async with place(tmp_path) as house:
        lost = house.ring()
        house.line.generation += 1
        assert await house.intake.take([lost])
        house.intake.session_lost()
        assert await house.intake.take([])
        await house.crash()
        assert await house.intake.take([house.line.again(lost)])
        assert await house.counts() == {"received": 2, "stored": 2}


async def test_new_messages_end_the_redeliveries(tmp_path: Path) -> None:
    """MQTT sends the unacknowledged first: what has not come by then was acknowledged after all."""
    async with place(tmp_path) as house:
        lost = house.ring()
        house.line.generation += 1
        assert await house.intake.take([lost])
        assert await house.intake.take([house.ring("noise")])
        await house.crash()
        assert not await house.store.unacknowledged()


async def test_what_the_session_forgot_is_on_disk_with_the_next_message(tmp_path: Path) -> None:
    """An alarm was open; the broker lost the session; the crash comes: the next ON is an alarm all the same."""
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        house.intake.session_lost()
        assert await house.intake.take([])
        await house.crash()
        assert await house.intake.take([house.ring()])
        assert await house.counts() == {"received": 2, "stored": 2}


async def test_a_refused_commit_does_not_forget_that_the_session_was_lost(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        house.intake.session_lost()
        house.refuse(True)
        assert not await house.intake.take([])
        house.refuse(False)
        assert await house.intake.take([house.ring()])
        assert await house.counts() == {"received": 2, "stored": 2}


async def test_a_message_of_two_alarms_counts_once(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring("ON ON")])
        assert len(house.outbox.states()) == 2
        assert await house.counts() == {"received": 1, "stored": 1}


async def test_an_end_whose_beginning_was_missed_is_two_rows_of_one_message(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        house.cameras["door"] = camera("door", send_restore=True)
        now = house.line.clock.wall_ms() / 1000
        end = house.review(phase="end", start=now - 30, end=now, review_id="r1")
        assert await house.intake.take([end, replace(end, token=AckToken(1, 99))])
        assert house.outbox.look("SELECT event_status FROM event ORDER BY seq") == ["active", "inactive"]
        assert await house.counts() == {"received": 2, "stored": 1, "duplicate": 1}


async def test_an_error_inside_one_message_leaves_the_message_as_evidence_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows and the memory of its first half are taken back; the others of the group are as if alone."""
    async with place(tmp_path) as house:
        group = [house.ring(at="gate"), house.ring("ON bug"), house.review()]
        house.cameras["gate"] = camera("gate")
        assert await house.intake.take(group)
        assert sorted(house.outbox.states().values()) == ["pending", "pending", "unreadable"]
        assert house.outbox.look("SELECT raw FROM event WHERE state = 'unreadable'") == [b"ON bug"]
        assert "open/bells/door/0" not in house.intake.memory
        assert house.line.acknowledged == [one.token for one in group]
        assert await house.counts() == {"received": 3, "stored": 2, "unreadable": 1}
        assert "message_failed_inside" in capsys.readouterr().out


async def test_every_end_is_counted_as_one(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        start = house.line.clock.wall_ms() / 1000
        begun = house.review(review_id="r1", start=start)
        ended = house.review(phase="end", review_id="r1", start=start, end=start + 1)
        group = [
            begun,
            house.review(phase="new", review_id="r1", start=start),  # said twice
            ended,
            house.review("garden"),
            house.ring("noise"),
            house.ring("rubbish"),
            replace(house.ring(), oversize=2_000_000, oversize_sha256="0" * 64),
        ]
        assert await house.intake.take(group)
        assert await house.counts() == {
            "received": 7,
            "stored": 1,
            "duplicate": 1,
            "closing": 1,
            "unmapped": 1,
            "ignored": 1,
            "unreadable": 2,
        }
        assert len(house.line.acknowledged) == 7


async def test_what_leaves_nothing_costs_no_commit(tmp_path: Path) -> None:
    """A chatty topic must not wear the disk out; it may come again, and leaves nothing again."""
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        await house.store.flush()
        before = house.store.commits
        for _ in range(20):
            assert await house.intake.take([house.ring("noise")])
        assert house.store.commits == before
        assert len(house.line.acknowledged) == 21
        assert (await house.counts())["ignored"] == 20


async def test_an_alarm_that_waited_in_the_broker_keeps_the_time_of_the_equipment(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        house.cameras["door"] = camera("door", snapshots=1)
        assert await house.intake.take([house.review()])  # live: the recorder's clock is right
        house.line.clock.advance(7_200)
        house.intake.reconnected(session_present=True)
        then = house.line.clock.wall_ms() - 3_600_000
        assert await house.intake.take([house.review(start=then / 1000)])
        [(at, unknown)] = house.outbox.look("SELECT event_at, age_unknown_ms FROM event ORDER BY seq DESC LIMIT 1")
        assert (at, unknown) == (then, None)
        [begin] = house.outbox.look("SELECT from_at FROM media ORDER BY id DESC LIMIT 1")
        assert begin == then


async def test_a_connection_that_breaks_within_the_backlog_does_not_make_the_rest_of_it_younger(tmp_path: Path) -> None:
    """Nor does a crash: the rest has waited since the same moment."""
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        away = house.line.clock.wall_ms()

        async def unknown_age(word: str) -> int:
            assert await house.intake.take([house.ring(word, at="door")])
            [age] = house.outbox.look("SELECT age_unknown_ms FROM event ORDER BY seq DESC LIMIT 1")
            assert isinstance(age, int)
            return age

        house.line.clock.advance(600)
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.ring("OFF")])
        assert await unknown_age("ON") == 600_000
        house.line.clock.advance(60)
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.ring("OFF")])
        assert await unknown_age("ON") == 660_000
        await house.crash()
        house.line.clock.advance(60)
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.ring("OFF")])
        assert await unknown_age("ON") == house.line.clock.wall_ms() - away
        # A pause ends it: what comes now is live.
        house.line.clock.advance(2)
        assert await house.intake.take([house.ring("OFF"), house.ring("ON")])
        assert house.outbox.look("SELECT age_unknown_ms FROM event ORDER BY seq DESC LIMIT 1") == [None]


async def test_a_clock_that_jumps_while_the_broker_is_away_makes_nothing_younger(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        house.line.clock.advance(600)
        house.line.clock.wall -= 365 * 86_400_000
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.ring("OFF"), house.ring()])
        assert house.outbox.look("SELECT age_unknown_ms, away_since_at FROM event ORDER BY seq DESC LIMIT 1") == [
            (600_000, None)
        ]


async def test_what_waited_over_a_restart_into_1970_has_an_unknown_age(tmp_path: Path) -> None:
    """And says from when on it may have waited, for the moment when the clock is right."""
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        away = house.line.clock.wall_ms()
        house.line.clock.wall = 7_000
        await house.crash()
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.ring("OFF"), house.ring()])
        assert house.outbox.look("SELECT age_unknown_ms, away_since_at FROM event ORDER BY seq DESC LIMIT 1") == [
            (UNBOUNDED_MS, away)
        ]


async def test_a_backlog_that_nothing_follows_ends_by_itself(tmp_path: Path) -> None:
    """Else the silence after it would count as waiting at the next reconnect."""
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        house.line.clock.advance(600)
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.ring("OFF")])
        house.line.clock.advance(5)
        assert await house.intake.take([])
        assert not house.backlog.in_run
        house.line.clock.advance(3_600)
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.ring()])
        assert house.outbox.look("SELECT age_unknown_ms FROM event ORDER BY seq DESC LIMIT 1") == [3_605_000]


async def test_what_the_store_refused_has_waited_since_the_last_commit(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        house.line.clock.advance(100)
        house.refuse(True)
        closing = house.ring("OFF")
        assert not await house.intake.take([closing])
        house.refuse(False)
        house.line.clock.advance(100)
        house.intake.reconnected(session_present=True)
        assert await house.intake.take([house.line.again(closing), house.ring()])
        assert house.outbox.look("SELECT age_unknown_ms FROM event ORDER BY seq DESC LIMIT 1") == [200_000]


async def test_told_to_stop_it_takes_along_what_has_arrived(tmp_path: Path) -> None:
    """QoS 0 would be lost: Frigate publishes so."""
    async with place(tmp_path) as house:
        stop = asyncio.Event()
        running = asyncio.create_task(house.intake.run(stop))
        house.line.arrive(house.review())
        await until(lambda: house.line.acknowledged)
        house.line.arrive(*[house.review(qos=0) for _ in range(700)])
        stop.set()
        await running
        assert await house.counts() == {"received": 701, "stored": 701}


async def test_a_lost_session_takes_effect_without_a_message(tmp_path: Path) -> None:
    async with place(tmp_path) as house:
        assert await house.intake.take([house.ring()])
        stop = asyncio.Event()
        running = asyncio.create_task(house.intake.run(stop))
        await asyncio.sleep(0)
        house.intake.session_lost()

        def on_disk() -> bool:
            memory = dict(house.outbox.look("SELECT key, value FROM memory"))
            return bool(json.loads(memory["open/bells/door/0"]).get("seed"))

        await until(on_disk, timeout=4)
        stop.set()
        await running


async def test_a_pulse_of_time_is_no_message(tmp_path: Path) -> None:
    """The restore of an alarm that nobody ended is a row that no message counts for."""
    async with place(tmp_path) as house:
        house.cameras["door"] = camera("door", send_restore=True, max_open=60)
        assert await house.intake.take([house.ring()])
        house.line.clock.advance(61)
        assert await house.intake.take([])
        assert house.outbox.look("SELECT event_status FROM event ORDER BY seq") == ["active", "inactive"]
        assert await house.counts() == {"received": 1, "stored": 1}
