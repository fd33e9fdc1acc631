"""What the commands about events share: where the outbox is, and how the running gateway is asked.

Nothing here writes. The gateway that runs is asked over its control socket; without one the outbox is read as it is.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.model import iso_utc

if TYPE_CHECKING:
    from gateway.config import Settings

EX_USAGE: Final = 64  # sysexits.h
EX_CONFIG: Final = 78
ASK_SECONDS: Final = 10.0


class NoAnswer(Exception):
    """A gateway runs, or may run, but it cannot be asked. Says why, and what to do."""


@dataclass(frozen=True)
class Place:
    settings: Settings
    outbox: Path


def add_config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", "-c", metavar="FILE", help="another configuration than /etc/chekt-gateway/gateway.toml"
    )


def find_place(args: argparse.Namespace) -> Place | int:
    """Where everything is, or the exit code, after saying what is wrong with the configuration."""
    from gateway.config import ConfigError, Settings

    try:
        settings = Settings.load(args.config, os.environ, with_files=False)
    except ConfigError as error:
        for fault in error.faults:
            print(fault, file=sys.stderr)
        return EX_CONFIG
    return Place(settings, Path(str(settings.outbox.path)))


def ask_gateway(place: Place, request: dict[str, Any]) -> dict[str, Any] | None:
    """The answer of the running gateway; None where none runs. Raises NoAnswer."""
    from gateway.host.control import ControlError, ask, socket_path

    try:
        answer = asyncio.run(ask(socket_path(place.outbox), request, ASK_SECONDS))
    except TimeoutError:
        raise NoAnswer(f"the gateway runs but has not answered for {ASK_SECONDS:.0f} s; see its journal") from None
    except PermissionError:
        raise NoAnswer("the gateway may only be asked by its own user; run this as root or as chekt-gateway") from None
    except (ControlError, OSError) as error:
        raise NoAnswer(f"the gateway cannot be asked: {error}") from None
    if answer is not None and "error" in answer:
        raise NoAnswer(f"the gateway could not answer: {answer['error']}; see its journal")
    return answer


def table(rows: Iterable[Sequence[str]], head: Sequence[str]) -> str:
    """Columns as wide as they need to be; the last one is left ragged."""
    lines = [tuple(head), *(tuple(" ".join(cell.split()) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def local_time(at: str | int, *, milliseconds: bool = False) -> str:
    """For people, as `journalctl` shows it: in the time zone of this machine. `at`: ISO 8601, or wall milliseconds."""
    moment = datetime.fromisoformat(iso_utc(at) if isinstance(at, int) else at).astimezone()
    shown = moment.strftime("%Y-%m-%d %H:%M:%S")
    return f"{shown}.{moment.microsecond // 1000:03d}" if milliseconds else shown


def ago(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
