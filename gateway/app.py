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
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import structlog

from gateway.bell import Bell
from gateway.capture import Capture
from gateway.catchup import Asked, CatchUp
from gateway.chekt import wire
from gateway.chekt.client import Client
from gateway.chekt.keys import read_secrets
from gateway.chekt.token import TokenSource
from gateway.config import Settings, Source
from gateway.deciding import Decider
from gateway.delivery import PAUSES, Delivery
from gateway.gate import Gate
from gateway.host.clock import AGREE_MS, MachineView, SystemClock
from gateway.host.control import ControlServer, socket_path
from gateway.host.disk import free_bytes
from gateway.host.systemd import Systemd
from gateway.host.timesync import synchronised
from gateway.intake import Intake
from gateway.media.files import MediaFolder
from gateway.media.frigate import Frigate
from gateway.model import Composed, Event, MediaOnDisk
from gateway.outbox.store import Mapped, Store, StoreError
from gateway.retry import Policy
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker import Session
from gateway.sources.broker_filters import Filter
from gateway.sources.families import load_family
from gateway.sources.frigate_history import History
from gateway.sources.plans import Plans, compile_sources, filters_of
from gateway.sources.troubles import open_troubles
from gateway.supervision import Supervision
from gateway.upkeep import Upkeep
from gateway.uploads import Uploads
from gateway.watch import Facts, Under

log = structlog.get_logger()

GRACE_SECONDS: Final = 40.0  # a request in hand may take 35; TimeoutStopSec= of the unit is above this
TELL_SECONDS: Final = 5.0  # how often STATUS= is renewed, and the watchdog fed where systemd does not ask for more
SUMMARY_SECONDS: Final = 1.0
STUCK_SECONDS: Final = 45.0  # a step that has not gone round for so long is not making progress
HISTORIES: Final = ("frigate",)  # families with a recorder that can be asked for what was missed
FILTERS: Final = "mqtt_filters"  # the store's meta: what the broker may hold for our client id


