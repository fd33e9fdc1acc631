"""`chekt-gateway status`: health at a glance. Exit 0 ok, 1 degraded, 2 critical.

What is on disk is read from the outbox, the rest is asked of the running gateway. Each reason is one sentence with what
to do about it; `judge` is the list of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.asking import NoAnswer, Place, add_config_option, ago, ask_gateway, find_place, table
from gateway.model import iso_utc

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.outbox.ledger import Overview

EXIT_CODES: Final = {"ok": 0, "degraded": 1, "critical": 2}
LATE_SECONDS: Final = 300  # an alarm that is undelivered, or a broker that is away, for longer is critical
LOW_DISK_BYTES: Final = 512 << 20
RECENT_SECONDS: Final = 86_400  # an unreadable message, or a gap, is worth a sentence for a day
CLOCK_OFF_SECONDS: Final = 60
WATCH_SECONDS: Final = 2.0
_CLEAR: Final = "\x1b[H\x1b[2J"


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "status",
        help="is everything well? exit 0 ok, 1 degraded, 2 critical",
        description="Health at a glance, from disk and from the running gateway. Exit 0 ok, 1 degraded, 2 critical.",
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--watch", action="store_true", help="again every two seconds, until interrupted")
    return parser


def run(args: argparse.Namespace) -> int:
    place = find_place(args)
    if isinstance(place, int):
        return place
    while True:
        status = look(place)
        if args.watch and not args.json and sys.stdout.isatty():
            print(_CLEAR, end="")
        print(json.dumps(status, ensure_ascii=False) if args.json else describe(status), flush=True)
        code = EXIT_CODES[status["state"]]
        if not args.watch:
            return code
        try:
            time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return code


def look(place: Place) -> dict[str, Any]:
    from gateway.outbox.errors import StoreError
    from gateway.outbox.ledger import Ledger

    reasons: list[tuple[str, str]] = []
    live: dict[str, Any] | None = None
    running = False
    try:
        live = ask_gateway(place, {"command": "status"})
        running = live is not None
        if live is None:
            reasons.append(("critical", "the gateway is not running; start it: systemctl start chekt-gateway"))
    except NoAnswer as why:
        running = True
        reasons.append(("critical", str(why)))
    overview: Overview | None = None
    try:
        with Ledger(place.outbox) as ledger:
            overview = ledger.overview()
    except StoreError as error:
        reasons.append(("critical", str(error)))
    free = _disk_free(place.outbox)
    now = time.time()
    reasons += judge(place.settings, overview, live, free, now)
    levels = [level for level, _ in reasons]
    state = next((level for level in ("critical", "degraded") if level in levels), "ok")
    return {
        "state": state,
        "reasons": [sentence for wanted in ("critical", "degraded") for level, sentence in reasons if level == wanted],
        "version": live["version"] if live else metadata.version("chekt-gateway"),
        "running": running,
        "broker": {"connected": None} if live is None else live["broker"],
        "cloud": {"reachable": None, "token_expires_at": None} if live is None else _cloud(live["cloud"]),
        "events": dict(overview.events) if overview else {},
        "messages": _messages(overview),
        "oldest_undelivered_seconds": _age(overview.oldest_undelivered_at if overview else None, now),
        "uploads": dict(overview.uploads) if overview else {},
        "media_bytes": overview.media_bytes if overview else None,
        "disk_free_bytes": free,
        "cameras": _cameras(place.settings, overview),
    }


def judge(
    settings: Settings, overview: Overview | None, live: Mapping[str, Any] | None, free: int | None, now: float
) -> Iterator[tuple[str, str]]:
    """(level, sentence): everything that a person should know, each with what to do."""
    if overview is not None:
        yield from _judge_events(overview, now)
    if live is not None:
        yield from _judge_live(live, now)
    if free is not None and free < LOW_DISK_BYTES:
        yield (
            "degraded",
            f"the disk of the outbox has {free >> 20} MiB left; make room, or set a smaller outbox.media_limit",
        )
    if settings.delivery.never_signal:
        yield (
            "degraded",
            "delivery.never_signal is on: no alarm reaches the monitoring station; remove it after commissioning",
        )
    silent = sorted(name for name, camera in settings.cameras_resolved().items() if not camera.signal)
    if silent:
        yield (
            "degraded",
            f"signal = false for {', '.join(silent)}: their alarms do not reach the monitoring station; set it to true",
        )
    if settings.broker.username is None and settings.broker.cert_file is None:
        yield (
            "degraded",
            "the broker asks for no password: whoever is in the network can raise alarms; set "
            "broker.username and password_file",
        )


def _judge_events(overview: Overview, now: float) -> Iterator[tuple[str, str]]:
    late = _age(overview.oldest_alarm_at, now)
    if late is not None and late > LATE_SECONDS:
        yield (
            "critical",
            f"an alarm is undelivered for {ago(late)}; check the line to the cloud, and the journal "
            "for what it answers",
        )
    dead = overview.events["dead"]
    if overview.dead_unseen:
        words = (
            "event is dead and nobody has looked at it"
            if overview.dead_unseen == 1
            else "events are dead and nobody has looked at them"
        )
        yield (
            "critical",
            f"{overview.dead_unseen} {words}; `chekt-gateway events --state dead`, `trace EVENT_ID`, "
            "then `retry EVENT_ID`",
        )
    if dead > overview.dead_unseen:
        yield (
            "degraded",
            f"{dead - overview.dead_unseen} looked-at events are dead; `chekt-gateway retry` brings them back",
        )
    if overview.events["unmapped"]:
        yield (
            "degraded",
            f"{overview.events['unmapped']} events are of cameras that are not configured; "
            "`chekt-gateway events --state unmapped`, add a [cameras] table or `ignore`, then `retry`",
        )
    unreadable = _age(overview.newest_unreadable_at, now)
    if unreadable is not None and unreadable < RECENT_SECONDS:
        yield (
            "degraded",
            f"a message could not be understood {ago(unreadable)} ago; `chekt-gateway events --state "
            "unreadable` shows why",
        )


def _judge_live(live: Mapping[str, Any], now: float) -> Iterator[tuple[str, str]]:
    refusal = live.get("store", {}).get("refusal")
    if refusal:
        yield "critical", f"the store refuses, no alarm is acknowledged: {refusal}; make room or repair the disk"
    for condition in live.get("conditions", ()):
        yield condition["level"], condition["sentence"]
    broker = live["broker"]
    if not broker.get("connected"):
        away = _age(broker.get("since"), now) or 0
        error = f" ({broker['last_error']})" if broker.get("last_error") else ""
        level = "critical" if away > LATE_SECONDS else "degraded"
        yield (
            level,
            f"the broker {broker.get('url', '')} is away for {ago(away)}{error}; check that it runs, and [broker]",
        )
    for topic, why in broker.get("refused_filters", {}).items():
        yield "degraded", f"the broker refuses the subscription {topic} ({why}); check its access rules"
    if broker.get("filters_without_qos"):
        topics = ", ".join(broker["filters_without_qos"])
        yield (
            "degraded",
            f"the broker gives only QoS 0 for {topics}: what comes while we are away is lost; check its access rules",
        )
    if live.get("stuck"):
        yield "critical", f"{', '.join(live['stuck'])} make no progress; restart the gateway and keep its journal"
    offset = live["cloud"].get("clock_offset_ms")
    if offset is not None and abs(offset) > CLOCK_OFF_SECONDS * 1000:
        yield (
            "degraded",
            f"this machine's clock differs from the cloud's by {ago(abs(offset) / 1000)}; check time synchronisation",
        )
    media = live.get("media", {})
    for source, why in media.get("troubles", {}).items():
        yield "degraded", f"pictures of {source or 'all sources'} fail: {why}"
    if media.get("uploads_failing"):
        yield (
            "degraded",
            f"{media['uploads_failing']} uploads in a row have failed; check the line to the cloud's storage",
        )
    for trouble in live.get("troubles", ()):
        what = trouble.get("camera") or trouble.get("source")
        local = "; it stays local, set site.camera_id to report it" if trouble.get("local") else ""
        yield (
            "degraded",
            f"trouble at {what} since {iso_utc(trouble['since_at'])}: {trouble.get('kind') or 'fault'}{local}",
        )
    for gap in live.get("gaps", ()):
        if now - gap["at"] / 1000 < RECENT_SECONDS:
            yield "degraded", f"messages may be missing before {iso_utc(gap['at'])}: {gap['reason']}"


def describe(status: Mapping[str, Any]) -> str:
    lines = [status["state"], *(f"  - {reason}" for reason in status["reasons"]), ""]
    broker, cloud = status["broker"], status["cloud"]
    lines.append(f"gateway  {status['version']}, {'running' if status['running'] else 'not running'}")
    lines.append(
        f"broker   {_yes_no(broker.get('connected'), 'connected', 'away')}  {broker.get('url') or ''}".rstrip()
    )
    token = f", token until {cloud['token_expires_at']}" if cloud.get("token_expires_at") else ""
    lines.append(f"cloud    {_yes_no(cloud.get('reachable'), 'reachable', 'away')}{token}")
    lines.append(f"events   {_counts(status['events'])}")
    if status["oldest_undelivered_seconds"] is not None:
        lines.append(f"         the oldest undelivered one is {ago(status['oldest_undelivered_seconds'])} old")
    lines.append(f"uploads  {_counts(status['uploads'])}")
    free = status["disk_free_bytes"]
    lines.append(
        f"disk     {(status['media_bytes'] or 0) >> 20} MiB of pictures, {'?' if free is None else free >> 20} MiB free"
    )
    if status["cameras"]:
        rows = [
            (name, seen["last_message_at"] or "never", seen["last_event_at"] or "never")
            for name, seen in status["cameras"].items()
        ]
        lines += ["", table(rows, ("CAMERA", "LAST MESSAGE", "LAST EVENT"))]
    return "\n".join(lines)


def _yes_no(value: bool | None, yes: str, no: str) -> str:
    return "unknown" if value is None else yes if value else no


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def _messages(overview: Overview | None) -> dict[str, int]:
    """received = the sum of the others."""
    names = ("received", "stored", "duplicate", "closing", "ignored", "unmapped", "unreadable")
    return {name: overview.counters.get(name, 0) for name in names} if overview else {}


def _cloud(cloud: Mapping[str, Any]) -> dict[str, Any]:
    expires = cloud.get("token_expires_at")
    return {**cloud, "token_expires_at": iso_utc(expires) if isinstance(expires, int) else expires}


def _cameras(settings: Settings, overview: Overview | None) -> dict[str, dict[str, str | None]]:
    """All that are configured, and whatever else has been heard."""
    seen = {one.name: one for one in overview.cameras} if overview else {}
    shown = {}
    for name in sorted({*settings.cameras, *seen}):
        times = (seen[name].last_message_at, seen[name].last_event_at) if name in seen else (None, None)
        message, event = (None if at is None else iso_utc(at) for at in times)
        shown[name] = {"last_message_at": message, "last_event_at": event}
    return shown


def _age(at_ms: int | None, now: float) -> float | None:
    return None if at_ms is None else round(max(0.0, now - at_ms / 1000), 3)


def _disk_free(outbox: Path) -> int | None:
    folder = next((folder for folder in outbox.parents if folder.exists()), None)
    try:
        return None if folder is None else shutil.disk_usage(folder).free
    except OSError:
        return None
