"""`chekt-gateway retry`: brings dead events back. Exit 0 if all of them came back, else 1.

The running gateway does it; without one the outbox is opened here, under its lock. An event older than 15 minutes does
not signal the monitoring station unless `--signal` says so: the person who asks knows its age, the station does not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

from gateway.cli.asking import EX_USAGE, NoAnswer, Place, add_config_option, ask_gateway, find_place


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "retry",
        help="brings dead events back, and unmapped ones once their camera is configured",
        description="Brings dead events back, and unmapped ones once their camera is configured. One older than 15 "
        "minutes does not signal the monitoring station. Exit 0 if all came back, else 1.",
    )
    add_config_option(parser)
    parser.add_argument("event_ids", metavar="EVENT_ID", nargs="*", help="as `events --state dead` lists them")
    parser.add_argument("--all-dead", action="store_true", help="all dead events; shows how many and asks")
    parser.add_argument("--yes", action="store_true", help="with --all-dead: do not ask")
    parser.add_argument("--signal", action="store_true", help="signal the monitoring station whatever their age")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def run(args: argparse.Namespace) -> int:
    from gateway.outbox.errors import StoreError

    if bool(args.event_ids) is args.all_dead:
        print("chekt-gateway retry: name the events, or say --all-dead", file=sys.stderr)
        return EX_USAGE
    place = find_place(args)
    if isinstance(place, int):
        return place
    try:
        if args.all_dead and not args.yes and not _sure(place):
            return 1
        request = {"command": "retry", "event_ids": args.event_ids, "all_dead": args.all_dead, "signal": args.signal}
        answer = ask_gateway(place, request)
        if answer is None:
            answer = asyncio.run(_retry_here(place, args))
    except (NoAnswer, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(answer, ensure_ascii=False))
    else:
        _describe(answer)
    return 1 if answer["unknown"] or answer["refused"] or answer["unmapped"] else 0


def _sure(place: Place) -> bool:
    from gateway.outbox.ledger import Ledger

    with Ledger(place.outbox) as ledger:
        dead = ledger.overview().events["dead"]
    if not dead:
        return True  # there is nothing to be sure about
    print(f"{dead} dead events will be sent again. Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


async def _retry_here(place: Place, args: argparse.Namespace) -> dict[str, Any]:
    from gateway.answers import find_camera
    from gateway.host.clock import SystemClock
    from gateway.outbox.errors import StoreError
    from gateway.outbox.store import Store

    if not place.outbox.exists():  # a mistyped path must not make a new outbox
        raise StoreError(f"there is no outbox at {place.outbox}; it is made at the first start of the gateway")
    store = await Store.open(place.outbox, make_clock=SystemClock)
    try:
        revived = await store.revive(
            None if args.all_dead else args.event_ids,
            signal=True if args.signal else None,
            find_camera=find_camera(place.settings),
        )
    finally:
        await store.close()
    return revived.as_answer()


def _describe(answer: Mapping[str, Any]) -> None:
    silent, unchanged = set(answer["silent"]), set(answer["unchanged"])
    for event_id in answer["revived"]:
        notes = ["does not signal the monitoring station"] if event_id in silent else []
        notes += ["with the same bytes, since the cloud may have it already"] if event_id in unchanged else []
        print(f"{event_id} will be sent again" + (f" ({'; '.join(notes)})" if notes else ""))
    if not answer["revived"]:
        print("nothing to bring back", file=sys.stderr)
    for event_id in answer["unmapped"]:
        print(
            f"{event_id}: its camera is not configured; add it to the configuration and restart first", file=sys.stderr
        )
    for event_id in answer["unknown"]:
        print(f"{event_id} is not known", file=sys.stderr)
    for event_id, state in answer["refused"].items():
        print(f"{event_id} is {state}; only dead and unmapped events can be brought back", file=sys.stderr)
