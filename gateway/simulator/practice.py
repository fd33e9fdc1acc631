"""What a gateway needs to practise: files with its secrets, and the configuration that fits a practice cloud."""

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
    client_secret_file: str = ""
    api_key_file: str = ""
    broker_url: str | None = None
    protocol: str = "5"
    recorder_url: str | None = None
    folder: Path | None = None


def write_private_key(path: Path) -> bytes:
    """Writes a practice key that only its owner can read. Raises FileExistsError where there is a file."""
    return write_secret(path, practice_private_key())


def write_secret(path: Path, content: bytes) -> bytes:
    """The same for another secret."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return content


def cloud_table(place: Place, terms: Terms, key_id: str | None = PRACTICE_KID) -> str:
    """`[site]` and `[cloud]`, ready to paste: what these terms need, and no more."""
    cloud = {"url": place.cloud_url}
    if terms.gives_tokens:
        cloud |= {"token_url": place.token_url, "audience": terms.audience, "client_id": terms.client_id}
        algorithm = terms.keys[0].algorithm if terms.keys else "RS256"
        if terms.auth == "client_secret":
            cloud |= {"auth": terms.auth, "client_secret_file": place.client_secret_file}
        elif terms.shared_secret is not None:
            cloud |= {"algorithm": "HS256", "client_secret_file": place.client_secret_file}
        else:
            cloud |= {} if key_id is None else {"key_id": key_id}
            cloud |= {"private_key_file": place.private_key_file}
            cloud |= {} if algorithm == "RS256" else {"algorithm": algorithm}
    elif terms.auth == "api_key":
        cloud["auth"] = terms.auth
    if not terms.gives_tokens or terms.event_header == "both":
        cloud["api_key_file"] = place.api_key_file
    if terms.event_header != "bearer":
        cloud["event_header"] = terms.event_header
    lines = ["[site]", f"location_id = {_quoted(LOCATION)}", "", "[cloud]"]
    return "\n".join([*lines, *(f"{key} = {_quoted(value)}" for key, value in cloud.items())]) + "\n"


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
