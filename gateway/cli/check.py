"""`chekt-gateway check`: is the configuration good? Reads it and every file it names, offline, and changes nothing.

Every fault at once as `FILE:LINE: key: what is wrong; what is allowed`, then warnings, both to stderr; with no fault
`configuration is good` and a summary on one screen to stdout. `--json`: one object to stdout instead of all that.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.cli.asking import EX_CONFIG, add_config_option
from gateway.config import ConfigError, Fault, Loaded, ResolvedCamera, Settings, config_path
from gateway.sources.known import known_families

_MAX_ROWS: Final = 16  # with the lines above and a few warnings a screen of 24 lines holds
_ENVIRONMENTS: Final = {"api.chekt.com": "production", "api.chektdev.com": "development"}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    parser = subparsers.add_parser(
        "check",
        help="is the configuration good? (offline)",
        description="Reads the configuration and all files it names, offline, and says every fault at once.",
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run)
    return parser


def run(
    args: argparse.Namespace,
    *,
    environ: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> int:
    """`environ` and `now` are given by tests."""
    environ = os.environ if environ is None else environ
    path = config_path(args.config, environ)
    loaded: Loaded | None = None
    faults: tuple[Fault, ...] = ()
    try:
        loaded = Settings.load_with_warnings(path, environ, known=known_families(), now=now or datetime.now(UTC))
        warnings = loaded.warnings
    except ConfigError as error:
        faults, warnings = error.faults, error.warnings
    if args.json:
        answer: dict[str, Any] = {
            "ok": not faults,
            "config": str(path),
            "faults": [asdict(fault) for fault in faults],
            "warnings": [asdict(warning) for warning in warnings],
        }
        print(json.dumps(answer, ensure_ascii=False))
    else:
        for fault in faults:
            print(fault, file=sys.stderr)
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        if loaded:
            print(f"configuration is good: {path}\n")
            print(summary(loaded.settings))
    return EX_CONFIG if faults else 0


def summary(settings: Settings) -> str:
    """What will be done, on one screen: an installer recognises the site, or sees that it is another one."""
    lines = [
        (
            "site",
            _joined(settings.site.location_id, settings.site.recorder_id and f"recorder {settings.site.recorder_id}"),
        ),
        ("cloud", _cloud(settings)),
        ("broker", _broker(settings)),
        ("outbox", settings.outbox.path or ""),
    ]
    for name, source in settings.sources.items():
        family = f"{source.family}/{source.dialect}" if source.dialect else source.family
        lines.append(("source", _joined(name, family, source.url or "no pictures")))
    text = [f"  {label:<8}{value}" for label, value in lines]
    cameras = settings.cameras_resolved().values()
    text.append(f"  {len(cameras)} {'camera' if len(cameras) == 1 else 'cameras'}")
    rows = [_row(camera) for camera in cameras]
    shown = rows if len(rows) <= _MAX_ROWS else rows[: _MAX_ROWS - 1]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    text += ["    " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in shown]
    if len(shown) < len(rows):
        text.append(f"    and {len(rows) - len(shown)} more")
    return "\n".join(text)


def _cloud(settings: Settings) -> str:
    cloud = settings.cloud
    host = urlsplit(cloud.url).hostname or ""
    by, token = "API key", None
    if cloud.wants_token:
        by = "client secret" if cloud.auth == "client_secret" else f"signed assertion ({cloud.algorithm})"
        token = f"token from {urlsplit(cloud.token_url or '').hostname}"
    return _joined(cloud.url, _ENVIRONMENTS.get(host), by, token, f"header {cloud.event_header}")


def _broker(settings: Settings) -> str:
    broker = settings.broker
    who = broker.username and f"user {broker.username}"
    return _joined(
        broker.url, f"MQTT {broker.protocol}", who, broker.cert_file and "client certificate", broker.client_id
    )


def _row(camera: ResolvedCamera) -> tuple[str, ...]:
    media = [f"{camera.snapshots} snapshot{'s' * (camera.snapshots != 1)}"] if camera.snapshots else []
    media += ["short clip"] * camera.short_mp4 + ["event clip"] * camera.event_mp4
    return (
        camera.table,
        f"{camera.source or '(any source)'} {camera.name}",
        f"-> {camera.camera_id}",
        "signals" if camera.signal else "does not signal",
        " + ".join(media) or "no pictures",
    )


def _joined(*parts: str | bool | None) -> str:
    return ", ".join(part for part in parts if isinstance(part, str) and part)
