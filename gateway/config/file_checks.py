"""Faults of the files that a table names, collected with the key that names them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path as FilePath
from typing import Final

from cryptography.x509 import Certificate

from gateway.config import files
from gateway.config.faults import Findings
from gateway.config.files import FileFault
from gateway.config.tables import Table
from gateway.toml_lines import Path

_CERTIFICATE_KEYS: Final = ("ca_file", "cert_file")


def any_secret(content: bytes) -> str | None:
    """A password may be any text."""
    try:
        content.decode()
    except UnicodeDecodeError:
        return "is not UTF-8; allowed: one line of text"
    return None


def check_secret(
    table: Table, here: Path, key: str, findings: Findings, judge: Callable[[bytes], str | None]
) -> bytes | None:
    """Finds faults of a secret's file; the secret where there is none."""
    name: str | None = getattr(table, key)
    if name is None or not findings.with_files:
        return None
    path = FilePath(name)
    try:
        content = files.read_secret(path)
        fault, warning = files.openness(path)
    except FileFault as error:
        findings.fault((*here, key), str(error))
        return None
    if warning:
        findings.warn((*here, key), warning)
    if fault:
        findings.fault((*here, key), fault)
    try:
        message = judge(content)
    except FileFault as error:
        message = str(error)
    if message:
        findings.fault((*here, key), message)
    return content if not fault and not message else None


def check_certificates(
    table: Table, section: str, findings: Findings, now: datetime | None
) -> dict[str, list[Certificate]]:
    found: dict[str, list[Certificate]] = {}
    for key in _CERTIFICATE_KEYS:
        name: str | None = getattr(table, key, None)
        if name is None or not findings.with_files:
            continue
        try:
            found[key] = files.certificates(files.read(FilePath(name), files.MAX_CERTIFICATES_BYTES))
        except FileFault as error:
            findings.fault((section, key), str(error))
            continue
        if now is None:
            continue
        fault, warning = files.chain_validity(found[key], now, is_ours=key == "cert_file")
        if fault:
            findings.fault((section, key), fault)
        if warning:
            findings.warn((section, key), warning)
    return found
