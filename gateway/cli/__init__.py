"""What a person can ask: `chekt-gateway COMMAND`, one small file for each command.

Data goes to stdout, talk to stderr. Exit codes: 0 clean, 1 failed, 64 usage, 78 configuration wrong (sysexits.h);
`status` has codes of its own. Each command's file offers `add_parser(subparsers)` and `run(args) -> int`, and is
imported only when asked for.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Final, NoReturn

EX_USAGE: Final = 64

COMMANDS: Final = (
    "run",
    "check",
    "status",
    "events",
    "trace",
    "retry",
    "explain",
    "families",
    "simulator",
    "demo",
)


class Parser(argparse.ArgumentParser):
    """argparse leaves with 2 on a usage error; systemd and scripts expect 64 (sysexits.h, EX_USAGE)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}\n")


class VersionAction(argparse.Action):
    """`--version`, and `--version --json` with what a support case needs to know."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        from gateway.cli.version import versions

        known = versions()
        if "--json" in sys.argv:
            print(json.dumps(known))
        else:
            print(f"chekt-gateway {known['chekt-gateway']}")
        parser.exit(0)


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="chekt-gateway", description="Carries a site's alarms to the CHeKT cloud without losing one.")
    parser.add_argument(
        "--version", action=VersionAction, nargs=0, help="print the version; with --json also the libraries'"
    )
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        module = importlib.import_module(f"gateway.cli.{name}")
        module.add_parser(subparsers).set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `chekt-gateway events | head`: the reader has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code
