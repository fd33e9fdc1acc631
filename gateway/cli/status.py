"""`chekt-gateway status`: health at a glance. Exit 0 ok, 1 degraded, 2 critical.

What is on disk is read from the outbox, the rest is asked of the running gateway. What is well and what is not is
judged in `health.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.asking import NoAnswer, Place, add_config_option, ago, ask_gateway, find_place, local_time, table
from gateway.cli.health import Reason, age, judge
from gateway.model import iso_utc

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.outbox.ledger import Overview

EXIT_CODES: Final = {"ok": 0, "degraded": 1, "critical": 2}
WATCH_SECONDS: Final = 2.0
_CLEAR: Final = "\x1b[H\x1b[2J"
_MESSAGE_ENDS: Final = ("received", "stored", "duplicate", "closing", "ignored", "unmapped", "unreadable")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "status",
        help="is everything well? exit 0 ok, 1 degraded, 2 critical",
        description="Health at a glance, from disk and from the running gateway: what is wrong, and what to do about "
        "it. Exit 0 ok, 1 degraded, 2 critical. Times are this machine's; with --json UTC.",
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")
    return parser


def run(args: argparse.Namespace) -> int:
    place = find_place(args)
    if isinstance(place, int):
        return place
    code = 0
    try:
        while True:
            status = look(place)
            text = json.dumps(status, ensure_ascii=False) if args.json else describe(status)
            if args.watch and not args.json and sys.stdout.isatty():
                text = _CLEAR + text
            print(text, flush=True)
            code = EXIT_CODES[status["state"]]
            if not args.watch:
                return code
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        if not args.watch:
            raise
        return code


def look(place: Place) -> dict[str, Any]:
    from gateway.outbox.errors import StoreError
    from gateway.outbox.ledger import Ledger

    now = time.time()
    reasons: list[Reason] = []
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
    if live is not None and "now" in live:
        now = live["now"] / 1000  # the gateway may know better than this machine's clock
    overview: Overview | None = None
    try:
        with Ledger(place.outbox) as ledger:
            overview = ledger.overview()
    except StoreError as error:
        reasons.append(("critical", str(error)))
    free = _disk_free(place.outbox)
    reasons += judge(place.settings, overview, live, free=free, now=now)
    levels = [level for level, _ in reasons]
    state = next((level for level in ("critical", "degraded") if level in levels), "ok")
    return {
        "state": state,
        "reasons": [sentence for wanted in ("critical", "degraded") for level, sentence in reasons if level == wanted],
        "version": live["version"] if live else metadata.version("chekt-gateway"),
        "running": running,
        "broker": {"connected": None} if live is None else _with_times(live["broker"], "since"),
        "cloud": (
            {"reachable": None, "token_expires_at": None}
            if live is None
            else _with_times(live["cloud"], "token_expires_at")
        ),
        "clock": None if live is None else live.get("clock"),
        "troubles": [] if live is None else [_with_times(trouble, "since_at") for trouble in live.get("troubles", ())],
        "events": dict(overview.events) if overview else {},
        "messages": {name: overview.counters.get(name, 0) for name in _MESSAGE_ENDS} if overview else {},
        "oldest_undelivered_seconds": age(overview.oldest_undelivered_at if overview else None, now),
        "uploads": dict(overview.uploads) if overview else {},
        "media_bytes": overview.media_bytes if overview else None,
        "disk_free_bytes": free,
        "cameras": _cameras(place.settings, overview),
        "sources": _sources(place.settings, overview),
    }


def describe(status: Mapping[str, Any]) -> str:
    lines = [status["state"], *(f"  - {reason}" for reason in status["reasons"]), ""]
    lines.append(f"gateway  {status['version']}, {'running' if status['running'] else 'not running'}")
    lines.append(f"broker   {_broker(status['broker'])}")
    lines.append(f"cloud    {_cloud(status['cloud'], told=status['broker'].get('connected') is not None)}")
    lines.append(f"events   {_counts(status['events'])}")
    if status["oldest_undelivered_seconds"] is not None:
        lines.append(f"         the oldest undelivered one is {ago(status['oldest_undelivered_seconds'])} old")
    lines.append(f"uploads  {_counts(status['uploads'])}")
    lines.append(f"disk     {_size(status['media_bytes'])} of pictures, {_size(status['disk_free_bytes'])} free")
    if status["cameras"]:
        rows = [(name, _seen(one["last_message_at"]), _seen(one["last_event_at"])) for name, one in _heard(status)]
        lines += ["", table(rows, ("CAMERA", "LAST MESSAGE", "LAST EVENT"))]
    return "\n".join(lines)


def _heard(status: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Cameras, then the sources themselves."""
    sources = [(f"[{name}]", one) for name, one in status["sources"].items()]
    return [*status["cameras"].items(), *sources]


def _broker(broker: Mapping[str, Any]) -> str:
    connected = broker.get("connected")
    if connected is None:
        return "unknown"
    since = f", since {local_time(broker['since'])}" if broker.get("since") else ""
    return f"{'connected' if connected else 'away'}  {broker.get('url', '')}{since}"


def _cloud(cloud: Mapping[str, Any], *, told: bool) -> str:
    """`told`: by the running gateway."""
    reachable = cloud.get("reachable")
    if reachable is None and told:
        return "not asked yet: nothing had to be sent since the start"
    token = f", token until {local_time(cloud['token_expires_at'])}" if cloud.get("token_expires_at") else ""
    return "unknown" if reachable is None else f"{'reachable' if reachable else 'away'}{token}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none"


def _size(size: int | None) -> str:
    if size is None:
        return "?"
    return f"{size / (1 << 30):.1f} GiB" if size >= 1 << 30 else f"{size / (1 << 20):.1f} MiB"


def _seen(at: str | None) -> str:
    return "never" if at is None else local_time(at)


def _with_times(said: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """As the gateway says it, its times as people write them."""
    return {key: iso_utc(value) if key in names and isinstance(value, int) else value for key, value in said.items()}


def _cameras(settings: Settings, overview: Overview | None) -> dict[str, dict[str, str | None]]:
    """All that are configured, and whatever else has been heard."""
    seen = {one.name for one in overview.cameras} if overview else set()
    return _last_heard(sorted({*settings.cameras, *seen} - _source_names(settings)), overview)


def _sources(settings: Settings, overview: Overview | None) -> dict[str, dict[str, str | None]]:
    return _last_heard(sorted(_source_names(settings)), overview)


def _source_names(settings: Settings) -> set[str]:
    return settings.sources.keys() - settings.cameras.keys()


def _last_heard(names: list[str], overview: Overview | None) -> dict[str, dict[str, str | None]]:
    seen = {one.name: (one.last_message_at, one.last_event_at) for one in overview.cameras} if overview else {}
    shown = {}
    for name in names:
        message, event = (None if at is None else iso_utc(at) for at in seen.get(name, (None, None)))
        shown[name] = {"last_message_at": message, "last_event_at": event}
    return shown


def _disk_free(outbox: Path) -> int | None:
    folder = next((folder for folder in outbox.parents if folder.exists()), None)
    try:
        return None if folder is None else shutil.disk_usage(folder).free
    except OSError:
        return None
