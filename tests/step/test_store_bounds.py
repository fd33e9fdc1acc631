"""Bounded: weeks of traffic leave a small file, a journal stays short, memory and start do not know the backlog."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.outbox import database
from tests.step.outbox_kit import SNAPSHOT, Outbox, delivered, open_outbox

DAY_MS = 86_400_000
MIB = 1 << 20


def size(outbox: Outbox) -> tuple[int, int]:
    return outbox.path.stat().st_size, outbox.path.with_name("outbox.db-wal").stat().st_size


async def a_day(outbox: Outbox, day: int, alarms: int = 60) -> None:
    names = [f"{day}-{n}" for n in range(alarms)]
    for first in range(0, alarms, 20):
        await outbox.add(
            *(
                outbox.alarm(name, f"c{n}", media=(SNAPSHOT,), details={"text": "x" * 2_000})
                for n, name in enumerate(names[first : first + 20])
            ),
            memory={"k": "{}"},
        )
    while claimed := await outbox.store.claim(20):
        for one in claimed:
            await outbox.store.settle(one.event.seq, delivered())
    outbox.clock.advance(86_400)


async def upkeep(outbox: Outbox, keep_days: int) -> None:
    await outbox.store.prune(outbox.clock.ticks - keep_days * DAY_MS)
    await outbox.store.give_space_back(keep_pages=0)


@pytest.mark.slow
async def test_weeks_of_traffic_leave_a_file_as_long_as_what_is_kept(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        lengths: list[int] = []
        for day in range(42):
            await a_day(outbox, day)
            await upkeep(outbox, keep_days=7)
            file, journal = size(outbox)
            assert journal == 0, "carried over, and given back"
            lengths.append(file)
        assert max(lengths[21:]) < 1.1 * lengths[10], "six weeks are not longer than ten days"
        await upkeep(outbox, keep_days=0)
        assert size(outbox)[0] < lengths[-1] / 8, "space goes back to the file system"
        assert outbox.look("SELECT count(*) FROM event") == [0]
        assert outbox.look("PRAGMA integrity_check") == ["ok"]


@pytest.mark.slow
async def test_a_burst_does_not_leave_a_long_journal(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        longest = 0
        for day in range(12):
            await a_day(outbox, day, alarms=100)
            longest = max(longest, size(outbox)[1])
        assert longest < database.WAL_LIMIT_BYTES
        await outbox.store.give_space_back()
        assert size(outbox)[1] == 0
