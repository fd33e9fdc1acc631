"""The disk that the outbox and the media lie on."""

from __future__ import annotations

import os
from pathlib import Path


def free_bytes(path: Path) -> int:
    """What this process may still write on the file system of `path`, without the part reserved for root.

    `path` need not exist yet: its nearest existing folder answers. Raises OSError where not even that can be read.
    """
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    facts = os.statvfs(place)
    return facts.f_bavail * facts.f_frsize
