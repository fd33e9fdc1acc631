"""`chekt-gateway discover`: listens on the broker, recognises equipment and cameras, prints stanzas ready to paste.

Everything that is published is heard for a while, with a client of its own that leaves nothing behind; nothing is
stored and nothing sent. What is configured already is left out. Only the camera_id of each camera, which CHeKT gives,
is for a person to fill in.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.asking import EX_CONFIG, add_config_option

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.sources.recognition import Found, Recogniser

CONNECT_SECONDS: Final = 15.0
MAX_MESSAGE: Final = 256 << 10  # pictures of 4 MB need not be taken in
_NOT_IN_A_NAME: Final = re.compile(r"[^A-Za-z0-9_-]+")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    from gateway.config import parse_duration

    def duration(text: str) -> float:
        try:
            return float(parse_duration(text))
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser = subparsers.add_parser(
        "discover",
        help="listens on the broker and prints configuration for what it hears",
        description="Listens on the broker, recognises families of equipment and cameras, and prints configuration "
        "stanzas ready to paste. Walk past the cameras meanwhile. Stores and sends nothing.",
    )
    parser.add_argument("--for", dest="seconds", type=duration, default=60.0, metavar="60s", help="how long to listen")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, one for each source")
    add_config_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    from gateway.config import ConfigError, Settings, config_path
    from gateway.sources.families import families
    from gateway.sources.known import known_families
    from gateway.sources.recognition import Recogniser

    try:
        settings = Settings.load(config_path(args.config, os.environ), os.environ, known=known_families())
    except ConfigError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return EX_CONFIG
    recogniser = Recogniser(families())
    print(f"listening on {settings.broker.url} for {args.seconds:g} s …", file=sys.stderr)
    fault = asyncio.run(listen(settings, recogniser, args.seconds))
    if fault is not None:
        print(f"{settings.broker.url}: {fault}", file=sys.stderr)
        return 1
    stanzas = list(propose(recogniser, settings))
    for stanza in stanzas:
        print(json.dumps(stanza) if args.json else stanza["stanza"])
    print(summary(recogniser, stanzas), file=sys.stderr)
    return 0 if recogniser.found else 1


async def listen(settings: Settings, recogniser: Recogniser, seconds: float) -> str | None:
    """Feeds what is published to the recogniser; or why that was not possible."""
    import secrets

    from gateway.host.clock import SystemClock
    from gateway.sources.broker_filters import Filter
    from gateway.sources.broker_probe import guest

    name = settings.broker.password_file
    password = None if name is None else settings.secret(name).decode()
    ours = settings.broker.model_copy(update={"client_id": f"chekt-discover-{secrets.token_hex(6)}"})
    everything = [Filter("#", 0)]
    async with guest(ours, everything, clock=SystemClock(0), password=password, max_message=MAX_MESSAGE) as visit:
        if not await visit.begins(CONNECT_SECONDS):
            return visit.fault
        if visit.session.facts()["refused_filters"]:
            return "our user may not listen to everything (#): allow it for as long as this takes"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    received = await visit.session.receive(500)
                    visit.session.acknowledge([one.token for one in received])
                    for one in received:
                        if one.oversize is None:
                            recogniser.hear(one.message)
    return None


def propose(recogniser: Recogniser, settings: Settings) -> Iterator[dict[str, Any]]:
    """A stanza for each source that is not configured, and for the new cameras of those that are."""
    from gateway.sources.families import load_family
    from gateway.sources.plans import Plans

    plans = Plans(settings)
    taken = {*settings.sources, *settings.cameras}
    for found in sorted(recogniser.found.values(), key=lambda each: (each.family, each.topic_prefix or "")):
        default = load_family(found.family).facts.dialect
        dialect = found.dialect(default)
        table = _configured(found, settings)
        is_new = table is None
        if table is None:
            table = _free(found.family if found.topic_prefix is None else found.topic_prefix, taken)
        ignored = () if is_new else settings.sources[table].ignore
        new = [
            camera
            for camera in found.cameras.get(dialect, {})
            if camera not in ignored and (is_new or plans.find(table, camera) is None)
        ]
        if not is_new and not new:
            continue
        lines = []
        if is_new:
            lines = [f"[sources.{table}]", f"family = {_quoted(found.family)}"]
            lines += [f"dialect = {_quoted(dialect)}"] if dialect else []
            lines += [f"topic_prefix = {_quoted(found.topic_prefix)}"] if found.topic_prefix is not None else []
            lines.append("")
        for camera in new:
            name = _free(camera, taken)
            lines += [f"[cameras.{name}]", f'camera_id = "ID-FROM-CHEKT-{name}"  # replace']
            lines += [f"name = {_quoted(camera)}"] if name != camera else []
            lines += [f"source = {_quoted(table)}", ""]
        yield {
            "source": table,
            "new": is_new,
            "family": found.family,
            "dialect": dialect or None,
            "topic_prefix": found.topic_prefix,
            "messages": found.messages[dialect],
            "cameras": new,
            "stanza": "\n".join(lines),
        }


def summary(recogniser: Recogniser, stanzas: list[dict[str, Any]]) -> str:
    if not recogniser.heard:
        return "nothing was heard: is the equipment told this broker's address, user and password?"
    if not recogniser.found:
        return f"{recogniser.heard} messages, none of a family that we know; docs/rules.md tells how to describe others"
    if not stanzas:
        return f"{recogniser.heard} messages; everything that was recognised is configured"
    return f"{recogniser.heard} messages; replace each camera_id, then: chekt-gateway check"


def _configured(found: Found, settings: Settings) -> str | None:
    for table, source in settings.sources.items():
        if source.family == found.family and source.topic_prefix == found.topic_prefix:
            return table
    return None


def _free(name: str, taken: set[str]) -> str:
    """A table's name that nobody has yet."""
    plain = _NOT_IN_A_NAME.sub("_", name).strip("_") or "camera"
    free, number = plain, 2
    while free in taken:
        free, number = f"{plain}_{number}", number + 1
    taken.add(free)
    return free


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
