"""A good configuration to spoil, with real keys and certificates; made once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from gateway.config import ConfigError, FamilyFacts, Loaded, Settings

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
KNOWN = {
    "frigate": FamilyFacts(
        dialects={"reviews": frozenset({"labels", "zones"}), "events": frozenset({"labels", "zones", "min_score"})},
        default="reviews",
        heartbeats={"reviews": 60.0, "events": 60.0},
        pictures=True,
        remembers=frozenset({"reviews", "events"}),
    ),
    "axis": FamilyFacts(pictures=True),
    "zoneminder": FamilyFacts(options=frozenset({"labels"}), remembers=frozenset({None})),
    "unifi": FamilyFacts(
        dialects={"homebridge": frozenset(), "pakerfeldt": frozenset()},
        default="homebridge",
        remembers=frozenset({"pakerfeldt"}),
    ),
}
GOOD = """\
[site]
location_id = "L"
timezone = "UTC"
[cloud]
url = "http://127.0.0.1:1"
token_url = "http://127.0.0.1:1/oauth/token"
audience = "a"
client_id = "c"
private_key_file = "rsa.pem"
[broker]
url = "mqtt://127.0.0.1:1"
username = "u"
password_file = "password"
[outbox]
path = "/nowhere/outbox.db"
[delivery]
stale_after = "off"
[sources.s]
family = "frigate"
url = "http://127.0.0.1:5000"
[cameras.front]
camera_id = "id-front"
[cameras.back]
camera_id = "id-back"
"""


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)  # 1024 bits are generated for being refused


@cache
def ec_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


def private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    guard: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        guard = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, guard)


def public_pem(key: rsa.RSAPrivateKey) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate_pem(begins: datetime, ends: datetime) -> bytes:
    """Of the key `ec_key()`."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(ec_key().public_key())
    builder = builder.serial_number(1).not_valid_before(begins).not_valid_after(ends)
    return builder.sign(ec_key(), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


@cache
def contents() -> dict[str, bytes]:
    """Files that lie beside the configuration, all of mode 0600."""
    year = timedelta(days=365)
    good = certificate_pem(NOW - year, NOW + year)
    expired = certificate_pem(NOW - year, NOW - timedelta(days=1))
    return {
        "rsa.pem": private_pem(rsa_key()),
        "rsa-1024.pem": private_pem(rsa_key(1024)),
        "rsa-locked.pem": private_pem(rsa_key(), b"passphrase"),
        "rsa-public.pem": public_pem(rsa_key()),
        "p256.pem": private_pem(ec_key()),
        "p384.pem": private_pem(ec_key(ec.SECP384R1)),
        "certificate.pem": good,
        "expired.pem": expired,
        "expired-and-good.pem": expired + good,
        "soon.pem": certificate_pem(NOW - year, NOW + timedelta(days=29)),
        "later.pem": certificate_pem(NOW + timedelta(days=2), NOW + year),
        "password": b"secret\n",
        "long-secret": b"s" * 32 + b"\n",
        "live-key": b"chekt_live_0123456789abcdef0123456789abcdef\n",
        "test-key": b"chekt_test_0123456789abcdef0123456789abcdef\n",
        "two-lines": b"one\ntwo\n",
        "nothing": b"",
        "only-newline": b"\n",
        "not-a-key": b"hello\n",
    }


@dataclass(frozen=True)
class Place:
    """A folder with a configuration and the files that it names."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "gateway.toml"

    def write(self, text: str) -> Path:
        for name, content in contents().items():
            path = self.folder / name
            if not path.exists():
                path.write_bytes(content)
                path.chmod(0o600)
        self.file.write_text(text, encoding="utf-8")
        return self.file

    def load(
        self,
        text: str,
        environ: Mapping[str, str] | None = None,
        *,
        now: datetime | None = NOW,
        known: Mapping[str, FamilyFacts] | None = KNOWN,
    ) -> Loaded:
        return Settings.load_with_warnings(self.write(text), environ or {}, known=known, now=now)

    def faults(self, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        """What is wrong, one line each, the file's name without its folder."""
        try:
            self.load(text, environ)
        except ConfigError as error:
            return [str(fault).replace(f"{self.folder}/", "") for fault in error.faults]
        return []

    def warnings(self, text: str, environ: Mapping[str, str] | None = None) -> list[str]:
        return [str(warning).replace(f"{self.folder}/", "") for warning in self.load(text, environ).warnings]


def spoiled(*changes: tuple[str, str], more: str = "") -> str:
    """GOOD with lines replaced; each must be there."""
    text = GOOD
    for old, new in changes:
        if f"{old}\n" not in text:
            raise AssertionError(f"no line {old!r} in the good configuration")
        text = text.replace(f"{old}\n", f"{new}\n" if new else "", 1)
    return text + more
