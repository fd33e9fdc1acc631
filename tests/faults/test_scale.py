"""A million rows: neither memory nor the start know how many wait."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.step.outbox_kit import open_outbox

MILLION = 1_000_000

MEASURE = """
import asyncio, json, pathlib, re, sys, time
from gateway.host.clock import SystemClock
from gateway.outbox.store import Store
from tests.step.outbox_kit import compose, delivered

def peak_kib():
    # Not ru_maxrss: that is inherited from the parent.
    return int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

async def main():
    before, began = peak_kib(), time.perf_counter()
    store = await Store.open(pathlib.Path(sys.argv[1]), make_clock=SystemClock, compose=compose)
    recovered = await store.recover()
    await store.memory(), await store.unacknowledged()
    took = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(50):
        claimed = await store.claim(8)
        for one in claimed:
            await store.settle(one.event.seq, delivered())
    sent = time.perf_counter() - began
    await store.expire(0)
    await store.prune(0)
    await store.give_space_back()
    counters = await store.counters()
    print(json.dumps({"start": took, "sent": sent, "kib": peak_kib() - before, "recovered": recovered} | counters))
    await store.close()

asyncio.run(main())
"""


async def fill(path: Path, rows: int) -> None:
    """One real row, copied; ten of them were being sent."""
    async with open_outbox(path) as outbox:
        await outbox.add(outbox.alarm("e0", details={"label": "person"}))
    db = sqlite3.connect(path, isolation_level=None)
    columns = [
        row[1] for row in db.execute("PRAGMA table_info(event)") if row[1] not in ("seq", "event_id", "camera_id")
    ]
    db.execute("PRAGMA synchronous = OFF")
    db.execute("BEGIN")
    db.execute(
        "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?) "  # noqa: S608
        f"INSERT INTO event (event_id, camera_id, {', '.join(columns)}) "
        f"SELECT 'e' || n, 'c' || (n % 50), {', '.join(columns)} FROM n, event WHERE event.event_id = 'e0'",
        (rows - 1,),
    )
    db.execute(
        "UPDATE event SET state = 'sending', ready = 0, next_at = 1 << 62, body = x'00', idempotency_key = 'k', "
        "sent_at = 1, attempt_ticks = 1 WHERE seq <= 10"
    )
    db.execute(
        "INSERT OR REPLACE INTO counter VALUES ('events', ?1), ('received', ?1), ('stored', ?1), "
        "('state_pending', ?1 - 10), ('state_sending', 10)",
        (rows,),
    )
    db.execute("COMMIT")
    db.close()


async def measure(path: Path) -> dict[str, float]:
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", MEASURE, os.fspath(path)],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found: dict[str, float] = json.loads(run.stdout)
    return found


@pytest.mark.timeout(900)
async def test_a_million_rows_cost_as_much_as_a_hundred(tmp_path: Path) -> None:
    few, many = tmp_path / "few.db", tmp_path / "many.db"
    await fill(few, 1_000)
    await fill(many, MILLION)
    small = [await measure(few)]
    large = [await measure(many) for _ in range(2)]  # the first one finds nothing in the kernel's cache
    assert large[0]["recovered"] == 10
    assert large[0]["state_pending"] + large[0]["state_delivered"] == MILLION
    assert max(each["kib"] for each in large) - small[0]["kib"] < 10 * 1024, (small, large)
    assert min(each["start"] for each in large) < small[0]["start"] + 0.5
    assert min(each["sent"] for each in large) < 5 * small[0]["sent"] + 0.5
    many.unlink()