class StoreStopped(Exception):
    """The store's thread has ended: nothing can be made safe any more, and nobody else would notice."""


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
        catch_up: CatchUp,
        capture: Capture,
        delivery: Delivery,
        uploads: Uploads,
        upkeep: Upkeep,
        supervision: Supervision,
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
        self.catch_up = catch_up
        self.capture = capture
        self.delivery = delivery
        self.uploads = uploads
        self.upkeep = upkeep
        self.supervision = supervision
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
                    group.create_task(self.catch_up.run(self._stop), name="catch-up"),
                    group.create_task(self.capture.run(self._stop), name="capture"),
                    group.create_task(self.delivery.run(self._stop), name="delivery"),
                    group.create_task(self.uploads.run(self._stop), name="uploads"),
                    group.create_task(self.upkeep.run(self._stop), name="upkeep"),
                    group.create_task(self.supervision.run(self._stop), name="supervision"),
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
            if not self.store.running:
                raise StoreStopped(self.store.refusal)
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
        try:
            # A disk that hangs must not keep the watchdog from being fed: whether it is, the steps decide.
            async with asyncio.timeout(SUMMARY_SECONDS):
                counts = await self.store.counters()
        except TimeoutError:
            return "the disk does not answer; nothing is acknowledged"
        except StoreError as fault:
            return f"the store refuses: {fault}; nothing is acknowledged"
        waiting = counts.get("state_pending", 0) + counts.get("state_sending", 0)
        broker = "connected" if self.session.connected else "away"
        cloud = "reachable" if self.delivery.gate.reachable else "away"
        time = "" if self.supervision.may_compose else "the time is unknown: nothing is sent, "
        return f"{time}broker {broker}, cloud {cloud}, {waiting} waiting, {counts.get('state_delivered', 0)} delivered"

    async def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The control channel. Raises for the client's sake; the server tells it."""
        match request.get("command"):
            case "status":
                return self.status()
            case "retry":
                return await self._retry(request)
            case "looked_at":
                event_ids = [str(event_id) for event_id in request.get("event_ids", [])]
                return {"looked_at": await self.store.looked_at(event_ids)}
            case other:
                return {"error": f"unknown command {other!r}"}

    def status(self) -> dict[str, Any]:
        gate = self.delivery.gate
        conditions = [{"level": each.level, "sentence": each.sentence} for each in gate.conditions()]
        judgement = self.supervision.judgement
        now, ticks = self.store.clock.wall_ms(), self.store.clock.ticks_ms()
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
            "now": now,
            "clock": {
                "trust": str(judgement.trust),
                "offset_ms": judgement.offset_ms,
                "why": judgement.why,
            },
            "troubles": [*open_troubles(self.intake.memory), *self.supervision.open_troubles()],
            "gaps": [{"at": now - (ticks - gap["ticks"]), "reason": gap["reason"]} for gap in self.gaps[-10:]],
            "catching_up": self.catch_up.facts(),
            "stuck": self.beats.stuck(),
        }

    async def _retry(self, request: dict[str, Any]) -> dict[str, Any]:
        revived = await self.store.revive(
            None if request.get("all_dead") else [str(event_id) for event_id in request.get("event_ids", [])],
            signal=True if request.get("signal") else None,
            find_camera=find_camera(self.settings),
        )
        self.tokens.try_now()
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
        store = await Store.open(
            Path(str(settings.outbox.path)), make_clock=SystemClock, reserve_bytes=settings.outbox.reserve
        )
        stack.push_async_callback(store.close)
        store.compose = composer(settings, store)
        recovered = await store.recover()
        if recovered:
            log.warning("events_recovered", count=recovered, why="the last run ended while they were being sent")
        folder = MediaFolder(Path(str(settings.outbox.media_path)))
        folder.prepare()
        stack.callback(folder.close)

        beats = Beats()
        bells = {name: Bell() for name in ("capture", "delivery", "uploads", "upkeep", "supervision")}
        clock = cast(SystemClock, store.clock)

        def on_date(at: int) -> None:
            if abs(at - clock.wall_ms()) > AGREE_MS:
                bells["supervision"].ring()
            clock.learn_date(at)
            tokens.learn_date(at)

        client = Client(
            settings.cloud,
            version=version,
            api_key=secrets.api_key,
            max_bytes_per_second=settings.uploads.max_bytes_per_second,
            on_date=on_date,
        )
        stack.push_async_callback(client.close)

        async def ask_the_time() -> bool:
            return (await client.ask_the_time()).status is not None

        tokens = TokenSource(settings.cloud, secrets, client.post_form, MachineView(clock))
        stack.push_async_callback(tokens.close)

        known = json.loads(await store.get_meta(FILTERS) or "[]")
        backlog = BacklogJudge(await store.last_heard_at())
        gaps: list[dict[str, Any]] = []
        if store.salvaged is not None:
            gaps.append({"at": clock.wall_ms(), "ticks": clock.ticks_ms(), "reason": store.salvaged})

        def on_gap(reason: str) -> None:
            gaps.append({"ticks": clock.ticks_ms(), "reason": reason})
            bells["supervision"].ring()
            intake.session_lost()

        def on_connected(session_present: bool) -> None:
            intake.reconnected(session_present=session_present)
            catch_up.connection_began()

        def on_subscribed() -> None:
            catch_up.subscribed()

        def find_offset(table: str) -> int:
            return int(intake.memory.get(f"clock/{table}", {"offset": 0})["offset"])

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
            on_subscribed=on_subscribed,
            on_filters=on_filters,
            password=_password(settings, settings.broker.password_file),
        )

        def on_stored() -> None:
            bells["delivery"].ring()
            bells["capture"].ring()

        recorders = {
            table: _recorder(settings, table, clock) for table, source in settings.sources.items() if source.url
        }
        for recorder in recorders.values():
            stack.push_async_callback(recorder.close)
        catch_up = CatchUp(
            session=session,
            store=store,
            clock=clock,
            sources={
                table: Asked(
                    history_of(settings.sources[table]), recorder, sources[table].covers, partial(find_offset, table)
                )
                for table, recorder in recorders.items()
                if settings.sources[table].family in HISTORIES
            },
            jitter=random.random,
        )
        await catch_up.load()
        intake = Intake(
            session=catch_up,
            store=store,
            decider=Decider(
                sources=list(sources.values()),
                find_plan=plans.find,
                location_id=settings.site.location_id,
                backlog=backlog,
                clock=clock,
            ),
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
            may_compose=lambda: supervision.may_compose,
            beat=beats.of("delivery"),
        )
        recognise = [camera.dedupe_window for camera in settings.cameras_resolved().values()]
        upkeep = Upkeep(
            store=store,
            folder=folder,
            clock=clock,
            bell=bells["upkeep"],
            keep_closed_ms=round(settings.outbox.keep_closed * 1000),
            media_limit_bytes=settings.outbox.media_limit,
            reserve_bytes=settings.outbox.reserve,
            least_keep_ms=round(1000 * max(recognise, default=settings.defaults.dedupe_window)),
            beat=beats.of("upkeep"),
        )
        capture = Capture(
            store=store,
            folder=folder,
            recorders=recorders,
            clock=clock,
            bell=bells["capture"],
            jitter=random.random,
            reserve_bytes=settings.outbox.reserve,
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
        supervision = Supervision(
            store=store,
            clock=clock,
            bell=bells["supervision"],
            facts=lambda: gather_facts(app),
            under=Under(
                settings.site.location_id, settings.site.recorder_id, settings.site.camera_id, settings.defaults.signal
            ),
            delay_ms=round(settings.defaults.trouble_delay * 1000),
            synchronised=synchronised,
            ask_the_time=ask_the_time,
            on_stored=bells["delivery"].ring,
            beat=beats.of("supervision"),
        )
        await supervision.load()
        app = App(
            settings,
            version=version,
            store=store,
            session=session,
            intake=intake,
            catch_up=catch_up,
            capture=capture,
            delivery=delivery,
            uploads=uploads,
            upkeep=upkeep,
            supervision=supervision,
            tokens=tokens,
            plans=plans,
            bells=bells,
            beats=beats,
            systemd=systemd,
            gaps=gaps,
        )
        yield app


def gather_facts(app: App) -> Facts:
    """For `gateway.watch`: what of the gateway itself is wrong now. The clock is judged elsewhere."""
    broker, gate = app.session.facts(), app.delivery.gate
    refused = next((each.sentence for each in gate.conditions() if each.level == "critical"), None)
    pictures = dict(app.capture.troubles)
    failing = app.uploads.failing
    gap = app.gaps[-1] if app.gaps else None
    return Facts(
        broker=None if broker["connected"] else f"the broker is away: {broker['last_error'] or 'no connection'}",
        store=app.store.refusal,
        disk=_disk_fault(app),
        credentials=refused,
        cloud=None if gate.reachable else "the cloud does not answer, or somebody else answers at its address",
        uploads=f"{failing} uploads in a row have failed" if failing else None,
        media_disk=pictures.pop("", None),
        recorders=pictures,
        reported=frozenset(
            entry["source"]
            for entry in app.intake.memory.values()
            if entry["what"] == "trouble" and entry["source_camera"] is None
        ),
        gap=None if gap is None else (gap["ticks"], gap["reason"]),
    )


def _disk_fault(app: App) -> str | None:
    outbox = app.settings.outbox
    if app.store.reserve_missing:
        return "the disk of the outbox is full: alarms live on the reserve, or there is no room for one"
    for what, place in (("outbox", outbox.path), ("pictures", outbox.media_path)):
        try:
            free = free_bytes(Path(str(place)))
        except OSError as fault:
            return f"the disk of the {what} cannot be asked: {fault.strerror}"
        if free < 2 * outbox.reserve:
            return f"the disk of the {what} is nearly full: {free >> 20} MiB left"
    return None


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


def history_of(source: Source) -> History:
    """How the recorder is asked for what it remembers."""
    facts = load_family(source.family).facts
    [prefix] = facts.topic_prefix or () if source.topic_prefix is None else (source.topic_prefix,)
    return History(dialect=source.dialect or facts.dialect or "", topic_prefix=prefix)


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
