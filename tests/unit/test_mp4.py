"""The promises of `gateway.media.mp4` and `gateway.media.jpeg`: never raise, never call whole what is not."""

from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.media import jpeg, mp4
from tests.fakes.movies import JPEG, box, fragmented_movie, plain_movie

MOVIES = {
    "index first": plain_movie(6.0, picture_bytes=100),
    "index last": plain_movie(6.0, picture_bytes=100, faststart=False),
    "64-bit": plain_movie(6.0, picture_bytes=100, version=1, wide=True),
    "several mdat": plain_movie(6.0, picture_bytes=50, mdats=3),
    "fragments, a duration each": fragmented_movie(6),
    "fragments, durations in tfhd": fragmented_movie(6, style="tfhd"),
    "fragments, durations in trex": fragmented_movie(6, style="trex"),
}


def read(data: bytes) -> mp4.Movie:
    return mp4.read(io.BytesIO(data), len(data))


@pytest.mark.parametrize("name", MOVIES)
def test_a_whole_movie_is_whole_and_has_its_duration(name: str) -> None:
    movie = read(MOVIES[name])
    assert (movie.whole, movie.playable, movie.duration_ms, movie.missing) == (True, True, 6_000, None)
    assert movie.fragmented == name.startswith("fragments")
    assert movie.faststart == (name != "index last")


@pytest.mark.parametrize("name", MOVIES)
def test_a_movie_cut_off_anywhere_is_never_whole(name: str) -> None:
    """Every single length, and with it every box boundary."""
    data = MOVIES[name]
    whole = [length for length in range(len(data)) if read(data[:length]).whole]
    assert whole == []


def test_an_mdat_lost_at_its_boundary_is_noticed_though_all_boxes_are_complete() -> None:
    data = plain_movie(30.0, mdats=3, picture_bytes=500)
    movie = read(data[: -(500 + 8)])
    assert not movie.whole
    assert movie.missing == "pictures that the index lists are missing (mdat)"


def test_fragments_that_arrived_can_be_played_and_count_only_themselves() -> None:
    data = fragmented_movie(30)
    movie = read(data[: len(data) * 2 // 3])
    assert movie.playable
    assert not movie.whole
    assert 15_000 <= movie.duration_ms <= 20_000


def test_a_fragmented_movie_without_its_closing_index_is_doubted() -> None:
    movie = read(fragmented_movie(30, closing=False))
    assert (movie.playable, movie.whole, movie.duration_ms) == (True, False, 30_000)


def test_an_ordinary_movie_without_its_end_cannot_be_played() -> None:
    data = plain_movie(30.0)
    assert not read(data[:-1]).playable


@pytest.mark.parametrize(
    ("data", "missing"),
    [
        (b"", "there is no index (moov)"),
        (b'{"success": false, "message": "No recordings found"}', "the file ends inside a box"),
        (box(b"ftyp", b"isom"), "there is no index (moov)"),
        (box(b"ftyp", b"isom") + box(b"mdat", b"v" * 100), "there is no index (moov)"),
        (plain_movie(0.0), "it has no duration"),
        (struct.pack(">I4s", 0, b"mdat") + b"v" * 100, "the last box has no size"),
        (struct.pack(">I4s", 4, b"free") + b"v" * 100, "a box is smaller than its own header"),
    ],
)
def test_what_is_not_a_movie_is_not_whole(data: bytes, missing: str) -> None:
    movie = read(data)
    assert not movie.whole
    assert not movie.playable
    assert movie.missing == missing


def test_a_movie_without_its_first_box_is_not_whole() -> None:
    assert read(plain_movie(30.0)[24:]).missing == "there is no file type (ftyp)"


@given(st.binary(max_size=2000))
def test_random_bytes_never_raise_and_are_never_whole(data: bytes) -> None:
    assert not read(data).whole


@given(st.sampled_from(sorted(MOVIES)), st.data())
def test_damaged_movies_never_raise(name: str, data: st.DataObject) -> None:
    """Any bytes changed anywhere, also in lengths and counts."""
    movie = bytearray(MOVIES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        movie[data.draw(st.integers(0, min(len(movie), 1200) - 1))] = data.draw(st.integers(0, 255))
    found = read(bytes(movie))
    assert found.duration_ms >= 0


@given(st.sampled_from(sorted(MOVIES)), st.data())
def test_a_damaged_and_cut_movie_is_never_whole_when_its_boxes_are_not_filled(name: str, data: st.DataObject) -> None:
    movie = MOVIES[name]
    cut = data.draw(st.integers(0, len(movie) - 1))
    assert not read(movie[:cut]).whole
    padding = data.draw(st.integers(1, 7))
    if cut + padding < len(movie):  # else every box is filled again, and what is wrong is inside one
        assert not read(movie[:cut] + b"\0" * padding).whole


def test_a_file_full_of_tiny_boxes_ends_soon() -> None:
    movie = read(box(b"free") * (mp4.MAX_BOXES + 10))
    assert movie.missing == "it has more boxes than a clip"


def test_a_count_of_samples_that_no_clip_has_is_not_believed() -> None:
    data = bytearray(fragmented_movie(2, style="trex"))
    at = data.index(b"trun") + 8
    data[at : at + 4] = b"\xff\xff\xff\xff"
    assert not read(bytes(data)).whole


@pytest.mark.parametrize("padding", [b"", b"\0" * 32, b"\r\n"])
def test_a_whole_jpeg_is_whole_also_with_the_padding_of_cameras(padding: bytes) -> None:
    data = JPEG + padding
    assert jpeg.fault(data[:16], data[-64:]) is None


@pytest.mark.parametrize("data", [b"", b"<html>", JPEG[:-1], JPEG[:-2], JPEG[1:], b"\x89PNG\r\n\x1a\n"])
def test_what_is_not_a_whole_jpeg_has_a_fault(data: bytes) -> None:
    assert jpeg.fault(data[:16], data[-64:])
