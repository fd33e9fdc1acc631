"""Movies made by hand, box by box (ISO/IEC 14496-12), and the smallest things that look like a JPEG."""

from __future__ import annotations

import struct

JPEG = b"\xff\xd8\xff\xe0" + b"a picture of the front door" * 40 + b"\xff\xd9"


def jpeg_of(size: int) -> bytes:
    """A JPEG, as far as its ends tell, of `size` bytes."""
    return b"\xff\xd8\xff\xe0" + b"p" * (size - 6) + b"\xff\xd9"


def box(kind: bytes, *content: bytes, wide: bool = False) -> bytes:
    body = b"".join(content)
    if wide:
        return struct.pack(">I4sQ", 1, kind, len(body) + 16) + body
    return struct.pack(">I4s", len(body) + 8, kind) + body


def full(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", version << 24 | flags), *content)


def _head(kind: bytes, timescale: int, units: int, version: int) -> bytes:
    times = struct.pack(">QQIQ" if version else ">IIII", 0, 0, timescale, units)
    return full(kind, times, b"\0" * 80, version=version)


def _track(
    track_id: int, timescale: int, units: int, offsets: list[int], *, version: int = 0, wide: bool = False
) -> bytes:
    tkhd = full(b"tkhd", struct.pack(">QQI" if version else ">III", 0, 0, track_id), b"\0" * 60, version=version)
    chunks = struct.pack(">I", len(offsets)) + b"".join(struct.pack(">Q" if wide else ">I", o) for o in offsets)
    stbl = box(b"stbl", full(b"stsd", b"\0" * 4), full(b"co64" if wide else b"stco", chunks))
    return box(b"trak", tkhd, box(b"mdia", _head(b"mdhd", timescale, units, version), box(b"minf", stbl)))


def plain_movie(
    seconds: float,
    *,
    faststart: bool = True,
    version: int = 0,
    wide: bool = False,
    mdats: int = 1,
    picture_bytes: int = 4000,
) -> bytes:
    """An ordinary movie: one track, one chunk in each of `mdats` boxes of pictures."""
    ftyp = box(b"ftyp", b"isom\0\0\2\0isomavc1")
    pictures = b"".join(box(b"mdat", b"v" * picture_bytes, wide=wide) for _ in range(mdats))
    header = 16 if wide else 8

    def index(start: int) -> bytes:
        offsets = [start + header + number * (picture_bytes + header) for number in range(mdats)]
        track = _track(1, 12_800, round(seconds * 12_800), offsets, version=version, wide=wide)
        return box(b"moov", _head(b"mvhd", 1000, round(seconds * 1000), version), track)

    if faststart:
        return ftyp + index(len(ftyp) + len(index(0))) + pictures
    return ftyp + pictures + index(len(ftyp))


def fragment(samples: int, *, units: int | None, default: int | None, track_id: int = 1) -> bytes:
    """moof and mdat; durations for each sample, or one for all in tfhd, or the one of trex."""
    tfhd_flags = 0x08 if default is not None else 0
    tfhd = full(
        b"tfhd", struct.pack(">I", track_id), b"" if default is None else struct.pack(">I", default), flags=tfhd_flags
    )
    if units is None:
        trun = full(b"trun", struct.pack(">Ii", samples, 100), flags=0x01)
    else:
        lines = b"".join(struct.pack(">II", units, 40) for _ in range(samples))
        trun = full(b"trun", struct.pack(">Ii", samples, 100), lines, flags=0x01 | 0x100 | 0x200)
    return box(b"moof", full(b"mfhd", b"\0\0\0\1"), box(b"traf", tfhd, trun)) + box(b"mdat", b"v" * 40 * samples)


def fragmented_movie(seconds: int, *, closing: bool = True, style: str = "each") -> bytes:
    """As Frigate streams it: an empty index, a fragment a second of 6 pictures, a closing index."""
    track = _track(1, 600, 0, [])
    trex = full(b"trex", struct.pack(">IIIII", 1, 1, 100, 0, 0))
    start = box(b"ftyp", b"iso5\0\0\2\0iso5") + box(b"moov", _head(b"mvhd", 1000, 0, 0), track, box(b"mvex", trex))
    each = {"each": (100, None), "tfhd": (None, 100), "trex": (None, None)}[style]
    fragments = b"".join(fragment(6, units=each[0], default=each[1]) for _ in range(seconds))
    return start + fragments + (box(b"mfra", full(b"mfro", b"\0\0\0\x18")) if closing else b"")
