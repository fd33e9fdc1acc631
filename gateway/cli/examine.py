"""The checks of `doctor` beside the broker: cloud, recorders, disk, certificates. None signals anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from gateway import config
from gateway.build import recorder_of
from gateway.chekt.client import Client, ClientError, tls_context
from gateway.chekt.keys import KeyUnusable, read_secrets
from gateway.chekt.token import TokenError, TokenSource
from gateway.cli.finding import Finding, Level
from gateway.host.clock import SystemClock
from gateway.host.disk import free_bytes
from gateway.media.files import MediaFolder
from gateway.media.frigate import Frigate
from gateway.media.recorder import FetchError, Recorder
from gateway.model import Clock
from gateway.sources.histories.shape import History, NotAList
from gateway.sources.known import known_families
from gateway.sources.plans import histories_of

if TYPE_CHECKING:
    from gateway.config import Settings

CONNECT_SECONDS: Final = 20.0
ASKED_SECONDS: Final = 3600  # of a recorder that remembers what it said
CLOCK_OFF_SECONDS: Final = 30
LITTLE_BYTES: Final = 512 << 20
TOO_LITTLE_BYTES: Final = 128 << 20  # twice what is left to alarms: below, pictures stop
SYNCS: Final = 20
LYING_SECONDS: Final = 20e-6  # no medium that keeps what it is told answers a flush in less
SLOW_SECONDS: Final = 0.5
RENEW_DAYS: Final = 21
FORGETFUL: Final = frozenset({"tmpfs", "ramfs", "overlay"})

# --- the cloud ------------------------------------------------------------------------------------------------------


async def cloud(settings: Settings, version: str) -> list[Finding]:
    """Its clock and ours, and a token. Nothing is sent to the Event API but a question for the time."""
    clock = SystemClock(0)
    dates: list[int] = []
    try:
        secrets = read_secrets(settings.cloud)
        client = Client(settings.cloud, version=version, api_key=secrets.api_key, on_date=dates.append)
    except (KeyUnusable, ClientError) as error:
        return [Finding("token", "FAIL", str(error), "mend [cloud] in the configuration")]
    found = []
    async with client:
        reply = await client.ask_the_time()
        if reply.status is None:
            why = f"{settings.cloud.url} does not answer: {reply.error}"
            found.append(Finding("cloud", "FAIL", why, "check the line, the name server, the firewall and cloud.proxy"))
        else:
            found.append(Finding("cloud", "ok", f"{settings.cloud.url} answers"))
            found.append(_clock(dates, clock))
        tokens = TokenSource(settings.cloud, secrets, client.post_form, clock)
        for date in dates:
            tokens.learn_date(date)
        try:
            await tokens.get()
        except TokenError as error:
            remedy = "check token_url, client_id, audience and the key with CHeKT"
            found.append(Finding("token", "FAIL", error.text, remedy))
        else:
            what = "an API key is configured" if not tokens.renewable else "a token was obtained"
            found.append(Finding("token", "ok", what))
        finally:
            await tokens.close()
    return found


def _clock(dates: Sequence[int], clock: Clock) -> Finding:
    if not dates:
        return Finding("clock", "warn", "the cloud's answer has no Date: our clock cannot be compared")
    off = (clock.wall_ms() - dates[-1]) / 1000
    if abs(off) <= CLOCK_OFF_SECONDS:
        return Finding("clock", "ok", f"within {max(1, round(abs(off)))} s of the cloud's")
    way = "ahead of" if off > 0 else "behind"
    remedy = "let a time server set this machine's clock: timedatectl set-ntp true"
    return Finding("clock", "FAIL", f"{abs(off):.0f} s {way} the cloud's", remedy)


# --- recorders --------------------------------------------------------------------------------------------------------


async def recorders(settings: Settings) -> list[Finding]:
    """One snapshot of each camera, now; it is thrown away. Where there are none, the list of what was said lately."""
    found = []
    clock = SystemClock(0)
    known, histories = known_families(), histories_of(settings)
    resolved = settings.cameras_resolved().values()
    cameras = {table: [each for each in resolved if each.source in (None, table)] for table in settings.sources}
    with tempfile.TemporaryDirectory(prefix="chekt-doctor-") as name:
        folder = MediaFolder(Path(name))
        folder.prepare()
        try:
            for table, source in settings.sources.items():
                facts = known.get(source.family)  # None: a family of the site's own
                if facts is None or not (facts.pictures or facts.is_asked(source.dialect)):
                    continue
                recorder = recorder_of(settings, table, clock)
                if recorder is None:
                    lost = "what it says while we are away is lost"
                    what = (
                        f"no url: its alarms go without pictures, and {lost}" if facts.pictures else f"no url: {lost}"
                    )
                    found.append(Finding(f"source {table}", "warn", what, f"set sources.{table}.url"))
                    continue
                try:
                    if isinstance(recorder, Frigate):
                        found += [await _picture(recorder, folder, camera, clock) for camera in cameras[table]]
                    else:
                        found.append(await _list_of(table, recorder, histories[table], clock))
                finally:
                    await recorder.close()
        finally:
            folder.close()
    tried = {camera.table for table in cameras if _gives_pictures(settings, table) for camera in cameras[table]}
    return [*found, *(_without_pictures(settings, camera) for camera in resolved if camera.table not in tried)]


def _gives_pictures(settings: Settings, table: str) -> bool:
    source = settings.sources[table]
    facts = known_families().get(source.family)
    return facts is not None and facts.pictures and source.url is not None


def _without_pictures(settings: Settings, camera: config.ResolvedCamera) -> Finding:
    """Nothing to fetch is something to say, too: whether that is as it was meant."""
    name = f"camera {camera.table}"
    if not (camera.snapshots or camera.short_mp4 or camera.event_mp4):
        return Finding(name, "ok", "its alarms go without pictures, as configured")
    known = known_families()
    tables = [camera.source] if camera.source is not None else list(settings.sources)
    families = sorted({settings.sources[table].family for table in tables})
    possible = [table for table in tables if (facts := known.get(settings.sources[table].family)) and facts.pictures]
    if possible:
        return Finding(name, "warn", "its alarms go without pictures", f"set sources.{possible[0]}.url")
    what = f"its alarms go without pictures: {', '.join(families)} gives none"
    return Finding(name, "warn", what, f"set cameras.{camera.table}.snapshots = 0 to say that it is meant so")


async def _list_of(table: str, recorder: Recorder, history: History, clock: Clock) -> Finding:
    until = clock.wall_ms() / 1000
    try:
        for question in history.questions(until - ASKED_SECONDS, until):
            history.read(await recorder.read(question), until - ASKED_SECONDS)
    except (FetchError, NotAList) as error:
        remedy = f"are url, username and password_file of sources.{table} right?"
        return Finding(f"source {table}", "FAIL", f"cannot be asked for what was missed: {error}", remedy)
    return Finding(f"source {table}", "ok", "tells what it remembers, so that nothing it says unheard is lost")


async def _picture(recorder: Frigate, folder: MediaFolder, camera: config.ResolvedCamera, clock: Clock) -> Finding:
    name = f"camera {camera.table}"
    try:
        async with folder.draft() as draft:
            await recorder.snapshot({"camera": camera.name}, clock.wall_ms(), seq=0, live=True, draft=draft)
            return Finding(name, "ok", f"a picture of {draft.bytes >> 10} KiB")
    except (FetchError, OSError) as error:
        remedy = f"does the recorder know a camera {camera.name!r}, and are url, username and password_file right?"
        level: Level = "warn" if camera.source is None else "FAIL"  # it may belong to another one
        return Finding(name, level, f"no picture: {error}", remedy)


# --- this machine ---------------------------------------------------------------------------------------------------


def disk(settings: Settings) -> list[Finding]:
    """Whether it keeps what it says that it keeps, how fast, and how much it still takes."""
    found = []
    outbox = Path(str(settings.outbox.path))
    for what, place in (("outbox", outbox), ("pictures", Path(str(settings.outbox.media_path)))):
        try:
            free = free_bytes(place)
        except OSError as error:
            found.append(Finding("space", "FAIL", f"{place}: {error.strerror}", "make the folder"))
            continue
        level: Level = "FAIL" if free < TOO_LITTLE_BYTES else "warn" if free < LITTLE_BYTES else "ok"
        remedy = None if level == "ok" else "make room, or set a smaller outbox.media_limit"
        found.append(Finding("space", level, f"{free >> 20} MiB left for the {what}", remedy))
    return [*found, _syncs(outbox.parent)]


def _syncs(folder: Path) -> Finding:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    kind = file_system(folder, Path("/proc/self/mounts"))
    if kind in FORGETFUL:
        what = f"{folder} lies on {kind}, which forgets everything at a restart"
        return Finding("disk", "FAIL", what, "set outbox.path to a real disk")
    try:
        times = _time_syncs(folder)
    except OSError as error:
        return Finding("disk", "warn", f"cannot be tried in {folder}: {error.strerror}", "run this as chekt-gateway")
    return judge_syncs(times)


def judge_syncs(times: Sequence[float]) -> Finding:
    typical = statistics.median(times)
    what = f"makes a write durable in {typical * 1000:.3g} ms (slowest {max(times) * 1000:.3g} ms)"
    if typical < LYING_SECONDS:
        return Finding(
            "disk", "FAIL", f"{what}: no disk is so fast", "it does not keep what it confirms: use another one"
        )
    if typical > SLOW_SECONDS:
        return Finding("disk", "warn", f"{what}: a worn or failing medium", "replace it")
    return Finding("disk", "ok", what)


def _time_syncs(folder: Path) -> list[float]:
    times = []
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".chekt-doctor-") as file:
        for _ in range(SYNCS):
            file.write(os.urandom(4096))
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return times


def file_system(folder: Path, mounts: Path) -> str | None:
    """Its kind, as the kernel calls it; None where that cannot be known."""
    place = str(folder.resolve())
    best, kind = "", None
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, at, name, *_ = line.split(" ")
        if (place == at or place.startswith(at.rstrip("/") + "/")) and len(at) >= len(best):
            best, kind = at, name
    return kind


async def certificates(settings: Settings, now: datetime) -> list[Finding]:
    """How long those that the others show us are still good. Our own are the business of `check`."""
    ends: list[tuple[str, str, int, str | None]] = []
    for name, url, ca_file in (
        ("cloud", settings.cloud.url, settings.cloud.ca_file),
        ("token endpoint", settings.cloud.token_url, settings.cloud.ca_file),
        ("broker", settings.broker.url, settings.broker.ca_file),
    ):
        parts = urlsplit(url or "")
        if (
            parts.scheme in ("https", "mqtts", "wss")
            and parts.hostname
            and not (name != "broker" and settings.cloud.proxy)
        ):
            ends.append((name, parts.hostname, parts.port or (8883 if parts.scheme == "mqtts" else 443), ca_file))
    found = []
    for name, host, port, ca_file in ends:
        shown = await _shown(host, port, ca_file)
        if isinstance(shown, str):
            found.append(Finding("certificate", "FAIL", f"of the {name}: {shown}", f"have it mended at {host}"))
            continue
        until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), UTC)
        level: Level = "warn" if (until - now).days < RENEW_DAYS else "ok"
        remedy = None if level == "ok" else f"have it renewed at {host}"
        found.append(Finding("certificate", level, f"of the {name} is good until {until:%Y-%m-%d}", remedy))
    return found


async def _shown(host: str, port: int, ca_file: str | None) -> Mapping[str, object] | str:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(host, port, ssl=tls_context(ca_file), server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, TimeoutError) as error:
        return str(error) or "no answer"
    shown: Mapping[str, object] = writer.get_extra_info("peercert") or {}
    writer.close()
    with contextlib.suppress(OSError, ssl.SSLError):
        await writer.wait_closed()
    return shown
