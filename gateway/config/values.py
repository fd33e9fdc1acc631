"""The kinds of values that the configuration knows: durations, sizes, ids, addresses.

Each is written as a person writes it and checked here, with a message that says what is allowed. No message repeats a
value: what was typed may be a secret in the wrong place. Pure.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Any, Final
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SIZE: Final = re.compile(r"(\d+)(B|KiB|MiB|GiB)", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES: Final = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_DIGITS: Final = 12  # longer numbers are typing errors, and would overflow what counts milliseconds

# RFC 1918, RFC 4193, RFC 3927, RFC 4291: addresses that never leave the site. Not 100.64.0.0/10 (RFC 6598), which is
# shared with the provider's other customers.
_SITE_NETWORKS: Final = tuple(
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
)
# RFC 6762, RFC 8375, ICANN 2024-07-29 ("internal"), and what routers for small sites use.
_SITE_SUFFIXES: Final = (".local", ".lan", ".home.arpa", ".internal")


def parse_duration(text: Any) -> Any:
    """`"200ms"`, `"10s"`, `"5m"`, `"2h"`, `"7d"` -> seconds. Raises ValueError naming what is allowed."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise ValueError('a duration needs quotation marks and a unit; allowed: such as "10s"')
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if match is None or len(match[1]) > _DIGITS:
        raise ValueError('is not a duration; allowed: such as "200ms", "10s", "5m", "2h", "7d"')
    return float(match[1]) * _SECONDS[match[2]]


def parse_optional_duration(text: Any) -> Any:
    """As `parse_duration`, and `"off"` -> None."""
    if text == "off" or text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise ValueError(f'{error}, or "off"') from None


def parse_size(text: Any) -> Any:
    """`"64MiB"` -> bytes."""
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None or len(match[1]) > _DIGITS:
        raise ValueError('is not a size; allowed: such as "512KiB", "64MiB", "2GiB"')
    return int(match[1]) * _BYTES[match[2]]


def seconds(text: str) -> float:
    """A default, written as in the file."""
    return float(parse_duration(text))


def size(text: str) -> int:
    return int(parse_size(text))


def between(low: str, high: str) -> AfterValidator:
    """Bounds of a duration or a size, written as in the file."""
    parse = parse_size if low.endswith("B") else parse_duration
    least, most = parse(low), parse(high)

    def check(value: Any) -> Any:
        if value is not None and not least <= value <= most:
            raise ValueError(f'is out of bounds; allowed: "{low}" to "{high}"')
        return value

    return AfterValidator(check)


def _id(text: str) -> str:
    if not text or text != text.strip() or not text.isprintable():
        raise ValueError("is empty or has blanks around it; allowed: the id exactly as CHeKT or the equipment knows it")
    return text


def _site_id(text: str) -> str:
    # The state topic is chekt-gateway/<location_id>/state, and these three have a meaning in topics (MQTT 5.0, 4.7).
    if set(text) & set("/+#"):
        raise ValueError('must not contain "/", "+" or "#"; allowed: the id exactly as CHeKT knows it')
    return _id(text)


def _name(text: str) -> str:
    if not text:
        raise ValueError("is empty; allowed: at least one character")
    return text


def _equipment_name(text: str) -> str:
    """As messages are read: without blanks around it and without the invisible characters that copying brings along."""
    return "".join(c for c in _name(text) if c.isprintable()).strip() or text


def _topic_prefix(text: str) -> str:
    if not text or set(text) & set("+#\0") or text.endswith("/") or len(text.encode()) > 1024:
        raise ValueError(
            'is no topic prefix; allowed: such as "frigate" or "site/nvr", without "+", "#" or "/" at the end'
        )
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError('is not a full path; allowed: a path that begins with "/"')
    return text


def _score(value: float) -> float:
    if not 0 <= value <= 100:
        raise ValueError("is out of bounds; allowed: 0 to 100 (recorders count to 1 or to 100)")
    return value


Duration = Annotated[float, BeforeValidator(parse_duration)]
OptionalDuration = Annotated[float | None, BeforeValidator(parse_optional_duration)]
Size = Annotated[int, BeforeValidator(parse_size)]
Id = Annotated[str, AfterValidator(_id)]
SiteId = Annotated[str, AfterValidator(_site_id)]
Name = Annotated[str, AfterValidator(_name)]
EquipmentName = Annotated[str, AfterValidator(_equipment_name)]
EquipmentNames = Annotated[tuple[EquipmentName, ...], Field(strict=False)]  # TOML gives a list
TopicPrefix = Annotated[str, AfterValidator(_topic_prefix)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
Score = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_score)]


# Addresses


def is_loopback(host: str) -> bool:
    """This very machine: nothing that is sent there is on a wire."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_of_the_site(host: str) -> bool:
    """This machine, a private address, or a name that only the site's own network can mean."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return "." not in host or is_loopback(host) or host.endswith(_SITE_SUFFIXES)
    return address.is_loopback or any(address in network for network in _SITE_NETWORKS)


def split_url(text: str, schemes: Sequence[str], example: str) -> SplitResult:
    """An address in its parts. Raises ValueError naming what is allowed."""
    allowed = f"allowed: such as {example}"
    # urlsplit drops tabs and newlines silently.
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(f"is not an address; {allowed}")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise ValueError(f"is not an address; {allowed}") from None
    if url.scheme not in schemes:
        raise ValueError(f"must begin with {' or '.join(f'{scheme}://' for scheme in schemes)}; {allowed}")
    if not host or port == 0:
        raise ValueError(f"names no host; {allowed}")
    if "@" in url.netloc:
        raise ValueError(f"must not hold a user name or password; {allowed}")
    if "?" in text or "#" in text:
        raise ValueError(f'must not have a "?" or "#" part; {allowed}')
    return url


def _cloud_url(text: str, example: str = '"https://auth.example.com/oauth/token"') -> str:
    """`https` only, this machine excepted: alarms and credentials leave the site here."""
    url = split_url(text, ("https", "http"), example)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise ValueError("must begin with https://; allowed: https, and http only to this machine (127.0.0.1)")
    return text


def _cloud_base(text: str) -> str:
    _cloud_url(text, '"https://api.chekt.com"')
    if "/partner/" in f"{text}/":
        raise ValueError("must end before /partner/; allowed: the base address, such as https://api.chekt.com")
    return text.rstrip("/")


def _site_url(text: str) -> str:
    url = split_url(text, ("http", "https"), '"http://192.168.1.20:5000"')
    if url.scheme == "http" and not is_of_the_site(url.hostname or ""):
        raise ValueError("must begin with https://; allowed: http only to this machine or a private address")
    return text.rstrip("/")


def _broker_url(text: str) -> str:
    url = split_url(text, ("mqtt", "mqtts", "ws", "wss"), '"mqtt://127.0.0.1:1883"')
    if url.scheme in ("mqtt", "ws") and not is_of_the_site(url.hostname or ""):
        secure = "mqtts" if url.scheme == "mqtt" else "wss"
        raise ValueError(
            f"must begin with {secure}://; allowed: {url.scheme} only to this machine or a private address of the site"
        )
    if url.scheme in ("mqtt", "mqtts") and url.path not in ("", "/"):
        raise ValueError('must end after the port; allowed: such as "mqtt://127.0.0.1:1883"')
    return text


CloudBase = Annotated[str, AfterValidator(_cloud_base)]
CloudUrl = Annotated[str, AfterValidator(_cloud_url)]
SiteUrl = Annotated[str, AfterValidator(_site_url)]
BrokerUrl = Annotated[str, AfterValidator(_broker_url)]
