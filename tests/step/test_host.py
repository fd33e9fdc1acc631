"""The machine we live on: clocks, the notify socket, the journal, the control channel, the disk."""

from __future__ import annotations

import array
import asyncio
import contextlib
import io
import json
import logging
import os
import socket
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from gateway.host import journal
from gateway.host.clock import SystemClock
from gateway.host.control import ControlError, ControlServer, ask, socket_path
from gateway.host.disk import free_bytes
from gateway.host.repeated import Repeated
from gateway.host.systemd import Systemd
from tests.fakes.waiting import until

# --- clock ---


def test_ticks_go_on_from_their_base_and_never_back() -> None:
    clock = SystemClock(base_ticks=5_000_000)
    seen = [clock.ticks_ms() for _ in range(1000)]
    assert 5_000_000 <= seen[0] < 5_060_000
    assert seen == sorted(seen)


def test_wall_time_is_milliseconds_since_1970() -> None:
    assert 1_700_000_000_000 < SystemClock().wall_ms() < 10_000_000_000_000


# --- disk ---


def test_free_space_of_a_folder_that_is_not_there_yet_is_that_of_its_file_system(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") >= 0
    facts = os.statvfs(tmp_path)
    assert free_bytes(tmp_path) <= facts.f_blocks * facts.f_frsize


# --- systemd ---


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[tuple[Systemd, socket.socket]]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(5)
        yield Systemd({"NOTIFY_SOCKET": str(tmp_path / "notify")}), listener


def test_systemd_hears_every_state_in_its_own_words(notify: tuple[Systemd, socket.socket]) -> None:
    systemd, listener = notify
    systemd.ready("delivering")
    systemd.ready()
    systemd.status("broker away\nREADY=1")
    systemd.watchdog()
    systemd.stopping()
    systemd.at_work("saving what\ncan be read")
    assert [listener.recv(4096).decode() for _ in range(6)] == [
        "READY=1\nSTATUS=delivering",
        "READY=1",
        "STATUS=broker away READY=1",
        "WATCHDOG=1",
        "STOPPING=1",
        "EXTEND_TIMEOUT_USEC=120000000\nSTATUS=saving what can be read",
    ]
    assert systemd.reloading()
    first, second = listener.recv(4096).decode().splitlines()
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0


def test_an_abstract_socket_is_reached_too() -> None:
    name = f"chekt-gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name)
        listener.settimeout(5)
        assert Systemd({"NOTIFY_SOCKET": "@" + name}).ready()
        assert listener.recv(4096) == b"READY=1"


def test_without_systemd_nothing_happens_and_nothing_breaks(tmp_path: Path) -> None:
    assert not Systemd({}).ready()
    assert not Systemd({}).listens
    assert not Systemd({"NOTIFY_SOCKET": "vsock:2:1"}).watchdog()
    assert not Systemd({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).status("x")


def test_the_watchdog_is_for_the_process_it_names() -> None:
    own, other = str(os.getpid()), str(os.getpid() + 1)
    assert Systemd({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": own}).watchdog_seconds == 60.0
    assert Systemd({"WATCHDOG_USEC": "60000000"}).watchdog_seconds == 60.0
    assert Systemd({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": other}).watchdog_seconds is None
    assert Systemd({"WATCHDOG_USEC": "soon", "WATCHDOG_PID": own}).watchdog_seconds is None
    assert Systemd({}).watchdog_seconds is None


# --- journal ---


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """What a test configures ends with it."""
    handlers, level, hook = list(logging.getLogger().handlers), logging.getLogger().level, warnings.showwarning
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    logging.captureWarnings(False)
    warnings.showwarning = hook
    logging.getLogger().handlers[:] = handlers
    logging.getLogger().setLevel(level)


class Journald:
    """Hears entries as journald does: systemd.io/JOURNAL_NATIVE_PROTOCOL."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(5)

    def close(self) -> None:
        self._socket.close()

    def entry(self) -> dict[str, str]:
        data, ancillary, _, _ = self._socket.recvmsg(1 << 20, 1024)
        for level, kind, content in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            descriptors = array.array("i")
            descriptors.frombytes(content)
            assert data == b""
            with os.fdopen(descriptors[0], "rb") as file:
                file.seek(0)
                data = file.read()
        return self._parse(data)

    @staticmethod
    def _parse(data: bytes) -> dict[str, str]:
        fields: dict[str, str] = {}
        while data:
            head, _, data = data.partition(b"\n")
            name, is_short, value = head.partition(b"=")
            if not is_short:
                length = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + length], data[9 + length :]
            assert name.decode() not in fields
            fields[name.decode()] = value.decode()
        return fields


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    """A journal that stderr is connected with, as in a unit."""
    heard = Journald(tmp_path / "journal")
    with (tmp_path / "stderr").open("w") as stream:
        facts = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"}
        journal.configure_logging("debug", stream=stream, environ=environ, journal_socket=heard.path)
        yield heard
    heard.close()


def test_an_entry_of_the_journal_has_a_field_for_each_fact(journald: Journald) -> None:
    structlog.get_logger().info("event_delivered", event_id="abc", camera="front_door", http_status=201, attempt=2)
    assert journald.entry() == {
        "MESSAGE": "event_delivered event_id=abc camera=front_door http_status=201 attempt=2",
        "MESSAGE_ID": journal.message_id("event_delivered"),
        "PRIORITY": "6",
        "SYSLOG_IDENTIFIER": "chekt-gateway",
        "EVENT": "event_delivered",
        "EVENT_ID": "abc",
        "CAMERA": "front_door",
        "HTTP_STATUS": "201",
        "ATTEMPT": "2",
    }


def test_a_kind_of_line_keeps_its_message_id_for_ever() -> None:
    """Operators filter by it: a change here is a change of the interface."""
    assert journal.message_id("event_delivered") == "5a5f321318d35434a926953c65540664"


@pytest.mark.parametrize(("level", "priority"), [("debug", "7"), ("info", "6"), ("warning", "4"), ("error", "3")])
def test_the_priority_of_an_entry_is_its_level(journald: Journald, level: str, priority: str) -> None:
    getattr(structlog.get_logger(), level)("event_stored")
    assert journald.entry()["PRIORITY"] == priority


def test_no_fact_can_pretend_to_be_a_field_of_ours(journald: Journald) -> None:
    structlog.get_logger().info("event_stored", message="x", priority=0, _pid=1, **{"9to5": "y", "größe": "z"})
    entry = journald.entry()
    assert entry["PRIORITY"] == "6"
    assert entry["MESSAGE"].startswith("event_stored ")
    assert (entry["X_MESSAGE"], entry["X_PRIORITY"], entry["PID"], entry["X_9TO5"]) == ("x", "0", "1", "y")
    assert entry["GR_SSE"] == "z"


def test_values_with_line_breaks_arrive_whole(journald: Journald) -> None:
    structlog.get_logger().info("event_stored", reason="one\nPRIORITY=0\ntwo")
    entry = journald.entry()
    assert entry["REASON"] == "one\nPRIORITY=0\ntwo"
    assert entry["PRIORITY"] == "6"
    assert "\n" not in entry["MESSAGE"]


def test_an_entry_larger_than_a_datagram_arrives_whole(journald: Journald) -> None:
    structlog.get_logger().info("event_stored", reason="x" * (9 << 20))
    assert journald.entry()["REASON"] == "x" * (9 << 20)


def test_a_journal_that_does_not_read_loses_lines_and_counts_them(journald: Journald) -> None:
    log = structlog.get_logger()
    for _ in range(5000):  # unix(7), net.unix.max_dgram_qlen: far below this
        log.info("event_stored")
    entries = 0
    journald._socket.setblocking(False)
    try:
        while journald.entry():
            entries += 1
    except BlockingIOError:
        pass
    assert 0 < entries < 5000
    journald._socket.settimeout(5)
    log.info("event_delivered")
    assert journald.entry()["LINES_DROPPED"] == str(5000 - entries)
    log.info("event_delivered")
    assert "LINES_DROPPED" not in journald.entry()


def test_without_the_socket_of_the_journal_lines_go_to_stderr_with_their_priority(tmp_path: Path) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        facts = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"}
        journal.configure_logging("info", stream=stream, environ=environ, journal_socket=tmp_path / "nobody")
        structlog.get_logger().error("store_refused", reason="disk full")
    assert (tmp_path / "stderr").read_text() == "<3>store_refused reason='disk full'\n"


def test_stderr_that_was_redirected_is_no_journal(tmp_path: Path) -> None:
    """systemd.exec(5): the variable alone proves nothing, the file must be the one it names."""
    with (tmp_path / "log").open("w") as stream:
        assert not journal.is_journal(stream, {"JOURNAL_STREAM": "8:12345"})
        assert not journal.is_journal(stream, {})
    assert not journal.is_journal(io.StringIO(), {"JOURNAL_STREAM": "8:12345"})


def plain_lines(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    journal.configure_logging(level, stream=stream, environ={})
    return stream


def test_a_plain_line_has_time_level_fact_and_values() -> None:
    stream = plain_lines()
    structlog.get_logger().warning("mqtt_lost", reason="no answer", seconds=5, first=True, camera=None)
    when, rest = stream.getvalue().split(maxsplit=1)
    assert rest == "warning  mqtt_lost reason='no answer' seconds=5 first=true\n"
    assert len(when) == len("2026-03-01T12:00:00.000+00:00")


def test_lines_below_the_level_are_not_written() -> None:
    stream = plain_lines("warning")
    structlog.get_logger().info("event_stored")
    assert stream.getvalue() == ""


def test_the_level_may_change_while_modules_hold_their_loggers() -> None:
    log = structlog.get_logger()
    plain_lines("error")
    log.info("event_stored")
    stream = plain_lines("info")
    log.info("event_delivered")
    assert "event_delivered" in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal_output(environ: dict[str, str]) -> str:
    stream = Terminal()
    journal.configure_logging("info", stream=stream, environ=environ)
    structlog.get_logger().info("event_delivered", camera="front_door")
    return stream.getvalue()


def test_a_terminal_gets_colours_unless_it_asks_for_none() -> None:
    assert "\x1b[36mcamera\x1b[0m=front_door" in terminal_output({})
    plain = terminal_output({"NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert "event_delivered camera=front_door" in plain


def test_what_equipment_calls_itself_cannot_move_the_cursor_or_begin_a_line() -> None:
    stream = plain_lines()
    structlog.get_logger().info("event_stored", camera="x\n2026 error store_refused \x1b[2J\u2028\u202e")
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().strip().isprintable()


def test_secrets_are_taken_out_of_every_line_and_every_traceback() -> None:
    stream = plain_lines()
    hidden = "Zq7pW9xK2mT5"
    log = structlog.get_logger().bind(authorization=f"Bearer {hidden}")
    try:
        raise ConnectionError(f"https://b.example/k?X-Amz-Signature={hidden}")
    except ConnectionError as fault:
        log.exception("put_failed", url=f"https://b.example/k?{hidden}", error=fault, headers={"x-api-key": hidden})
    assert hidden not in stream.getvalue()
    assert "Traceback (most recent call last)" in stream.getvalue()
    assert "error='ConnectionError: https://b.example/k?[redacted]'" in stream.getvalue()


def test_a_traceback_shows_no_local_variables() -> None:
    stream = plain_lines()

    def fail(held: str) -> None:
        raise ValueError(str(len(held)))

    try:
        fail("Zq7p" + "W9xK2mT5")
    except ValueError:
        structlog.get_logger().exception("fault_contained")
    assert "Zq7pW9xK2mT5" not in stream.getvalue()


def test_a_library_is_heard_from_warning_up_and_redacted() -> None:
    stream = plain_lines("debug")
    library = logging.getLogger("paho.mqtt")
    library.info("nothing to see")
    library.warning("refused %s", "mqtt://u:Zq7pW9xK2mT5@h")
    broken = {"name": "paho.mqtt", "levelno": logging.ERROR, "levelname": "ERROR", "msg": "broken %d", "args": ("x",)}
    for handler in logging.getLogger().handlers:
        if isinstance(handler, journal.LibraryLines):
            handler.handle(logging.makeLogRecord(broken))
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("asyncio").exception("unhandled")
    text = stream.getvalue()
    assert "nothing to see" not in text
    assert "library_said library=paho.mqtt text='refused mqtt://[redacted]@h'" in text
    assert "text='broken %d'" in text
    assert "OSError: gone" in text
    assert "Zq7pW9xK2mT5" not in text


def test_configuring_twice_says_nothing_twice() -> None:
    plain_lines()
    stream = plain_lines()
    logging.getLogger("aiohttp").warning("once")
    assert stream.getvalue().count("once") == 1


def test_a_stream_that_went_away_breaks_nothing(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", closefd=True) as stream:
        journal.configure_logging("info", stream=stream, environ={})
        structlog.get_logger().info("event_delivered")
        with pytest.raises(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def test_a_repeated_fault_is_said_at_its_beginning_with_a_count_and_at_its_end() -> None:
    stream = plain_lines()
    fault = Repeated("cloud_paused", "cloud_resumed", every_seconds=300)
    fault.over(0)
    for second in range(0, 700, 10):
        fault.again(second * 1000, reason="401")
    fault.over(700_000)
    fault.over(710_000)
    said = [line.split(maxsplit=1)[1] for line in stream.getvalue().splitlines()]
    assert said == [
        "warning  cloud_paused reason=401",
        "warning  cloud_paused count=31 seconds=300.0 reason=401",
        "warning  cloud_paused count=61 seconds=600.0 reason=401",
        "info     cloud_resumed count=70 seconds=700.0",
    ]


# --- control channel ---


async def echo(request: dict[str, Any]) -> dict[str, Any]:
    return {"heard": request}


async def test_a_running_gateway_answers_and_only_to_its_owner(tmp_path: Path) -> None:
    path = socket_path(tmp_path / "outbox.db")
    assert path.parent == tmp_path
    server = ControlServer(path, echo)
    await server.start()
    try:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask(path, {"do": "status", "name": "Tür"}) == {"heard": {"do": "status", "name": "Tür"}}
    finally:
        await server.stop()
    assert not path.exists()


async def test_two_outboxes_in_one_folder_have_two_channels(tmp_path: Path) -> None:
    assert socket_path(tmp_path / "a.db") != socket_path(tmp_path / "a.sqlite")


async def test_nobody_listening_is_no_error(tmp_path: Path) -> None:
    assert await ask(tmp_path / "nobody.sock", {}) is None
    assert await ask(tmp_path / "no" / "folder" / "x.sock", {}) is None


async def test_the_socket_of_a_killed_gateway_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert await ask(path, {}) is None
    server = ControlServer(path, echo)
    await server.start()
    try:
        assert await ask(path, {"n": 1}) == {"heard": {"n": 1}}
    finally:
        await server.stop()


async def test_a_file_that_is_no_socket_is_never_removed(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db.sock"
    path.write_text("mine")
    with pytest.raises(OSError, match="in use"):
        await ControlServer(path, echo).start()
    assert path.read_text() == "mine"


async def test_a_successor_keeps_its_socket_when_the_predecessor_stops(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db.sock"
    first, second = ControlServer(path, echo), ControlServer(path, echo)
    await first.start()
    await second.start()
    await first.stop()
    try:
        assert await ask(path, {}) == {"heard": {}}
    finally:
        await second.stop()


async def test_a_folder_however_deep_holds_a_channel(tmp_path: Path) -> None:
    """unix(7): an address is at most 107 bytes."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    path = socket_path(deep / "outbox.db")
    server = ControlServer(path, echo)
    await server.start()
    try:
        assert path.is_socket()
        assert await ask(path, {"n": 2}) == {"heard": {"n": 2}}
    finally:
        await server.stop()
    assert not path.exists()


async def raw_exchange(path: Path, sent: bytes) -> list[dict[str, Any]]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(sent)
    writer.write_eof()
    answers = [json.loads(line) for line in (await reader.read()).splitlines()]
    writer.close()
    await writer.wait_closed()
    return answers


async def test_what_is_no_request_gets_an_error_and_the_next_one_its_answer(tmp_path: Path) -> None:
    path = tmp_path / "x.sock"
    server = ControlServer(path, echo)
    await server.start()
    try:
        answers = await raw_exchange(path, b'{"a":\n[1]\n\xff\n{"n": 3}\n')
        assert answers == [
            {"error": "not JSON"},
            {"error": "not a JSON object"},
            {"error": "not JSON"},
            {"heard": {"n": 3}},
        ]
        with contextlib.suppress(ConnectionError):  # closed while much is unread: a reset
            assert await raw_exchange(path, b"x" * (2 << 20) + b"\n") == []
        assert await ask(path, {"n": 4}) == {"heard": {"n": 4}}
    finally:
        await server.stop()


async def test_a_fault_inside_an_answer_is_told_and_contained(tmp_path: Path) -> None:
    async def broken(request: dict[str, Any]) -> dict[str, Any]:
        raise KeyError("camera")

    stream = plain_lines()
    path = tmp_path / "x.sock"
    server = ControlServer(path, broken)
    await server.start()
    try:
        assert await ask(path, {}) == {"error": "KeyError: 'camera'"}
        assert await ask(path, {}) == {"error": "KeyError: 'camera'"}
    finally:
        await server.stop()
    assert "control_request_failed" in stream.getvalue()


async def test_a_gateway_that_does_not_answer_is_a_timeout_and_stops_all_the_same(tmp_path: Path) -> None:
    async def silent(request: dict[str, Any]) -> dict[str, Any]:
        await asyncio.Event().wait()
        return {}

    path = tmp_path / "x.sock"
    server = ControlServer(path, silent)
    await server.start()
    with pytest.raises(TimeoutError):
        await ask(path, {}, timeout=0.05)
    waiting = asyncio.create_task(ask(path, {}))
    await until(lambda: server._connections)
    await server.stop()
    assert await waiting is None


@pytest.mark.parametrize("said", [b"220 smtp ready\n", b"[1]\n", b"\xff\n"])
async def test_what_answers_but_is_no_gateway_is_an_error(tmp_path: Path, said: bytes) -> None:
    async def stranger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(stranger, str(tmp_path / "x.sock"))
    async with server:
        with pytest.raises(ControlError):
            await ask(tmp_path / "x.sock", {})


async def test_an_answer_that_was_cut_off_is_none(tmp_path: Path) -> None:
    async def dying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(b'{"state": ')
        writer.close()

    server = await asyncio.start_unix_server(dying, str(tmp_path / "x.sock"))
    async with server:
        assert await ask(tmp_path / "x.sock", {}) is None


async def test_long_answers_arrive_whole(tmp_path: Path) -> None:
    async def long(request: dict[str, Any]) -> dict[str, Any]:
        return {"cameras": ["x" * 100] * 20_000}

    server = ControlServer(tmp_path / "x.sock", long)
    await server.start()
    try:
        answer = await ask(tmp_path / "x.sock", {})
        assert answer is not None
        assert len(answer["cameras"]) == 20_000
    finally:
        await server.stop()
