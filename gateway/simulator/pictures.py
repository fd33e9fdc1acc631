"""Pictures for practice: JPEG snapshots and MP4 clips of any duration, made from small scenes without any program.

A scene is a JPEG and ten H.264 key frames (Annex B, 640x360, 5 a second) that a clip repeats. Each picture carries a
note, so that a test can tell whose picture it is. The MP4 has its index in front (ISO/IEC 14496-12 and -15).
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

SCENES: Final = ("front_door", "driveway", "warehouse")
WIDTH: Final = 640
HEIGHT: Final = 360
FRAMES_PER_SECOND: Final = 5
_TIMESCALE: Final = 1000  # milliseconds everywhere
_FRAME_MS: Final = _TIMESCALE // FRAMES_PER_SECOND
_FOLDER: Final = Path(__file__).parent / "scenes"
_MATRIX: Final = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def scene_of(camera: str) -> str:
    """A scene for any camera's name, always the same one."""
    return camera if camera in SCENES else SCENES[sum(camera.encode()) % len(SCENES)]


def snapshot(camera: str, note: str = "") -> bytes:
    """A JPEG with `note` as its comment segment."""
    picture = (_FOLDER / f"{scene_of(camera)}.jpg").read_bytes()
    comment = note.encode()[:60_000]
    return picture[:2] + b"\xff\xfe" + struct.pack(">H", len(comment) + 2) + comment + picture[2:]


def clip(camera: str, seconds: float, note: str = "") -> bytes:
    """An MP4 of this duration (whole frames of 200 ms, at least one), with `note` in a `free` box."""
    film = _film(scene_of(camera))
    count = max(1, round(seconds * FRAMES_PER_SECOND))
    samples = [film.frames[number % len(film.frames)] for number in range(count)]
    head = _box(b"ftyp", b"isom", struct.pack(">I", 0x200), b"isomiso2avc1mp41") + _box(b"free", note.encode())
    # The index holds the place of the first sample, and stands before it: its size does not depend on the value.
    start = len(head) + len(_moov(film, samples, 0)) + 8
    return head + _moov(film, samples, start) + _box(b"mdat", *samples)


@dataclass(frozen=True)
class _Film:
    parameters: tuple[bytes, bytes]  # SPS, PPS
    frames: tuple[bytes, ...]  # each with its length in front, as MP4 wants it


@functools.cache
def _film(scene: str) -> _Film:
    stream = (_FOLDER / f"{scene}.h264").read_bytes()
    units = [unit.rstrip(b"\0") for unit in re.split(b"\0\0\1", stream) if unit.strip(b"\0")]
    by_type: dict[int, list[bytes]] = {}
    for unit in units:
        by_type.setdefault(unit[0] & 0x1F, []).append(unit)
    frames = tuple(struct.pack(">I", len(unit)) + unit for unit in by_type[5])
    return _Film((by_type[7][0], by_type[8][0]), frames)


def _box(kind: bytes, *parts: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, parts))) + kind + b"".join(parts)


def _full(kind: bytes, flags: int, *parts: bytes) -> bytes:
    return _box(kind, struct.pack(">I", flags), *parts)


def _moov(film: _Film, samples: list[bytes], start: int) -> bytes:
    duration = len(samples) * _FRAME_MS
    mvhd = struct.pack(">4I", 0, 0, _TIMESCALE, duration) + struct.pack(">IH10x", 0x10000, 0x100) + _MATRIX
    tkhd = struct.pack(">5I8xhhhxx", 0, 0, 1, 0, duration, 0, 0, 0) + _MATRIX
    tkhd += struct.pack(">II", WIDTH << 16, HEIGHT << 16)
    return _box(
        b"moov",
        _full(b"mvhd", 0, mvhd, bytes(24), struct.pack(">I", 2)),
        _box(b"trak", _full(b"tkhd", 3, tkhd), _mdia(film, samples, start, duration)),
    )


def _mdia(film: _Film, samples: list[bytes], start: int, duration: int) -> bytes:
    mdhd = struct.pack(">4IHH", 0, 0, _TIMESCALE, duration, 0x55C4, 0)  # 0x55C4: no language
    dinf = _box(b"dinf", _full(b"dref", 0, struct.pack(">I", 1), _full(b"url ", 1)))
    return _box(
        b"mdia",
        _full(b"mdhd", 0, mdhd),
        _full(b"hdlr", 0, bytes(4), b"vide", bytes(12), b"practice\0"),
        _box(b"minf", _full(b"vmhd", 1, bytes(8)), dinf, _stbl(film, samples, start)),
    )


def _stbl(film: _Film, samples: list[bytes], start: int) -> bytes:
    count = len(samples)
    sizes = [len(sample) for sample in samples]
    # One chunk a second, as recorders write them.
    offsets = [0, *accumulate(sizes)][:count:FRAMES_PER_SECOND]
    full, rest = divmod(count, FRAMES_PER_SECOND)
    runs = [(1, FRAMES_PER_SECOND, 1)] if full else []
    runs += [(full + 1, rest, 1)] if rest else []
    return _box(
        b"stbl",
        _full(b"stsd", 0, struct.pack(">I", 1), _avc1(film)),
        _full(b"stts", 0, struct.pack(">3I", 1, count, _FRAME_MS)),
        _full(b"stsc", 0, struct.pack(">I", len(runs)), *(struct.pack(">3I", *run) for run in runs)),
        _full(b"stsz", 0, struct.pack(f">2I{count}I", 0, count, *sizes)),
        _full(b"stco", 0, struct.pack(f">I{len(offsets)}I", len(offsets), *(start + offset for offset in offsets))),
    )


def _avc1(film: _Film) -> bytes:
    sps, pps = film.parameters
    # ISO/IEC 14496-15, 5.3.3.1: version, profile, compatibility and level of the SPS, 4 bytes of length, one of each.
    avcc = bytes([1, sps[1], sps[2], sps[3], 0xFF, 0xE1]) + struct.pack(">H", len(sps)) + sps
    avcc += b"\1" + struct.pack(">H", len(pps)) + pps
    entry = struct.pack(">6xH16xHH", 1, WIDTH, HEIGHT) + struct.pack(">IIIH", 0x480000, 0x480000, 0, 1)
    return _box(b"avc1", entry, bytes(32), struct.pack(">Hh", 24, -1), _box(b"avcC", avcc))
