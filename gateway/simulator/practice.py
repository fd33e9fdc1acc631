"""What a gateway needs to practise: a key file, and the configuration that fits a practice cloud."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from gateway.simulator.terms import PRACTICE_KID, Terms, practice_private_key

LOCATION: str = "PRACTICE"


@dataclass(frozen=True)
class Place:
    """Where the parts of a practice set-up are."""

    cloud_url: str
    token_url: str
    private_key_file: str
    broker_url: str | None = None
    protocol: str = "5"
    recorder_url: str | None = None
    folder: Path | None = None


def write_private_key(path: Path) -> bytes:
    """Writes a practice key that only its owner can read. Raises FileExistsError where there is a file."""
    pem = practice_private_key()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
    return pem


def cloud_table(place: Place, terms: Terms, key_id: str | None = PRACTICE_KID) -> str:
    """`[site]` and `[cloud]`, ready to paste."""
    lines = [
        "[site]",
        f"location_id = {_quoted(LOCATION)}",
        "",
        "[cloud]",
        f"url = {_quoted(place.cloud_url)}",
        f"token_url = {_quoted(place.token_url)}",
        f"audience = {_quoted(terms.audience)}",
        f"client_id = {_quoted(terms.client_id)}",
    ]
    if key_id is not None:
        lines.append(f"key_id = {_quoted(key_id)}")
    lines.append(f"private_key_file = {_quoted(place.private_key_file)}")
    algorithm = terms.keys[0].algorithm if terms.keys else "RS256"
    if algorithm != "RS256":
        lines.append(f"algorithm = {_quoted(algorithm)}")
    return "\n".join(lines) + "\n"


def demo_configuration(place: Place, terms: Terms) -> str:
    """The whole gateway.toml of the demo: three cameras of one Frigate, one of them with a short clip."""
    return f"""\
# Written by `chekt-gateway demo`.
{cloud_table(place, terms)}
[broker]
url = {_quoted(place.broker_url or "")}
protocol = {_quoted(place.protocol)}

[outbox]
path = {_quoted(str((place.folder or Path()) / "outbox.db"))}

[sources.nvr]
family = "frigate"
url = {_quoted(place.recorder_url or "")}

[cameras.front_door]
camera_id = "practice-front-door"
event_mp4 = true
clip_before = "2s"
clip_after = "4s"

[cameras.driveway]
camera_id = "practice-driveway"

[cameras.warehouse]
camera_id = "practice-warehouse"
"""


def _quoted(text: str) -> str:
    # A JSON string without escapes beyond TOML's is a basic TOML string.
    return json.dumps(text, ensure_ascii=False)
