"""`chekt-gateway doctor`: would an alarm get through, and what would be lost? Signals nothing.

One line a check, `ok`, `warn` or `FAIL`, each with the remedy. Exit 0, or 1 where something fails. Uses a client id of
its own at the broker, so that it may run beside the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gateway.cli.asking import add_config_option

if TYPE_CHECKING:
    from gateway.cli.finding import Finding
    from gateway.config import Settings

LISTEN_SECONDS: Final = 15.0  # Frigate's cameras tell every 10 s that they are there


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="would an alarm get through? tries everything once; signals nothing",
        description="Tries everything that an alarm needs, once, and says what to mend. Signals nothing.",
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument(
        "--for", type=_seconds, default=LISTEN_SECONDS, dest="listen", metavar="SECONDS", help="listen so long (15)"
    )
    parser.add_argument(
        "--mosquitto-conf", type=Path, metavar="FILE", help="the broker's configuration, where it is not the usual file"
    )
    return parser


def _seconds(text: str) -> float:
    try:
        seconds = float(text.removesuffix("s"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds") from None
    if not 0 < seconds <= 3600:
        raise argparse.ArgumentTypeError("between 0 and 3600 seconds")
    return seconds


def run(args: argparse.Namespace, *, environ: Mapping[str, str] | None = None) -> int:
    """`environ` is given by tests."""
    import structlog

    from gateway.cli.finding import Finding
    from gateway.config import ConfigError, Settings, config_path
    from gateway.sources.known import known_families

    # What the parts log while they are tried stands in the findings.
    structlog.configure(processors=[_drop])
    environ = os.environ if environ is None else environ
    report = _Report(args.json)
    path = config_path(args.config, environ)
    try:
        loaded = Settings.load_with_warnings(path, environ, known=known_families(), now=datetime.now(UTC))
    except ConfigError as error:
        for fault in error.faults:
            report.add(Finding("configuration", "FAIL", str(fault), "mend it; `chekt-gateway check` tells more"))
        return report.end()
    report.add(Finding("configuration", "ok", str(path)))
    for warning in loaded.warnings:
        report.add(Finding("configuration", "warn", str(warning)))
    try:
        asyncio.run(_examine(loaded.settings, args, report))
    finally:
        structlog.reset_defaults()
    return report.end()


async def _examine(settings: Settings, args: argparse.Namespace, report: _Report) -> None:
    from gateway.cli import examine, examine_broker
    from gateway.cli.finding import Finding

    async def disk() -> list[Finding]:
        return await asyncio.to_thread(examine.disk, settings)

    version = metadata.version("chekt-gateway")
    checks: dict[str, Callable[[], Awaitable[list[Finding]]]] = {
        "disk": disk,
        "broker": lambda: examine_broker.broker(settings, args.listen),
        "broker keeps": lambda: examine_broker.keeping(settings, args.mosquitto_conf),
        "pictures": lambda: examine.recorders(settings),
        "cloud": lambda: examine.cloud(settings, version),
        "certificate": lambda: examine.certificates(settings, datetime.now(UTC)),
    }
    for name, check in checks.items():
        try:
            found = await check()
        except Exception as error:
            # One check that fails of itself must not hide what the others have to say.
            why = f"the check itself failed: {type(error).__name__}: {error}"
            found = [Finding(name, "FAIL", why, "please report this")]
        for finding in found:
            report.add(finding)


def _drop(*_: object) -> Any:
    import structlog

    raise structlog.DropEvent


class _Report:
    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._found: list[Finding] = []

    def add(self, finding: Finding) -> None:
        self._found.append(finding)
        if not self._as_json:
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            print(f"{finding.level:<5} {finding.check}: {finding.what}{remedy}", flush=True)

    def end(self) -> int:
        failed = sum(finding.level == "FAIL" for finding in self._found)
        if self._as_json:
            print(json.dumps({"ok": not failed, "checks": [asdict(one) for one in self._found]}, ensure_ascii=False))
        elif failed:
            print(f"{failed} of {len(self._found)} checks failed", file=sys.stderr)
        return 1 if failed else 0
