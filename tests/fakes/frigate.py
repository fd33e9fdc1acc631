"""Messages in Frigate's form (docs.frigate.video, "MQTT"), written here for the tests."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

_numbers = itertools.count(1)


def review(
    camera: str,
    *,
    phase: str = "new",
    start: float | None = None,
    end: float | None = None,
    review_id: str | None = None,
    severity: str = "alert",
    objects: tuple[str, ...] = ("person",),
) -> dict[str, Any]:
    start = round(time.time(), 6) if start is None else start
    review_id = review_id or f"{start}-t{next(_numbers):05d}"
    body = {
        "id": review_id,
        "camera": camera,
        "start_time": start,
        "end_time": end,
        "severity": severity,
        "thumb_path": f"/media/frigate/clips/review/thumb-{camera}-{review_id}.webp",
        "data": {
            "detections": [f"{round(start - 1.9, 6)}-d{next(_numbers):05d}"],
            "objects": list(objects),
            "sub_labels": [],
            "zones": [],
            "audio": [],
        },
    }
    return {"type": phase, "before": body, "after": body}


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode()
