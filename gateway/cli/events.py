"""`chekt-gateway events`: lists events, the newest first."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any, Final

from gateway.cli.asking import add_config_option, find_place, local_time, table
from gateway.states import EventState

DEFAULT_LIMIT: Final = 50
_HEAD: Final = ("RECEIVED", "EVENT", "TYPE", "CAMERA", "STATE", "ATTEMPTS", "REASON")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "events",
        help="lists events, the newest first",
        description="Lists events of the outbox, the newest first. Times are this machine's; with --json UTC.",
    )
    add_config_option(parser)
    parser.add_argument("--state", choices=[state.value for state in EventState], help="only those in this state")
    parser.add_argument(
        "--camera", metavar="NAME", help="only those of this camera (our name, the equipment's, or its id)"
    )
    parser.add_argument(
        "--since", metavar="DURATION", type=duration, help='only those received in this time, such as "1h"'
    )
    parser.add_argument(
        "--limit", metavar="N", type=count, default=DEFAULT_LIMIT, help=f"at most so many (default {DEFAULT_LIMIT})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def duration(text: str) -> float:
    from gateway.config import parse_duration

    try:
        return float(parse_duration(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)


def run(args: argparse.Namespace) -> int:
    from gateway.outbox.errors import StoreError
    from gateway.outbox.ledger import Filter, Ledger

    place = find_place(args)
    if isinstance(place, int):
        return place
    since = None if args.since is None else round((time.time() - args.since) * 1000)
    wanted = Filter(EventState(args.state) if args.state else None, args.camera, since, args.limit)
    try:
        with Ledger(place.outbox) as ledger:
            rows = ledger.events(wanted)
            if args.json:
                for row in rows:
                    print(json.dumps(row, ensure_ascii=False))
                return 0
            lines = [
                (
                    local_time(row["received_at"]),
                    row["event_id"],
                    f"{row['event_type']} {row['event_status']}",
                    row["camera"] or row["source_camera"] or row["source"],
                    row["state"],
                    str(row["attempts"]),
                    row["reason"] or "",
                )
                for row in rows
            ]
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    print(table(lines, _HEAD) if lines else "no events", file=sys.stdout if lines else sys.stderr)
    return 0
