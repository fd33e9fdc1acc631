"""Locks on the store that never give way: SQLite waits ten seconds each time, and then the process ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.outbox import reopening
from gateway.outbox.store import StoreError
from tests.fakes.waiting import until
from tests.step.outbox_kit import open_outbox
from tests.step.test_store_faults import big

READ_LOCKS = (123, 5)  # sqlite.org, "WAL-mode File Format", 2.3: where they are in the index, and how many
HOLD = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, int(sys.argv[3]), int(sys.argv[2]))
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(index: Path) -> Iterator[None]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, index, *map(str, READ_LOCKS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        yield
        other.communicate()


async def test_a_lock_that_does_not_give_way_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may fail to let go a lock of ours, and only the end of the process takes it away."""
    monkeypatch.setattr(reopening, "LOCKED_SECONDS", 1.0)
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("before"))
        with held_by_another_process(outbox.path.with_name("outbox.db-shm")):
            with pytest.raises(StoreError, match="locking protocol"):
                await outbox.store.add(big(outbox, "refused"))
            await until(lambda: not outbox.store.running, timeout=60)
            assert "the gateway ends and begins anew" in str(outbox.store.refusal)
        await outbox.again()
        assert set(outbox.states()) == {"before"}
