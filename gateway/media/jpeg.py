"""Is this a whole JPEG? Looks at both ends only; a recorder that is restarting sends half pictures and error pages.

Follows ITU-T T.81, annex B: a picture starts with SOI and ends with EOI. Pure.
"""

from __future__ import annotations

from typing import Final

_START: Final = b"\xff\xd8\xff"  # SOI, and the first byte of the marker that must follow
_END: Final = b"\xff\xd9"  # EOI


def fault(head: bytes, tail: bytes) -> str | None:
    """Why the picture with these first and last bytes is not a whole JPEG; None where it is."""
    if not head:
        return "the picture is empty"
    if not head.startswith(_START):
        return "not a JPEG"
    # Some cameras pad the picture with zeros or a line end to a multiple of their buffer.
    if not tail.rstrip(b"\x00\r\n").endswith(_END):
        return "the JPEG is cut off"
    return None
