"""`chekt-gateway discover`: listens on the broker, recognises equipment and cameras, prints stanzas ready to paste.

Everything that is published is heard for a while, with a client of its own that leaves nothing behind; nothing is
stored and nothing sent. What is configured already is left out. Only the camera_id of each camera, which CHeKT gives,
is for a person to fill in; `check` warns until it is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.asking import EX_CONFIG, add_config_option

if TYPE_CHECKING:
    from gateway.config import Settings
    from gateway.sources.recognition import Found, Recogniser

CONNECT_SECONDS: Final = 15.0
SHOWN_UNKNOWN: Final = 12  # first levels of topics
MAX_MESSAGE: Final = 256 << 10  # pictures of 4 MB need not be taken in


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
    import structlog

    from gateway.config import ConfigError, Settings, config_path
    from gateway.sources.families import families
    from gateway.sources.known import known_families
    from gateway.sources.recognition import Recogniser

    try:
        # The registration's key may come later: only the broker's files are needed here.
        path = config_path(args.config, os.environ)
        settings = Settings.load(path, os.environ, known=known_families(), with_files=False)
    except ConfigError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return EX_CONFIG
    recogniser = Recogniser(families())
    print(f"listening on {settings.broker.url} for {args.seconds:g} s …", file=sys.stderr)
    # Standard output is what will be pasted; of the log only what is wrong is said, beside it.
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    )
    try:
        fault = asyncio.run(listen(settings, recogniser, args.seconds))
    finally:
        structlog.reset_defaults()
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

    from gateway.config import FileFault
    from gateway.host.clock import SystemClock
    from gateway.sources.broker_filters import Filter
    from gateway.sources.broker_probe import guest

    name = settings.broker.password_file
    try:
        password = None if name is None else settings.secret(name).decode()
    except (FileFault, UnicodeDecodeError) as fault:
        return f"broker.password_file: {fault}"
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
        family = load_family(found.family)
        dialect = found.dialect(family.facts.dialect)
        table = _configured(found, dialect, settings)
        is_new = table is None
        if table is None:
            table = _take(_named(found, dialect, family.facts.dialect), taken)
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
            if found.site_alarms:
                lines.append(_placeholder(table, "the id in CHeKT for alarms that are of no camera"))
            if found.arms:
                lines.append("# CHeKT is told of arming and disarming where [arming] says enabled = true")
            lines.append("")
        for camera in new:
            name = _take(camera, taken, otherwise=f"{table}_{camera}")
            lines += [f"[cameras.{name}]", _placeholder(name, "the camera's id in CHeKT")]
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


def _placeholder(name: str, what: str) -> str:
    from gateway.config import PLACEHOLDER

    return f'camera_id = "{PLACEHOLDER}{name}"  # replace: {what}'


def summary(recogniser: Recogniser, stanzas: list[dict[str, Any]]) -> str:
    from gateway.config import PLACEHOLDER

    if not recogniser.heard:
        return "nothing was heard: is the equipment told this broker's address, user and password?"
    if not recogniser.found:
        said = f"{recogniser.heard} messages, none of a family that we know; docs/rules.md tells how to describe others"
    elif not stanzas:
        said = f"{recogniser.heard} messages; everything that was recognised is configured"
    else:
        said = (
            f"{recogniser.heard} messages; put the id that CHeKT gives in place of each {PLACEHOLDER}…, "
            "then: chekt-gateway check\n"
            'a camera that is left out on purpose goes into its source: ignore = ["NAME"]'
        )
    known = {prefix.partition("/")[0] for found in recogniser.found.values() for prefix in found.prefixes}
    unknown = [(first, count) for first, count in recogniser.unknown.most_common() if first not in known]
    strange = [f"{first}/… ({count})" for first, count in unknown[:SHOWN_UNKNOWN]]
    if len(unknown) > SHOWN_UNKNOWN:
        strange.append("and others")
    return said if not strange else f"{said}\nnot recognised: {', '.join(strange)}"


def _configured(found: Found, dialect: str, settings: Settings) -> str | None:
    """The table of the source that hears it already."""
    from gateway.sources.families import load_family

    for table, source in settings.sources.items():
        if source.family != found.family:
            continue
        family = load_family(source.family)
        own = family.prefixes(source.dialect or family.facts.dialect)
        if found.topic_prefix is not None:
            if source.topic_prefix == found.topic_prefix:
                return table
        elif (source.topic_prefix is None and own == found.own_prefixes) or source.topic_prefix in found.own_prefixes:
            return table
    return None


def _named(found: Found, dialect: str, default: str | None) -> str:
    """What an installer looks for: the prefix, else the family, with the dialect where it is another than usual."""
    if found.topic_prefix is not None:
        return found.topic_prefix
    return found.family if dialect in ("", default) else f"{found.family}_{dialect}"


def _take(name: str, taken: set[str], otherwise: str | None = None) -> str:
    """A table's name that nobody has yet."""
    from gateway.sources.table_names import free_table

    free = free_table(name, taken, otherwise=otherwise)
    taken.add(free)
    return free


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
