"""Keys, passwords and certificates: found where they should be, safe from others, and of the right kind."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from gateway.config import ConfigError, FileFault, Settings, read_secret
from tests.fakes.configuration import GOOD, NOW, Place, spoiled


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def cloud_with(*lines: str) -> str:
    return spoiled(('private_key_file = "rsa.pem"', "\n".join(lines)))


ASSERTION = {
    "an RSA key for RS256": (['private_key_file = "rsa.pem"'], None),
    "an RSA key for RS384": (['private_key_file = "rsa.pem"', 'algorithm = "RS384"'], None),
    "an RSA key for PS256": (['private_key_file = "rsa.pem"', 'algorithm = "PS256"'], None),
    "an EC key for ES256": (['private_key_file = "p256.pem"', 'algorithm = "ES256"'], None),
    "an EC key for RS256": (
        ['private_key_file = "p256.pem"'],
        "is an EC key on the curve secp256r1; allowed with RS256: an RSA key of at least 2048 bits",
    ),
    "an RSA key for ES256": (
        ['private_key_file = "rsa.pem"', 'algorithm = "ES256"'],
        "is an RSA key of 2048 bits; allowed with ES256: an EC key on the curve P-256",
    ),
    "another curve for ES256": (
        ['private_key_file = "p384.pem"', 'algorithm = "ES256"'],
        "is an EC key on the curve secp384r1; allowed with ES256: an EC key on the curve P-256",
    ),
    "a weak RSA key": (
        ['private_key_file = "rsa-1024.pem"'],
        "is an RSA key of 1024 bits; allowed with RS256: an RSA key of at least 2048 bits",
    ),
    "a key with a passphrase": (
        ['private_key_file = "rsa-locked.pem"'],
        "has a passphrase; allowed: one without (openssl pkey -in OLD -out NEW)",
    ),
    "the public half": (
        ['private_key_file = "rsa-public.pem"'],
        "is a public key; allowed: the private key that belongs to it",
    ),
    "a certificate": (
        ['private_key_file = "certificate.pem"'],
        "is a certificate; allowed: the private key that belongs to it",
    ),
    "something else": (
        ['private_key_file = "not-a-key"'],
        "is no private key; allowed: PEM, beginning with -----BEGIN PRIVATE KEY-----",
    ),
    "nothing": (['private_key_file = "nothing"'], "is empty"),
    "only a newline": (['private_key_file = "only-newline"'], "is empty"),
    "no folder either": (['private_key_file = "no/such/key.pem"'], "there is no such file, nor its folder"),
}


@pytest.mark.parametrize("case", ASSERTION)
def test_a_signing_key_fits_its_algorithm(place: Place, case: str) -> None:
    lines, expected = ASSERTION[case]
    said = [] if expected is None else [f"gateway.toml:9: cloud.private_key_file: {expected}"]
    assert place.faults(cloud_with(*lines)) == said


def test_a_missing_file_is_said_with_the_folder_but_without_its_name(place: Place) -> None:
    """People write the secret itself where its file should be."""
    with pytest.raises(ConfigError) as caught:
        place.load(spoiled(('password_file = "password"', 'password_file = "hunter2"')))
    assert [fault.message for fault in caught.value.faults] == [f"there is no such file in {place.folder}"]


def test_a_folder_is_no_secret(place: Place) -> None:
    assert place.faults(cloud_with('private_key_file = "."')) == [
        "gateway.toml:9: cloud.private_key_file: is not a plain file"
    ]


def test_a_pipe_does_not_block(place: Place) -> None:
    os.mkfifo(place.folder / "pipe", 0o600)
    assert place.faults(cloud_with('private_key_file = "pipe"')) == [
        "gateway.toml:9: cloud.private_key_file: is not a plain file"
    ]


def test_a_file_that_is_far_too_long_is_not_read_as_a_key(place: Place) -> None:
    (place.folder / "long").write_bytes(b"x" * 100_000)
    (place.folder / "long").chmod(0o600)
    assert place.faults(cloud_with('private_key_file = "long"')) == [
        "gateway.toml:9: cloud.private_key_file: is longer than 64 KiB; it must be another file"
    ]


def test_a_name_that_no_file_can_have_is_a_fault(place: Place) -> None:
    assert place.faults(cloud_with(r'private_key_file = "a\u0000b"')) == [
        "gateway.toml:9: cloud.private_key_file: cannot be read: not a file name"
    ]


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_of_its_owner_is_safe(place: Place, mode: int) -> None:
    place.write(GOOD)
    (place.folder / "rsa.pem").chmod(mode)
    assert place.faults(GOOD) == []
    assert place.warnings(GOOD) == []


@pytest.mark.parametrize("mode", [0o440, 0o640])
def test_a_secret_that_its_group_can_read_is_a_warning(place: Place, mode: int) -> None:
    """systemd's credentials may be 0440 (systemd.exec(5)), so it cannot be a fault."""
    place.write(GOOD)
    (place.folder / "rsa.pem").chmod(mode)
    assert place.warnings(GOOD) == [
        f"gateway.toml:9: cloud.private_key_file: can be read by its group (mode {mode:04o}); better: chmod 600"
    ]


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o620, 0o666])
@pytest.mark.parametrize(
    ("name", "where"), [("rsa.pem", "9: cloud.private_key_file"), ("password", "13: broker.password_file")]
)
def test_a_secret_that_others_can_read_or_change_is_a_fault(place: Place, mode: int, name: str, where: str) -> None:
    place.write(GOOD)
    (place.folder / name).chmod(mode)
    assert place.faults(GOOD) == [f"gateway.toml:{where}: is open to other users (mode {mode:04o}); allowed: chmod 600"]


