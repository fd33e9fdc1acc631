"""One life of the store, for a disk that watches: `python -m tests.faults.life FOLDER FAULTS SEED MODE`.

It does what the steps do: takes messages (several waiting at once), acknowledges them, sends, settles, keeps pictures,
forgets old rows, gives space back, is closed and opened again. All of it by chance from the seed, and always in the
same order. After each promise it leaves a mark in the history of the disk. MODE: `good`; `failing` lets flushes fail;
`normal` and `early` are the two faults that the test must find: no flush in a commit, and the acknowledgement before
the commit.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import hashlib
import random
import sqlite3
import sys
import threading
from pathlib import Path

from gateway.media.files import MediaFolder, name_of
from gateway.model import MediaKind
from gateway.outbox import database, opening, writer
from gateway.outbox.store import IntakeGroup, StoreError
from tests.faults.forgetful_disk import Faults
from tests.step.outbox_kit import SNAPSHOT, Outbox, dead, deferred, delivered, in_the_writer, slot

ROUNDS = 40


def mark(text: str) -> None:
    ctypes.CDLL(None).witness_mark(text.encode())


class Life:
    def __init__(self, folder: Path, faults: Faults, seed: int, mode: str) -> None:
        self.outbox = Outbox(folder / "outbox.db")
        self.folder = MediaFolder(folder / "media")
        self.chance = random.Random(seed)
        self.faults = faults
        self.mode = mode
        self.count = 0
        self.groups = 0

    async def live(self) -> None:
        self.folder.root.mkdir()
        await self.outbox.open()
        self.folder.prepare()
        acts = (self.take_messages, self.take_messages, self.send, self.send, self.fetch, self.tidy, self.open_again)
        for _ in range(ROUNDS):
            if self.mode == "failing" and self.chance.random() < 0.2:
                self.faults.set(sync_errno=errno.EIO, syncs_left=self.chance.randrange(3))
            try:
                await self.chance.choice(acts)()
            except (StoreError, OSError):
                mark("refused")
            self.faults.set()
        await self.outbox.store.close()
        self.folder.close()

    async def together(self, *groups: IntakeGroup) -> None:
        """Several callers at once: always the same group in one commit, however the threads run."""
        gate = threading.Event()
        holding = in_the_writer(self.outbox.store, lambda db: gate.wait(20) and None)
        adding = [asyncio.ensure_future(self.add(group)) for group in groups]
        await asyncio.sleep(0)
        gate.set()
        results = await asyncio.gather(holding, *adding, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def add(self, group: IntakeGroup) -> None:
        names = " ".join(event.event_id for event in group.events)
        if self.mode == "early":
            mark(f"acknowledged {names}")
        await self.outbox.store.add(group)
        if self.mode != "early":
            mark(f"acknowledged {names}")
        self.outbox.store.acknowledged(names.split(), [], self.outbox.clock.wall_ms())

    async def take_messages(self) -> None:
        groups = []
        for _ in range(self.chance.randint(1, 4)):
            self.groups += 1
            events = []
            for part in range(self.chance.choice((1, 1, 2, 5))):
                self.count += 1
                lane = f"c{self.chance.randrange(6)}"
                details = {"text": "x" * self.chance.choice((0, 10, 3_000, 9_000))}
                media = (SNAPSHOT,) if self.chance.random() < 0.5 else ()
                name = f"g{self.groups}-{part}-{self.count}"
                events.append(self.outbox.alarm(name, lane, details=details, media=media))
            groups.append(
                IntakeGroup(
                    tuple(events), {"received": len(events)}, {"last": str(self.groups)}, (b"%032d" % self.groups,)
                )
            )
        await self.together(*groups)

    async def send(self) -> None:
        for one in await self.outbox.store.claim(self.chance.randint(1, 4)):
            mark(f"posted {one.event.event_id} {hashlib.sha256(one.body).hexdigest()}")
            answer = self.chance.choice(("delivered", "delivered", "deferred", "dead", "none"))
            if answer == "none":
                continue
            step = {"delivered": delivered(slot()), "deferred": deferred(), "dead": dead()}[answer]
            mark(f"settling {one.event.event_id} {step.target}")
            await self.outbox.store.settle(one.event.seq, step)
            mark(f"settled {one.event.event_id} {step.target}")
        self.outbox.clock.advance(self.chance.choice((0, 1, 20)))

    async def fetch(self) -> None:
        for media in await self.outbox.store.media_to_fetch(3):
            async with self.folder.draft() as draft:
                await draft.restart(1 << 20)
                await draft.write(self.chance.randbytes(self.chance.choice((500, 5_000, 50_000))))
                kept = await draft.keep(name_of(media.event_id, MediaKind.SNAPSHOT, 0))
            if await self.outbox.store.media_fetched(media.id, kept.name, kept.bytes, kept.sha256):
                mark(f"fetched {media.event_id}")

    async def tidy(self) -> None:
        self.outbox.clock.advance(1)
        mark("pruning")
        await self.folder.remove(await self.outbox.store.prune(self.outbox.clock.ticks))
        await self.outbox.store.give_space_back(keep_pages=0)

    async def open_again(self) -> None:
        await self.outbox.again()
        await self.outbox.store.recover()


def as_the_mode_says(mode: str) -> None:
    writer.LAZY_SECONDS = 3600.0  # type: ignore[misc]  # a timer would make each run another one
    database.WAL_PAGES = 40  # type: ignore[misc]  # the journal is carried over often
    if mode == "normal":
        configure = database.configure

        def without_flush(db: sqlite3.Connection, path: Path, fresh: bool) -> None:
            configure(db, path, fresh)
            db.execute("PRAGMA synchronous = NORMAL")

        database.configure = without_flush
        opening.configure = without_flush  # type: ignore[attr-defined]  # its own name for the same function


def main(folder: str, faults: str, seed: str, mode: str) -> None:
    as_the_mode_says(mode)
    asyncio.run(Life(Path(folder), Faults(Path(faults), fresh=False), int(seed), mode).live())


if __name__ == "__main__":
    main(*sys.argv[1:])
