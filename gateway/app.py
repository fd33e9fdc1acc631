"""What runs, and how it stops.

One TaskGroup of named tasks; an exception that leaves a task ends the process, systemd starts it again, and the
outbox makes that safe. SIGTERM: stop taking messages, commit and acknowledge what is in hand, leave the broker,
finish the requests in hand, at most GRACE_SECONDS, then cancel and close. READY=1 when the store is open and the
broker task runs: a broker or a cloud that is down must not make systemd kill the gateway. The watchdog is fed by the
progress of every step. How the parts are put together is in `build.py`, what is told about them in `answers.py`.
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from typing import Final

import structlog

from gateway import answers
from gateway.host.control import ControlServer, socket_path
from gateway.host.systemd import Systemd
from gateway.parts import Parts

log = structlog.get_logger()

GRACE_SECONDS: Final = 40.0  # a request in hand may take 35; TimeoutStopSec= of the unit is above this
TELL_SECONDS: Final = 5.0  # how often STATUS= is renewed, and the watchdog fed where systemd does not ask for more


class StoreStopped(Exception):
    """The store's thread has ended: nothing can be made safe any more, and nobody else would notice."""


class App:
    """The running gateway. Made by `gateway.build.open_app`."""

    def __init__(self, parts: Parts, systemd: Systemd) -> None:
        self.parts = parts
        self.systemd = systemd
        self._stop = asyncio.Event()  # no new messages, no new requests
        self._leave = asyncio.Event()  # intake is done: leave the broker

    def stop(self) -> None:
        if not self._stop.is_set():
            log.info("gateway_stopping")
            self.systemd.stopping("finishing what is in hand")
        self._stop.set()

    async def run(self) -> None:
        """Until `stop()`, or until a step fails. Raises what made it fail."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        control = ControlServer(socket_path(self.parts.store.path), partial(answers.answer, self.parts))
        await control.start()
        try:
            async with asyncio.TaskGroup() as group:
                steps = [
                    group.create_task(self._take_messages(), name="intake"),
                    group.create_task(self.parts.session.run(self._leave), name="broker"),
                    group.create_task(self.parts.catch_up.run(self._stop), name="catch-up"),
                    group.create_task(self.parts.capture.run(self._stop), name="capture"),
                    group.create_task(self.parts.delivery.run(self._stop), name="delivery"),
                    group.create_task(self.parts.uploads.run(self._stop), name="uploads"),
                    group.create_task(self.parts.upkeep.run(self._stop), name="upkeep"),
                    group.create_task(self.parts.supervision.run(self._stop), name="supervision"),
                ]
                tell = group.create_task(self._tell(), name="tell")
                self.systemd.ready("started")
                log.info(
                    "gateway_started", version=self.parts.version, location_id=self.parts.settings.site.location_id
                )
                await self._stop.wait()
                _, hanging = await asyncio.wait(steps, timeout=GRACE_SECONDS)
                for task in hanging:
                    log.warning("step_cancelled", step=task.get_name(), after_seconds=GRACE_SECONDS)
                    task.cancel()
                tell.cancel()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            await control.stop()

    async def _take_messages(self) -> None:
        try:
            await self.parts.intake.run(self._stop)
        finally:
            self._leave.set()

    # What others are told

    async def _tell(self) -> None:
        seconds = min(TELL_SECONDS, (self.systemd.watchdog_seconds or 60.0) / 3)
        said: list[str] = []
        while True:
            if not self.parts.store.running:
                raise StoreStopped(self.parts.store.refusal)
            stuck = self.parts.beats.stuck()
            if not stuck:
                self.systemd.watchdog()
            elif stuck != said:
                log.error("step_stuck", steps=stuck)
            said = stuck
            self.systemd.status(await answers.summary(self.parts))
            await asyncio.sleep(seconds)
