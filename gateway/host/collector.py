"""Python's search for circles of objects that nobody needs any more: it stops everything, so it is kept short and rare.

What is there when the gateway has started stays until its end. Looked through again with each full search it would
hold up alarms for ten milliseconds and more; and a message makes enough small objects for a search in every few.
"""

from __future__ import annotations

import gc
from typing import Final

SEARCH_AFTER: Final = 10_000  # objects made more than given back; Python's own choice is 700


def spare_the_loop() -> None:
    """To be called once, when everything that stays has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(SEARCH_AFTER)
