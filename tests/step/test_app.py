"""The gateway as a whole within the test's process: what the watchdog hears when a part of it stands still."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway import app as app_module
from gateway import parts as parts_module
from gateway.app import App, StoreStopped
from gateway.build import open_app
from gateway.host.systemd import Systemd
from tests.fakes.configuration import GOOD, Place
from tests.fakes.waiting import until
from tests.step.outbox_kit import in_the_writer


class Listener(Systemd):
    """A systemd that watches closely and remembers what it was told."""

    def __init__(self) -> None:
        super().__init__({"WATCHDOG_USEC": "30000"})
        self.told: list[str] = []

    def _notify(self, *assignments: str) -> bool:
        self.told += assignments
        return True

    @property
    def fed(self) -> int:
        return self.told.count("WATCHDOG=1")


@asynccontextmanager
async def gateway(tmp_path: Path) -> AsyncIterator[tuple[App, Listener]]:
    """Nobody answers at the cloud's and the broker's address."""
    text = GOOD.replace("/nowhere/outbox.db", str(tmp_path / "outbox.db"))
    loaded = Place(tmp_path).load(text, now=None)
    systemd = Listener()
    async with open_app(loaded.settings, version="test", systemd=systemd) as app:
        yield app, systemd


@asynccontextmanager
async def running(app: App) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(app.run())
    try:
        yield task
    finally:
        app.stop()
        await asyncio.wait({task})


async def test_the_watchdog_is_fed_while_nobody_answers(tmp_path: Path) -> None:
    async with gateway(tmp_path) as (app, systemd), running(app):
        await until(lambda: systemd.fed >= 10)
        assert "READY=1" in systemd.told
        assert any(line.startswith("STATUS=broker away") for line in systemd.told)


async def _for_ever(*_: Any, **__: Any) -> Any:
    await asyncio.Event().wait()


def _hang_claim(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.parts.store, "claim", _for_ever)


def _hang_commit(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.parts.intake, "take", _for_ever)


@pytest.mark.slow
@pytest.mark.parametrize(("hang", "step"), [(_hang_claim, "delivery"), (_hang_commit, "intake")])
async def test_the_watchdog_is_not_fed_when_a_step_hangs(
    hang: Callable[[App, pytest.MonkeyPatch], None],
    step: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with gateway(tmp_path) as (app, systemd):
        monkeypatch.setattr(app_module, "GRACE_SECONDS", 0.1)
        hang(app, monkeypatch)
        async with running(app):
            monkeypatch.setattr(parts_module, "STUCK_SECONDS", 7.0)  # a healthy step goes round every 5 s
            await until(lambda: app.parts.beats.stuck() == [step], timeout=20)
            await until(lambda: systemd.told[-1].startswith("STATUS="))
            fed = systemd.fed
            told = len(systemd.told)
            await until(lambda: len(systemd.told) >= told + 5)
            assert systemd.fed == fed


@pytest.mark.slow
async def test_a_disk_that_hangs_does_not_keep_the_watchdog_waiting(tmp_path: Path) -> None:
    """Whether it is fed is decided by the steps, which stand still only if they have something to write."""
    release = threading.Event()
    async with gateway(tmp_path) as (app, systemd), running(app):
        await until(lambda: systemd.fed >= 1)
        hanging = in_the_writer(app.parts.store, lambda db: release.wait(30))
        fed = systemd.fed
        try:
            await until(lambda: systemd.fed >= fed + 2)
            await until(lambda: any("disk does not answer" in line for line in systemd.told))
        finally:
            release.set()
        await hanging


async def test_a_store_whose_thread_has_ended_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step would go round, refused for ever, and the watchdog would be content."""
    async with gateway(tmp_path) as (app, systemd):
        task = asyncio.create_task(app.run())
        await until(lambda: systemd.fed >= 1)

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug in the thread itself")

        monkeypatch.setattr(app.parts.store._writer, "_commit", broken)
        with pytest.raises(ExceptionGroup) as failure:
            await task
        assert failure.group_contains(StoreStopped)
