"""Where log lines go, and how they look: fields for the journal, coloured lines for a terminal, plain lines elsewhere.

Under systemd each line is one entry of the journal with its own fields (systemd.io/JOURNAL_NATIVE_PROTOCOL), so that
`journalctl -u chekt-gateway EVENT_ID=…` shows one alarm. Whatever libraries say through `logging` takes the same way,
from WARNING up. Nothing here may hold up or break the gateway: a journal that is full loses lines and counts them.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import logging
import os
import re
import socket
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping, MutableMapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TextIO

import structlog

from gateway.host.redaction import redact, redact_text

_log = structlog.get_logger()

JOURNAL_SOCKET: Final = Path("/run/systemd/journal/socket")
IDENTIFIER: Final = "chekt-gateway"

# syslog(3); systemd.journal-fields(7), PRIORITY=
_PRIORITY: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_COLOURS: Final = {"debug": "2", "info": "32", "warning": "33", "error": "1;31", "critical": "1;31"}

# Ours, so that no key of a log line can pretend to be one of them.
_OWN_FIELDS: Final = frozenset({"MESSAGE", "MESSAGE_ID", "PRIORITY", "SYSLOG_IDENTIFIER", "EVENT", "LINES_DROPPED"})
# systemd.journal-fields(7): upper case, digits and underscore, no underscore first, at most 64 characters.
_NO_FIELD: Final = re.compile(r"[^A-Z0-9_]")
_MAX_FIELD_NAME: Final = 64
# Every event kind has the same MESSAGE_ID in every installation: uuid5 of its name in this name space.
_MESSAGE_IDS: Final = uuid.uuid5(uuid.NAMESPACE_DNS, "chekt-gateway.log")
# unix(7): what a datagram larger than the socket's buffer ends with; such an entry goes as a sealed file (a memfd).
_TOO_LONG: Final = frozenset({errno.EMSGSIZE, errno.ENOBUFS})
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


def configure_logging(
    level: str = "info",
    *,
    stream: TextIO | None = None,
    environ: Mapping[str, str] | None = None,
    journal_socket: Path = JOURNAL_SOCKET,
) -> None:
    """May be called again, for instance when the level has changed."""
    stream = sys.stderr if stream is None else stream
    environ = os.environ if environ is None else environ
    writer: Any
    if is_journal(stream, environ):
        writer = JournalWriter(stream, journal_socket)
    else:
        writer = LineWriter(stream, coloured=_is_terminal(stream) and not environ.get("NO_COLOR"))
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            # The default formatter: a traceback without the values of local variables, where secrets lie.
            structlog.processors.format_exc_info,
            _redacted,
            writer.write,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.ReturnLoggerFactory(),
        cache_logger_on_first_use=False,  # the level may change while modules hold their loggers
    )
    root = logging.getLogger()
    for there in [there for there in root.handlers if isinstance(there, LibraryLines)]:
        root.removeHandler(there)
    root.addHandler(LibraryLines())
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """systemd.exec(5), $JOURNAL_STREAM: device and inode of what stdout or stderr was connected to the journal with."""
    try:
        facts = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def message_id(event: str) -> str:
    """Stable for one kind of log line: `journalctl MESSAGE_ID=…`."""
    return uuid.uuid5(_MESSAGE_IDS, event).hex


def line_of(event: str, facts: Mapping[str, Any]) -> str:
    """`event_delivered event_id=… camera=front_door`: one line, whatever equipment puts into its names."""
    return " ".join([event, *(f"{key}={_shown(value)}" for key, value in facts.items() if value is not None)])


def field_name(key: str) -> str:
    name = _NO_FIELD.sub("_", key.upper()).lstrip("_")[:_MAX_FIELD_NAME]
    if not name or name[0].isdigit() or name in _OWN_FIELDS:
        name = f"X_{name}"[:_MAX_FIELD_NAME]
    return name


class LineWriter:
    """One line for each entry, with the time; a traceback below it."""

    def __init__(self, stream: TextIO, *, coloured: bool) -> None:
        self._stream = stream
        self._coloured = coloured
        self._lock = threading.Lock()

    def write(self, _logger: object, _method: str, entry: MutableMapping[str, Any]) -> str:
        level, event, exception, facts = _parts(entry)
        now = datetime.now().astimezone()
        if self._coloured:
            when = f"\x1b[2m{now:%H:%M:%S}.{now.microsecond // 1000:03d}\x1b[0m"
            shown = " ".join(f"\x1b[36m{key}\x1b[0m={_shown(value)}" for key, value in facts.items())
            line = f"{when} \x1b[{_COLOURS[level]}m{level:<8}\x1b[0m \x1b[1m{event}\x1b[0m {shown}".rstrip()
        else:
            line = f"{now.isoformat(timespec='milliseconds')} {level:<8} {line_of(event, facts)}"
        # A terminal that went away or a full disk below a redirection must not stop an alarm.
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write("\n".join([line, *exception]) + "\n")
            self._stream.flush()
        return ""


class JournalWriter:
    """Entries of the journal. Where its socket is away for a moment: lines on stderr, which the journal reads too."""

    def __init__(self, stream: TextIO, path: Path = JOURNAL_SOCKET) -> None:
        self._stream = stream
        self._path = str(path)
        self._dropped = 0

    def write(self, _logger: object, _method: str, entry: MutableMapping[str, Any]) -> str:
        level, event, exception, facts = _parts(entry)
        message = "\n".join([line_of(event, facts), *exception])
        fields = {
            "MESSAGE": message,
            "MESSAGE_ID": message_id(event),
            "PRIORITY": str(_PRIORITY[level]),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "EVENT": event,
        }
        fields.update({field_name(key): _plain(value) for key, value in facts.items()})
        if self._dropped:
            fields["LINES_DROPPED"] = str(self._dropped)
        try:
            self._send(encode_entry(fields))
        except BlockingIOError:
            self._dropped += 1
        except OSError:
            # sd-daemon(3): "<N>" before a line is its priority.
            with contextlib.suppress(OSError, ValueError):
                for line in message.splitlines():
                    self._stream.write(f"<{_PRIORITY[level]}>{line}\n")
                self._stream.flush()
        else:
            self._dropped = 0
        return ""

    def _send(self, entry: bytes) -> None:
        # A socket for each entry: nothing to keep, to reopen when the journal restarts, or to share between threads.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            try:
                channel.sendto(entry, self._path)
            except OSError as fault:
                if fault.errno not in _TOO_LONG:
                    raise
                with _sealed_file(entry) as file:
                    descriptor = array.array("i", [file])
                    channel.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor)], 0, self._path)


def encode_entry(fields: Mapping[str, str]) -> bytes:
    """systemd.io/JOURNAL_NATIVE_PROTOCOL: `NAME=value`, or with a length before a value that has line breaks."""
    entry = bytearray()
    for name, text in fields.items():
        value = text.encode("utf-8", "backslashreplace")
        if b"\n" in value:
            entry += name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"
        else:
            entry += name.encode() + b"=" + value + b"\n"
    return bytes(entry)


class LibraryLines(logging.Handler):
    """What paho, aiohttp and asyncio say, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:  # a library's broken format string
            text = str(record.msg)
        level = max(number for number in (0, *_LEVELS.values()) if number <= record.levelno)
        _log.log(
            level or logging.WARNING, "library_said", library=record.name, text=text, exc_info=record.exc_info or None
        )


def _redacted(_logger: object, _method: str, entry: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    exception = entry.pop("exception", None)
    clean: dict[str, Any] = {key: redact(value, key) for key, value in entry.items()}
    if exception:
        clean["exception"] = redact_text(exception)
    return clean


def _parts(entry: MutableMapping[str, Any]) -> tuple[str, str, list[str], dict[str, Any]]:
    level = str(entry.pop("level", "info"))
    event = str(entry.pop("event", ""))
    event = event if event.isprintable() else repr(event)
    exception = [_harmless(line) for line in str(entry.pop("exception", None) or "").splitlines()]
    facts = {key: value for key, value in entry.items() if value is not None}
    return level if level in _PRIORITY else "error", event, exception, facts


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else str(value)


def _shown(value: Any) -> str:
    text = _plain(value)
    bare = text and text.isprintable() and not any(sign in text for sign in " =\"'")
    return text if bare else repr(text)


def _harmless(line: str) -> str:
    return line if line.isprintable() else "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


@contextlib.contextmanager
def _sealed_file(content: bytes) -> Iterator[int]:
    file = os.memfd_create("chekt-gateway-log", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(file), "wb") as out:
            out.write(content)
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
        yield file
    finally:
        os.close(file)
