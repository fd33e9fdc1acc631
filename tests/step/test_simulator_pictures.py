"""The pictures for practice are real ones: read here by a parser of boxes that shares nothing with their maker."""

from __future__ import annotations

import json
import struct
import subprocess
from pathlib import Path

import pytest

from gateway.simulator import pictures


def boxes(data: bytes) -> dict[str, list[bytes]]:
    """Boxes of one level, by type."""
    found: dict[str, list[bytes]] = {}
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        assert 8 <= size <= len(data) - at, "a box reaches beyond its parent"
        found.setdefault(kind.decode(), []).append(data[at + 8 : at + size])
        at += size
    return found


def inside(data: bytes, *path: str) -> bytes:
    for name in path:
        (data,) = boxes(data)[name]
    return data


@pytest.mark.parametrize("seconds", [0.2, 1.0, 2.4, 6.0, 30.0])
@pytest.mark.parametrize("camera", pictures.SCENES)
def test_a_clip_has_the_duration_that_was_asked_for(camera: str, seconds: float) -> None:
    film = pictures.clip(camera, seconds)
    assert list(boxes(film)) == ["ftyp", "free", "moov", "mdat"]  # the index stands in front
    count = round(seconds * 5)
    mvhd, tkhd = inside(film, "moov", "mvhd"), inside(film, "moov", "trak", "tkhd")
    mdhd = inside(film, "moov", "trak", "mdia", "mdhd")
    assert struct.unpack_from(">II", mvhd, 12) == (1000, count * 200)
    assert struct.unpack_from(">I", tkhd, 20) == (count * 200,)
    assert struct.unpack_from(">II", tkhd, 76) == (640 << 16, 360 << 16)
    assert struct.unpack_from(">II", mdhd, 12) == (1000, count * 200)
    assert (len(mvhd), len(tkhd), len(mdhd)) == (100, 84, 24)  # ISO/IEC 14496-12, version 0


def test_every_sample_is_where_the_index_says() -> None:
    film = pictures.clip("driveway", 2.4)
    stbl = inside(film, "moov", "trak", "mdia", "minf", "stbl")
    stsz, stco, stsc = inside(stbl, "stsz"), inside(stbl, "stco"), inside(stbl, "stsc")
    count = struct.unpack_from(">I", stsz, 8)[0]
    sizes = struct.unpack_from(f">{count}I", stsz, 12)
    chunks = struct.unpack_from(f">{struct.unpack_from('>I', stco, 4)[0]}I", stco, 8)
    runs = [struct.unpack_from(">3I", stsc, 8 + 12 * n) for n in range(struct.unpack_from(">I", stsc, 4)[0])]
    assert count == 12
    numbers = iter(range(count))
    for chunk, offset in enumerate(chunks, start=1):
        (per_chunk,) = [run[1] for run in runs if run[0] <= chunk][-1:]
        for _ in range(per_chunk):
            size = sizes[next(numbers)]
            length, head = struct.unpack_from(">IB", film, offset)
            assert length == size - 4
            assert head & 0x1F == 5  # H.264, 7.4.1: an IDR slice, so that every frame can be the first
            offset += size
    assert next(numbers, None) is None
    assert offset == len(film)


def test_the_decoder_gets_its_parameters() -> None:
    stsd = inside(pictures.clip("warehouse", 1), "moov", "trak", "mdia", "minf", "stbl", "stsd")
    avc1 = inside(stsd[8:], "avc1")
    avcc = inside(avc1[78:], "avcC")
    size = struct.unpack_from(">H", avcc, 6)[0]
    assert (avcc[0], avcc[4], avcc[5]) == (1, 0xFF, 0xE1)
    assert avcc[8] & 0x1F == 7
    assert avcc[8 + size + 3] & 0x1F == 8
    assert avcc[1:4] == avcc[9:12]


def test_pictures_say_whose_they_are() -> None:
    snapshot = pictures.snapshot("front_door", "front_door event 17-abc")
    assert snapshot.startswith(b"\xff\xd8\xff\xfe")
    assert snapshot.endswith(b"\xff\xd9")
    assert b"front_door event 17-abc" in snapshot[:40]
    assert b"clip of 17-abc" in pictures.clip("front_door", 1, "clip of 17-abc")[:80]
    assert len(snapshot) < 60_000
    assert pictures.scene_of("any other camera") in pictures.SCENES


@pytest.mark.slow
@pytest.mark.needs("ffprobe")
@pytest.mark.parametrize("seconds", [0.2, 31.4])
def test_ffprobe_agrees(tmp_path: Path, seconds: float) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(pictures.clip("front_door", seconds))
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_format", "-show_streams", "-of", "json", str(path)]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    said = json.loads(done.stdout)
    assert float(said["format"]["duration"]) == pytest.approx(seconds)
    (stream,) = said["streams"]
    assert (stream["codec_name"], stream["width"], stream["height"]) == ("h264", 640, 360)
    assert int(stream["nb_read_frames"]) == round(seconds * 5)
