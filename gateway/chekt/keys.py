"""What the gateway proves itself with: read once, parsed once, checked before it is used.

Parsing a PEM key for each of many failing attempts would starve the whole process, so the parsed key is kept. The
algorithm is never guessed from the file (ASSUMED: Q3): a key of another kind is an error that says what was expected.
Sources: RFC 7518, 3.1 (algorithms); RFC 8725, 2.1 (no mixing of secrets and keys).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway.config import Cloud

MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3
MIN_SECRET_BYTES: Final = 32  # RFC 7518, 3.2: as long as the hash

SigningKey: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | bytes


class KeyUnusable(Exception):
    """A key or secret file cannot be used; the text names the setting and says what was expected, never the secret."""


@dataclass(frozen=True, slots=True)
class Secrets:
    """`repr` shows none of them."""

    signing_key: SigningKey | None = field(default=None, repr=False)
    client_secret: str | None = field(default=None, repr=False)
    api_key: str | None = field(default=None, repr=False)


def read_secrets(cloud: Cloud) -> Secrets:
    """The secrets that `[cloud]` names, by absolute paths. Raises KeyUnusable."""
    api_key = _text("api_key_file", cloud.api_key_file) if cloud.api_key_file else None
    client_secret = _text("client_secret_file", cloud.client_secret_file) if cloud.client_secret_file else None
    signing_key: SigningKey | None = None
    if cloud.wants_token and cloud.auth == "assertion":
        if cloud.algorithm == "HS256":
            if client_secret is None:
                raise KeyUnusable("algorithm HS256 signs with client_secret_file, which is not set")
            signing_key = client_secret.encode()
            if len(signing_key) < MIN_SECRET_BYTES:
                raise KeyUnusable(f"client_secret_file: HS256 needs at least {MIN_SECRET_BYTES} bytes")
        elif cloud.private_key_file:
            signing_key = parse_key(_read("private_key_file", cloud.private_key_file), cloud.algorithm)
        else:
            raise KeyUnusable(f"algorithm {cloud.algorithm} signs with private_key_file, which is not set")
    if cloud.wants_token and cloud.auth == "client_secret" and client_secret is None:
        raise KeyUnusable('auth = "client_secret" needs client_secret_file')
    if (not cloud.wants_token or cloud.event_header == "both") and api_key is None:
        raise KeyUnusable("an API key is to be sent, but api_key_file is not set")
    return Secrets(signing_key, client_secret, api_key)


def parse_key(pem: bytes, algorithm: str) -> SigningKey:
    """Raises KeyUnusable unless this is a private key of the kind that the algorithm signs with."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError as error:
        raise KeyUnusable("private_key_file is protected by a password; remove it with openssl pkey") from error
    except Exception as error:
        what = "a public key or a certificate" if b"PUBLIC KEY" in pem or b"CERTIFICATE" in pem else "no private key"
        raise KeyUnusable(f"private_key_file holds {what}; expected is a private key in PEM") from error
    if algorithm == "ES256":
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise KeyUnusable("private_key_file: ES256 needs a key on the curve P-256")
        return key
    if not isinstance(key, rsa.RSAPrivateKey):
        raise KeyUnusable(f"private_key_file: {algorithm} needs an RSA key")
    if key.key_size < MIN_RSA_BITS:
        raise KeyUnusable(f"private_key_file: {algorithm} needs an RSA key of at least {MIN_RSA_BITS} bits")
    return key


def _read(setting: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise KeyUnusable(f"{setting} {path}: {error.strerror or error}") from error


def _text(setting: str, path: str) -> str:
    try:
        text = _read(setting, path).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise KeyUnusable(f"{setting} {path}: holds bytes that no secret has") from error
    if not text or not text.isprintable():
        raise KeyUnusable(f"{setting} {path}: expected is one line of text, and it is {'empty' if not text else 'not'}")
    return text
