"""Which messages waited in the broker while we were away, and for how long at most.

After a connection has been resumed the broker first sends what it kept, in one go. So a message of QoS 1 or 2 waited
if it belongs to the unbroken run that begins with the connection; a pause ends the run, and so does a minute, since a
busy site never pauses. It waited at most since the last message that was committed before. A connection that breaks
within a run resumes the run: what is left of it has waited since the same moment, also over a crash (`since` is kept).
Judging a live message as waiting costs little (its time is believed as sent); judging a waiting one as live would
show pictures of the wrong moment. Pure.
"""

from __future__ import annotations

from typing import Final

from gateway.model import Message

PAUSE_MS: Final = 1_000
LONGEST_RUN_MS: Final = 60_000


class BacklogJudge:
    def __init__(self, last_heard_at: int | None) -> None:
        """`last_heard_at`: wall ms of the last message that was committed before this process; None: there was none."""
        self.since: int | None = None
        """Wall ms; during a run: its messages may have waited since then. To be kept over restarts."""
        self._last_heard_at = last_heard_at
        self._began_ticks = 0
        self._last_ticks = 0

    def connected(self, *, session_present: bool, ticks: int) -> None:
        """A connection begins. Without its session the broker has kept nothing for us."""
        if not session_present:
            self.since = None
        elif self.since is None:
            self.since = self._last_heard_at
        self._began_ticks = self._last_ticks = ticks

    def waited_ms(self, message: Message) -> int | None:
        """At most so long; None: it is live. To be asked once for each message, in order of receipt."""
        if message.qos == 0:
            return None
        self.pass_time(message.received_ticks)
        self._last_ticks = max(self._last_ticks, message.received_ticks)
        return None if self.since is None else max(0, message.received_at - self.since)

    def pass_time(self, ticks: int) -> None:
        """While connected: whether the run is over."""
        if ticks - self._last_ticks > PAUSE_MS or ticks - self._began_ticks > LONGEST_RUN_MS:
            self.since = None

    def committed(self, at: int, ticks: int) -> None:
        """What was received until this wall time is on disk. The broker may have waited for that: no pause of its."""
        self._last_heard_at = max(at, self._last_heard_at or 0)
        self._last_ticks = max(self._last_ticks, ticks)
