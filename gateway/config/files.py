"""Files that the configuration names: where they are, whether they are safe, and what must be in them.

No message repeats what is in a file, nor a name that is not a full path: people put the secret itself there by mistake.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

MAX_SECRET_BYTES: Final = 64 << 10  # a key is some thousand bytes; more is another file
MAX_CERTIFICATES_BYTES: Final = 4 << 20  # a whole bundle of authorities is about 250 KiB
MIN_RSA_BITS: Final = 2048  # RFC 7518, 3.3
MIN_HS256_BYTES: Final = 32  # RFC 7518, 3.2
EXPIRES_SOON: Final = timedelta(days=30)  # time to order, receive and install another


class FileFault(Exception):
    """Why a file cannot be used; what is allowed."""


def place(name: str, base: Path, environ: Mapping[str, str]) -> Path:
    """Where a `_file` key points.

    A bare name: in $CREDENTIALS_DIRECTORY (systemd.exec(5), LoadCredential=), and where that has none beside the
    configuration file, so that `check` finds outside the unit what the unit loads from there. A relative path: beside
    the configuration file.
    """
    credentials = environ.get("CREDENTIALS_DIRECTORY")
    if "/" not in name and credentials:
        loaded = Path(credentials, name)
        with suppress(OSError):  # a folder that we may not look into has none for us
            if loaded.exists():
                return loaded
    return base / name


def read(path: Path, limit: int) -> bytes:
    """The whole file. Raises FileFault."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
    except FileNotFoundError:
        # The name itself may be the secret; a folder that is there is a folder.
        folder = f" in {path.parent}" if path.parent.is_dir() else ", nor its folder"
        raise FileFault(f"there is no such file{folder}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a file name"
        raise FileFault(f"cannot be read: {reason}") from None
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise FileFault("is not a plain file")
        content = b""
        while len(content) <= limit and (more := os.read(handle, limit + 1 - len(content))):
            content += more
    except OSError as error:
        raise FileFault(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(handle)
    if not content:
        raise FileFault("is empty")
    if len(content) > limit:
        raise FileFault(f"is longer than {limit >> 10} KiB; it must be another file")
    return content


def read_secret(path: Path) -> bytes:
    """A password or key. The newline that an editor puts at the end is not part of it. Raises FileFault."""
    secret = read(path, MAX_SECRET_BYTES).rstrip(b"\r\n")
    if not secret:
        raise FileFault("is empty")
    return secret


def openness(path: Path) -> tuple[str | None, str | None]:
    """Whether others may read a secret: a fault, a warning. systemd's own credentials are 0400 or 0440."""
    mode = path.stat().st_mode
    if mode & (stat.S_IROTH | stat.S_IWOTH | stat.S_IWGRP):
        return f"is open to other users (mode {mode & 0o777:04o}); allowed: chmod 600", None
    if mode & stat.S_IRGRP:
        return None, f"can be read by its group (mode {mode & 0o777:04o}); better: chmod 600"
    return None, None


def text_of(secret: bytes) -> str:
    """A secret that travels in a header or form: one line of visible ASCII. Raises FileFault."""
    text = secret.decode("ascii", "replace")
    if not text.isascii() or not text.isprintable() or " " in text:
        raise FileFault("must hold one line of visible ASCII characters and nothing else")
    return text


def private_key(content: bytes) -> PrivateKeyTypes:
    """A private key in PEM without passphrase. Raises FileFault."""
    try:
        return load_pem_private_key(content, None)
    except TypeError:
        raise FileFault("has a passphrase; allowed: one without (openssl pkey -in OLD -out NEW)") from None
    except (ValueError, UnsupportedAlgorithm):
        pass
    if b"-----BEGIN CERTIFICATE-----" in content:
        raise FileFault("is a certificate; allowed: the private key that belongs to it")
    if b" PUBLIC KEY-----" in content:
        raise FileFault("is a public key; allowed: the private key that belongs to it")
    raise FileFault("is no private key; allowed: PEM, beginning with -----BEGIN PRIVATE KEY-----")


def suits(key: PrivateKeyTypes, algorithm: str) -> str | None:
    """Why a key cannot sign with an algorithm (RFC 7518, 3.3 to 3.5); None: it can."""
    if algorithm == "ES256":
        if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
            return None
        return f"is {_called(key)}; allowed with ES256: an EC key on the curve P-256"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= MIN_RSA_BITS:
        return None
    return f"is {_called(key)}; allowed with {algorithm}: an RSA key of at least {MIN_RSA_BITS} bits"


def _called(key: PrivateKeyTypes) -> str:
    if isinstance(key, rsa.RSAPrivateKey):
        return f"an RSA key of {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return f"an EC key on the curve {key.curve.name}"
    return "a key of another kind"


def certificates(content: bytes) -> list[x509.Certificate]:
    """One or more certificates in PEM. Raises FileFault."""
    try:
        return x509.load_pem_x509_certificates(content)
    except (ValueError, UnsupportedAlgorithm):
        raise FileFault("holds no certificate; allowed: PEM, beginning with -----BEGIN CERTIFICATE-----") from None


def belongs(key: PrivateKeyTypes, certificate: x509.Certificate) -> bool:
    shape = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return key.public_key().public_bytes(*shape) == certificate.public_key().public_bytes(*shape)


def validity(certificate: x509.Certificate, now: datetime) -> tuple[str | None, str | None]:
    """A fault, a warning about the time for which a certificate holds."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if ends <= now:
        return f"has expired on {ends:%Y-%m-%d}; allowed: a certificate that is valid today, {now:%Y-%m-%d}", None
    if begins > now:
        return f"is valid only from {begins:%Y-%m-%d}; allowed: a certificate valid today, {now:%Y-%m-%d}", None
    if ends - now < EXPIRES_SOON:
        return None, f"expires on {ends:%Y-%m-%d}; renew it before"
    return None, None


def chain_validity(chain: list[x509.Certificate], now: datetime, *, is_ours: bool) -> tuple[str | None, str | None]:
    """Of our own chain the first is ours; of a bundle of authorities one that holds is enough."""
    said = [validity(certificate, now) for certificate in chain]
    return said[0] if is_ours else min(said, key=lambda pair: [part is not None for part in pair])


def certificate_dates(path: Path, now: datetime, *, is_ours: bool) -> tuple[str | None, str | None]:
    """A fault, a warning about the dates of a file of certificates. Raises FileFault."""
    return chain_validity(certificates(read(path, MAX_CERTIFICATES_BYTES)), now, is_ours=is_ours)
