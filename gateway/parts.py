"""The parts of a running gateway, put together: what `app.py` runs and `answers.py` tells of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gateway.bell import Bell
from gateway.capture import Capture
from gateway.catchup import CatchUp
from gateway.chekt.token import TokenSource
from gateway.config import Settings
from gateway.delivery import Delivery
from gateway.intake import Intake
from gateway.outbox.store import Store
from gateway.sources.broker import Session
from gateway.supervision import Supervision
from gateway.upkeep import Upkeep
from gateway.uploads import Uploads

STUCK_SECONDS: Final = 45.0  # a step that has not gone round for so long is not making progress


class Beats:
    """When each step last went round."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def of(self, name: str) -> Callable[[], None]:
        def beat() -> None:
            self._last[name] = asyncio.get_running_loop().time()

        return beat

    def stuck(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        return sorted(name for name, at in self._last.items() if now - at > STUCK_SECONDS)


@dataclass(frozen=True)
class Parts:
    """Made by `gateway.build`."""

    settings: Settings
    version: str
    store: Store
    session: Session
    intake: Intake
    catch_up: CatchUp
    capture: Capture
    delivery: Delivery
    uploads: Uploads
    upkeep: Upkeep
    supervision: Supervision
    tokens: TokenSource
    bells: dict[str, Bell]
    beats: Beats
    gaps: list[dict[str, Any]]  # possible losses, as the broker's session and the store tell them
