"""What the sender as a whole has to tell: changes for the journal, conditions for `status`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Notice:
    """A change that the journal shall tell, once on entering and once on leaving."""

    name: str
    level: str  # "error", "warning", "info"
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Condition:
    """What `status` says while it lasts."""

    level: str  # "critical", "degraded"
    sentence: str
