"""After an error of the disk: a new connection, tried until there is one, or the end of a process that cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.outbox.store import StoreError
from tests.fakes.waiting import until
from tests.step.outbox_kit import open_outbox
from tests.step.test_store_faults import big, files_may_not_grow_beyond


async def test_a_disk_that_also_fails_while_the_file_is_opened_anew_is_survived(tmp_path: Path) -> None:
    """What a first try has done (the journal is cut) a second must not do again: its index went with the failure."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("before"))
        with files_may_not_grow_beyond(1):
            for _ in range(3):
                with pytest.raises(StoreError):
                    await outbox.store.add(big(outbox, "refused"))
        await until(lambda: outbox.store.refusal is None, what="the store finds out by itself that it works again")
        await outbox.store.add(big(outbox, "after"))
        await outbox.again()
        assert set(outbox.states()) == {"before", "after"}


async def test_an_index_that_somebody_removed_ends_the_process(tmp_path: Path) -> None:
    """Without it nobody knows where the last commit ended. The next start finds out."""
    async with open_outbox(tmp_path / "outbox.db") as outbox:
        await outbox.add(outbox.alarm("before"))
        outbox.path.with_name("outbox.db-shm").unlink()
        with files_may_not_grow_beyond(1), pytest.raises(StoreError):
            await outbox.store.add(big(outbox, "refused"))
        with pytest.raises(StoreError, match="its index is gone; the gateway ends and begins anew"):
            await outbox.store.add(big(outbox, "refused"))
        await until(lambda: not outbox.store.running)
        await outbox.again()
        assert set(outbox.states()) == {"before"}
        await outbox.add(outbox.alarm("after"))
