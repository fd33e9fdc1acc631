"""Which messages waited in the broker while we were away, and for how long at most.

After a connection has been resumed the broker first sends what it kept, in one go. So a message of QoS 1 or 2 waited
if it belongs to the unbroken run that begins with the connection; a pause ends the run, and so does a minute, since a
busy site never pauses. It waited at most since the last message that was committed before. A connection that breaks
within a run resumes the run: what is left of it has waited since the same moment, also over a crash.
Judging a live message as waiting costs little (its time is believed as sent); judging a waiting one as live would
show pictures of the wrong moment. What was heard in this process is measured in ticks, which no clock that is set can
touch; what an earlier one heard only by wall time: such a bound is as right as our clock, and is judged again with it
(`model.bound_age`). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from gateway.model import Clock, Message, bound_age

PAUSE_MS: Final = 1_000
FIRST_PAUSE_MS: Final = 3_000  # from the connection to its first message: a broker may load its queue from disk first
LONGEST_RUN_MS: Final = 60_000


@dataclass(frozen=True, slots=True)
class Waited:
    at_most_ms: int
    since_at: int | None = None  # by wall time, of an earlier process; None: measured in ticks

    @classmethod
    def since(cls, since_at: int, received_at: int) -> Waited:
        return cls(bound_age(received_at, since_at), since_at)


class BacklogJudge:
    def __init__(self, last_heard_at: int | None) -> None:
        """`last_heard_at`: wall ms of the last message that was committed before this process; None: there was none."""
        self._heard_at = last_heard_at
        self._heard_ticks: int | None = None  # of the last message that was committed in this process
        self._since_at: int | None = None  # during a run at most one of these two: its messages waited since then
        self._since_ticks: int | None = None
        self._began_ticks = 0
        self._last_ticks = 0
        self._pause_ms = FIRST_PAUSE_MS

    @property
    def in_run(self) -> bool:
        """Whether what comes now may have waited."""
        return self._since_at is not None or self._since_ticks is not None

    def since_at(self, clock: Clock) -> int | None:
        """For another process, that shares no ticks with this one: the wall time that `resume` takes there."""
        if self._since_ticks is None:
            return self._since_at
        return clock.wall_ms() - (clock.ticks_ms() - self._since_ticks)

    def resume(self, since_at: int | None) -> None:
        """The last process ended within a run."""
        self._since_at = since_at

    def connected(self, *, session_present: bool, ticks: int) -> None:
        """A connection begins. Without its session the broker has kept nothing for us."""
        if not session_present:
            self._end()
        elif not self.in_run:
            self._since_ticks = self._heard_ticks
            self._since_at = self._heard_at if self._heard_ticks is None else None
        self._began_ticks = self._last_ticks = ticks
        self._pause_ms = FIRST_PAUSE_MS

    def waited(self, message: Message) -> Waited | None:
        """None: it is live. To be asked once for each message, in order of receipt."""
        if message.qos == 0:
            return None
        self.pass_time(message.received_ticks)
        self._last_ticks, self._pause_ms = max(self._last_ticks, message.received_ticks), PAUSE_MS
        if self._since_ticks is not None:
            return Waited(max(0, message.received_ticks - self._since_ticks))
        return None if self._since_at is None else Waited.since(self._since_at, message.received_at)

    def pass_time(self, ticks: int) -> None:
        """While connected: whether the run is over."""
        if ticks - self._last_ticks > self._pause_ms or ticks - self._began_ticks > LONGEST_RUN_MS:
            self._end()

    def committed(self, heard_ticks: int, ticks: int) -> None:
        """What was received until then is on disk. The broker may have waited for that: no pause of its."""
        self._heard_ticks = max(heard_ticks, self._heard_ticks or 0)
        self._last_ticks = max(self._last_ticks, ticks)

    def _end(self) -> None:
        self._since_at = self._since_ticks = None
