"""Which messages waited in the broker while we were away, and for how long at most.

After a connection has been resumed the broker first sends what it kept, in one go. So a message of QoS 1 or 2 waited
if it belongs to the unbroken run that begins with the connection; a pause ends the run, and so does a minute, since a
busy site never pauses. It waited at most since the last message that was heard before. Judging a live one as waiting
costs little (its time is believed as sent); judging a waiting one as live would show pictures of the wrong moment.
Pure.
"""

from __future__ import annotations

from typing import Final

from gateway.model import Message

PAUSE_MS: Final = 1_000
LONGEST_RUN_MS: Final = 60_000


class BacklogJudge:
    def __init__(self, last_heard_at: int | None) -> None:
        """`last_heard_at`: wall ms of the last message before this process; None: there was none."""
        self._last_heard_at = last_heard_at
        self._away_since: int | None = last_heard_at
        self._began_ticks: int | None = None
        self._last_ticks = 0

    def connected(self, *, session_present: bool, ticks: int) -> None:
        """A connection begins. Without its session the broker has kept nothing for us."""
        self._away_since = self._last_heard_at
        self._began_ticks = ticks if session_present and self._last_heard_at is not None else None
        self._last_ticks = ticks

    def waited_ms(self, message: Message) -> int | None:
        """At most so long; None: it is live. To be asked for each message, in order of receipt."""
        now = message.received_ticks
        if self._began_ticks is not None and (
            now - self._last_ticks > PAUSE_MS or now - self._began_ticks > LONGEST_RUN_MS
        ):
            self._began_ticks = None
        self._last_ticks = now
        self._last_heard_at = message.received_at
        if self._began_ticks is None or message.qos == 0 or self._away_since is None:
            return None
        return max(0, message.received_at - self._away_since)
