"""The versions that a support case needs to know."""

from __future__ import annotations

import platform
import sqlite3
import ssl
from importlib import metadata


def versions() -> dict[str, str]:
    """Ours, Python's, SQLite's, OpenSSL's, and those of the libraries that we run on."""
    known = {
        "chekt-gateway": metadata.version("chekt-gateway"),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "openssl": ssl.OPENSSL_VERSION,
    }
    for library in ("aiohttp", "cryptography", "paho-mqtt", "pydantic", "pydantic-settings", "PyJWT", "structlog"):
        known[library] = metadata.version(library)
    return known
