"""What has arrived and is not done: the messages that wait for intake, and those that the broker waits for.

The bound on memory. A message counts while it waits here or is unacknowledged on the connection it came by.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from dataclasses import dataclass, replace
from typing import Final

from gateway.model import Message

OVERSIZE_KEPT: Final = 64 << 10  # bytes of a message that is too large; the same as of any unreadable one
# A connection on which nothing comes through ends within 40 s (`Timing.keepalive`): what was written before was heard.
UNHEARD_MS: Final = 60_000
TOLD_KEPT: Final = 2_000  # a broker lets fewer messages be unacknowledged at a time
WAITING_BYTES: Final = 16 << 20  # payloads that may wait here before reading pauses, whatever their number


@dataclass(frozen=True, slots=True)
class AckToken:
    """What to acknowledge. `mid` 0: published with QoS 0, nothing to acknowledge."""

    generation: int
    mid: int


@dataclass(frozen=True, slots=True)
class Cut:
    """Of a payload that was not kept whole: its true size, and the hash of all of it."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Received:
    """A message and its token. `oversize` is the true size where the payload was cut to its first 64 KiB.

    `again`: the broker sends again what was done and acknowledged; it has not heard that.
    `missed_since`: not heard, but asked of the recorder afterwards; it was said at some time since then (wall ms).
    """

    message: Message
    token: AckToken
    oversize: int | None = None
    oversize_sha256: str | None = None
    missed_since: int | None = None
    again: bool = False


class Window:
    """An acknowledgement is only written, and may be lost with its connection: then the broker sends the message again,
    under the same packet id (MQTT 5.0, 4.4), before anything new. Which were written last is remembered for that."""

    def __init__(self, receive_maximum: int) -> None:
        self._high = 2 * receive_maximum
        self._waiting: deque[Received] = deque()
        self._bell = asyncio.Event()
        self._unacknowledged: dict[int, tuple[int, int, int]] = {}  # mid -> (QoS, bytes, what it is known by)
        self._told: dict[int, tuple[int, int]] = {}  # acknowledged on this connection: mid -> (known by, ticks)
        self._told_before: dict[int, int] = {}  # on earlier ones; the broker may not have heard it
        self._loose = 0  # waiting messages that the broker does not wait for: QoS 0, or of an older connection
        self._bytes = 0
        self.generation = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def unacknowledged(self) -> int:
        return len(self._unacknowledged)

    @property
    def load(self) -> int:
        return len(self._unacknowledged) + self._loose

    @property
    def full(self) -> bool:
        return self.load >= self._high or self._bytes >= WAITING_BYTES

    @property
    def low(self) -> bool:
        return 2 * self.load < self._high and 2 * self._bytes < WAITING_BYTES

    def put(self, mid: int, message: Message, max_message: int, cut: Cut | None = None) -> None:
        """`cut`: what is known of a payload that was not read whole."""
        size = len(message.payload)
        if cut is None and size > max_message:
            cut = Cut(size, hashlib.sha256(message.payload).hexdigest())
        oversize, sha256 = (None, None) if cut is None else (cut.size, cut.sha256)
        if cut is not None:
            message = replace(message, payload=message.payload[:OVERSIZE_KEPT])
            size = len(message.payload)
        if message.qos:
            before = self._unacknowledged.pop(mid, None)  # sent twice on one connection: not allowed, counted once
            self._bytes -= before[1] if before else 0
            known_by = hash((message.topic, message.payload, size if oversize is None else oversize))
            self._unacknowledged[mid] = (message.qos, size, known_by)
            if not message.dup:
                self._told_before.clear()
            again = self._told_before.pop(mid, None) == known_by
        else:
            mid, again = 0, False
            self._loose += 1
        self._bytes += size
        self._waiting.append(Received(message, AckToken(self.generation, mid), oversize, sha256, again=again))
        self._bell.set()

    def hand_in(self, received: Received) -> None:
        """One that did not come from the broker, in line with those that did. Its token has `mid` 0."""
        self._loose += 1
        self._bytes += len(received.message.payload)
        self._waiting.append(received)
        self._bell.set()

    async def take(self, limit: int) -> list[Received]:
        while not self._waiting:
            self._bell.clear()
            await self._bell.wait()
        taken = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        for received in taken:
            if received.token.mid == 0 or received.token.generation != self.generation:
                self._loose -= 1
                self._bytes -= len(received.message.payload)
        return taken

    def done(self, token: AckToken, ticks: int) -> int:
        """The QoS to acknowledge with; 0 if there is nothing to acknowledge (any more)."""
        if token.generation != self.generation or token.mid not in self._unacknowledged:
            return 0
        qos, size, known_by = self._unacknowledged.pop(token.mid)
        self._bytes -= size
        self._told.pop(token.mid, None)
        self._told[token.mid] = (known_by, ticks)
        if len(self._told) > TOLD_KEPT:
            del self._told[next(iter(self._told))]
        return qos

    def session_lost(self) -> None:
        """The broker knows nothing of us, and sends nothing again."""
        self._told_before.clear()

    def next_connection(self, ticks: int, *, sends_again: bool = False) -> None:
        """The broker forgets our packet ids. What waits stays, unless it is known that it will come again."""
        self.generation += 1
        self._told_before |= {mid: known for mid, (known, at) in self._told.items() if ticks - at <= UNHEARD_MS}
        self._told.clear()
        if sends_again:
            self._waiting = deque(received for received in self._waiting if received.message.qos == 0)
        self._unacknowledged.clear()
        self._loose = len(self._waiting)
        self._bytes = sum(len(received.message.payload) for received in self._waiting)
