"""What a check of `doctor` has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "FAIL"]


@dataclass(frozen=True, slots=True)
class Finding:
    check: str
    level: Level
    what: str
    remedy: str | None = None
