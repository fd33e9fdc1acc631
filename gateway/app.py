"""What runs, and how it stops: the one place where the parts are put together.

One TaskGroup of named tasks; an exception that leaves a task ends the process, systemd starts it again, and the
outbox makes that safe. SIGTERM: stop taking messages, commit and acknowledge what is in hand, leave the broker,
finish the requests in hand, at most GRACE_SECONDS, then cancel and close. READY=1 when the store is open and the
broker task runs: a broker or a cloud that is down must not make systemd kill the gateway. The watchdog is fed by the
progress of every step.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import structlog

from gateway.bell import Bell
from gateway.capture import Capture
from gateway.chekt import wire
from gateway.chekt.client import Client
from gateway.chekt.keys import read_secrets
from gateway.chekt.token import TokenSource
from gateway.config import Settings
from gateway.delivery import PAUSES, Delivery
from gateway.gate import Gate
from gateway.host.clock import SystemClock
from gateway.host.control import ControlServer, socket_path
from gateway.host.systemd import Systemd
from gateway.intake import Intake
from gateway.media.files import MediaFolder
from gateway.media.frigate import Frigate
from gateway.model import Composed, Event, MediaOnDisk
from gateway.outbox.store import Mapped, Store, StoreError
from gateway.retry import Policy
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker import Session
from gateway.sources.broker_filters import Filter
from gateway.sources.plans import Plans, compile_sources, filters_of
from gateway.sources.troubles import open_troubles
from gateway.upkeep import Upkeep
from gateway.uploads import Uploads

log = structlog.get_logger()

GRACE_SECONDS: Final = 40.0  # a request in hand may take 35; TimeoutStopSec= of the unit is above this
TELL_SECONDS: Final = 5.0  # how often STATUS= is renewed, and the watchdog fed where systemd does not ask for more
STUCK_SECONDS: Final = 45.0  # a step that has not gone round for so long is not making progress
RESERVE_BYTES: Final = 64 << 20  # of the disk is left to alarms: pictures stop before
FILTERS: Final = "mqtt_filters"  # the store's meta: what the broker may hold for our client id


class GraceOver(Exception):
    """Stopping took longer than it may."""


class Beats:
    """When each step last went round."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def of(self, name: str) -> Callable[[], None]:
        def beat() -> None:
            self._last[name] = asyncio.get_running_loop().time()

        return beat

    def stuck(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        return sorted(name for name, at in self._last.items() if now - at > STUCK_SECONDS)


class App:
    """The running gateway. Made by `open_app`."""

    def __init__(
        self,
        settings: Settings,
        *,
        version: str,
        store: Store,
        session: Session,
        intake: Intake,
        capture: Capture,
        delivery: Delivery,
        uploads: Uploads,
        upkeep: Upkeep,
        tokens: TokenSource,
        plans: Plans,
        bells: dict[str, Bell],
        beats: Beats,
        systemd: Systemd,
        gaps: list[dict[str, Any]],
    ) -> None:
        self.settings = settings
        self.version = version
        self.store = store
        self.session = session
        self.intake = intake
        self.capture = capture
        self.delivery = delivery
        self.uploads = uploads
        self.upkeep = upkeep
        self.tokens = tokens
        self.plans = plans
        self.bells = bells
        self.beats = beats
        self.systemd = systemd
        self.gaps = gaps
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
        control = ControlServer(socket_path(self.store.path), self.answer)
        await control.start()
        try:
            async with asyncio.TaskGroup() as group:
                steps = [
                    group.create_task(self._take_messages(), name="intake"),
                    group.create_task(self.session.run(self._leave), name="broker"),
                    group.create_task(self.capture.run(self._stop), name="capture"),
                    group.create_task(self.delivery.run(self._stop), name="delivery"),
                    group.create_task(self.uploads.run(self._stop), name="uploads"),
                    group.create_task(self.upkeep.run(self._stop), name="upkeep"),
                ]
                tell = group.create_task(self._tell(), name="tell")
                self.systemd.ready("started")
                log.info("gateway_started", version=self.version, location_id=self.settings.site.location_id)
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
            await self.intake.run(self._stop)
        finally:
            self._leave.set()

    # What others are told

    async def _tell(self) -> None:
        seconds = min(TELL_SECONDS, (self.systemd.watchdog_seconds or 60.0) / 3)
        said: list[str] = []
        while True:
            stuck = self.beats.stuck()
            if not stuck:
                self.systemd.watchdog()
            elif stuck != said:
                log.error("step_stuck", steps=stuck)
            said = stuck
            self.systemd.status(await self._summary())
            await asyncio.sleep(seconds)

    async def _summary(self) -> str:
        if self.store.refusal is not None:
            return f"the store refuses: {self.store.refusal}; nothing is acknowledged"
        counts = await self.store.counters()
        waiting = counts.get("state_pending", 0) + counts.get("state_sending", 0)
        broker = "connected" if self.session.connected else "away"
        cloud = "reachable" if self.delivery.gate.reachable else "away"
        return f"broker {broker}, cloud {cloud}, {waiting} waiting, {counts.get('state_delivered', 0)} delivered"

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The control channel. Raises for the client's sake; the server tells it."""
        match request.get("command"):
            case "status":
                return self.status()
            case "retry":
                return await self._retry(request)
            case other:
                return {"error": f"unknown command {other!r}"}

    def status(self) -> dict[str, Any]:
        gate = self.delivery.gate
        conditions = [{"level": each.level, "sentence": each.sentence} for each in gate.conditions()]
        return {
            "version": self.version,
            "broker": self.session.facts(),
            "cloud": {
                "reachable": gate.reachable,
                "token_expires_at": self.tokens.expires_at,
                "last_error": self.tokens.last_error,
                "clock_offset_ms": self.tokens.clock_offset_ms,
            },
            "conditions": conditions,
            "store": {"refusal": self.store.refusal},
            "media": {"troubles": self.capture.troubles, "uploads_failing": self.uploads.failing},
            "troubles": open_troubles(self.intake.memory),
            "gaps": self.gaps[-10:],
            "stuck": self.beats.stuck(),
        }

    async def _retry(self, request: dict[str, Any]) -> dict[str, Any]:
        revived = await self.store.revive(
            None if request.get("all_dead") else [str(event_id) for event_id in request.get("event_ids", [])],
            signal=True if request.get("signal") else None,
            find_camera=find_camera(self.settings),
        )
        self.delivery.gate.try_now(self.store.clock.ticks_ms())
        self.bells["delivery"].ring()
        return {
            "revived": list(revived.revived),
            "silent": list(revived.silent),
            "unchanged": list(revived.unchanged),
            "unmapped": list(revived.unmapped),
            "unknown": list(revived.unknown),
            "refused": revived.refused,
        }


@asynccontextmanager
async def open_app(settings: Settings, *, version: str, systemd: Systemd) -> AsyncIterator[App]:
    """Opens the store and puts everything together. Raises StoreError, KeyUnusable."""
    async with AsyncExitStack() as stack:
        secrets = read_secrets(settings.cloud)
        plans = Plans(settings)
        sources = compile_sources(settings)
        store = await Store.open(Path(str(settings.outbox.path)), make_clock=SystemClock)
        stack.push_async_callback(store.close)
        store.compose = composer(settings, store)
        recovered = await store.recover()
        if recovered:
            log.warning("events_recovered", count=recovered, why="the last run ended while they were being sent")
        folder = MediaFolder(Path(str(settings.outbox.media_path)))
        folder.prepare()
        stack.callback(folder.close)

        beats = Beats()
        bells = {name: Bell() for name in ("capture", "delivery", "uploads", "upkeep")}
        clock = store.clock
        client = Client(
            settings.cloud,
            version=version,
            api_key=secrets.api_key,
            max_bytes_per_second=settings.uploads.max_bytes_per_second,
            on_date=lambda at: tokens.learn_date(at),  # noqa: PLW0108  `tokens` is made from this client, below
        )
        stack.push_async_callback(client.close)
        tokens = TokenSource(settings.cloud, secrets, client.post_form, clock)
        stack.push_async_callback(tokens.close)

        known = json.loads(await store.get_meta(FILTERS) or "[]")
        backlog = BacklogJudge(await store.last_heard_at())
        gaps: list[dict[str, Any]] = []

        def on_gap(reason: str) -> None:
            gaps.append({"at": clock.wall_ms(), "reason": reason})
            intake.session_lost()

        def on_connected(session_present: bool) -> None:
            backlog.connected(session_present=session_present, ticks=clock.ticks_ms())
            intake.reconnected()

        def on_filters(topics: frozenset[str]) -> None:
            store.set_meta_lazily(FILTERS, json.dumps(sorted(topics)))

        session = Session(
            settings.broker,
            location_id=settings.site.location_id,
            filters=[Filter(topic, handling) for topic, handling in filters_of(settings)],
            clock=clock,
            max_message=settings.outbox.max_message,
            known_filters=known,
            had_session=bool(known),
            on_gap=on_gap,
            on_connected=on_connected,
            on_filters=on_filters,
            password=_password(settings, settings.broker.password_file),
        )

        def on_stored() -> None:
            bells["delivery"].ring()
            bells["capture"].ring()

        intake = Intake(
            session=session,
            store=store,
            sources=list(sources.values()),
            find_plan=plans.find,
            location_id=settings.site.location_id,
            backlog=backlog,
            on_stored=on_stored,
            beat=beats.of("intake"),
        )
        await intake.load()
        policy = policy_of(settings)
        delivery = Delivery(
            store=store,
            client=client,
            tokens=tokens,
            gate=Gate(
                policy,
                ticks=clock.ticks_ms(),
                jitter=random.random(),  # noqa: S311  spreads load, guards nothing
                pauses=[(begin, end) for begin, end in json.loads(await store.get_meta(PAUSES) or "[]")],
            ),
            policy=policy,
            cloud_url=settings.cloud.url,
            jitter=random.random,
            bell=bells["delivery"],
            delivered=bells["uploads"].ring,
            refused=(StoreError,),
            beat=beats.of("delivery"),
        )
        recorders = {
            table: _recorder(settings, table, clock) for table, source in settings.sources.items() if source.url
        }
        for recorder in recorders.values():
            stack.push_async_callback(recorder.close)
        upkeep = Upkeep(
            store=store,
            folder=folder,
            clock=clock,
            bell=bells["upkeep"],
            keep_closed_ms=round(settings.outbox.keep_closed * 1000),
            media_limit_bytes=settings.outbox.media_limit,
            reserve_bytes=RESERVE_BYTES,
            beat=beats.of("upkeep"),
        )
        capture = Capture(
            store=store,
            folder=folder,
            recorders=recorders,
            clock=clock,
            bell=bells["capture"],
            jitter=random.random,
            reserve_bytes=RESERVE_BYTES,
            on_fetched=bells["uploads"].ring,
            on_full=bells["upkeep"].ring,
            beat=beats.of("capture"),
        )
        uploads = Uploads(
            store=store,
            client=client,
            folder=folder,
            clock=clock,
            bell=bells["uploads"],
            jitter=random.random,
            parallel=settings.uploads.parallel,
            callback_token=tokens.get if settings.cloud.callback_auth else None,
            beat=beats.of("uploads"),
        )
        yield App(
            settings,
            version=version,
            store=store,
            session=session,
            intake=intake,
            capture=capture,
            delivery=delivery,
            uploads=uploads,
            upkeep=upkeep,
            tokens=tokens,
            plans=plans,
            bells=bells,
            beats=beats,
            systemd=systemd,
            gaps=gaps,
        )


def composer(settings: Settings, store: Store) -> Callable[[Event, Any, int], Composed]:
    """What the store calls within the commit of a claim."""
    stale = settings.delivery.stale_after
    options = wire.Options(
        never_signal=settings.delivery.never_signal,
        stale_after_ms=None if stale is None else round(stale * 1000),
        send_details=settings.cloud.send_details,
    )

    def compose(event: Event, media: list[MediaOnDisk], sent_at: int) -> Composed:
        return wire.compose(event, media, sent_at=sent_at, ticks=store.clock.ticks_ms(), options=options)

    return compose


def policy_of(settings: Settings) -> Policy:
    delivery = settings.delivery
    return Policy(
        retry_first_ms=round(delivery.retry_first * 1000),
        retry_max_ms=round(delivery.retry_max * 1000),
        refuse_after_ms=round(delivery.refuse_after * 1000),
        drain_jitter_ms=round(delivery.drain_jitter * 1000),
        give_up_after_ms=round(settings.outbox.give_up_after * 1000),
        parallel=delivery.parallel,
        max_per_minute=delivery.max_per_minute,
    )


def find_camera(settings: Settings) -> Callable[[str, str | None], Mapped | None]:
    """For `retry`: the camera that has been configured since an unmapped event came."""
    plans = Plans(settings)

    def find(source: str, source_camera: str | None) -> Mapped | None:
        plan = plans.find(source, source_camera)
        if plan is None or plan.camera_id is None:
            return None
        return Mapped(plan.table or source, plan.camera_id, plan.recorder_id, plan.signal)

    return find


def _recorder(settings: Settings, table: str, clock: Any) -> Frigate:
    source = settings.sources[table]
    password_file = source.password_file
    return Frigate(
        str(source.url),
        clock=clock,
        username=source.username,
        make_password=None if password_file is None else lambda: settings.secret(password_file).decode(),
    )


def _password(settings: Settings, path: str | None) -> str | None:
    return None if path is None else settings.secret(path).decode()
