"""Time zones as they are written in the configuration: by name, or as a fixed distance from UTC."""

from __future__ import annotations

import difflib
import re
import zoneinfo
from datetime import UTC, timedelta, timezone, tzinfo
from typing import Final

from gateway.config.faults import Findings
from gateway.toml_lines import Path

_FIXED: Final = re.compile(r"([+-])(\d\d):?(\d\d)", re.ASCII)
_MAX_OFFSET: Final = timedelta(hours=14)  # Kiribati


def read_zone(name: str) -> tzinfo:
    """`America/Chicago`, `UTC`, `+07:00`. Raises ValueError for what is no time zone."""
    fixed = _FIXED.fullmatch(name)
    if fixed is not None:
        away = timedelta(hours=int(fixed[2]), minutes=int(fixed[3]))
        if int(fixed[3]) > 59 or away > _MAX_OFFSET:
            raise ValueError("no place is so far from UTC")
        return timezone(away if fixed[1] == "+" else -away) if away else UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError) as error:
        raise ValueError(str(error)) from None


def check_zone(name: str | None, path: Path, findings: Findings) -> None:
    """A fault where nobody knows the zone, with the one that was probably meant."""
    if name is None:
        return
    try:
        read_zone(name)
    except ValueError:
        known = zoneinfo.available_timezones()
        near = difflib.get_close_matches(name, known, n=1)
        if not known:
            allowed = "this machine has no time zones at all: install the package tzdata"
        elif near:
            allowed = f'did you mean "{near[0]}"?'
        else:
            allowed = 'allowed: an IANA name such as "America/Chicago", or a distance such as "+07:00"'
        findings.fault(path, f"unknown time zone; {allowed}")
