"""One life of intake behind a broker: `python -m tests.faults.intake_life FOLDER FAULTS SEED MODE`, for power_cut.py.

Real: `Intake`, `Decider`, Frigate's rules, the store. Scripted: the broker. It keeps the session, sends with QoS 1, and
sends again with DUP, under the same packet id, what was not acknowledged when a connection ended. What it publishes,
sends and hears acknowledged are marks in the history of the disk. `judge` starts from what a cut has left, with the
broker as it was at the cut. MODE as in `tests.faults.life`.
"""

from __future__ import annotations

import asyncio
import errno
import random
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from pathlib import Path
from typing import NamedTuple

from gateway import config
from gateway.deciding import Decider
from gateway.intake import Intake
from gateway.model import Message
from gateway.outbox.store import StoreError
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker_window import AckToken, Received
from gateway.sources.families import load_family
from tests.fakes.clock import FakeClock
from tests.fakes.frigate import encode, review
from tests.faults.forgetful_disk import Faults
from tests.faults.life import as_the_mode_says, mark
from tests.step.outbox_kit import Outbox, dead, deferred, delivered
from tests.step.test_intake import Bells, camera
from tests.step.test_store_intake import assert_conserved

ROUNDS = 60
DOORS = ("front", "back")


class Published(NamedTuple):
    number: int
    at: int  # wall ms

    @property
    def is_bell(self) -> bool:
        """Without id and time, each like the one before: only DUP and its hash tell a redelivery from another one."""
        return self.number % 2 == 0

    @property
    def rings(self) -> bool:
        return self.is_bell and self.number % 8 < 4

    @property
    def topic(self) -> str:
        return f"bell/{DOORS[self.number % 4 // 2]}" if self.is_bell else "frigate/reviews"

    @property
    def payload(self) -> bytes:
        if self.is_bell:
            return b"ON" if self.rings else b"OFF"
        objects = ("person", *(f"thing{n}" for n in range(self.number % 7 * 60)))
        return encode(review("front", start=self.at / 1000, review_id=self.name, objects=objects))

    @property
    def name(self) -> str:
        return f"r{self.number}"


class Broker:
    """What intake needs of a session; it outlives the gateway."""

    connected = True

    def __init__(self, clock: FakeClock, say: Callable[[str], None], *, hasty: bool = False) -> None:
        self.clock = clock
        self.kept: dict[int, Published] = {}  # not acknowledged, in their order
        self.sent: set[int] = set()
        self._line: deque[int] = deque()
        self._generation = 1
        self._say = say
        self._hasty = hasty

    def publish(self, one: Published) -> None:
        self._say(f"published {one.number} {one.at}")
        self.kept[one.number] = one
        self._line.append(one.number)

    def connect_again(self) -> None:
        self._generation += 1
        self._line = deque(self.kept)

    async def receive(self, limit: int) -> list[Received]:
        taken = [self._take() for _ in range(min(limit, len(self._line)))]
        if self._hasty:
            self.acknowledge([received.token for received in taken])
        return taken

    def _take(self) -> Received:
        one = self.kept[self._line.popleft()]
        again = one.number in self.sent
        self.sent.add(one.number)
        self._say(f"sent {one.number}")
        at = (self.clock.wall_ms(), self.clock.ticks_ms())
        return Received(
            Message(one.topic, one.payload, 1, False, again, False, *at), AckToken(self._generation, one.number)
        )

    def acknowledge(self, tokens: Iterable[AckToken]) -> None:
        for token in tokens:
            if self.is_current(token) and token.mid in self.kept:
                del self.kept[token.mid]
                self._say(f"acknowledged {token.mid}")

    def is_current(self, token: AckToken) -> bool:
        return token.generation == self._generation

    def drop(self, reason: str) -> None:
        self.connect_again()

    @property
    def waits(self) -> bool:
        return bool(self._line)


class Gateway:
    def __init__(self, path: Path) -> None:
        self.outbox = Outbox(path)
        self.intake: Intake

    async def begin(self, broker: Broker) -> None:
        """A process starts, on what is on the disk."""
        await self.outbox.open()
        await self.outbox.store.recover()
        clock = broker.clock = self.outbox.clock
        cameras = {name: camera(name) for name in DOORS}
        backlog = BacklogJudge(await self.outbox.store.last_heard_at())
        self.intake = Intake(
            session=broker,
            store=self.outbox.store,
            decider=Decider(
                sources=[load_family("frigate").compile_source("nvr", config.Source(family="frigate"), UTC), Bells()],
                find_plan=lambda _, name: cameras.get(name or ""),
                location_id="L",
                backlog=backlog,
                clock=clock,
            ),
            backlog=backlog,
            on_stored=lambda: None,
        )
        await self.intake.load()
        broker.connect_again()
        self.intake.reconnected(session_present=True)