PRODUCTION = ('url = "http://127.0.0.1:1"', 'url = "https://api.chekt.com"')
DEVELOPMENT = ('url = "http://127.0.0.1:1"', 'url = "https://api.chektdev.com"')
API_KEYS = {
    "live for production": (PRODUCTION, "live-key", None),
    "test for development": (DEVELOPMENT, "test-key", None),
    "test for the simulator": (None, "test-key", None),
    "live for the simulator": (None, "live-key", None),
    "another form for production": (PRODUCTION, "password", None),
    "test for production": (
        PRODUCTION,
        "test-key",
        "is a key for development, but cloud.url is production; allowed: a key that begins with chekt_live_",
    ),
    "live for development": (
        DEVELOPMENT,
        "live-key",
        "is a key for production, but cloud.url is development; allowed: a key that begins with chekt_test_",
    ),
    "two lines": (None, "two-lines", "must hold one line of visible ASCII characters and nothing else"),
}


@pytest.mark.parametrize("case", API_KEYS)
def test_an_api_key_belongs_to_the_environment(place: Place, case: str) -> None:
    url, name, expected = API_KEYS[case]
    key = ('private_key_file = "rsa.pem"', f'auth = "api_key"\napi_key_file = "{name}"')
    said = [] if expected is None else [f"gateway.toml:10: cloud.api_key_file: {expected}"]
    assert place.faults(spoiled(key, *([url] if url else []))) == said


def test_a_secret_to_sign_with_is_long_enough(place: Place) -> None:
    assert place.faults(cloud_with('algorithm = "HS256"', 'client_secret_file = "long-secret"')) == []
    assert place.faults(cloud_with('algorithm = "HS256"', 'client_secret_file = "password"')) == [
        "gateway.toml:10: cloud.client_secret_file: is too short to sign with; allowed with HS256: at least 32 bytes"
    ]


def test_a_secret_that_is_only_sent_may_be_short(place: Place) -> None:
    assert place.faults(cloud_with('auth = "client_secret"', 'client_secret_file = "password"')) == []


def test_a_password_is_text(place: Place) -> None:
    place.write(GOOD)
    (place.folder / "password").write_bytes(b"caf\xe9\n")
    assert place.faults(GOOD) == ["gateway.toml:13: broker.password_file: is not UTF-8; allowed: one line of text"]


def test_who_only_asks_the_store_needs_no_keys(place: Place) -> None:
    """`status` is asked by users who may not read them; all other faults still count."""
    text = broker_with('ca_file = "rsa.pem"').replace('"rsa.pem"', '"gone.pem"')
    assert len(place.faults(text)) == 2
    assert Settings.load(place.write(text), {}, with_files=False).site.location_id == "L"
    with pytest.raises(ConfigError):
        Settings.load(place.write(text.replace('client_id = "c"', "")), {}, with_files=False)


# Certificates


def broker_with(*lines: str) -> str:
    return spoiled(('url = "mqtt://127.0.0.1:1"', "\n".join(['url = "mqtts://127.0.0.1:1"', *lines])))


