"""Discards that a person should look at: the cloud takes a camera's events and throws them away, not for the arming.

"Device is disarmed" is everyday life (CHeKT Event API v0.8, `status`, the only reason that it shows). Another reason,
several times, means that the camera's alarms reach nobody: a subscription that ended, a device that was removed. Pure.
"""

from __future__ import annotations

import re
from typing import Final

from gateway.model import Event
from gateway.notice import Condition, Notice
from gateway.retry import Answer

MANY: Final = 3
REMEMBERED_MS: Final = 86_400_000
_ABOUT_ARMING: Final = re.compile(r"arm(?:ed|ing)\b|\bstay\b|\baway\b", re.IGNORECASE)


class Discards:
    def __init__(self) -> None:
        self._odd: dict[str, tuple[int, int]] = {}  # lane -> how many since it last fared well, ticks of the last
        self._reason = ""
        self._said = False

    def discarded(self, event: Event, answer: Answer, ticks: int) -> list[Notice]:
        if answer.reason is not None and _ABOUT_ARMING.search(answer.reason):
            return self.accepted(event, ticks)
        count, _ = self._odd.get(event.lane, (0, 0))
        self._odd[event.lane] = count + 1, ticks
        self._reason = answer.reason or "no reason given"
        if self._said or not self._many:
            return []
        self._said = True
        return [Notice("discards_odd", "warning", {"why": self._reason, "scope": event.lane})]

    def accepted(self, event: Event, ticks: int) -> list[Notice]:
        self._odd.pop(event.lane, None)
        return self.pass_time(ticks)

    def pass_time(self, ticks: int) -> list[Notice]:
        """A camera that has said nothing for a day is no news any more."""
        self._odd = {lane: (count, at) for lane, (count, at) in self._odd.items() if ticks - at < REMEMBERED_MS}
        if not self._said or self._odd:
            return []
        self._said = False
        return [Notice("discards_over", "info")]

    def conditions(self) -> list[Condition]:
        if not self._said:
            return []
        count = sum(count for count, _ in self._odd.values())
        cameras = ", ".join(sorted(lane.partition("/")[2] or lane for lane in self._odd))
        sentence = f"the cloud discarded {count} events of {cameras} for another reason than arming: {self._reason}"
        return [Condition("degraded", f"{sentence}; ask CHeKT, these alarms reach nobody")]

    @property
    def _many(self) -> bool:
        return sum(count for count, _ in self._odd.values()) >= MANY