class Life:
    def __init__(self, folder: Path, faults: Faults, seed: int, mode: str) -> None:
        self.gateway = Gateway(folder / "outbox.db")
        self.broker = Broker(self.gateway.outbox.clock, mark, hasty=mode == "early")
        self.chance = random.Random(seed)
        self.faults = faults
        self.mode = mode
        self.count = 0

    async def live(self) -> None:
        await self.gateway.begin(self.broker)
        mark("began")
        acts = (self.publish, self.publish, self.publish, self.take, self.take, self.take, self.send, self.end)
        for _ in range(ROUNDS):
            if self.mode == "failing" and self.chance.random() < 0.2:
                self.faults.set(sync_errno=errno.EIO, syncs_left=self.chance.randrange(3))
            try:
                await self.chance.choice(acts)()
            except StoreError:
                mark("refused")
            self.faults.set()
        await self.gateway.outbox.store.close()

    async def publish(self) -> None:
        for _ in range(self.chance.choice((1, 1, 2, 8))):
            self.count += 1
            self.broker.publish(Published(self.count, self.broker.clock.wall_ms()))
            self.broker.clock.advance(self.chance.choice((0.1, 3)))

    async def take(self) -> None:
        if self.chance.random() < 0.2:
            self.broker.connect_again()
            self.gateway.intake.reconnected(session_present=True)
        limit = self.chance.choice((1, 3, 500))
        await self.gateway.intake.take(await self.broker.receive(limit))

    async def send(self) -> None:
        store = self.gateway.outbox.store
        for one in await store.claim(self.chance.randint(1, 4)):
            await store.settle(one.event.seq, self.chance.choice((delivered(), delivered(), deferred(), dead())))

    async def end(self) -> None:
        """The process ends and begins again; the broker keeps its session."""
        await self.gateway.outbox.store.close()
        await self.gateway.begin(self.broker)


async def judge(folder: Path, marks: Sequence[str]) -> str | None:
    """None: all that was acknowledged is there, once; and all the rest, once, when the broker has sent it again."""
    gateway = Gateway(folder / "outbox.db")
    broker = Broker(gateway.outbox.clock, lambda _: None)
    published, told = _broker_at_the_cut(broker, marks)
    try:
        await gateway.begin(broker)
        assert gateway.outbox.store.salvaged is None, "a power cut is no damage"
        _look(gateway.outbox, [one for one in published if one.number in told], "was acknowledged and is gone")
        for _ in range(3 * len(published)):
            if not broker.waits:
                break
            assert await gateway.intake.take(await broker.receive(3))
        assert not broker.kept, "not everything was acknowledged in the end"
        _look(gateway.outbox, published, "was published and is gone", exactly=True)
        await gateway.outbox.store.flush()
        assert_conserved(await gateway.outbox.store.counters())
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if hasattr(gateway.outbox, "store"):
            await gateway.outbox.store.close()
    return None


def _broker_at_the_cut(broker: Broker, marks: Sequence[str]) -> tuple[list[Published], set[int]]:
    """It did not lose its power: everything that was not acknowledged is there, in its order."""
    published: list[Published] = []
    told: set[int] = set()
    for words in (text.split() for text in marks):
        match words[0]:
            case "published":
                published.append(Published(int(words[1]), int(words[2])))
            case "sent":
                broker.sent.add(int(words[1]))
            case "acknowledged":
                told.add(int(words[1]))
    broker.kept |= {one.number: one for one in published if one.number not in told}
    if published:
        broker.clock.wall = published[-1].at
    return published, told


def _look(outbox: Outbox, wanted: Sequence[Published], gone: str, *, exactly: bool = False) -> None:
    """An alarm is one row, in one state; rings, which are all alike, are as many rows as there were."""
    there = Counter(outbox.look("SELECT source_id FROM event WHERE source = 'nvr'"))
    assert set(there.values()) <= {1}, f"doubled: {there}"
    for one in wanted:
        assert one.is_bell or there[one.name] == 1, f"{one.name} {gone}"
    rings = Counter(outbox.look("SELECT topic FROM event WHERE source = 'bells'"))
    for topic, count in Counter(one.topic for one in wanted if one.rings).items():
        assert rings[topic] >= count, f"one of {topic} {gone}: {rings[topic]} of {count}"
        assert not exactly or rings[topic] == count, f"{topic} was doubled: {rings[topic]} of {count}"


def main(folder: str, faults: str, seed: str, mode: str) -> None:
    as_the_mode_says(mode)
    asyncio.run(Life(Path(folder), Faults(Path(faults), fresh=False), int(seed), mode).live())


if __name__ == "__main__":
    main(*sys.argv[1:])
