"""A store that refuses, callers that go away, operations at fault: whole or not at all, and it goes on afterwards."""

from __future__ import annotations

import asyncio
import random
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.outbox import writer
from gateway.outbox.store import IntakeGroup, StoreError
from tests.fakes.waiting import until
from tests.step.outbox_kit import SNAPSHOT, Outbox, deferred, delivered, in_the_writer, open_outbox
from tests.step.test_store_intake import assert_conserved


async def set_room(outbox: Outbox, pages: int) -> None:
    """How far the file may grow beyond what it is: SQLITE_FULL from there on, as on a full disk."""
    if pages == 0:
        await in_the_writer(outbox.store, lambda db: db.execute("PRAGMA max_page_count = 1").fetchall())
    else:
        await in_the_writer(outbox.store, lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchall())


@contextmanager
def files_may_not_grow_beyond(size: int) -> Iterator[None]:
    """EFBIG from the kernel for every write behind `size` (setrlimit(2); Python ignores SIGXFSZ)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def big(outbox: Outbox, name: str) -> IntakeGroup:
    details = {"text": "x" * 100_000}
    return IntakeGroup(events=(outbox.alarm(name, details=details, media=(SNAPSHOT,)),), counts={"received": 1})


async def test_a_full_disk_refuses_the_whole_group_and_is_survived(tmp_path: Path) -> None:
    """Every caller of the group hears it, nothing of it is there, and the next one works once there is room."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("before"))
        await set_room(outbox, 0)
        results = await asyncio.gather(
            *(outbox.store.add(big(outbox, f"e{n}")) for n in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [StoreError] * 5
        assert "no room left" in str(results[0])
        assert len({id(result) for result in results}) == 5, "one exception for each caller: each has its own traceback"
        assert outbox.store.refusal is not None
        assert outbox.states() == {"before": "pending"}
        await set_room(outbox, 1_000_000)
        await until(lambda: outbox.store.refusal is None, what="the store finds out by itself that it works again")
        await outbox.store.add(big(outbox, "after"))
        assert set(outbox.states()) == {"before", "after"}
        assert_conserved(await outbox.store.counters())


async def test_a_write_that_the_kernel_refuses_is_survived(tmp_path: Path) -> None:
    """The journal cannot grow: the error comes from write(2) in the middle of a commit."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("before"))
        with files_may_not_grow_beyond(outbox.path.with_name("outbox.db-wal").stat().st_size):
            with pytest.raises(StoreError):
                await outbox.store.add(big(outbox, "lost"))
            assert await outbox.store.memory() == {}, "what needs no room still works"
        await outbox.store.add(big(outbox, "after"))
        await outbox.again()
        assert set(outbox.states()) == {"before", "after"}
        assert_conserved(await outbox.store.counters())


async def test_what_is_remembered_in_memory_does_not_run_ahead_of_the_disk(tmp_path: Path) -> None:
    """A refused claim and a refused settlement leave every event where it was."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a", "a"), outbox.alarm("b", "b"))
        (claimed,) = await outbox.store.claim(1)
        with files_may_not_grow_beyond(1):
            for refused in (outbox.store.claim(1), outbox.store.settle(claimed.event.seq, delivered())):
                with pytest.raises(StoreError):
                    await refused
        assert outbox.states() == {"a": "sending", "b": "pending"}
        await outbox.store.settle(claimed.event.seq, delivered())
        assert await outbox.claim() == ["b"]


