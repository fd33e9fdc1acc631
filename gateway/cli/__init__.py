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
from typing import Any, Final, NoReturn

from gateway.cli.asking import EX_USAGE

COMMANDS: Final = (
    "run",
    "check",
    "doctor",
    "status",
    "events",
    "trace",
    "retry",
    "discover",
    "explain",
    "families",
    "simulator",
    "demo",
)


class Parser(argparse.ArgumentParser):
    """argparse leaves with 2 on a usage error; systemd and scripts expect 64 (sysexits.h, EX_USAGE)."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EX_USAGE, f"{self.prog}: {message}; see {self.prog} --help\n")


class CommandParser(Parser):
    """Of one command: what it does not know is said with its own usage, not with that of all commands."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown


class VersionAction(argparse.Action):
    """`--version`, and `--version --json` with what a support case needs to know."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, as_json: bool, help: str) -> None:  # noqa: A002
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self._as_json = as_json

    def __call__(self, parser: argparse.ArgumentParser, *_: object, **__: object) -> NoReturn:
        from gateway.cli.version import versions

        known = versions()
        print(json.dumps(known) if self._as_json else f"chekt-gateway {known['chekt-gateway']}")
        parser.exit(0)


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """`words`: the command line; options are never taken for what they only begin like."""
    parser = Parser(
        prog="chekt-gateway",
        description="Carries a site's alarms to the CHeKT cloud without losing one.",
        epilog="`chekt-gateway COMMAND --help` says more. Exit codes: 0 clean, 1 failed, 64 wrong usage, "
        "78 wrong configuration.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)
    commands = [_add_command(subparsers, name) for name in COMMANDS]
    for each in (parser, *commands):
        each.allow_abbrev = False
        each.add_argument(
            "--version",
            action=VersionAction,
            as_json="--json" in words,
            help="print the version; with --json also those of Python and the libraries",
        )
    return parser


def _add_command(subparsers: Any, name: str) -> argparse.ArgumentParser:
    module = importlib.import_module(f"gateway.cli.{name}")
    parser: argparse.ArgumentParser = module.add_parser(subparsers)
    parser.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = build_parser(words)
    if not words:
        parser.print_help(sys.stderr)
        return EX_USAGE
    args = parser.parse_args(words)
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
