"""`chekt-gateway run`: the daemon, in the foreground. Exit 0 after SIGTERM, 1 failed, 78 configuration wrong."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterable
from importlib import metadata
from typing import TYPE_CHECKING, Any

import structlog

from gateway.cli.asking import EX_CONFIG, add_config_option

if TYPE_CHECKING:
    from gateway.config import Fault


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="the daemon, in the foreground",
        description="The daemon, in the foreground, until SIGTERM or Ctrl-C. Exit 0 stopped, 1 failed, "
        "78 configuration wrong.",
    )
    add_config_option(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    from gateway.app import StoreStopped
    from gateway.chekt.client import ClientError
    from gateway.chekt.keys import KeyUnusable
    from gateway.config import ConfigError, FileFault, Settings
    from gateway.host.journal import configure_logging
    from gateway.outbox.store import StoreError
    from gateway.sources.families import UnknownFamily
    from gateway.sources.known import known_families
    from gateway.sources.rules import BadSource

    # The configuration is read completely before the store is touched.
    try:
        loaded = Settings.load_with_warnings(args.config, os.environ, known=known_families())
    except ConfigError as error:
        _tell(error.faults)
        return EX_CONFIG
    configure_logging(loaded.settings.log.level)
    log = structlog.get_logger()
    for warning in loaded.warnings:
        log.warning("configuration_questionable", what=str(warning))
    try:
        asyncio.run(_serve(loaded.settings))
    except (KeyUnusable, ClientError, FileFault, UnknownFamily, BadSource) as error:
        log.error("configuration_wrong", why=str(error))
        return EX_CONFIG
    except StoreError as error:
        log.error("store_cannot_be_opened", why=str(error))
        return 1
    except BaseExceptionGroup as group:
        match group.exceptions:
            case [StoreStopped() as stopped]:  # its words say all; a traceback would bury them
                log.error("gateway_failed", why=str(stopped))
            case _:
                log.error("gateway_failed", exc_info=group)
        return 1
    log.info("gateway_stopped")
    return 0


def _tell(faults: Iterable[Fault]) -> None:
    """As `check` does; into the journal as errors, where a person looks for them."""
    from gateway.host.journal import configure_logging, is_journal

    if not is_journal(sys.stderr, os.environ):
        for fault in faults:
            print(fault, file=sys.stderr)
        return
    configure_logging()
    for fault in faults:
        structlog.get_logger().error("configuration_wrong", why=str(fault))


async def _serve(settings: Any) -> None:
    from gateway.build import open_app
    from gateway.host.collector import spare_the_loop
    from gateway.host.systemd import Systemd

    async with open_app(settings, version=metadata.version("chekt-gateway"), systemd=Systemd()) as app:
        spare_the_loop()
        await app.run()
