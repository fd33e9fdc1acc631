"""When a picture can be had, and until when it is worth having.

The window of a picture is told in wall time, as far as the recorder's clock could be corrected; deadlines are ticks.
Wall clocks may be wrong, but the window contains its alarm: it is over one window's length after the alarm reached us
at the latest. Pure.
"""

from __future__ import annotations

from typing import Final

from gateway.model import Media, MediaKind

SNAPSHOT_APART_MS: Final = 2_000  # between the moments of several snapshots of one alarm
LIVE_MS: Final = 5_000  # for so long the newest picture still shows the alarm
CLOCKS_AGREE_MS: Final = 10_000  # with what the row says; only then "now" is the moment of the alarm
BEFORE_SLOT_END_MS: Final = {MediaKind.SNAPSHOT: 5_000, MediaKind.SHORT_MP4: 30_000, MediaKind.EVENT_MP4: 30_000}
# A recorder that answers, and has no such picture: an object's picture comes with its first good frame, a segment of
# Frigate some 15 s after its last frame. So long after the window it will not come.
ABSENT_MS: Final = {MediaKind.SNAPSHOT: 60_000, MediaKind.SHORT_MP4: 120_000, MediaKind.EVENT_MP4: 120_000}
SHORT_BY_MS: Final = 2_000  # a clip may be shorter than its window: Frigate cuts at whole seconds and at key frames
SHORT_BY_SHARE: Final = 0.1


def moment_at(media: Media) -> int:
    """What a snapshot shows."""
    return media.from_at


def window_over(media: Media) -> int:
    """Ticks; whatever the wall clocks say."""
    if media.kind is MediaKind.SNAPSHOT:
        return media.received_ticks + SNAPSHOT_APART_MS * media.seq
    return media.received_ticks + media.to_at - media.from_at


def due(media: Media, *, ticks: int, wall: int) -> int:
    """Ticks from when the recorder can have it."""
    end_at = moment_at(media) if media.kind is MediaKind.SNAPSHOT else media.to_at
    return min(ticks + end_at - wall, window_over(media))


def is_live(media: Media, *, ticks: int, wall: int) -> bool:
    """Whether the newest picture of the camera is one of the alarm: by ticks and by wall time."""
    return ticks - window_over(media) <= LIVE_MS and abs(wall - moment_at(media)) <= CLOCKS_AGREE_MS


def is_long_enough(media: Media, duration_ms: int) -> bool:
    wanted = media.to_at - media.from_at
    return duration_ms >= wanted - max(SHORT_BY_MS, SHORT_BY_SHARE * wanted)


def absent_after(media: Media) -> int:
    """Ticks at which a recorder that answers without it is not asked again."""
    return before_slot_ends(media, min(media.fetch_until_ticks, window_over(media) + ABSENT_MS[media.kind]))


def patience_ends(media: Media) -> int:
    """Ticks until which a recorder that does not answer is waited for: the picture is still there when it is back."""
    return before_slot_ends(media, media.fetch_until_ticks)


def before_slot_ends(media: Media, until: int) -> int:
    """The file must be there while its slot is open; a clip is long, and needs the last half minute to travel."""
    if media.deadline_ticks is None:
        return until
    return min(until, media.deadline_ticks - BEFORE_SLOT_END_MS[media.kind])
