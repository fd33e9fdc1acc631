"""What has to be given to prove who we are: exactly that for each combination, for `check` and gateway alike."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from gateway.chekt.keys import KeyUnusable, read_secrets
from gateway.chekt.token import TokenSource
from gateway.chekt.wire import Reply
from gateway.config import Cloud
from tests.fakes.clock import FakeClock
from tests.fakes.configuration import GOOD, Place

ALL = {
    "token_url": "http://127.0.0.1:1/oauth/token",
    "audience": "a",
    "client_id": "c",
    "private_key_file": "rsa.pem",
    "client_secret_file": "long-secret",
    "api_key_file": "long-secret",
}
SIGNED = {"token_url", "audience", "client_id", "private_key_file"}
HMAC = {"token_url", "audience", "client_id", "client_secret_file"}
SECRET = {"token_url", "client_id", "client_secret_file"}
KEY = {"api_key_file"}
NEEDED = {
    ("assertion", "RS256", "bearer"): SIGNED,
    ("assertion", "RS256", "both"): SIGNED | KEY,
    ("assertion", "RS256", "x-api-key"): KEY,
    ("assertion", "HS256", "bearer"): HMAC,
    ("assertion", "HS256", "both"): HMAC | KEY,
    ("assertion", "HS256", "x-api-key"): KEY,
    ("client_secret", "RS256", "bearer"): SECRET,
    ("client_secret", "RS256", "both"): SECRET | KEY,
    ("client_secret", "RS256", "x-api-key"): KEY,
    ("api_key", "RS256", "bearer"): KEY,
    ("api_key", "RS256", "both"): KEY,
    ("api_key", "RS256", "x-api-key"): KEY,
}


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def written(combination: tuple[str, str, str], keys: set[str]) -> str:
    auth, algorithm, header = combination
    before, _, rest = GOOD.partition("[cloud]\n")
    lines = [f'auth = "{auth}"', f'algorithm = "{algorithm}"', f'event_header = "{header}"']
    lines += [f'{key} = "{ALL[key]}"' for key in sorted(keys)]
    cloud = '[cloud]\nurl = "http://127.0.0.1:1"\n' + "\n".join(lines) + "\n"
    return before + cloud + rest[rest.index("[broker]") :]


@pytest.mark.parametrize("combination", NEEDED, ids="/".join)
def test_exactly_what_is_needed_is_asked_for(place: Place, combination: tuple[str, str, str]) -> None:
    needed = NEEDED[combination]
    assert place.faults(written(combination, needed)) == []
    assert place.warnings(written(combination, needed)) == []
    for key in needed:
        [fault] = place.faults(written(combination, needed - {key}))
        assert f"cloud.{key}: is missing; needed where " in fault
    missing = {fault.split(": ")[1] for fault in place.faults(written(combination, set()))}
    assert missing == {f"cloud.{key}" for key in needed}


@pytest.mark.parametrize("combination", NEEDED, ids="/".join)
def test_secrets_that_are_not_used_are_named(place: Place, combination: tuple[str, str, str]) -> None:
    unused = {key for key in ALL if key.endswith("_file")} - NEEDED[combination]
    warned = place.warnings(written(combination, set(ALL)))
    assert {warning.split(": ")[1] for warning in warned} == {f"cloud.{key}" for key in unused}
    assert all("has no effect with" in warning for warning in warned)


@pytest.mark.parametrize("combination", NEEDED, ids="/".join)
def test_the_gateway_is_content_with_the_same(place: Place, combination: tuple[str, str, str]) -> None:
    auth, algorithm, header = combination
    files = [key for key in ALL if key.endswith("_file")]
    place.write(GOOD)
    for size in range(len(files) + 1):
        for given in itertools.combinations(files, size):
            names = {key: str(place.folder / ALL[key]) for key in given}
            cloud = Cloud.model_validate(
                {"url": "http://127.0.0.1:1", "auth": auth, "algorithm": algorithm, "event_header": header} | names
            )
            if {key for key in NEEDED[combination] if key in files} <= set(given):
                secrets = read_secrets(cloud)
                fixed = NEEDED[combination] == KEY
                assert TokenSource(cloud, secrets, _never, FakeClock()).renewable is not fixed
            else:
                with pytest.raises(KeyUnusable):
                    read_secrets(cloud)


async def _never(*_: object) -> Reply:
    raise AssertionError("nobody is asked")
