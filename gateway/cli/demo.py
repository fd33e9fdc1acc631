"""`chekt-gateway demo`: the whole path on this machine, from a recorder's alarm to a confirmed clip, without CHeKT.

Runs a broker, the practice cloud, a site with three cameras, and the real gateway as a process of its own; says each
alarm's way with times. `--once`: exit 0 when everything has been confirmed, 1 otherwise. Ends what it started on every
way out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gateway.simulator.children import Child
    from gateway.simulator.cloud import Cloud
    from gateway.simulator.records import EventRecord
    from gateway.simulator.site import Alarm, Site

READY_SECONDS: Final = 30.0
ONCE_SECONDS: Final = 60.0
EVERY_SECONDS: Final = 30.0  # a new alarm
NAMES: Final = {"snapshot": "snapshot", "short_mp4": "short clip", "event_mp4": "event clip"}
# Which pictures each camera's alarm must bring, and what is seen there.
CAMERAS: Final = {
    "front_door": ("person", ("snapshot", "event_mp4")),
    "driveway": ("car", ("snapshot",)),
    "warehouse": ("person", ("snapshot",)),
}


class DemoFailed(Exception):
    """The demo cannot go on; the text is for the person in front of it."""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="the whole path on this machine, with a practice cloud and site",
        description="Runs a broker, a practice cloud, a site that raises alarms, and the gateway, until Ctrl-C. "
        "Nothing reaches CHeKT.",
    )
    parser.add_argument("--once", action="store_true", help="ends when all alarms and pictures have been confirmed")
    parser.add_argument("--verbose", action="store_true", help="shows the gateway's log here instead of in a file")
    parser.add_argument("--keep", action="store_true", help="keeps the folder with configuration, outbox and logs")
    parser.add_argument("--port", type=int, default=0, metavar="N", help="of the page (default: any that is free)")
    parser.add_argument("--broker", choices=("mosquitto", "amqtt"), help="default: Mosquitto where it is installed")
    return parser


def run(args: argparse.Namespace) -> int:
    from gateway.simulator.broker import NoBroker

    folder = Path(tempfile.mkdtemp(prefix="chekt-demo-"))
    keep = args.keep
    try:
        code = asyncio.run(_interruptible(Demo(folder, args)))
        keep |= code != 0
    except (DemoFailed, NoBroker, OSError) as problem:
        print(f"chekt-gateway demo: {problem}", file=sys.stderr)
        keep, code = True, 1
    finally:
        if keep:
            print(f"configuration, outbox and logs are kept in {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return code


async def _interruptible(demo: Demo) -> int:
    """Runs the demo; a signal ends it in order. The exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    running = asyncio.create_task(demo.run(), name="demo")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    interrupted = not running.done()
    if interrupted:
        print("\nending …", flush=True)
        running.cancel()
    try:
        return await running
    except asyncio.CancelledError:
        # Ctrl-C is how the demo ends, but not how `--once` does.
        return 1 if demo.once else 0


@dataclass
class Journey:
    """One alarm and what has been said about it."""

    alarm: Alarm
    wanted: tuple[str, ...]
    event: EventRecord | None = None
    told: set[str] = field(default_factory=set)

    def missing(self) -> list[str]:
        """What has not happened yet, in words."""
        where = f"{self.alarm.camera}:"
        if self.event is None:
            return [f"{where} the alarm is not at the cloud"]
        if self.event.status != "accepted":
            return [f"{where} the alarm was {self.event.status}: {self.event.reason}"]
        confirmed = {upload.kind for upload in self.event.uploads if upload.confirmed_at is not None}
        lacking = [f"{where} the {NAMES[kind]} is not confirmed" for kind in self.wanted if kind not in confirmed]
        wrong = [
            f"{where} the {NAMES[upload.kind]} is {upload.looks_wrong or 'that of another camera'}"
            for upload in self.event.uploads
            if upload.path is not None
            and (upload.looks_wrong or self.alarm.camera.encode() not in upload.content[:256])
        ]
        return lacking + wrong