async def test_notes_outlive_a_store_that_refuses_for_a_while(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"), digests=(b"\x01" * 32,))
        with files_may_not_grow_beyond(1):
            outbox.store.acknowledged(["a"], [b"\x01" * 32], outbox.clock.wall_ms())
            with pytest.raises(StoreError):
                await outbox.store.add(big(outbox, "lost"))
        await until(lambda: outbox.look("SELECT acknowledged_at IS NOT NULL FROM event") == [1])
        assert await outbox.store.unacknowledged() == {}


async def test_an_operation_that_is_at_fault_fails_alone(tmp_path: Path) -> None:
    """What a CHECK refuses, what is no JSON, what SQLite does not know; the others of that commit are stored."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        groups = [
            IntakeGroup(events=(outbox.alarm("good1"),), counts={"received": 1}),
            IntakeGroup(events=(outbox.alarm("no camera", camera_id=None),), counts={"received": 1}),
            IntakeGroup(events=(outbox.alarm("with memory"),), counts={"received": 1}, memory={"key": "no json"}),
            IntakeGroup(events=(outbox.alarm("x" * 65),), counts={"received": 1}),
            IntakeGroup(events=(outbox.alarm("huge", event_at=1 << 70),), counts={"received": 1}),
            IntakeGroup(events=(outbox.alarm("good2"),), counts={"received": 1}),
        ]
        results = await asyncio.gather(*(outbox.store.add(group) for group in groups), return_exceptions=True)
        assert [isinstance(result, Exception) for result in results] == [False, True, True, True, True, False]
        assert not any(isinstance(result, StoreError) for result in results), "the store itself is well"
        assert outbox.store.refusal is None
        assert set(outbox.states()) == {"good1", "good2"}
        assert_conserved(await outbox.store.counters())


async def test_a_note_that_is_at_fault_takes_nothing_along(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        outbox.store.note("a", None)  # type: ignore[arg-type]
        outbox.store.note("a", "walked")
        await outbox.store.flush()
        assert outbox.look("SELECT what FROM hop") == ["walked"]


# Callers that go away


@pytest.mark.parametrize("when", ["before its result comes", "before it takes its result"])
async def test_a_claim_whose_caller_is_gone_is_given_back(
    tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was sent, so nothing is unclear, no attempt is counted, and the bytes are set anew."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"), outbox.alarm("b", "c2"))
        first = (await outbox.store.claim(1))[0]
        await outbox.store.settle(first.event.seq, deferred(0))
        resolve = writer._resolve

        def cancel_and_resolve(outcomes: list[Any]) -> None:
            if when == "before its result comes":
                claim.cancel()
            resolve(outcomes)
            claim.cancel()

        monkeypatch.setattr(writer, "_resolve", cancel_and_resolve)
        claim = asyncio.create_task(outbox.store.claim(2))
        with pytest.raises(asyncio.CancelledError):
            await claim
        await outbox.store.flush()
        rows = outbox.look("SELECT state, attempts, unclear, body IS NULL FROM event ORDER BY seq")
        assert rows == [("pending", 1, 0, 0), ("pending", 0, 0, 1)]
        assert_conserved(await outbox.store.counters())


async def test_a_claim_that_is_cancelled_in_the_queue_does_not_happen(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        gate = threading.Event()
        await outbox.add(outbox.alarm("a"))
        blocker = in_the_writer(outbox.store, lambda db: gate.wait(20) and None)
        await asyncio.sleep(0)
        claim = asyncio.create_task(outbox.store.claim(1))
        await asyncio.sleep(0)
        claim.cancel()
        await asyncio.gather(claim, return_exceptions=True)
        gate.set()
        await blocker
        await outbox.store.flush()
        assert outbox.states() == {"a": "pending"}


@pytest.mark.parametrize("seed", range(5))
async def test_whatever_is_cancelled_is_whole_or_absent(tmp_path: Path, seed: int) -> None:
    """Callers are cancelled at random moments: no event is half there, none stays in hand that nobody has."""
    chance = random.Random(seed)
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        in_hand: set[str] = set()

        async def add(n: int) -> None:
            events = tuple(outbox.alarm(f"{n}-{k}", f"c{k}", media=(SNAPSHOT,)) for k in range(3))
            await outbox.store.add(IntakeGroup(events=events, counts={"received": 3}, memory={str(n): "{}"}))

        async def send() -> None:
            claims = await outbox.store.claim(2)
            in_hand.update(claimed.event.event_id for claimed in claims)
            for claimed in claims:
                await outbox.store.settle(claimed.event.seq, delivered())
                in_hand.discard(claimed.event.event_id)

        for n in range(40):
            tasks = [asyncio.create_task(add(n)), asyncio.create_task(send()), asyncio.create_task(send())]
            for _ in range(chance.randrange(6)):
                await asyncio.sleep(0)
            if chance.random() < 0.5:
                await outbox.store.memory()
            for task in tasks:
                if chance.random() < 0.6:
                    task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results
        await outbox.store.flush()
        await outbox.store.flush()
        groups = outbox.look("SELECT count(*) FROM event GROUP BY substr(event_id, 1, instr(event_id, '-'))")
        assert set(groups) <= {3}
        assert outbox.look("SELECT count(*) FROM memory") == [len(groups)]
        assert outbox.look("SELECT count(*) FROM media") == [3 * len(groups)]
        # What a task had taken when it was cancelled is that task's affair (recover() at the next start); nothing else.
        assert set(outbox.look("SELECT event_id FROM event WHERE state = 'sending'")) <= in_hand
        assert_conserved(await outbox.store.counters())


async def test_a_file_that_is_taken_away_takes_no_more_rows(tmp_path: Path) -> None:
    """Still open, it would be written to, acknowledged, and gone with the process."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("a"))
        outbox.path.rename(tmp_path / "elsewhere.db")
        with pytest.raises(StoreError, match="moved or removed"):
            await outbox.add(outbox.alarm("b"))
        await until(lambda: not outbox.store.running, what="the gateway ends, and begins anew")
        with pytest.raises(StoreError):
            await outbox.add(outbox.alarm("c"))


# Closing


async def test_closing_commits_what_waits(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        adding = [
            asyncio.create_task(outbox.store.add(IntakeGroup(events=(outbox.alarm(f"e{n}"),)))) for n in range(20)
        ]
        await asyncio.sleep(0)
        outbox.store.note("e0", "last words")
        await outbox.store.close()
        await asyncio.gather(*adding)
        assert outbox.look("SELECT count(*) FROM event") == [20]
        assert outbox.look("SELECT what FROM hop") == ["last words"]
        await outbox.store.close()
        with pytest.raises(StoreError, match="closed"):
            await outbox.store.memory()


async def test_closing_gives_back_what_a_cancelled_caller_had_claimed(tmp_path: Path) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        gate = threading.Event()
        await outbox.add(outbox.alarm("a"))
        claim = asyncio.create_task(outbox.store.claim(1))
        await asyncio.sleep(0)
        blocker = in_the_writer(outbox.store, lambda db: gate.wait(20) and None)
        # The claim may have been committed and not yet have been resolved: cancelled in just that moment.
        claim.cancel()
        gate.set()
        await outbox.store.close()
        await asyncio.gather(claim, blocker, return_exceptions=True)
        assert outbox.states() == {"a": "pending"}


async def test_an_opening_that_is_cancelled_gives_the_lock_back(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox.db")
    opening = asyncio.create_task(outbox.open())
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    for _ in range(200):
        try:
            await outbox.open()
            break
        except StoreError:
            await asyncio.to_thread(threading.Event().wait, 0.01)
    await outbox.store.close()


async def test_an_error_in_the_thread_itself_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_outbox(tmp_path / "outbox.db") as outbox:

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug of ours")

        monkeypatch.setattr(outbox.store._writer, "_commit", broken)
        with pytest.raises(StoreError, match="restart"):
            await outbox.store.memory()
        with pytest.raises(StoreError):
            await outbox.store.memory()
