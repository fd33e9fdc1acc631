"""Is this MP4 whole, and how long is it? Reads the boxes, never the pictures in them.

Promises: never raises on any bytes, never calls a file whole from which a box, or a fragment, is missing, and takes
bounded time and memory. Where it cannot know, the answer is "not whole": the caller then asks the recorder once more
and in the end takes the longest that is playable, so a doubt costs seconds and never the clip.

Follows ISO/IEC 14496-12 (box structure; 8.2.2 mvhd, 8.7.5 chunk offsets, 8.8 movie fragments). Frigate makes ordinary
files with the index in front up to 0.14, and fragmented ones, streamed while they are made, from then on. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, Final

MAX_INDEX_BYTES: Final = 16 << 20  # all moov and moof together; those of a 30 s clip have some 20 KB
MAX_BOXES: Final = 20_000  # in one level: bounds the time on a file full of empty boxes
MAX_SAMPLES: Final = 1_000_000  # in one fragment: hours of video


@dataclass(frozen=True, slots=True)
class Movie:
    """What the boxes say. `duration_ms` counts only what is there; `missing` says why a file is not whole."""

    duration_ms: int
    whole: bool
    playable: bool  # a player can show at least `duration_ms` of it
    fragmented: bool
    faststart: bool  # the index comes before the pictures
    missing: str | None


class _Cut(Exception):
    """The bytes end inside a box, or a box contradicts its frame."""


@dataclass(frozen=True, slots=True)
class _Box:
    kind: bytes
    body: int  # offset of the first byte after the header
    end: int


@dataclass(slots=True)
class _Track:
    timescale: int = 0
    units: int = 0  # duration in `timescale`, from mdhd or summed from fragments
    default_units: int = 0  # of one sample, from trex
    last_chunk: int | None = None  # the greatest chunk offset


@dataclass(slots=True)
class _Index:
    """What of a moov matters."""

    timescale: int = 0
    units: int = 0
    fragmented: bool = False
    tracks: dict[int, _Track] = field(default_factory=dict)

    def duration_ms(self) -> int:
        lengths = [t.units * 1000 // t.timescale for t in self.tracks.values() if t.timescale]
        if not self.fragmented and self.timescale and self.units:
            lengths.append(self.units * 1000 // self.timescale)
        return max(lengths, default=0)


def read(file: BinaryIO, size: int) -> Movie:
    """Reads the boxes of an open file of `size` bytes."""
    index: _Index | None = None
    mdats: list[_Box] = []
    pending: list[tuple[int, int]] | None = None  # of the fragment whose mdat has not come yet
    first_mdat = index_at = None
    has_ftyp = has_closing = False
    fragments = loaded = 0
    missing: str | None = None
    try:
        for box in _boxes_of(file, size):
            has_closing = box.kind == b"mfra"  # must be the last box to count
            if box.kind in (b"moov", b"moof"):
                loaded += box.end - box.body
                if loaded > MAX_INDEX_BYTES:
                    raise _Cut("the index is larger than that of any clip")
            if box.kind == b"ftyp":
                has_ftyp = True
            elif box.kind == b"moov" and index is None:
                index_at = box.body
                index = _read_index(_load(file, box))
            elif box.kind == b"moof" and index is not None:
                pending = _read_fragment(_load(file, box), index)
            elif box.kind == b"mdat":
                mdats.append(box)
                first_mdat = box.body if first_mdat is None else first_mdat
                if pending is not None and index is not None:
                    fragments += 1
                    for track_id, units in pending:
                        index.tracks[track_id].units += units
                    pending = None
    except _Cut as cut:
        missing = str(cut)
    if index is None:
        return Movie(0, False, False, False, False, missing or "there is no index (moov)")
    duration = index.duration_ms()
    if index.fragmented:
        playable = fragments > 0 and duration > 0
        # ISO/IEC 14496-12, 8.8.9: mfra is optional. Without it a file that lacks its last fragments looks whole.
        missing = missing or (None if has_closing else "the closing index of the fragments (mfra) is missing")
    else:
        missing = missing or _fault_of_chunks(index, mdats)
        playable = missing is None and duration > 0
    if missing is None and not has_ftyp:
        missing = "there is no file type (ftyp)"
    if missing is None and duration <= 0:
        missing = "it has no duration"
    faststart = index_at is not None and first_mdat is not None and index_at < first_mdat
    return Movie(duration, missing is None, playable, index.fragmented, faststart, missing)


def _fault_of_chunks(index: _Index, mdats: list[_Box]) -> str | None:
    """An mdat that was lost at a box boundary shows only in the offsets that point to it."""
    chunks = [t.last_chunk for t in index.tracks.values() if t.last_chunk is not None]
    if not chunks:
        return "the index lists no pictures"
    for offset in chunks:
        if not any(box.body <= offset < box.end for box in mdats):
            return "pictures that the index lists are missing (mdat)"
    return None


def _read_index(data: bytes) -> _Index:
    index = _Index()
    for box in _boxes(data, 0, len(data)):
        if box.kind == b"mvhd":
            index.timescale, index.units = _timescale_and_duration(data, box)
        elif box.kind == b"trak":
            _read_track(data, box, index)
        elif box.kind == b"mvex":
            index.fragmented = True
    if index.fragmented:
        for track in index.tracks.values():
            track.units = 0  # what mdhd announces may not have arrived: count the fragments that did
        for box in _boxes(data, 0, len(data)):
            if box.kind == b"mvex":
                for trex in _boxes(data, box.body, box.end):
                    if trex.kind == b"trex":
                        track_id = _u32(data, trex.body + 4, trex.end)
                        index.tracks.setdefault(track_id, _Track()).default_units = _u32(data, trex.body + 12, trex.end)
    return index


def _read_track(data: bytes, trak: _Box, index: _Index) -> None:
    track_id = 0
    track = _Track()
    for box in _boxes(data, trak.body, trak.end):
        if box.kind == b"tkhd":
            wide = _u8(data, box.body, box.end) == 1
            track_id = _u32(data, box.body + (20 if wide else 12), box.end)
        elif box.kind == b"mdia":
            for inner in _boxes(data, box.body, box.end):
                if inner.kind == b"mdhd":
                    track.timescale, track.units = _timescale_and_duration(data, inner)
                elif inner.kind == b"minf":
                    _read_chunks(data, inner, track)
    index.tracks[track_id] = track


def _read_chunks(data: bytes, minf: _Box, track: _Track) -> None:
    for stbl in _boxes(data, minf.body, minf.end):
        if stbl.kind != b"stbl":
            continue
        for box in _boxes(data, stbl.body, stbl.end):
            if box.kind not in (b"stco", b"co64"):
                continue
            width = 4 if box.kind == b"stco" else 8
            count = _u32(data, box.body + 4, box.end)
            start = box.body + 8
            if start + count * width > box.end:
                raise _Cut("the index is cut off")
            for at in range(start, start + count * width, width):
                offset = int.from_bytes(data[at : at + width], "big")
                track.last_chunk = offset if track.last_chunk is None else max(track.last_chunk, offset)


def _read_fragment(data: bytes, index: _Index) -> list[tuple[int, int]]:
    """(track, duration) of every run of samples in a moof."""
    runs: list[tuple[int, int]] = []
    for traf in _boxes(data, 0, len(data)):
        if traf.kind != b"traf":
            continue
        track_id, default_units = 0, 0
        for box in _boxes(data, traf.body, traf.end):
            if box.kind == b"tfhd":
                flags = _u32(data, box.body, box.end) & 0xFFFFFF
                track_id = _u32(data, box.body + 4, box.end)
                default_units = index.tracks.setdefault(track_id, _Track()).default_units
                if flags & 0x08:  # default-sample-duration-present, after base-data-offset and description index
                    at = box.body + 8 + (8 if flags & 0x01 else 0) + (4 if flags & 0x02 else 0)
                    default_units = _u32(data, at, box.end)
            elif box.kind == b"trun":
                index.tracks.setdefault(track_id, _Track())
                runs.append((track_id, _units_of_run(data, box, default_units)))
    return runs


def _units_of_run(data: bytes, box: _Box, default_units: int) -> int:
    flags = _u32(data, box.body, box.end) & 0xFFFFFF
    count = _u32(data, box.body + 4, box.end)
    if count > MAX_SAMPLES:
        raise _Cut("a fragment lists more samples than a clip has")
    if not flags & 0x100:  # no sample-duration-present
        return count * default_units
    at = box.body + 8 + (4 if flags & 0x01 else 0) + (4 if flags & 0x04 else 0)
    width = 4 * (flags >> 8 & 0xF).bit_count()  # duration, size, flags, composition offset: 4 bytes each
    if at + count * width > box.end:
        raise _Cut("the list of a fragment's samples is cut off")
    return sum(int.from_bytes(data[p : p + 4], "big") for p in range(at, at + count * width, width))


def _timescale_and_duration(data: bytes, box: _Box) -> tuple[int, int]:
    """Of mvhd and mdhd, which begin alike."""
    if _u8(data, box.body, box.end) == 1:
        return _u32(data, box.body + 20, box.end), _u64(data, box.body + 24, box.end)
    units = _u32(data, box.body + 16, box.end)
    return _u32(data, box.body + 12, box.end), 0 if units == 0xFFFFFFFF else units  # all ones: unknown


def _load(file: BinaryIO, box: _Box) -> bytes:
    length = box.end - box.body
    file.seek(box.body)
    data = file.read(length)
    if len(data) != length:
        raise _Cut("the file is shorter than it was")
    return data


def _boxes_of(file: BinaryIO, size: int) -> Iterator[_Box]:
    """The boxes of the file itself. Raises _Cut where the last one is not complete."""
    start = count = 0
    while start < size:
        count += 1
        file.seek(start)
        header = file.read(16)
        box = _box(header, 0, min(len(header), size - start), start, size)
        yield box
        if count >= MAX_BOXES:
            raise _Cut("it has more boxes than a clip")
        start = box.end


def _boxes(data: bytes, start: int, end: int) -> Iterator[_Box]:
    """The boxes inside one box that was loaded."""
    for _ in range(MAX_BOXES):
        if start >= end:
            return
        box = _box(data, start, end, start, end)
        yield box
        start = box.end
    raise _Cut("it has more boxes than a clip")


def _box(data: bytes, at: int, limit: int, start: int, end: int) -> _Box:
    """The box whose header lies at `data[at:limit]` and at `start` of a frame that ends at `end`."""
    length = _u32(data, at, limit)
    header = 8
    if at + 8 > limit:
        raise _Cut("the file ends inside a box")
    if length == 1:
        length = _u64(data, at + 8, limit)
        header = 16
    elif length == 0:
        # "To the end of the file": whether that end is the true one cannot be known.
        raise _Cut("the last box has no size")
    if length < header:
        raise _Cut("a box is smaller than its own header")
    if start + length > end:
        raise _Cut("the file ends inside a box")
    return _Box(data[at + 4 : at + 8], start + header, start + length)


def _u8(data: bytes, at: int, end: int) -> int:
    return int.from_bytes(_take(data, at, 1, end), "big")


def _u32(data: bytes, at: int, end: int) -> int:
    return int.from_bytes(_take(data, at, 4, end), "big")


def _u64(data: bytes, at: int, end: int) -> int:
    return int.from_bytes(_take(data, at, 8, end), "big")


def _take(data: bytes, at: int, length: int, end: int) -> bytes:
    if at + length > end:
        raise _Cut("a box is shorter than its content")
    return data[at : at + length]
