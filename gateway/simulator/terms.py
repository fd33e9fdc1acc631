"""What the practice cloud was told at registration, and how strict it is: plain values, one sentence each."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa


@dataclass(frozen=True)
class RegisteredKey:
    """A public key as registered: Auth0 ties one algorithm to each credential."""

    pem: bytes
    algorithm: str = "RS256"
    kid: str | None = None


@dataclass(frozen=True)
class Terms:
    """What the practice cloud knows of its partner, and how it judges."""

    strict: bool = True
    """Refuses what the documents do not name: unknown fields, chunked bodies, bodies where none belong."""

    client_id: str = "practice"
    keys: tuple[RegisteredKey, ...] = ()
    """Registered public keys; none: the practice key with the id `practice-key`."""

    shared_secret: str | None = None
    """Set: HS256 assertions are accepted, and no others (CHeKT's "secret key" read as a shared secret).

    At least 32 bytes (RFC 7518, 3.2)."""

    auth: Literal["assertion", "client_secret", "api_key"] = "assertion"
    client_secret: str = "practice-client-secret"  # noqa: S105  for practice
    api_key: str = "chekt_test_practice00000000000000000000"
    event_header: Literal["bearer", "x-api-key", "both"] = "bearer"

    audience: str = "https://events.practice.invalid/"
    """The API audience of the token request."""

    assertion_audience: str | None = None
    """`aud` of the assertion; None: the origin of the token address and a slash, as Auth0 does."""

    assertion_seconds: int = 300
    """`exp` is at most this far ahead (Auth0: 5 minutes)."""

    leeway_seconds: int = 10
    extra_token_fields: Mapping[str, str] = field(default_factory=dict)
    """Form fields that the token request must carry beside the usual ones."""

    expires_in: int | None = 3600
    """Life of an access token; None: the answer does not say (the token lives an hour)."""

    cameras: Mapping[str, frozenset[str]] | None = None
    """Registered cameras of each location; anything else is answered 404. None: every name is welcome."""

    idempotency: bool = True
    """Honours `Idempotency-Key`: the answer is kept for 24 h."""

    slot_seconds: int = 900
    """Life of the upload slots."""

    sign_content_type: bool = False
    """The presigned addresses bind the content type too."""

    callback_auth: bool = False
    """Callbacks need the bearer token beside the token in the address."""

    per_minute: int | None = None
    """Rate limit of the API calls (events and callbacks), with `X-RateLimit-*` on every answer."""

    burst: int = 5
    max_body_bytes: int = 256 * 1024
    max_object_bytes: int = 100 * 1024 * 1024
    keep_bytes: int = 256 * 1024 * 1024
    """Received pictures are kept up to this sum, the oldest are forgotten first."""

    @property
    def gives_tokens(self) -> bool:
        """Otherwise the API key is all that the partner sends."""
        return self.auth != "api_key" and self.event_header != "x-api-key"


PRACTICE_KID = "practice-key"
PRACTICE_SHARED_SECRET = "practice-shared-secret-of-more-than-32-bytes"  # noqa: S105  for practice


@functools.cache
def practice_private_key() -> bytes:
    """A PEM (PKCS#8) private key for practice, made once in a process; the public half is what `Cloud` registers."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@functools.cache  # reading a private key proves its primes: tens of milliseconds
def public_half(private_pem: bytes) -> bytes:
    """The public key of a private one, as PEM."""
    key = serialization.load_pem_private_key(private_pem, None)
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def read_public_key(pem: bytes) -> bytes:
    """A public key or a certificate (PEM) as a public key. Raises ValueError where it is neither."""
    if b"BEGIN CERTIFICATE" in pem:
        key: object = x509.load_pem_x509_certificate(pem).public_key()
    else:
        key = serialization.load_pem_public_key(pem)
    if not isinstance(key, (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)):
        raise ValueError("neither an RSA nor an elliptic curve key")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
