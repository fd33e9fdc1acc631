"""Why a connection to the broker ended or was never made, in words for the person who reads the journal.

Reason codes: OASIS MQTT 5.0, 2.4; MQTT 3.1.1, 3.2.2.3 (translated to them by the MQTT library).
"""

from __future__ import annotations

import errno
import socket
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final


class Why(StrEnum):
    NETWORK = "network"  # heals itself
    CLOSED = "closed"  # by the other side, without a word
    UNREACHABLE = "unreachable"  # nothing listens there: while connected before, the sign of a restart
    REFUSED = "refused"  # a person must act: password, certificate, client id
    UNANSWERED = "unanswered"  # CONNECT was sent and neither accepted nor refused
    PROTOCOL = "protocol"  # this MQTT version is not spoken here
    TAKEN_OVER = "taken_over"  # another client came with our id
    SHUT_DOWN = "shut_down"  # the broker said goodbye
    DROPPED = "dropped"  # by ourselves, so that the broker sends again
    ENDED = "ended"  # by ourselves, for good


@dataclass(frozen=True, slots=True)
class Lost:
    why: Why
    reason: str


# X509_V_ERR_* of OpenSSL, x509_vfy.h
_NOT_YET_VALID: Final = 9
_EXPIRED: Final = 10
_UNKNOWN_ISSUER: Final = (2, 18, 19, 20, 21)
_WRONG_NAME: Final = (62, 64)


def of_error(error: BaseException, host: str, port: int, now_ms: int) -> Lost:
    """For what the operating system or the TLS library says."""
    where = f"{host}:{port}"
    clock = f"{datetime.fromtimestamp(now_ms // 1000, UTC):%Y-%m-%d %H:%M} UTC"
    match error:
        case ssl.SSLCertVerificationError() if error.verify_code == _NOT_YET_VALID:
            return Lost(
                Why.REFUSED,
                f"the broker's certificate is not yet valid; is this machine's clock right? It says {clock}",
            )
        case ssl.SSLCertVerificationError() if error.verify_code == _EXPIRED:
            return Lost(
                Why.REFUSED, f"the broker's certificate has expired, or this machine's clock is wrong: it says {clock}"
            )
        case ssl.SSLCertVerificationError() if error.verify_code in _UNKNOWN_ISSUER:
            return Lost(Why.REFUSED, "the broker's certificate is not signed by an authority that we trust (ca_file)")
        case ssl.SSLCertVerificationError() if error.verify_code in _WRONG_NAME:
            return Lost(Why.REFUSED, f"the broker's certificate is for another name than {host}")
        case ssl.SSLError() if error.reason == "WRONG_VERSION_NUMBER":
            return Lost(Why.REFUSED, f"{where} does not speak TLS")
        case ssl.SSLError() if "ALERT" in (error.reason or "") and "CERTIFICATE_REQUIRED" in (error.reason or ""):
            return Lost(Why.REFUSED, "the broker wants a client certificate (cert_file, key_file)")
        case ssl.SSLError() if "ALERT" in (error.reason or ""):
            return Lost(Why.REFUSED, f"the broker refused our side of TLS: {_words(error.reason)}")
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return Lost(Why.CLOSED, f"{where} closed the connection")
        case ssl.SSLError():
            return Lost(Why.REFUSED, f"TLS with {where} failed: {_words(error.reason or str(error))}")
        case socket.gaierror() if error.errno == socket.EAI_AGAIN:
            return Lost(Why.NETWORK, f"the name {host} could not be looked up just now")
        case socket.gaierror():
            return Lost(Why.NETWORK, f"unknown host {host}")
        case ConnectionRefusedError():
            return Lost(Why.UNREACHABLE, f"nothing listens at {where}")
        case TimeoutError():
            return Lost(Why.NETWORK, f"no answer from {where}")
        case ConnectionError() if error.errno is None:
            return Lost(Why.CLOSED, f"{where} ended the connection: {str(error) or type(error).__name__}")
        case ConnectionResetError() | BrokenPipeError():
            return Lost(Why.CLOSED, f"{where}: {error.strerror}")
        case OSError() if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            return Lost(Why.NETWORK, f"no route to {where}")
        case OSError() if error.filename is not None:
            return Lost(Why.REFUSED, f"{error.filename}: {error.strerror}")
        case OSError():
            return Lost(Why.NETWORK, f"{where}: {error.strerror or error}")
        case _:
            return Lost(Why.NETWORK, f"{where}: {str(error) or type(error).__name__}")


def of_connack(code: int, name: str, *, has_password: bool, client_id: str) -> Lost:
    """For a CONNACK that refuses."""
    match code:
        case 0x84:
            return Lost(Why.PROTOCOL, "the broker does not speak this version of MQTT")
        case 0x85:
            return Lost(Why.REFUSED, f"the broker refuses the client id {client_id}")
        case 0x86 | 0x87 | 0x8C if has_password:
            return Lost(Why.REFUSED, "the broker refuses our user name or password")
        case 0x86 | 0x87 | 0x8C:
            return Lost(Why.REFUSED, "the broker refuses us; it wants a user name and password, and none is configured")
        case 0x8A:
            return Lost(Why.REFUSED, "the broker has banned this client")
        case 0x88 | 0x89 | 0x97 | 0x9F:
            return Lost(Why.NETWORK, f"the broker cannot take us now: {_words(name)}")
        case _:
            return Lost(Why.REFUSED, f"the broker refused the connection: {_words(name)}")


def of_disconnect(code: int, name: str, *, client_id: str) -> Lost:
    """For a DISCONNECT packet of the broker (MQTT 5 only)."""
    match code:
        case 0x8E:
            return taken_over(client_id)
        case 0x8B:
            return Lost(Why.SHUT_DOWN, "the broker shuts down")
        case 0x87:
            return Lost(Why.REFUSED, "the broker no longer permits us to be connected")
        case _:
            return Lost(Why.NETWORK, f"the broker ended the connection: {_words(name)}")


def taken_over(client_id: str) -> Lost:
    return Lost(
        Why.TAKEN_OVER, f"another client uses the id {client_id}; each gateway needs its own [broker] client_id"
    )


def perhaps_taken_over(client_id: str) -> Lost:
    """MQTT 3.1.1 has no word for it, and Debian 12's broker none in MQTT 5: it just closes the older connection."""
    return Lost(
        Why.TAKEN_OVER,
        f"the broker ends each connection soon after it was made; probably another client uses the id {client_id}",
    )


_SUBACK: Final = {
    0x87: "not permitted",
    0x8F: "the broker does not accept this topic filter",
    0x97: "the broker's limit is reached",
    0x9E: "the broker has no shared subscriptions",
    0xA2: "the broker has no wildcards",
}


def of_suback(code: int) -> str:
    return _SUBACK.get(code, "the broker refuses it")


def _words(name: str) -> str:
    return name.replace("_", " ").lower()
