"""Pictures and clips from a Frigate recorder, over its HTTP API.

Promises: what it hands over is a picture of the moment that was asked for, never merely the newest one; and those of
`gateway.media.recorder`, which carries the requests.

Follows the Frigate documentation, "HTTP API" and "Authentication" (port 5000: no login; port 8971: TLS and a login),
and Frigate's `frigate/api/media.py`: range clips are cached under their exact range by versions up to 0.14, so that one
asked for too early stays short; every attempt therefore asks for an end one second later than the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import quote

from gateway.media import jpeg
from gateway.media.files import Draft
from gateway.media.logins import FRIGATE
from gateway.media.recorder import NotThere, Recorder
from gateway.model import Clock

SNAPSHOT_LIMIT: Final = 5 << 20  # bytes: a 4K JPEG has 2 to 3 MiB
CLIP_LIMIT: Final = 100 << 20  # bytes: 30 s at 25 Mbit/s
SNAPSHOT_SECONDS: Final = 15.0  # for one picture, whole
CLIP_SECONDS: Final = 120.0  # for one clip, whole; Frigate first runs ffmpeg over its segments
CLIP_SILENCE_SECONDS: Final = 45.0  # without a byte, within that
SETTLE_MS: Final = 5_000  # segments of 10 s are moved when they end, so that half of all clips are complete by then
LONGER_AT_MOST_SECONDS: Final = 15  # a clip is not asked for with a window that is longer by more than this
DETECTIONS_TRIED: Final = 3  # a review may hold dozens of objects; the first ones opened it


class Frigate(Recorder):
    settle_ms: Final = SETTLE_MS

    def __init__(
        self,
        url: str,
        *,
        clock: Clock,
        username: str | None = None,
        make_password: Callable[[], str] | None = None,
    ) -> None:
        super().__init__(url, clock=clock, login=FRIGATE, username=username, make_password=make_password)

    async def snapshot(self, recipe: Mapping[str, Any], moment_at: int, *, seq: int, live: bool, draft: Draft) -> None:
        """Writes the picture of a moment into `draft`. `live`: the moment is now, so the newest picture shows it."""
        camera = _segment(str(recipe.get("camera") or ""))
        moment = _seconds(moment_at - _offset_of(recipe))
        ways: list[str] = []
        if seq == 0:
            detections = list(recipe.get("detections") or ())[:DETECTIONS_TRIED]
            ways += [f"/api/events/{_segment(str(detection))}/snapshot.jpg" for detection in detections]
            if live:
                ways.append(f"/api/{camera}/latest.jpg")
            ways.append(f"/api/{camera}/recordings/{moment}/snapshot.jpg")
        else:
            # The recording has no frame of the last 10 s yet, so while the moment is now the newest one is better.
            ways = [f"/api/{camera}/latest.jpg"] if live else []
            ways.append(f"/api/{camera}/recordings/{moment}/snapshot.jpg")
        reasons: list[str] = []
        for way in ways:
            try:
                await self.get(way, draft, limit=SNAPSHOT_LIMIT, total=SNAPSHOT_SECONDS, silence=SNAPSHOT_SECONDS)
            except NotThere as error:
                reasons.append(str(error))
                continue
            fault = jpeg.fault(draft.head, draft.tail)
            if fault is None:
                return
            reasons.append(f"the recorder sent something else: {fault}")
        raise NotThere(reasons[0] if reasons else "the alarm names no camera")

    async def clip(self, recipe: Mapping[str, Any], from_at: int, to_at: int, *, attempt: int, draft: Draft) -> None:
        """Writes the recording of a window into `draft`, as far as the recorder has it; the caller judges how much."""
        camera = _segment(str(recipe.get("camera") or ""))
        # Whole seconds: older versions have a route for integers and another for decimals with a point.
        offset = _offset_of(recipe)
        start, end = (from_at - offset) // 1000, -((offset - to_at) // 1000) + min(attempt, LONGER_AT_MOST_SECONDS)
        path = f"/api/{camera}/start/{start}/end/{end}/clip.mp4"
        await self.get(path, draft, limit=CLIP_LIMIT, total=CLIP_SECONDS, silence=CLIP_SILENCE_SECONDS)


def _segment(text: str) -> str:
    """One path segment from the equipment's own text. Raises NotThere where it cannot be one."""
    if text in ("", ".", ".."):
        raise NotThere("the alarm names no camera" if not text else "the alarm's names cannot be asked for")
    return quote(text, safe="")


def _offset_of(recipe: Mapping[str, Any]) -> int:
    """How far our time is ahead of the recorder's own, where that is known; milliseconds."""
    return int(recipe.get("clock_offset_ms") or 0)


def _seconds(wall_ms: int) -> str:
    return f"{wall_ms // 1000}.{wall_ms % 1000:03d}"
