"""How the parts are put together: by constructor arguments, here and nowhere else."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, cast

import structlog

from gateway.answers import gather_facts
from gateway.app import App
from gateway.bell import Bell
from gateway.capture import Capture
from gateway.catchup import Asked, CatchUp
from gateway.chekt import wire
from gateway.chekt.client import Client
from gateway.chekt.keys import read_secrets
from gateway.chekt.token import TokenSource
from gateway.config import Settings
from gateway.deciding import Decider
from gateway.delivery import PAUSES, Delivery
from gateway.gate import Gate
from gateway.host.clock import AGREE_MS, MachineView, SystemClock
from gateway.host.systemd import Systemd
from gateway.host.timesync import synchronised
from gateway.intake import Intake
from gateway.media.files import MediaFolder
from gateway.media.frigate import Frigate
from gateway.media.logins import UNIFI, ZONEMINDER
from gateway.media.recorder import Recorder
from gateway.model import Composed, Event, MediaOnDisk
from gateway.outbox.store import Store, StoreError
from gateway.parts import Beats, Parts
from gateway.retry import Policy
from gateway.sources.backlog import BacklogJudge
from gateway.sources.broker import Session
from gateway.sources.broker_filters import Filter
from gateway.sources.plans import Plans, compile_sources, filters_of, histories_of, watched_cameras
from gateway.sources.silence import Silence
from gateway.supervision import Supervision
from gateway.upkeep import Upkeep
from gateway.uploads import Uploads
from gateway.watch import Under

log = structlog.get_logger()

LOGINS: Final = {"zoneminder": ZONEMINDER, "unifi": UNIFI}  # how recorders without pictures are logged in to
FILTERS: Final = "mqtt_filters"  # the store's meta: what the broker may hold for our client id


@asynccontextmanager
async def open_app(settings: Settings, *, version: str, systemd: Systemd) -> AsyncIterator[App]:
    """Opens the store and puts everything together. Raises StoreError, KeyUnusable."""
    async with AsyncExitStack() as stack:
        secrets = read_secrets(settings.cloud)
        plans = Plans(settings)
        sources = compile_sources(settings)
        store = await Store.open(
            Path(str(settings.outbox.path)),
            make_clock=SystemClock,
            reserve_bytes=settings.outbox.reserve,
            tell=systemd.at_work,
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
            table: recorder
            for table in settings.sources
            if (recorder := recorder_of(settings, table, clock)) is not None
        }
        for recorder in recorders.values():
            stack.push_async_callback(recorder.close)
        catch_up = CatchUp(
            session=session,
            store=store,
            clock=clock,
            sources={
                table: Asked(history, recorders[table], sources[table].covers, partial(find_offset, table))
                for table, history in histories_of(settings).items()
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
                silence=Silence(
                    watched_cameras(settings),
                    tuple(settings.sources),
                    find_plan=plans.find,
                    location_id=settings.site.location_id,
                ),
                tables=frozenset(settings.cameras),
            ),
            backlog=backlog,
            on_stored=on_stored,
            on_store_back=session.hurry,
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
            recorders={table: recorder for table, recorder in recorders.items() if isinstance(recorder, Frigate)},
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
            facts=lambda: gather_facts(parts),
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
        parts = Parts(
            settings=settings,
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
            bells=bells,
            beats=beats,
            gaps=gaps,
        )
        yield App(parts, systemd)


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


def recorder_of(settings: Settings, table: str, clock: Any) -> Recorder | None:
    """Whom to ask for pictures, if it is a Frigate, and for what was missed. None: there is no use for its address."""
    source = settings.sources[table]
    if source.url is None or source.family in settings.rules:
        return None
    password_file = source.password_file
    make_password = None if password_file is None else lambda: settings.secret(password_file).decode()
    if source.family == "frigate":
        return Frigate(source.url, clock=clock, username=source.username, make_password=make_password)
    login = LOGINS.get(source.family)
    if login is None:
        return None
    return Recorder(source.url, clock=clock, login=login, username=source.username, make_password=make_password)


def _password(settings: Settings, path: str | None) -> str | None:
    return None if path is None else settings.secret(path).decode()
