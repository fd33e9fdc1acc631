"""What must hold after a power cut, whatever it left: `trial` plays one seed and says what is broken.

A seed is a number: its life (which run of `tests.faults.life` or `tests.faults.intake_life`) and its cut (where, and
what of the rest is there).
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway.media.files import FileFault, MediaFolder
from tests.faults import intake_life
from tests.faults.forgetful_disk import Disk, Op, Record, record_life
from tests.step.outbox_kit import Outbox
from tests.step.test_store_intake import assert_conserved

CUTS: Final = 50  # of one life


@dataclass
class Promised:
    """What had been promised before the cut."""

    acknowledged: dict[str, None] = field(default_factory=dict)
    posted: dict[str, str] = field(default_factory=dict)  # event -> digest of its bytes
    settling: dict[str, str] = field(default_factory=dict)  # may have been written
    settled: dict[str, str] = field(default_factory=dict)
    fetched: set[str] = field(default_factory=set)
    may_be_pruned: set[str] = field(default_factory=set)

    def hear(self, marks: Sequence[str]) -> None:
        for mark in marks:
            word, *rest = mark.split()
            match word:
                case "acknowledged":
                    self.acknowledged |= dict.fromkeys(rest)
                case "posted":
                    self.posted[rest[0]] = rest[1]
                    self.settled.pop(rest[0], None)
                    self.settling.pop(rest[0], None)
                case "settling":
                    self.settling[rest[0]] = rest[1]
                case "settled":
                    self.settled[rest[0]] = rest[1]
                case "fetched":
                    self.fetched.add(rest[0])
                case "pruning":
                    self.may_be_pruned = {name for name, state in self.settled.items() if state == "delivered"}


def cuts(seed: int, history: Sequence[Record], count: int = CUTS) -> dict[int, list[int]]:
    """Where the cuts of a life are -> their numbers. Half come right after a promise, some in the first start."""
    marks = [at + 1 for at, record in enumerate(history) if record.op == Op.MARK]
    chance = random.Random(f"cuts {seed}")
    found: dict[int, list[int]] = {}
    for number in range(count):
        anywhere, first_start = chance.randint(0, len(history)), chance.randint(0, marks[0])
        at = chance.choice([*[chance.choice(marks)] * 5, *[anywhere] * 4, first_start])
        found.setdefault(at, []).append(number)
    return found


@dataclass(frozen=True)
class Kind:
    """Of lives."""

    program: str
    judge: Callable[[Path, Sequence[str]], Awaitable[str | None]]  # what the cut has left, the marks until then


def trials(
    library: Path, folder: Path, kind: Kind, life: int, mode: str, *, count: int = CUTS, only: int | None = None
) -> Iterator[tuple[int, str | None]]:
    """(seed, what is broken) for the cuts of one life."""
    history = record_life(library, folder / f"{mode}{life}", kind.program, life, mode)
    disk = Disk(folder / f"{mode}{life}" / "state")
    wanted = cuts(life, history, count)
    for at in range(len(history) + 1):
        for number in wanted.get(at, ()):
            seed = life * CUTS + number
            if only not in (None, seed):
                continue
            target = folder / f"cut{seed}"
            target.mkdir()
            disk.cut(random.Random(seed), target)
            yield seed, asyncio.run(_judged(kind, target, disk.marks))
            shutil.rmtree(target)
        if at < len(history):
            disk.play(history[at])
    shutil.rmtree(folder / f"{mode}{life}")


async def _judged(kind: Kind, folder: Path, marks: Sequence[str]) -> str | None:
    return await kind.judge(folder, marks)


async def judge(folder: Path, marks: Sequence[str]) -> str | None:
    """Starts from what is there, twice. None: everything that was promised is kept."""
    promised = Promised()
    promised.hear(marks)
    outbox = Outbox(folder / "outbox.db")
    try:
        await outbox.open()
        assert outbox.store.salvaged is None, "a power cut is no damage"
        await outbox.store.recover()
        _look(outbox, promised)
        await _look_at_files(outbox, folder, promised)
        assert_conserved(await outbox.store.counters())
        await outbox.add(outbox.alarm("afterwards"))
        await outbox.again()
        assert "afterwards" in outbox.states(), "it does not go on"
        assert outbox.look("PRAGMA integrity_check") == ["ok"]
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        if hasattr(outbox, "store"):
            await outbox.store.close()
    return None


def _look(outbox: Outbox, promised: Promised) -> None:
    assert outbox.look("PRAGMA integrity_check") == ["ok"]
    assert outbox.look("PRAGMA foreign_key_check") == []
    rows = {
        name: (state, body, unclear)
        for name, state, body, unclear in outbox.look("SELECT event_id, state, body, unclear FROM event")
    }
    for name in promised.acknowledged:
        assert name in rows or name in promised.may_be_pruned, f"{name} was acknowledged and is gone"
    whole = {name.split("-")[0]: 0 for name in rows}
    for name, (state, body, unclear) in rows.items():
        whole[name.split("-")[0]] += 1
        if name in promised.settled:
            assert state == promised.settled[name], f"{name} was {promised.settled[name]} and is {state}"
        elif name in promised.posted:
            assert hashlib.sha256(body).hexdigest() == promised.posted[name], f"{name} has other bytes than were sent"
            known = unclear or state == promised.settling.get(name)
            assert known, f"{name} was on the wire, and nobody knows"
    held = outbox.look("SELECT name, value FROM counter WHERE name LIKE 'state_%' AND value <> 0")
    counted = outbox.look("SELECT 'state_' || state, count(*) FROM event GROUP BY state")
    assert sorted(held) == sorted(counted), f"counted {held}, there are {counted}"
    groups = [int(name[1:]) for name in whole]
    remembered = [int(value) for value in outbox.look("SELECT value FROM memory")]
    acknowledged = [int(name.split("-")[0][1:]) for name in promised.acknowledged]
    assert max(groups, default=0) <= max(remembered, default=0), "rows without the memory that belongs to them"
    assert max(acknowledged, default=0) <= max(remembered, default=0), "the memory of an acknowledged group is gone"


async def _look_at_files(outbox: Outbox, folder: Path, promised: Promised) -> None:
    files = MediaFolder(folder / "media")
    files.prepare()
    try:
        with_file = outbox.look(
            "SELECT event_id, path, bytes, sha256 FROM media JOIN event ON event.seq = event_seq WHERE path IS NOT NULL"
        )
        for _, path, size, sha256 in with_file:
            try:
                await files.require(path, size, sha256)
            except FileFault as fault:
                raise AssertionError(f"{path}: {fault}") from fault
        missing = promised.fetched - {name for name, *_ in with_file} - promised.may_be_pruned
        assert not missing, f"pictures that had been kept are gone: {sorted(missing)}"
    finally:
        files.close()


KINDS: Final = {
    "store": Kind("tests.faults.life", judge),
    "intake": Kind("tests.faults.intake_life", intake_life.judge),
}