class Demo:
    """Everything that runs; `run` ends it all, however it ends itself."""

    def __init__(self, folder: Path, args: argparse.Namespace) -> None:
        self.folder, self.once, self._args = folder, bool(args.once), args
        self._journeys: list[Journey] = []
        self._refusals_told = 0

    async def run(self) -> int:
        async with contextlib.AsyncExitStack() as stack:
            site, cloud, gateway = await self._set_up(stack)
            telling = asyncio.create_task(self._tell(cloud), name="tell")
            stack.push_async_callback(_end_task, telling)
            watching = asyncio.create_task(gateway.wait(), name="watch the gateway")
            stack.push_async_callback(_end_task, watching)
            playing = asyncio.create_task(self._play(site, cloud), name="play")
            stack.push_async_callback(_end_task, playing)
            await asyncio.wait({playing, watching, telling}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
            if not playing.done():
                raise DemoFailed(f"the gateway has ended with exit code {watching.result()}\n{gateway.last_lines()}")
            return playing.result()

    # Setting up

    async def _set_up(self, stack: contextlib.AsyncExitStack) -> tuple[Site, Cloud, Child]:
        from gateway.simulator.broker import free_port, start_broker
        from gateway.simulator.children import Child, package_environment
        from gateway.simulator.cloud import Cloud
        from gateway.simulator.practice import LOCATION, Place, demo_configuration, write_private_key
        from gateway.simulator.recorder import Recorder
        from gateway.simulator.site import Site

        print("The gateway, end to end, on this machine alone. Nothing reaches CHeKT.")
        broker_port = free_port()
        broker = await start_broker(self.folder, broker_port, self._args.broker)
        stack.push_async_callback(broker.stop)
        self._row("broker", f"{broker.name} on 127.0.0.1:{broker_port}")

        cloud = Cloud()
        await cloud.start(self._args.port)
        stack.push_async_callback(cloud.stop)
        self._row("cloud", f"a practice cloud; its page: {cloud.url}/")

        # Short segments, so that the clip is there seconds after its window.
        site = Site(cameras=tuple(CAMERAS), qos=1, recorder=Recorder((), segment_seconds=2.0, move_seconds=0.5))
        await site.start(broker_port)
        stack.push_async_callback(site.stop)
        self._row("site", f"a Frigate on {site.url} with {', '.join(CAMERAS)}")

        key_file = self.folder / "practice-private-key.pem"
        write_private_key(key_file)
        place = Place(
            cloud_url=cloud.url,
            token_url=cloud.token_url,
            private_key_file=str(key_file),
            broker_url=f"mqtt://127.0.0.1:{broker_port}",
            # amqtt leaves a CONNECT of MQTT 5 without an answer, and the gateway would wait before it falls back.
            protocol="3.1.1" if broker.name == "amqtt" else "5",
            recorder_url=site.url,
            folder=self.folder,
        )
        config = self.folder / "gateway.toml"
        config.write_text(demo_configuration(place, cloud.terms))
        log = None if self._args.verbose else self.folder / "gateway.log"
        command = [sys.executable, "-m", "gateway", "run", "--config", str(config)]
        gateway = await Child.start("gateway", command, log=log, environment=package_environment())
        stack.push_async_callback(gateway.stop)
        started = time.monotonic()
        await self._ready(site, gateway, f"chekt-gateway/{LOCATION}/state")
        self._row("gateway", f"ready after {time.monotonic() - started:.1f} s, log: {log or 'here'}")
        print(flush=True)
        return site, cloud, gateway

    async def _ready(self, site: Site, gateway: Child, topic: str) -> None:
        hearing = asyncio.create_task(site.hear(topic, b"online", READY_SECONDS))
        ending = asyncio.create_task(gateway.wait())
        try:
            await asyncio.wait({hearing, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():
                raise DemoFailed(f"the gateway has ended with exit code {ending.result()}\n{gateway.last_lines()}")
            hearing.result()
        except TimeoutError:
            raise DemoFailed(f"the gateway is not ready after {READY_SECONDS:.0f} s\n{gateway.last_lines()}") from None
        finally:
            await _end_task(hearing)
            await _end_task(ending)

    # The play

    async def _play(self, site: Site, cloud: Cloud) -> int:
        front_door = self._raise(site, "front_door")
        driveway = self._raise(site, "driveway")
        # A recorder tells the same alarm many times; it stays one alarm.
        site.update(front_door)
        site.update(front_door)
        self._line(time.time() * 1000, "front_door", "told twice more by the recorder")
        self._raise(site, "warehouse")
        site.end(driveway)
        self._line(time.time() * 1000, "driveway", "has ended")
        if self.once:
            return await self._until_confirmed(cloud)
        for camera in itertools.cycle(CAMERAS):
            await asyncio.sleep(EVERY_SECONDS)
            open_alarm = self._raise(site, camera)
            await asyncio.sleep(1)
            site.end(open_alarm)
            # What is over need not be followed for ever.
            self._journeys = [journey for journey in self._journeys if journey.missing()][-100:]
        raise AssertionError("a cycle does not end")

    async def _until_confirmed(self, cloud: Cloud) -> int:
        deadline = time.monotonic() + ONCE_SECONDS
        version = -1
        while self._missing(cloud) and (left := deadline - time.monotonic()) > 0:
            version = await cloud.changed(version, left)
            self._say_news(cloud)
        if missing := self._missing(cloud):
            print(f"\nafter {ONCE_SECONDS:.0f} s:", *missing, sep="\n  ", file=sys.stderr)
            return 1
        pictures = len(cloud.done)
        print(f"\nall {len(cloud.events)} alarms and {pictures} pictures and clips are confirmed, none doubled")
        return 0

    def _missing(self, cloud: Cloud) -> list[str]:
        missing = [line for journey in self._journeys for line in journey.missing()]
        if (extra := len(cloud.events) - len(self._journeys)) > 0:
            missing.append(f"the cloud has {extra} events more than there were alarms")
        return missing

    def _raise(self, site: Site, camera: str) -> Alarm:
        label, wanted = CAMERAS[camera]
        alarm = site.raise_alarm(camera, label)
        self._journeys.append(Journey(alarm, wanted))
        self._line(alarm.started * 1000, camera, f"raised: {label}")
        return alarm

    # The telling

    async def _tell(self, cloud: Cloud) -> None:
        version = -1
        while True:
            version = await cloud.changed(version)
            self._say_news(cloud)

    def _say_news(self, cloud: Cloud) -> None:
        news: list[tuple[int, str, str, int | None]] = []
        for journey in self._journeys:
            if journey.event is None:
                journey.event = self._find(cloud, journey)
            if journey.event is not None:
                news += self._new_hops(journey, journey.event)
        for request in cloud.refusals[self._refusals_told :]:
            self._refusals_told += 1
            path = request.target.partition("?")[0]
            text = f"refused {request.method} {path}: {request.refusal}"
            news.append((request.received_at, "cloud", text, None))
        for at, camera, text, after_ms in sorted(news, key=lambda one: one[0]):
            self._line(at, camera, text, after_ms)

    def _find(self, cloud: Cloud, journey: Journey) -> EventRecord | None:
        """The cloud's event of an alarm: the same camera, and the same moment to the millisecond or nearly so."""
        camera_id = f"practice-{journey.alarm.camera.replace('_', '-')}"
        taken = {id(other.event) for other in self._journeys}
        for event in cloud.events:
            if event.camera_id != camera_id or id(event) in taken or event.request["event_status"] != "active":
                continue
            event_at = datetime.fromisoformat(event.request["event_time"]).timestamp()
            if abs(event_at - journey.alarm.started) < 1:
                return event
        return None

    def _new_hops(self, journey: Journey, event: EventRecord) -> list[tuple[int, str, str, int | None]]:
        hops = [("cloud", f"at the cloud, {event.status} as {event.chekt_event_id}", event.received_at)]
        for upload in event.uploads:
            name = NAMES[upload.kind]
            size = f" ({upload.size / 1024:.0f} KiB)" if upload.size else ""
            hops.append((f"put {upload.kind} {upload.seq}", f"{name} uploaded{size}", upload.put_at or 0))
            hops.append((f"done {upload.kind} {upload.seq}", f"{name} confirmed", upload.confirmed_at or 0))
        fresh = [(key, text, at) for key, text, at in hops if at and key not in journey.told]
        journey.told |= {key for key, _, _ in fresh}
        return [(at, journey.alarm.camera, text, at - journey.alarm.started_at) for _, text, at in fresh]

    def _line(self, at: float, camera: str, text: str, after_ms: int | None = None) -> None:
        when = datetime.fromtimestamp(at / 1000).astimezone()
        gone = "" if after_ms is None else f"+{after_ms} ms" if after_ms < 1000 else f"+{after_ms / 1000:.1f} s"
        print(f"{when:%H:%M:%S}.{when.microsecond // 1000:03d}  {camera:<11} {text:<44} {gone:>9}".rstrip(), flush=True)

    def _row(self, what: str, text: str) -> None:
        print(f"  {what:<8} {text}", flush=True)


async def _end_task(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
