"""What may happen to an event and to a picture: every state and every transition, and nothing else.

Everything that affects the states lives here. The store refuses a transition that is not in these tables, the CHECKs
of `outbox/schema.sql` and the diagrams of DESIGN.md repeat the words, and a test compares the three. Pure.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class EventState(StrEnum):
    PENDING = "pending"  # waits for its turn, or for its next attempt
    SENDING = "sending"  # a request for it may be on the wire
    DELIVERED = "delivered"  # the cloud accepted it
    DISCARDED = "discarded"  # the cloud's word (the device is disarmed); final
    DEAD = "dead"  # needs a person
    FOLDED = "folded"  # inside the hold-off of an earlier alarm; never sent
    UNMAPPED = "unmapped"  # its camera is not configured; kept until a person maps it
    UNREADABLE = "unreadable"  # a message that could not be understood; kept as evidence


class MediaState(StrEnum):
    WAITING = "waiting"  # the file, the slot, or both are not there yet, or the PUT has not succeeded
    UPLOADED = "uploaded"  # the file is in the cloud's storage, the callback is still due
    DONE = "done"  # the cloud knows that it is there
    LOST = "lost"  # will not come; the reason says why. Never changes the event


ENTRANCES: Final = frozenset({EventState.PENDING, EventState.FOLDED, EventState.UNMAPPED, EventState.UNREADABLE})

EVENT_TRANSITIONS: Final[dict[EventState, dict[EventState, str]]] = {
    EventState.PENDING: {
        EventState.SENDING: "claimed for an attempt",
        EventState.DEAD: "expired",
        EventState.DISCARDED: "a restore whose beginning was discarded",
    },
    EventState.SENDING: {
        EventState.PENDING: "deferred, or recovered at start",
        EventState.DELIVERED: "accepted",
        EventState.DISCARDED: "discarded by the cloud",
        EventState.DEAD: "refused for good",
    },
    EventState.DEAD: {EventState.PENDING: "revived by a person"},
    EventState.UNMAPPED: {EventState.PENDING: "revived by a person once the camera is configured"},
    EventState.DELIVERED: {},
    EventState.DISCARDED: {},
    EventState.FOLDED: {},
    EventState.UNREADABLE: {},
}

MEDIA_TRANSITIONS: Final[dict[MediaState, dict[MediaState, str]]] = {
    MediaState.WAITING: {
        MediaState.UPLOADED: "PUT succeeded",
        MediaState.LOST: "cannot be fetched, or its slot expired or was refused",
    },
    MediaState.UPLOADED: {
        MediaState.DONE: "callback succeeded",
        MediaState.LOST: "callback refused",
    },
    MediaState.DONE: {},
    MediaState.LOST: {},
}


class IllegalTransition(Exception):
    """A bug of ours: somebody asked for a transition that is not in the tables, or the row was not in that state."""


def require_event(source: EventState, target: EventState) -> None:
    """Raises IllegalTransition unless an event may go from `source` to `target`."""
    if target not in EVENT_TRANSITIONS[source]:
        raise IllegalTransition(f"event: {source} -> {target}")


def require_media(source: MediaState, target: MediaState) -> None:
    """Raises IllegalTransition unless a picture may go from `source` to `target`."""
    if target not in MEDIA_TRANSITIONS[source]:
        raise IllegalTransition(f"media: {source} -> {target}")