CERTIFICATES = {
    "good": ('ca_file = "certificate.pem"', [], []),
    "one of two has expired": ('ca_file = "expired-and-good.pem"', [], []),
    "expired": (
        'ca_file = "expired.pem"',
        ["ca_file: has expired on 2026-02-28; allowed: a certificate that is valid today, 2026-03-01"],
        [],
    ),
    "not yet valid": (
        'ca_file = "later.pem"',
        ["ca_file: is valid only from 2026-03-03; allowed: a certificate valid today, 2026-03-01"],
        [],
    ),
    "soon": ('ca_file = "soon.pem"', [], ["ca_file: expires on 2026-03-30; renew it before"]),
    "no certificate": (
        'ca_file = "rsa.pem"',
        ["ca_file: holds no certificate; allowed: PEM, beginning with -----BEGIN CERTIFICATE-----"],
        [],
    ),
    "none at all": ('ca_file = "nothing"', ["ca_file: is empty"], []),
}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_a_certificate_is_one_and_holds_today(place: Place, case: str) -> None:
    line, faults, warnings = CERTIFICATES[case]
    text = broker_with(line)
    assert place.faults(text) == [f"gateway.toml:12: broker.{fault}" for fault in faults]
    if not faults:
        assert place.warnings(text) == [f"gateway.toml:12: broker.{warning}" for warning in warnings]


def test_our_own_certificate_is_the_first_of_its_chain(place: Place) -> None:
    text = broker_with('cert_file = "expired-and-good.pem"', 'key_file = "p256.pem"')
    [fault] = place.faults(text)
    assert "broker.cert_file: has expired" in fault


def test_a_start_judges_no_dates(place: Place) -> None:
    """A box without a battery boots with a wrong clock, and must not refuse to guard the site for that."""
    loaded = place.load(broker_with('ca_file = "expired.pem"'), now=None)
    assert loaded.warnings == ()
    with pytest.raises(ConfigError):
        place.load(broker_with('ca_file = "certificate.pem"'), now=NOW + timedelta(days=3650))


def test_certificate_and_key_belong_together(place: Place) -> None:
    assert place.faults(broker_with('cert_file = "certificate.pem"', 'key_file = "p256.pem"')) == []
    assert place.faults(broker_with('cert_file = "certificate.pem"', 'key_file = "rsa.pem"')) == [
        "gateway.toml:13: broker.key_file: does not belong to cert_file; allowed: that certificate's private key"
    ]


# Where a file is


def test_a_bare_name_is_a_credential_of_systemd(place: Place) -> None:
    credentials = place.folder / "credentials"
    credentials.mkdir()
    (credentials / "password").write_bytes(b"from systemd\n")
    (credentials / "password").chmod(0o400)
    settings = place.load(GOOD, {"CREDENTIALS_DIRECTORY": str(credentials)}).settings
    assert settings.broker.password_file == str(credentials / "password")
    assert settings.secret(settings.broker.password_file) == b"from systemd"


def test_a_bare_name_that_systemd_does_not_have_lies_beside_the_configuration(place: Place) -> None:
    """So that `check` at a terminal finds what the unit loads from there."""
    environ = {"CREDENTIALS_DIRECTORY": str(place.folder / "none")}
    assert place.load(GOOD, environ).settings.broker.password_file == str(place.folder / "password")
    assert place.load(GOOD).settings.broker.password_file == str(place.folder / "password")


def test_a_relative_path_lies_beside_the_configuration(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write(GOOD)
    keys = place.folder / "keys"
    keys.mkdir()
    (place.folder / "rsa.pem").rename(keys / "mine.pem")
    monkeypatch.chdir("/")
    text = cloud_with('private_key_file = "keys/mine.pem"')
    environ = {"CREDENTIALS_DIRECTORY": str(place.folder)}
    assert place.load(text, environ).settings.cloud.private_key_file == str(keys / "mine.pem")


def test_the_paths_are_absolute_even_if_the_configuration_was_named_relatively(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(GOOD)
    monkeypatch.chdir(place.folder)
    settings = Settings.load(Path("gateway.toml"), {})
    assert settings.cloud.private_key_file == str(place.folder / "rsa.pem")


def test_the_newline_at_the_end_is_no_part_of_a_secret(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b" pass word \r\n\n")
    assert read_secret(tmp_path / "a") == b" pass word "


def test_a_secret_that_has_gone_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileFault, match="there is no such file"):
        read_secret(tmp_path / "a")
