"""`chekt-gateway trace EVENT_ID`: everything that happened to one event, hop by hop. Exit 1 if it is not known.

Who traces a dead event has looked at it: the running gateway is told, and `status` is critical for it no more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Mapping
from typing import Any

from gateway.cli.asking import NoAnswer, add_config_option, ago, ask_gateway, find_place, local_time, table
from gateway.model import UNBOUNDED_MS
from gateway.states import EventState


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "trace",
        help="everything that happened to one event",
        description="Everything that happened to one event, hop by hop. Exit 1 if it is not known. Times are this "
        "machine's; with --json UTC.",
    )
    add_config_option(parser)
    parser.add_argument("event_id", metavar="EVENT_ID", help="as `events` lists it")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    from gateway.outbox.errors import StoreError
    from gateway.outbox.ledger import Ledger

    place = find_place(args)
    if isinstance(place, int):
        return place
    try:
        with Ledger(place.outbox) as ledger:
            event = ledger.trace(args.event_id)
    except StoreError as error:
        print(error, file=sys.stderr)
        return 1
    if event is None:
        print(
            f"no event {args.event_id} is known; it may have been forgotten after outbox.keep_closed", file=sys.stderr
        )
        return 1
    print(json.dumps(event, ensure_ascii=False) if args.json else describe(event))
    if event["state"] == EventState.DEAD:
        with contextlib.suppress(NoAnswer):  # the answer to what was asked is complete without it
            ask_gateway(place, {"command": "looked_at", "event_ids": [args.event_id]})
    return 0


def describe(event: Mapping[str, Any]) -> str:
    lines = [f"event    {event['event_id']}"]
    lines.append(f"what     {event['event_type']} {event['event_status']} {event['kind']}".rstrip())
    camera = event["camera"] or event["source_camera"]
    lines.append(f"camera   {camera or '-'} ({event['camera_id'] or 'no camera_id'}), source {event['source']}")
    lines.append(f"time     {local_time(event['event_time'], milliseconds=True)} ({event['event_time']})")
    if event["age_unknown_ms"] is not None:
        lines.append(f"         it waited in the broker before it was received, {_bound(event['age_unknown_ms'])}")
    lines.append(f"state    {event['state']}" + (f": {event['reason']}" if event["reason"] else ""))
    if event["chekt_event_id"]:
        lines.append(f"CHeKT    {event['chekt_event_id']} (response {event['response_id'] or '-'})")
    for one in event["media"]:
        reason = f": {one['reason']}" if one["reason"] else ""
        size = f", {one['bytes']} bytes" if one["bytes"] is not None else ""
        lines.append(f"picture  {one['kind']} {one['seq'] + 1}: {one['state']}{size}{reason}")
    first = event["hops"][0]["ticks"]
    rows = []
    for hop in event["hops"]:
        after = (hop["ticks"] - first) / 1000
        rows.append((local_time(hop["at"], milliseconds=True), f"{after:+.3f} s", hop["what"], _detail(hop["detail"])))
    return "\n".join([*lines, "", table(rows, ("TIME", "SINCE RECEIPT", "WHAT", "DETAIL"))])


def _bound(at_most_ms: int) -> str:
    return "nobody can tell how long" if at_most_ms >= UNBOUNDED_MS else f"for at most {ago(at_most_ms / 1000)}"


def _detail(detail: Mapping[str, Any]) -> str:
    return ", ".join(
        name if value is True else f"{name} {value}" for name, value in detail.items() if value not in (None, "")
    )
